"""Roll-ups: closed windows kept for long, and the days that must be counted again. `PostgresRollups` and
`MemoryRollups` both keep this contract.

The law:
- Rows are absolute values. An `upsert` carries (epoch, next_offset): how far the partition's log was counted. A row
  that was written under a later pair stays as it is; the same pair writes again.
- `remove_others` takes away what was counted once and is not any more (a definition that was changed, a record that was
  set aside). A row that is gone cannot say how far it was counted: so after it no row of the partition is written under
  an earlier pair, by whomever, whenever. Under the same pair only its own owner writes, who sees to the order.
- `replace` puts what was counted from the stored events in the place of everything that was there, in one
  transaction. It knows events that came too late for any window, so no `upsert` changes its rows afterwards: who
  counts an event into an hour that may be recomputed already marks the day (`mark_days`). Rows that are as they
  should be are not written.
- Who counts days again begins with `begin_recount`, before the events are read: of two who do, the one who began last
  writes, and the other is `Fenced` (FN-1), whether it is alive, a ghost, or in another process.
- A mark of a late day is set by the transaction that stores the late events (`PostgresStore`), so that it can be seen
  as soon as they can. `clear_late_days` takes away only a mark that is still the one that was read: who reads the
  mark first, then the events, and clears it at last, misses none. A mark that was renewed meanwhile waits anew.
- Calls end at their deadline with `Unavailable`; every one of them may be repeated.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Literal, NamedTuple, Protocol

import numpy as np
from xxhash import xxh3_64_intdigest

from storage.aggregate import Aggregate, Aggregation, decode_aggregate, is_sketched
from storage.window_key import SIZE_S, Dimensions, Size, WindowKey

RolledSize = Literal["1m", "1h", "1d"]
ROLLED: tuple[RolledSize, ...] = ("1m", "1h", "1d")
GRANULARITY: dict[Size, str] = {"1m": "minute", "1h": "hour", "1d": "day"}
"""Five minutes are merged from minutes where they are asked for."""

DAY_S = 86400


class LateDay(NamedTuple):
    """A UTC day of event time with events that no window counted."""

    project_id: str
    day: date
    version: int

    @property
    def start(self) -> int:
        """Seconds since the epoch."""
        return day_start(self.day)


@dataclass(frozen=True)
class RollupSeries:
    """The rows of one group, oldest first; all columns have one length. A column that was not asked for is as if there
    was nothing in it."""

    dimensions: Dimensions
    starts: np.ndarray
    """int64, seconds since the epoch."""
    counts: np.ndarray
    """int64"""
    sums: Sequence[str]
    """`decimal_text` of each; "0" where there is none."""
    minima: np.ndarray
    """float64, NaN where there is none."""
    maxima: np.ndarray
    sketches: Sequence[bytes | None] | None
    """Encoded aggregates; None when no row has one."""

    def aggregate(self, row: int) -> Aggregate:
        """The row as it was written, if all columns were asked for. Raises `FormatError` for damaged bytes."""
        encoded = self.sketches[row] if self.sketches else None
        if encoded is not None:
            return decode_aggregate(encoded)
        return Aggregate(
            count=int(self.counts[row]),
            total=Decimal(self.sums[row]),
            minimum=_number(self.minima[row]),
            maximum=_number(self.maxima[row]),
        )


@dataclass(frozen=True)
class RollupColumns:
    series: Sequence[RollupSeries]
    """In the order of their dimensions; [] when there is nothing."""


class TooManyRows(Exception):
    """There are more than `max_rows`."""


class RollupStore(Protocol):
    async def upsert(self, rows: Sequence[tuple[WindowKey, Aggregate]], *, epoch: int, next_offset: int) -> None:
        """Write windows of 1m, 1h or 1d, each at most once; see the law. `ValueError` for another size."""

    async def remove_others(
        self,
        project_id: str,
        metrics: Sequence[str],
        start: int,
        end: int,
        counted: Sequence[WindowKey],
        *,
        epoch: int,
        next_offset: int,
    ) -> int:
        """Of these metrics of the project, delete the minutes and hours in [start, end) that are not among `counted`;
        see the law. How many. What was recomputed stays, it knows better."""

    async def begin_recount(self, project_ids: Sequence[str], start: int, end: int) -> int:
        """A ticket for all days that [start, end) touches; those that others have for them are void."""

    async def replace(
        self,
        project_ids: Sequence[str],
        start: int,
        end: int,
        rows: Sequence[tuple[WindowKey, Aggregate]],
        *,
        ticket: int | None,
        sizes: Sequence[RolledSize] = ROLLED,
    ) -> int:
        """Of these projects, delete the minutes and hours in [start, end) and the days that lie wholly in it, of the
        sizes that are named, and write `rows` instead, which must be among these. How many rows this changes; without a
        `ticket` it is only counted.

        Seconds since the epoch, whole hours. Raises `Fenced` when the ticket is void for a day of the range.
        """

    async def end_recount(
        self, start: int, end: int, built: Mapping[str, str], *, ticket: int, audited: bool = False
    ) -> None:
        """All of it was replaced. `built`: with which metrics, by project, see `analytics_actors.windows
        .definition_book`; `audited`: by the daily job. Raises `Fenced`."""

    async def read(
        self,
        project_id: str,
        metric: str,
        size: RolledSize,
        start: int,
        end: int,
        *,
        grouped: bool,
        wanted: Aggregation | None = None,
        max_rows: int | None = None,
    ) -> RollupColumns:
        """The rows with `start` <= start < `end`: all groups (but not the total), or the total alone. Times and counts,
        and the columns that the values of the `wanted` aggregation are made of; without it all. Raises
        `TooManyRows`."""

    async def late_days(
        self, partitions: Sequence[int], *, quiet_s: float, max_wait_s: float, limit: int
    ) -> list[LateDay]:
        """Marks of these partitions' projects that were not renewed for `quiet_s`, or were set `max_wait_s` ago;
        those that wait longest first."""

    async def clear_late_days(self, days: Sequence[LateDay]) -> None:
        """Take the marks away whose version is still this one."""

    async def mark_days(self, project_id: str, days: Sequence[date] | None = None) -> int:
        """Mark these days, or all that hold stored events of the project; returns how many."""

    async def days_left(self, project_id: str) -> int:
        """Marks of the project, of whatever origin: the progress of a backfill."""

    async def close(self) -> None:
        """A connection that was given stays open: it is its owner's."""


def day_start(day: date) -> int:
    return int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp())


def day_of(second: int) -> date:
    # Not fromtimestamp: some systems refuse times before 1970 there.
    return date(1970, 1, 1) + timedelta(days=second // DAY_S)


def days_within(start: int, end: int) -> list[date]:
    """Every day that [start, end) touches."""
    return [day_of(second) for second in range(start // DAY_S * DAY_S, end, DAY_S)]


def dimensions_hash(dimensions: Dimensions) -> int:
    """Names a group among a window's, signed 64 bits; 0 is the total. Some thousand groups do not collide."""
    if not dimensions:
        return 0
    digest = xxh3_64_intdigest("\0".join(part for pair in dimensions for part in pair).encode())
    return digest - (1 << 63)


def check_rolled(keys: Sequence[WindowKey]) -> None:
    for key in keys:
        if key.size not in GRANULARITY:
            raise ValueError(f"windows of {key.size} are not rolled up, only {', '.join(GRANULARITY)}")


def check_range(
    start: int, end: int, keys: Sequence[WindowKey], project_ids: Sequence[str], sizes: Sequence[RolledSize]
) -> None:
    """That all windows are among those that are replaced, so that none is left behind by the next time."""
    check_rolled(keys)
    if not {key.size for key in keys} <= set(sizes):
        raise ValueError(f"only {', '.join(sizes)} are replaced")
    if start % SIZE_S["1h"] or end % SIZE_S["1h"] or start > end:
        raise ValueError(f"[{start}, {end}) is no range of whole hours")
    projects = set(project_ids)
    for key in keys:
        if key.project_id not in projects or key.start < start or key.start + SIZE_S[key.size] > end:
            raise ValueError(f"{key} is not in [{start}, {end}) of the projects that are replaced")


def wanted_columns(wanted: Aggregation | None) -> tuple[bool, bool, bool, bool]:
    """Whether values of the aggregation are made of the sums, minima, maxima, and sketches."""
    if wanted is None:
        return True, True, True, True
    return wanted in ("sum", "mean"), wanted == "min", wanted == "max", is_sketched(wanted)


def metric_type(aggregation: Aggregation | None, aggregate: Aggregate) -> Aggregation:
    """What the row's value is: the metric's aggregation or, where it is not known, what the aggregate tells."""
    if aggregation is not None:
        return aggregation
    if aggregate.unique is not None:
        return "unique"
    if aggregate.quantiles is not None:
        return "p50"
    return "count" if aggregate.minimum is None else "sum"


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
