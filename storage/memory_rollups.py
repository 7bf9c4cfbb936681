"""Roll-ups in memory: for tests, and proved by the contract suite that `PostgresRollups` passes.

`store` is where `mark_days` finds the days that hold events; `available` and the clock are knobs.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date

import numpy as np

from storage.aggregate import Aggregate, Aggregation, decimal_text, encode_aggregate
from storage.errors import Fenced, Unavailable
from storage.fingerprint import partition_of
from storage.memory_store import MemoryStore
from storage.rollups import (
    ROLLED,
    LateDay,
    RolledSize,
    RollupColumns,
    RollupSeries,
    TooManyRows,
    check_range,
    check_rolled,
    day_of,
    day_start,
    days_within,
    wanted_columns,
)
from storage.window_key import SIZE_S, Dimensions, WindowKey


@dataclass(frozen=True)
class _Row:
    aggregate: Aggregate
    epoch: int
    next_offset: int
    recomputed: bool


@dataclass(frozen=True)
class _Mark:
    version: int
    first_marked: float
    last_marked: float


class MemoryRollups:
    def __init__(
        self, *, partitions: int = 64, store: MemoryStore | None = None, clock: Callable[[], float] = time.time
    ) -> None:
        self.available = True
        """While False every call raises `Unavailable` and changes nothing."""
        self._partitions = partitions
        self._store = store
        self._clock = clock
        self._rows: dict[WindowKey, _Row] = {}
        self._recounts: dict[tuple[str, date], int] = {}
        """The last ticket of each day."""
        self._tickets = 0
        self.built: dict[tuple[str, date], str] = {}
        """With which metrics days were counted again."""
        self.audited: set[tuple[str, date]] = set()
        self.expired: set[str] = set()
        """Projects of which old events were removed."""
        self._marks: dict[tuple[str, date], _Mark] = {}
        self._version = 0
        self._floors: dict[int, tuple[int, int]] = {}
        """By partition: under which pair rows were last removed."""

    @property
    def rows(self) -> dict[WindowKey, Aggregate]:
        return {key: row.aggregate for key, row in self._rows.items()}

    async def upsert(self, rows: Sequence[tuple[WindowKey, Aggregate]], *, epoch: int, next_offset: int) -> None:
        self._require_available()
        check_rolled([key for key, _ in rows])
        for key, aggregate in rows:
            known = self._rows.get(key)
            if (epoch, next_offset) < self._floors.get(partition_of(key.project_id, self._partitions), (0, 0)):
                continue
            if known is None or (not known.recomputed and (known.epoch, known.next_offset) <= (epoch, next_offset)):
                self._rows[key] = _Row(aggregate.copy(), epoch, next_offset, recomputed=False)

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
        self._require_available()
        check_rolled(counted)
        kept = set(counted)
        partition = partition_of(project_id, self._partitions)
        if (epoch, next_offset) < self._floors.get(partition, (0, 0)):
            return 0
        self._floors[partition] = (epoch, next_offset)
        gone = [
            key
            for key, row in self._rows.items()
            if (key.project_id == project_id and key.metric in metrics and key.size in ("1m", "1h"))
            and start <= key.start < end
            and key not in kept
            and not row.recomputed
            and (row.epoch, row.next_offset) <= (epoch, next_offset)
        ]
        for key in gone:
            del self._rows[key]
        return len(gone)

    async def begin_recount(self, project_ids: Sequence[str], start: int, end: int) -> int:
        self._require_available()
        self._tickets += 1
        self._recounts |= dict.fromkeys(_days(project_ids, start, end), self._tickets)
        return self._tickets

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
        self._require_available()
        check_range(start, end, [key for key, _ in rows], project_ids, sizes)
        if ticket is not None:
            self._hold(_days(project_ids, start, end), ticket)
        new = dict(rows)
        old = {
            key: row.aggregate
            for key, row in self._rows.items()
            if key.project_id in project_ids
            and key.size in sizes
            and start <= key.start
            and key.start + SIZE_S[key.size] <= end
        }
        changed = sum(key not in old or not _same(old[key], aggregate) for key, aggregate in new.items())
        gone = old.keys() - new.keys()
        if ticket is not None:
            for key in gone:
                del self._rows[key]
            for key, aggregate in new.items():
                if key not in old or not _same(old[key], aggregate) or not self._rows[key].recomputed:
                    self._rows[key] = _Row(aggregate.copy(), 0, 0, recomputed=True)
        return changed + len(gone)

    async def end_recount(
        self, start: int, end: int, built: Mapping[str, str], *, ticket: int, audited: bool = False
    ) -> None:
        self._require_available()
        days = _days(list(built), start, end)
        self._hold(days, ticket)
        for each in days:
            self.built[each] = built[each[0]]
            (self.audited.add if audited else self.audited.discard)(each)

    def _hold(self, days: Sequence[tuple[str, date]], ticket: int) -> None:
        for each in days:
            if self._recounts.get(each) != ticket:
                raise Fenced(f"{each} is counted again by somebody who began later")

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
        self._require_available()
        found: dict[Dimensions, list[tuple[int, Aggregate]]] = {}
        for key in sorted(self._rows):
            if key[:3] == (project_id, metric, size) and start <= key.start < end and bool(key.dimensions) == grouped:
                found.setdefault(key.dimensions, []).append((key.start, self._rows[key].aggregate))
        if max_rows is not None and sum(map(len, found.values())) > max_rows:
            raise TooManyRows
        return RollupColumns([_series(dimensions, rows, wanted) for dimensions, rows in sorted(found.items())])

    async def late_days(
        self, partitions: Sequence[int], *, quiet_s: float, max_wait_s: float, limit: int
    ) -> list[LateDay]:
        self._require_available()
        now = self._clock()
        due = [
            (mark.first_marked, LateDay(project_id, day, mark.version))
            for (project_id, day), mark in self._marks.items()
            if partition_of(project_id, self._partitions) in partitions
            and (now - mark.last_marked >= quiet_s or now - mark.first_marked >= max_wait_s)
        ]
        return [day for _, day in sorted(due)[:limit]]

    async def clear_late_days(self, days: Sequence[LateDay]) -> None:
        self._require_available()
        for project_id, day, version in days:
            mark = self._marks.get((project_id, day))
            if mark and mark.version == version:
                del self._marks[project_id, day]
            elif mark:
                self._marks[project_id, day] = _Mark(mark.version, self._clock(), mark.last_marked)

    async def mark_days(self, project_id: str, days: Sequence[date] | None = None) -> int:
        self._require_available()
        marked = set(self._days_with_events(project_id) if days is None else days)
        now = self._clock()
        for day in marked:
            self._version += 1
            known = self._marks.get((project_id, day))
            self._marks[project_id, day] = _Mark(self._version, known.first_marked if known else now, now)
        return len(marked)

    async def days_left(self, project_id: str) -> int:
        self._require_available()
        return sum(project_id == marked for marked, _ in self._marks)

    async def counted_days(self, project_id: str, start: int, end: int) -> dict[int, str]:
        """`storage.metric_reads.MetricReads.counted_days`."""
        days = {(project_id, day) for day in days_within(start, end)}
        return {day_start(key[1]): built for key, built in self.built.items() if key in days}

    async def has_expired(self, project_id: str) -> bool:
        """`storage.metric_reads.MetricReads.has_expired`."""
        return project_id in self.expired

    def marked_days(self) -> set[tuple[str, date]]:
        return set(self._marks)

    def touched_days(self) -> set[tuple[str, date]]:
        """What the daily job is to count."""
        return (self._recounts.keys() - self.audited) | self.marked_days()

    async def close(self) -> None:
        """There is nothing to close."""

    def _days_with_events(self, project_id: str) -> set[date]:
        rows = self._store.rows if self._store else []
        days = {day_of(int(row["timestamp"].timestamp() // 1)) for row in rows if row["project_id"] == project_id}
        records = self._store.records if self._store else {}
        return days | {day_of(key.minute) for key in records if key.project_id == project_id}

    def _require_available(self) -> None:
        if not self.available:
            raise Unavailable("made to be away")


def _days(project_ids: Sequence[str], start: int, end: int) -> list[tuple[str, date]]:
    return [(project_id, day) for project_id in project_ids for day in days_within(start, end)]


def _same(one: Aggregate, other: Aggregate) -> bool:
    """But for the sketches of percentiles, which are random."""
    if (one.quantiles is None) != (other.quantiles is None):
        return False
    if one.quantiles is None:
        return encode_aggregate(one) == encode_aggregate(other)
    return (one.count, one.total, one.minimum, one.maximum) == (
        other.count,
        other.total,
        other.minimum,
        other.maximum,
    )


def _series(dimensions: Dimensions, rows: list[tuple[int, Aggregate]], wanted: Aggregation | None) -> RollupSeries:
    sums, minima, maxima, sketches = wanted_columns(wanted)
    aggregates = [aggregate for _, aggregate in rows]
    has_sketches = sketches and any(each.unique is not None or each.quantiles is not None for each in aggregates)
    return RollupSeries(
        dimensions,
        np.array([start for start, _ in rows], np.int64),
        np.array([each.count for each in aggregates], np.int64),
        [decimal_text(each.total) if sums else "0" for each in aggregates],
        _floats([each.minimum if minima else None for each in aggregates]),
        _floats([each.maximum if maxima else None for each in aggregates]),
        [encode_aggregate(each) for each in aggregates] if has_sketches else None,
    )


def _floats(numbers: list[float | None]) -> np.ndarray:
    return np.array([np.nan if each is None else each for each in numbers], np.float64)
