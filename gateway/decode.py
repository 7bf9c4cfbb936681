"""From the plain bytes of a request to checked rows: an outcome for every event, in the order they were sent.

The law:
- One bad event never spoils the rest. Only a body in which the events cannot even be told apart is refused
  as a whole (`ApiError`).
- A row's `properties` and `context` are JSON that PostgreSQL, Parquet and DuckDB all take, whatever was
  sent (see `json_checks`).
- A pointer in a rejection is relative to its event.

Three ways to read lead to the same rows, each slower and more patient than the one before:
  1. `native_events`: all events at once by their type, in the native names;
  2. the type of a JSON object, then `event_fields`: all names, bad fields told apart;
  3. `parse_leniently` and the checker, one event at a time: says what is wrong inside it. An event whose text has
     more values than one may have does not come so far.
A body that 1 and 2 do not take is cut into events (`json_split`), and they are tried on groups of those,
so that a bad event costs its group more and the rest nothing. A body above `_WHOLE_BYTES` is cut at once: a
hostile one grows at most 30-fold when it is decoded, and what is decoded at a time is bounded by that.

Measured (load_tests/measure_decode.py) with 420-byte events, in µs an event: 2.2 in a batch of 100, 2.7 without
ids, 7.4 in snake_case, 6.0 when one of the hundred is bad, 4.9 as a single event. Properties kept as the
client's text, unchecked, cost 0.4; a scan of that text cannot see repeated keys, so it is no choice.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from typing import Any, Generic, Literal, NamedTuple, TypeVar

import msgspec

from config.settings import GatewaySettings
from gateway.errors import ApiError
from gateway.event_fields import (
    FieldReader,
    JsonObject,
    Terms,
    TermsOfEvents,
    event_id_of,
    too_many_values,
)
from gateway.event_ids import RandomBytes, make_event_ids
from gateway.json_checks import (
    TYPED_DEPTH,
    UNREADABLE,
    EventRefused,
    may_have_more_values,
    may_hold_nul,
    object_type,
    parse_leniently,
    too_deep,
)
from gateway.json_split import (
    is_one_object,
    outline,
    split_array,
    split_envelope,
    split_lines,
    too_many_events,
    why_malformed,
)
from gateway.native_events import NativeEvent, native_event_type, native_row, native_rows
from gateway.rows import Decoded, Rejection, Row
from gateway.steps import Steps, run_to_end

Form = Literal["array", "envelope", "lines"]

LINE_TYPES = frozenset({"application/x-ndjson", "application/ndjson", "application/jsonl"})

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_WHITESPACE = b" \t\r\n"
_WHOLE_BYTES = 1024 * 1024
_GROUP_EVENTS = 32

Event = TypeVar("Event")


class Refused(NamedTuple):
    """The outcome of an event that was not taken."""

    rejection: Rejection
    event_id: str | None


Outcome = Row | Refused


class _Envelope(msgspec.Struct, Generic[Event]):
    events: list[Event]


class _BodyReader(Generic[Event]):
    """The strict decoders of one type of event. Raise `UNREADABLE`."""

    def __init__(self, event_type: Any) -> None:
        array: Any = list
        envelope: Any = _Envelope
        self.one: Callable[[bytes], Event] = msgspec.json.Decoder(event_type).decode
        self._array: Callable[[bytes], list[Event]] = msgspec.json.Decoder(array[event_type]).decode
        self._envelope: Callable[[bytes], _Envelope[Event]] = msgspec.json.Decoder(envelope[event_type]).decode

    def whole(self, form: Form, body: bytes) -> list[Event]:
        return self._array(body) if form == "array" else self._envelope(body).events

    def each(self, pieces: list[bytes]) -> list[Event]:
        one = self.one
        return [one(piece) for piece in pieces]


class Decoder:
    """Stateless between calls; safe to use from several threads."""

    def __init__(self, limits: GatewaySettings, *, random_bytes: RandomBytes = os.urandom) -> None:
        self._limits = limits
        self._random_bytes = random_bytes
        self._whole_bytes = min(_WHOLE_BYTES, limits.max_event_bytes)
        self._native: _BodyReader[NativeEvent[JsonObject]] = _BodyReader(native_event_type(limits))
        # An event is one level around its properties; its other values are checked with them.
        depth = 1 + min(limits.max_depth, TYPED_DEPTH)
        self._plain: _BodyReader[JsonObject] = _BodyReader(object_type(limits, depth=depth))
        self._fields = FieldReader(limits)
        self._terms = TermsOfEvents(limits)

    def single(self, body: bytes, *, project_id: str, now: datetime, import_old: bool) -> Decoded:
        """One event. Raises `ApiError` invalid_json; any other fault is a rejection."""
        terms = self._terms.at(now, project_id=project_id, import_old=import_old)
        outcome = self._one(_without_mark(body), terms)
        if type(outcome) is Refused and outcome.rejection.code == "invalid_json":
            raise ApiError("invalid_json", outcome.rejection.message)
        return self._decoded([outcome], terms)

    def batch(
        self, body: bytes, *, content_type: str | None, project_id: str, now: datetime, import_old: bool
    ) -> Decoded:
        """An array, {"events": […]} or NDJSON. Raises `ApiError`: invalid_json, invalid_body, too_many_events."""
        return run_to_end(
            self.batch_steps(body, content_type=content_type, project_id=project_id, now=now, import_old=import_old)
        )

    def batch_steps(
        self, body: bytes, *, content_type: str | None, project_id: str, now: datetime, import_old: bool
    ) -> Steps[Decoded]:
        """As `batch`, with a pause before whatever may take long: a body of 1 MiB, or one event on the third way."""
        body = _without_mark(body)
        terms = self._terms.at(now, project_id=project_id, import_old=import_old)
        form = _form_of(body, content_type)
        if form != "lines" and len(body) <= self._whole_bytes:
            outcomes = self._whole(form, body, terms)
            if outcomes is not None:
                return self._decoded(outcomes, terms)
            yield 0
        decoded: list[Outcome] = []
        for group in _groups(self._pieces(form, body)):
            yield 0
            decoded += yield from self._group(group, terms)
        return self._decoded(decoded, terms)

    def _whole(self, form: Form, body: bytes, terms: Terms) -> Sequence[Outcome] | None:
        """None when the body cannot be read as a whole."""
        if may_hold_nul(body):
            return None
        return self._outcomes(lambda: self._native.whole(form, body), lambda: self._plain.whole(form, body), terms)

    def _pieces(self, form: Form, body: bytes) -> list[bytes]:
        split = {"array": split_array, "envelope": split_envelope, "lines": split_lines}[form]
        return split(body, max_events=self._limits.max_events_per_request)

    def _group(self, pieces: list[bytes], terms: Terms) -> Steps[Sequence[Outcome]]:
        if max(map(len, pieces)) <= self._limits.max_event_bytes and not any(map(may_hold_nul, pieces)):
            outcomes = self._outcomes(lambda: self._native.each(pieces), lambda: self._plain.each(pieces), terms)
            if outcomes is not None:
                return outcomes
        alone: list[Outcome] = []
        for piece in pieces:
            yield 0
            alone.append(self._one(piece, terms))
        return alone

    def _outcomes(
        self,
        native: Callable[[], list[NativeEvent[JsonObject]]],
        plain: Callable[[], list[JsonObject]],
        terms: Terms,
    ) -> Sequence[Outcome] | None:
        """The first and the second way, on the same input."""
        try:
            events = native()
        except UNREADABLE:
            pass  # the second way takes more
        else:
            self._check_count(events)
            rows = native_rows(events, terms, self._limits)
            if rows is not None:
                return rows
        try:
            objects = plain()
        except UNREADABLE:
            return None
        self._check_count(objects)
        return [self._outcome(event, terms, checked=True) for event in objects]

    def _one(self, piece: bytes, terms: Terms) -> Outcome:
        """All three ways, on one event."""
        if len(piece) > self._limits.max_event_bytes:
            message = f"The event has {len(piece)} bytes; send at most {self._limits.max_event_bytes}."
            return Refused(Rejection("event_too_large", message), None)
        if not may_hold_nul(piece):
            row = self._native_row(piece, terms)
            if row is not None:
                return row
            try:
                event = self._plain.one(piece)
            except UNREADABLE:
                pass  # the third way takes more, or says why not
            else:
                return self._outcome(event, terms, checked=True)
        try:
            self._check_outline(piece)
            value = parse_leniently(piece)
        except EventRefused as refused:
            return Refused(refused.rejection(), None)
        return self._outcome(value, terms, checked=False)

    def _native_row(self, piece: bytes, terms: Terms) -> Row | None:
        try:
            event = self._native.one(piece)
        except UNREADABLE:
            return None
        return native_row(event, terms, self._limits)

    def _check_outline(self, piece: bytes) -> None:
        """Raises `EventRefused` for what would take long to walk over."""
        if not may_have_more_values(piece, self._limits.max_values):
            return
        values, depth = outline(piece)
        if values > self._limits.max_values:
            # Brackets that open without end are values of each other: what is wrong with them is the depth.
            raise too_deep() if depth > self._limits.max_depth + 1 else too_many_values(values, self._limits.max_values)

    def _outcome(self, event: object, terms: Terms, *, checked: bool) -> Outcome:
        try:
            return self._fields.row(event, terms, checked=checked)
        except EventRefused as refused:
            return Refused(refused.rejection(), event_id_of(event))

    def _check_count(self, events: list[Any]) -> None:
        if len(events) > self._limits.max_events_per_request:
            raise too_many_events(self._limits.max_events_per_request)

    def _decoded(self, outcomes: Sequence[Outcome], terms: Terms) -> Decoded:
        rows = [outcome for outcome in outcomes if type(outcome) is Row]
        nameless = [row for row in rows if not row.event_id]
        if nameless:
            made = make_event_ids(len(nameless), now=terms.now, random_bytes=self._random_bytes)
            for row, event_id in zip(nameless, made, strict=True):
                row.event_id = event_id
        rejections = {}
        if len(rows) < len(outcomes):
            rejections = {
                index: outcome.rejection for index, outcome in enumerate(outcomes) if type(outcome) is Refused
            }
        return Decoded(len(outcomes), rows, rejections, [outcome.event_id for outcome in outcomes])


def _without_mark(body: bytes) -> bytes:
    """The body without a byte order mark. Raises `ApiError` invalid_json when nothing is left."""
    body = body.removeprefix(_BYTE_ORDER_MARK)
    if not body or body.isspace():
        raise ApiError("invalid_json", "The body is empty; send JSON.")
    return body


def _form_of(body: bytes, content_type: str | None) -> Form:
    """Raises `ApiError` when the body is neither an array nor an object."""
    media_type = (content_type or "").partition(";")[0].strip().lower()
    if media_type in LINE_TYPES:
        return "lines"
    body = body.lstrip(_WHITESPACE)
    if body.startswith(b"["):
        return "array"
    if not body.startswith(b"{"):
        raise ApiError("invalid_json", f"This is not a JSON array or object: {why_malformed(body)}.")
    first, _, rest = body.partition(b"\n")
    return "lines" if rest and not rest.isspace() and is_one_object(first) else "envelope"


def _groups(pieces: list[bytes]) -> Iterator[list[bytes]]:
    """Neighbours, so many that the decoded form of a group stays small."""
    group: list[bytes] = []
    group_bytes = 0
    for piece in pieces:
        if group and (len(group) >= _GROUP_EVENTS or group_bytes + len(piece) > _WHOLE_BYTES):
            yield group
            group, group_bytes = [], 0
        group.append(piece)
        group_bytes += len(piece)
    if group:
        yield group
