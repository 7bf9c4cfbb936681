"""One event as a JSON object → a row: which names a field may have, how long it may be, what it becomes.

This is the whole law of an event. `native_events` is its short form for events in the native names.

A field is taken from the first of its names that has a value; null is the same as leaving it out. Names that
are not known are ignored. Ids may be integers, which are taken as their digits, and an empty id is no id.
`url`, `path`, `user_agent` and `ip_address` beside the context go into it where it has none.
"""

from datetime import UTC, datetime, timedelta
from socket import AF_INET, AF_INET6, inet_pton
from typing import NamedTuple, cast

import msgspec

from config.settings import GatewaySettings
from gateway.event_times import read_time
from gateway.json_checks import (
    EventRefused,
    JsonChecker,
    check_characters,
    check_number,
    count_keys,
    have_more_zeros,
    may_have_more,
    most_values,
)
from gateway.json_split import outline
from gateway.rows import Row

JsonObject = dict[str, object]

MAX_EVENT_TYPE_CHARS = 100
MAX_EVENT_ID_CHARS = 128
MAX_PERSON_ID_CHARS = 256
MAX_SITE_ID_CHARS = 253
"""A DNS name has at most that many."""

_EVENT_TYPE = ("eventType", "event_type")
_EVENT_ID = ("eventId", "event_id")
_USER_ID = ("userId", "user_id")
_ANONYMOUS_ID = ("anonymousId", "anonymous_id", "visitorId", "visitor_id")
_SESSION_ID = ("sessionId", "session_id")
_SITE_ID = ("siteId", "site_id")
_PROJECT_ID = ("projectId", "project_id")
_TIMESTAMP = ("timestamp", "createdAt", "created_at")
_PROPERTIES = ("properties", "eventData", "event_data", "data")
_CONTEXT = ("context",)
_URL = ("url",)
_PATH = ("path",)
_USER_AGENT = ("userAgent", "user_agent")
_IP = ("ipAddress", "ip_address")

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_encoder = msgspec.json.Encoder()


class Terms(NamedTuple):
    """What the events of one request are held against."""

    project_id: str
    now: datetime
    earliest: datetime
    latest: datetime


class TermsOfEvents:
    """Makes the terms of a request. An import may bring events from 1970 on."""

    def __init__(self, limits: GatewaySettings) -> None:
        self._age = timedelta(seconds=limits.max_event_age_s)
        self._ahead = timedelta(seconds=limits.max_event_ahead_s)

    def at(self, now: datetime, *, project_id: str, import_old: bool) -> Terms:
        """`now` must be aware."""
        if now.tzinfo is not UTC:
            now = now.astimezone(UTC)
        return Terms(project_id, now, _EPOCH if import_old else now - self._age, now + self._ahead)


class FieldReader:
    """Makes rows of events. An id that is missing is left empty, for the decoder to make in bulk."""

    def __init__(self, limits: GatewaySettings) -> None:
        self._max_keys = limits.max_keys
        self._max_values = limits.max_values
        self._max_zeros = limits.max_event_bytes
        self._checker = JsonChecker(limits)

    def row(self, event: object, terms: Terms, *, checked: bool) -> Row:
        """Raises `EventRefused`. `checked`: the values have been through `json_checks.object_type`."""
        if not isinstance(event, dict):
            raise EventRefused("not_an_object", "An event is a JSON object; send one object for each event.")
        _check_project(event, terms)
        event_type = _event_type(event)
        time = _time(event, terms)
        properties = self._object(event, _PROPERTIES, checked=checked) or {}
        context = self._context(event, checked=checked)
        encoded_properties = _encoder.encode(properties)
        encoded_context = None if context is None else _encoder.encode(context)
        if may_have_more(encoded_properties, encoded_context or b"", self._max_keys, self._max_values):
            self._check_values(encoded_properties, encoded_context or b"")
            self._check_keys(properties, context)
        if have_more_zeros(encoded_properties, encoded_context or b"", self._max_zeros):
            message = f"The numbers have more than {self._max_zeros} digits without their exponents; send strings."
            raise EventRefused("event_too_large", message)
        return Row(
            event_id=_text(event, _EVENT_ID, MAX_EVENT_ID_CHARS) or "",
            event_type=event_type,
            user_id=_text(event, _USER_ID, MAX_PERSON_ID_CHARS),
            anonymous_id=_text(event, _ANONYMOUS_ID, MAX_PERSON_ID_CHARS),
            session_id=_text(event, _SESSION_ID, MAX_PERSON_ID_CHARS),
            site_id=_text(event, _SITE_ID, MAX_SITE_ID_CHARS),
            timestamp=time,
            properties=encoded_properties,
            context=encoded_context,
        )

    def _object(self, event: JsonObject, names: tuple[str, ...], *, checked: bool) -> JsonObject | None:
        name, value = _pick(event, names)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise EventRefused("invalid_field", f"{name} must be a JSON object.", name)
        if not checked:
            try:
                self._checker.check(value)
            except EventRefused as refused:
                raise refused.below(name) from None
        return cast(JsonObject, value)

    def _context(self, event: JsonObject, *, checked: bool) -> JsonObject | None:
        context = self._object(event, _CONTEXT, checked=checked)
        if context is not None and "ip" in context:
            context = context | {"ip": _address(context["ip"], "context", "ip")}
        ip_name, ip = self._beside(event, _IP)
        outer = {"ip": _address(ip, ip_name), "userAgent": self._beside(event, _USER_AGENT)[1]}
        page = {"url": self._beside(event, _URL)[1], "path": self._beside(event, _PATH)[1]}
        if any(page.values()):
            inner = (context or {}).get("page")
            if inner is not None and not isinstance(inner, dict):
                raise EventRefused("invalid_field", "context.page must be a JSON object.", "context", "page")
            context = (context or {}) | {"page": _filled(inner or {}, page)}
        return _filled(context or {}, outer) if any(outer.values()) else context

    def _beside(self, event: JsonObject, names: tuple[str, ...]) -> tuple[str, str | None]:
        """A text that belongs into the context and was sent beside it."""
        name, value = _pick(event, names)
        if value is None or value == "":
            return name, None
        if not isinstance(value, str):
            raise EventRefused("invalid_field", f"{name} must be a string.", name)
        try:
            self._checker.check_text(value)
        except EventRefused as refused:
            raise refused.below(name) from None
        return name, value

    def _check_keys(self, properties: JsonObject, context: JsonObject | None) -> None:
        keys = count_keys(properties) + count_keys(context)
        if keys > self._max_keys:
            message = f"The event has {keys} keys; send at most {self._max_keys}."
            raise EventRefused("too_many_keys", message)

    def _check_values(self, properties: bytes, context: bytes) -> None:
        if most_values(properties) + most_values(context) > self._max_values:
            values = outline(properties).values + outline(context).values
            if values > self._max_values:
                raise too_many_values(values, self._max_values)


def too_many_values(values: int, max_values: int) -> EventRefused:
    return EventRefused("too_many_values", f"The event has {values} values; send at most {max_values}.")


def event_id_of(event: object) -> str | None:
    """The id that an event was sent with, if it has a usable one: to name it in its rejection."""
    if not isinstance(event, dict):
        return None
    try:
        return _text(event, _EVENT_ID, MAX_EVENT_ID_CHARS)
    except EventRefused:
        return None  # its rejection says so already


def is_address(value: object) -> bool:
    """Whether this is the text of an IPv4 or IPv6 address, without zone or port."""
    if not isinstance(value, str):
        return False
    try:
        inet_pton(AF_INET6 if ":" in value else AF_INET, value)
    except (OSError, ValueError):
        return False
    return True


def _pick(event: JsonObject, names: tuple[str, ...]) -> tuple[str, object]:
    """The first name that has a value, and the value; the first name and None when none has."""
    for name in names:
        value = event.get(name)
        if value is not None:
            return name, value
    return names[0], None


def _text(event: JsonObject, names: tuple[str, ...], max_chars: int) -> str | None:
    name, value = _pick(event, names)
    try:
        text = _as_text(value, name)
        if len(text) > max_chars:
            message = f"{name} has {len(text)} characters; send at most {max_chars}."
            raise EventRefused("field_too_long", message)
        check_characters(text)
    except EventRefused as refused:
        raise refused.below(name) from None
    return text or None


def _as_text(value: object, name: str) -> str:
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    check_number(value)
    if type(value) is int:
        return str(value)
    raise EventRefused("invalid_field", f"{name} must be a string or an integer.")


def _event_type(event: JsonObject) -> str:
    name, value = _pick(event, _EVENT_TYPE)
    if value is not None and not isinstance(value, str):
        raise EventRefused("invalid_field", f"{name} must be a string.", name)
    event_type = _text(event, _EVENT_TYPE, MAX_EVENT_TYPE_CHARS)
    if event_type is None:
        message = f"The event has no eventType; send 1 to {MAX_EVENT_TYPE_CHARS} characters."
        raise EventRefused("missing_event_type", message, name)
    return event_type


def _check_project(event: JsonObject, terms: Terms) -> None:
    name, value = _pick(event, _PROJECT_ID)
    if value is None or value in ("", terms.project_id):
        return
    if type(value) is int and str(value) == terms.project_id:
        return
    message = f"{name} names another project than the key's; leave it out or use that project's key."
    raise EventRefused("project_mismatch", message, name)


def _time(event: JsonObject, terms: Terms) -> datetime:
    name, value = _pick(event, _TIMESTAMP)
    if value is None:
        return terms.now
    time = read_time(value)
    if time is None:
        message = f"{name} cannot be read; send ISO 8601 with Z or an offset, or Unix time in seconds or milliseconds."
        raise EventRefused("invalid_timestamp", message, name)
    if not terms.earliest <= time <= terms.latest:
        raise EventRefused("timestamp_out_of_range", _out_of_range(name, time, terms), name)
    return time


def _out_of_range(name: str, time: datetime, terms: Terms) -> str:
    if time > terms.latest:
        return f"{name} is later than {terms.latest:%Y-%m-%dT%H:%M:%SZ}; check the client's clock."
    bound = terms.earliest
    start = f"{name} is earlier than {bound:%Y-%m-%dT%H:%M:%SZ}; "
    if bound == _EPOCH:
        return start + "not even an import takes such times."
    return start + "to store old events, import them with an import or admin key."


def _address(value: object, *path: str) -> str | None:
    if value is None or value == "":
        return None
    if not is_address(value):
        message = "This is not an IPv4 or IPv6 address; send one without port and zone, or leave it out."
        raise EventRefused("invalid_ip", message, *path)
    return cast(str, value)


def _filled(target: JsonObject, values: dict[str, str | None]) -> JsonObject:
    """The object, with the values that it has none of."""
    return target | {key: value for key, value in values.items() if value and target.get(key) in (None, "")}
