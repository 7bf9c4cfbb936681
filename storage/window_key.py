"""Which window a number belongs to: its key, its name in Redis, and the times that windows go by.

Windows are tumbling, by event time in UTC, aligned to the Unix epoch; [start, start + size).

An event is **too late** iff the hour of its timestamp had ended `lateness_s` before its receipt. Both are columns of
the event, so the answer is the same on every replay, whoever looks and whenever (WM-2). It goes by whole hours because
answers do: nearly as long as an hour is answered from windows, what comes for it is in them.
"""

import re
from datetime import UTC, datetime
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from config.settings import WindowSettings

Size = Literal["1m", "5m", "1h", "1d"]
SIZE_S: dict[Size, int] = {"1m": 60, "5m": 300, "1h": 3600, "1d": 86400}

Dimensions = tuple[tuple[str, str], ...]
TOTAL: Dimensions = ()
OTHER = "__other__"
"""The value of every dimension of the group that takes what is beyond `windows.max_groups`; see `other`."""

_HOUR_S = 3600
_HOUR_US = _HOUR_S * 1_000_000
_NEVER_LATE_MARGIN_S = 2 * 3600  # an hour's first minute is in Redis for an hour less than this beyond its last event
_SEAM_MARGIN_S = 300  # events on their way are counted before their hour is answered from roll-ups

_KEPT_TEXTS = 16_384
_ESCAPED = re.compile(r"[%:\x00-\x1f\x7f]")


class WindowKey(NamedTuple):
    """One window of one metric. `start`: seconds since the epoch, a multiple of the size.

    `dimensions`: (name, value) pairs in the definition's order; `TOTAL` is over everything."""

    project_id: str
    metric: str
    size: Size
    start: int
    dimensions: Dimensions


def other(dimensions: Dimensions) -> Dimensions:
    """The group of the tuples that were not admitted."""
    return tuple((name, OTHER) for name, _ in dimensions)


def redis_key(key: WindowKey) -> str:
    """`metric:{project}:{metric}:{size}:{2024-01-15T10:30:00Z}[:{dimension}:{value}…]`.

    In names and values `%`, `:` and control characters are percent-escaped."""
    return _stem(*key[:4]) + _tail(key.dimensions)


def groups_key(project_id: str, metric: str, size: Size, start: int) -> str:
    """The set of a window's groups; its members are JSON arrays of `[name, value]`."""
    return _stem(project_id, metric, size, start) + ":groups"


# Windows are written some times a second while they are open: their names are kept.
@lru_cache(maxsize=_KEPT_TEXTS)
def _tail(dimensions: Dimensions) -> str:
    return "".join(f":{_escape(name)}:{_escape(value)}" for name, value in dimensions)


@lru_cache(maxsize=_KEPT_TEXTS)
def _stem(project_id: str, metric: str, size: Size, start: int) -> str:
    return f"metric:{_escape(project_id)}:{_escape(metric)}:{size}:{time_text(start)}"


def _escape(text: str) -> str:
    return text if _ESCAPED.search(text) is None else _ESCAPED.sub(lambda found: f"%{ord(found[0]):02X}", text)


@lru_cache(maxsize=4096)
def time_text(start: int) -> str:
    """`2024-01-15T10:30:00Z`. The start must lie in the years 1 to 9999."""
    return datetime.fromtimestamp(start, UTC).strftime("%Y-%m-%dT%H:%M:%SZ").rjust(20, "0")


def lateness_s(windows: WindowSettings) -> float:
    """For how long after its end an hour's windows are changed by events that are received."""
    return float(windows.ttl_s - _NEVER_LATE_MARGIN_S)


def live_from(now_s: float, windows: WindowSettings) -> int:
    """Start of the first hour that is answered from windows; earlier hours are answered from roll-ups."""
    return int((now_s - lateness_s(windows) - _SEAM_MARGIN_S) // _HOUR_S) * _HOUR_S


def late_mask(rows: pa.RecordBatch | pa.Table, lateness_s: float) -> NDArray[np.bool_]:
    """True for each row that is too late; rows in `storage.event_batch.COLUMNS`."""
    if not rows.num_rows:
        return np.zeros(0, np.bool_)
    ends_us = (microseconds(rows, "timestamp") // _HOUR_US + 1) * _HOUR_US
    late: NDArray[np.bool_] = ends_us + round(lateness_s * 1e6) <= microseconds(rows, "received_at")
    return late


def microseconds(rows: pa.RecordBatch | pa.Table, column: str) -> NDArray[np.int64]:
    """A timestamp column as microseconds since the epoch."""
    numbers: NDArray[np.int64] = np.asarray(rows.column(column).cast(pa.int64()))
    return numbers
