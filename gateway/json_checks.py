"""What JSON may hold inside an event: bounded depth, keys, values and texts, numbers that every store can keep.

The rule stands here twice, because speed and a good answer want different things:

- `object_type` is the rule as a msgspec type. Decoding checks it at no extra pass, down to `TYPED_DEPTH`
  levels, and says only that something is wrong;
- `JsonChecker` is the rule as a walk over a value that `parse_leniently` has let through. It is the one that
  decides, and it names the fault and its place.

What the type takes, the walk takes too (a property test holds them together). Two things the type does not
see: the character U+0000, which `may_hold_nul` finds in the text before, and what the event has altogether, which
is found in the text after: keys and values (`may_have_more`) and what exponents stand for (`have_more_zeros`).

The walk is Python and costs 0.3 µs a value, so a text with more values than an event may have is refused before it.

Numbers are signed 64-bit integers or finite doubles, as Parquet and DuckDB keep them. Events are stored as
the encoder writes them from the decoded value, never as they were sent: jsonb would turn the 8 bytes of
1e131071 into 131,072 digits, and repeated keys would mean different things to different readers. Of the 5 bytes
of 1e308 it still makes 309 digits: an event may have as many of those as it may have bytes.
"""

import json
import math
import re
from types import GenericAlias
from typing import Annotated, Any, Union

import msgspec
from msgspec import Meta

from config.settings import GatewaySettings
from gateway.rows import Rejection

TYPED_DEPTH = 8
"""The type doubles with every level: 8 cost 4 ms to build and cover all events that we have seen."""

MIN_INTEGER, MAX_INTEGER = -(2**63), 2**63 - 1

UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""What a msgspec decoder raises for input that it does not take."""

_MAX_POINTER_CHARS = 64
_MIN_BYTES_PER_KEY = 5
_MIN_BYTES_PER_VALUE = 2
_MAX_ZEROS_PER_BYTE = 52
"""Of `1e308,`, which is the worst."""
_exponents = re.compile(rb"e-?([0-9]{1,3})[,\]}]").findall
_without_strings = re.compile(rb'"(?:[^"\\]++|\\.)*+"', re.DOTALL).sub
_escaped_nul = re.compile(rb"\\u0000").search


class EventRefused(Exception):
    """One event breaks a rule. Never leaves the decoder: there it becomes a `Rejection`."""

    def __init__(self, code: str, message: str, *path: str | int) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.path = path

    def below(self, segment: str | int) -> "EventRefused":
        """The same fault, seen from one level up."""
        return EventRefused(self.code, self.message, segment, *self.path)

    def rejection(self) -> Rejection:
        return Rejection(self.code, self.message, "".join(f"/{_pointer_segment(part)}" for part in self.path))


def object_type(limits: GatewaySettings, *, depth: int) -> Any:
    """The msgspec type of a JSON object that has at most `depth` levels, itself included."""
    key: Any = Annotated[str, Meta(max_length=limits.max_key_chars)]
    text: Any = Annotated[str, Meta(max_length=limits.max_string_chars)]
    integer: Any = Annotated[int, Meta(ge=MIN_INTEGER, le=MAX_INTEGER)]
    scalar: Any = Union[None, bool, integer, float, text]  # noqa: UP007 - `|` does not take Annotated
    value = scalar
    for _ in range(depth - 1):
        value = Union[scalar, GenericAlias(list, (value,)), GenericAlias(dict, (key, value))]  # noqa: UP007
    return GenericAlias(dict, (key, value))


def may_hold_nul(text: bytes) -> bool:
    """Whether a string in this JSON may decode to one with U+0000 (which may be written in no other way)."""
    return b"\\" in text and _escaped_nul(text) is not None


def may_have_more(properties: bytes, context: bytes, max_keys: int, max_values: int) -> bool:
    """False when two texts of our encoder have at most `max_keys` keys and `max_values` values together for sure:
    a key costs `"":0,` at least, and is followed by a quote and a colon."""
    size = len(properties) + len(context)
    if size > _MIN_BYTES_PER_KEY * max_keys and properties.count(b'":') + context.count(b'":') > max_keys:
        return True
    return size > _MIN_BYTES_PER_VALUE * max_values and most_values(properties) + most_values(context) > max_values


def may_have_more_values(text: bytes, max_values: int) -> bool:
    """False when a text of JSON has at most `max_values` values for sure: each costs two bytes."""
    return len(text) > _MIN_BYTES_PER_VALUE * max_values and most_values(text) > max_values


def most_values(text: bytes) -> int:
    """At least as many values as a text of JSON has. Every value in an array or object follows its bracket or a
    comma; strings may have some of these too (`json_split.outline` looks closer)."""
    return text.count(b",") + text.count(b"[") + text.count(b"{")


def count_keys(value: object) -> int:
    """All keys of all objects in a value."""
    if type(value) is dict:
        return len(value) + sum(map(count_keys, value.values()))
    return sum(map(count_keys, value)) if type(value) is list else 0


def have_more_zeros(properties: bytes, context: bytes, max_zeros: int) -> bool:
    """Whether the numbers in two texts of our encoder have more zeros (or as many other digits) when they are written
    without exponents, as jsonb does."""
    if _MAX_ZEROS_PER_BYTE * (len(properties) + len(context)) <= max_zeros:
        return False
    texts = properties + context
    # What only looks like an exponent, in a string, is worth a second look when there is very much of it.
    return _zeros(texts) > max_zeros and _zeros(_without_strings(b"", texts)) > max_zeros


def _zeros(text: bytes) -> int:
    return sum(map(int, _exponents(text)))


def parse_leniently(text: bytes) -> object:
    """The value of JSON that the strict decoder refuses for what it contains, for `JsonChecker` to find the
    fault: bytes that are not UTF-8 become lone surrogates, NaN and numbers out of range become not finite.
    Raises `EventRefused`: invalid_json or too_deep."""
    try:
        return json.loads(text.decode("utf-8", "surrogateescape"), parse_int=_integer, parse_constant=float)
    except json.JSONDecodeError as error:
        message = f"This is not valid JSON: {error.msg} (character {error.pos})."
        raise EventRefused("invalid_json", message) from error
    except RecursionError as error:
        raise too_deep() from error


def too_deep() -> EventRefused:
    return EventRefused("too_deep", "The event is nested far too deeply; flatten it.")


def _integer(digits: str) -> int | float:
    return int(digits) if len(digits) <= 20 else math.inf


class JsonChecker:
    """Finds the first fault of a value. Raises `EventRefused` with the path to it."""

    def __init__(self, limits: GatewaySettings) -> None:
        self._max_depth = limits.max_depth
        self._max_key_chars = limits.max_key_chars
        self._max_string_chars = limits.max_string_chars

    def check(self, value: object, *, depth: int = 0) -> None:
        """`depth` is the number of levels around the value."""
        if type(value) is str:
            self.check_text(value)
        elif type(value) is dict:
            self._check_object(value, depth + 1)
        elif type(value) is list:
            self._check_array(value, depth + 1)
        else:
            check_number(value)

    def check_text(self, text: str) -> None:
        if len(text) > self._max_string_chars:
            message = f"The string has {len(text)} characters; shorten it to {self._max_string_chars}."
            raise EventRefused("string_too_long", message)
        check_characters(text)

    def _check_object(self, value: dict[str, object], depth: int) -> None:
        self._check_depth(depth)
        for key, item in value.items():
            try:
                self._check_key(key)
                self.check(item, depth=depth)
            except EventRefused as refused:
                raise refused.below(key) from None

    def _check_array(self, value: list[object], depth: int) -> None:
        self._check_depth(depth)
        for index, item in enumerate(value):
            try:
                self.check(item, depth=depth)
            except EventRefused as refused:
                raise refused.below(index) from None

    def _check_depth(self, depth: int) -> None:
        if depth > self._max_depth:
            raise EventRefused("too_deep", f"This is nested more than {self._max_depth} levels deep; flatten it.")

    def _check_key(self, key: str) -> None:
        if len(key) > self._max_key_chars:
            message = f"The key has {len(key)} characters; shorten it to {self._max_key_chars}."
            raise EventRefused("key_too_long", message)
        check_characters(key)


def check_characters(text: str) -> None:
    """Raises `EventRefused` for what PostgreSQL's text cannot keep."""
    if "\0" in text:
        raise EventRefused("nul_character", "The text has the character U+0000, which cannot be stored; remove it.")
    if text.isascii():
        return
    try:
        text.encode()
    except UnicodeEncodeError as error:
        message = "The text is not valid UTF-8 or has half of a surrogate pair; send whole characters."
        raise EventRefused("invalid_unicode", message) from error


def check_number(value: object) -> None:
    """Raises `EventRefused` for a number that is neither a signed 64-bit integer nor a finite double."""
    if isinstance(value, int):
        fits = MIN_INTEGER <= value <= MAX_INTEGER
    else:
        fits = not isinstance(value, float) or math.isfinite(value)
    if not fits:
        message = "The number fits neither a signed 64-bit integer nor a finite double; send it as a string."
        raise EventRefused("number_out_of_range", message)


def _pointer_segment(part: str | int) -> str:
    """RFC 6901, shortened, and with what cannot be written in UTF-8 spelt out."""
    text = str(part)
    short = text if len(text) <= _MAX_POINTER_CHARS else text[:_MAX_POINTER_CHARS] + "…"
    plain = short.encode("utf-8", "backslashreplace").decode().replace("\0", "\\u0000")
    return plain.replace("~", "~0").replace("/", "~1")
