"""The forms in which clients send a time, read into aware UTC datetimes."""

import math
from datetime import UTC, datetime, timedelta

import msgspec

MILLISECONDS_FROM = 1e11
"""A number from here on counts milliseconds (1973 and later), below it seconds (until the year 5138)."""

MAX_TEXT_CHARS = 64

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def read_time(value: object) -> datetime | None:
    """A text in ISO 8601 (without an offset: UTC) or a number of seconds or milliseconds since the Unix
    epoch, to the microsecond; None when it is neither or beyond the years 1 to 9999."""
    if isinstance(value, datetime):
        return _in_utc(value)
    if isinstance(value, str):
        return _from_text(value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return _from_number(value)
    return None


def _from_text(text: str) -> datetime | None:
    if len(text) > MAX_TEXT_CHARS:
        return None
    try:
        return _in_utc(msgspec.convert(text, datetime))
    except msgspec.ValidationError:
        pass  # not RFC 3339; ISO 8601 has more forms
    try:
        return _in_utc(datetime.fromisoformat(text))
    except ValueError:
        return None


def _from_number(number: float) -> datetime | None:
    try:
        if not math.isfinite(number):
            return None
        if abs(number) < MILLISECONDS_FROM:
            return _EPOCH + timedelta(seconds=number)
        return _EPOCH + timedelta(milliseconds=number)
    except OverflowError:
        return None


def _in_utc(time: datetime) -> datetime | None:
    if time.tzinfo is UTC:
        return time
    if time.tzinfo is None:
        return time.replace(tzinfo=UTC)
    try:
        return time.astimezone(UTC)
    except OverflowError:
        return None
