"""Where the windows of an answer come from: the window store, the roll-ups, the event store.

Hours from `live_from` on are answered from windows, earlier ones from roll-ups: no hour from both, none from neither.
While the windows cannot be asked, the live hours are counted from stored events (`degraded`).

**Counts never go down.** Windows follow the log and may be ahead of the event store, or behind it when an aggregator
starts anew. So it is remembered, for each partition, up to which offset answers have counted: windows that are not as
far are not asked, and stored events are waited for, for a moment. All workers of a machine remember together.
"""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import NamedTuple, Protocol, cast

import numpy as np
import pyarrow as pa

from analytics_actors.windows.aggregate_only import deltas_of
from analytics_actors.windows.grouping import aggregate
from config.settings import WindowSettings
from gateway.counted_offsets import CountedOffsets
from gateway.errors import ApiError
from gateway.metric_answers import Source, SourceName
from gateway.metric_query import DAY_S, HOUR_S, Plan
from storage.aggregate import Aggregate
from storage.errors import Misconfigured, Unavailable
from storage.event_columns import RecordChunk, RecordChunks
from storage.fingerprint import partition_of
from storage.metric_definitions import MetricDefinition
from storage.rollups import RolledSize, RollupColumns, RollupSeries, RollupStore
from storage.window_key import (
    SIZE_S,
    TOTAL,
    Dimensions,
    Size,
    WindowKey,
    late_mask,
    lateness_s,
    live_from,
    microseconds,
)
from storage.window_store import WindowsCheckpoint, WindowStore

WINDOWS_PER_LOAD = 250
"""Decoding them takes a few milliseconds; then other requests have their turn."""

MAX_WINDOWS = 50_000
"""Windows that one answer is made of: a second or so of reading."""

MAX_COUNTED_EVENTS = 500_000
"""Stored events that one answer counts: two to four seconds of a core, within the deadline of a query."""

MAX_CONCURRENT_COUNTS = 2
"""Answers that count stored events at once; it is the one thing here that takes seconds of CPU."""

MAX_RUNS = 8
"""Reads of roll-ups that days without a row of their own are spread over."""

REDIS_PAUSE_S = 1.0
"""After a failure Redis is left alone so long: each answer would wait for its deadline."""

CATCH_UP_S = 2.0
CATCH_UP_PAUSE_S = 0.05
"""How long, and how often, the event store is asked whether it has come up to what an earlier answer had counted."""


_log = logging.getLogger(__name__)


class StoredEvents(Protocol):
    """The part of `storage.event_columns.EventColumns` that is needed here."""

    def rows(
        self, project_ids: Sequence[str], *, start_s: float, end_s: float, below_offset: int | None = None
    ) -> AsyncIterator[pa.RecordBatch]: ...

    def records(self, project_ids: Sequence[str], *, start_s: float, end_s: float) -> RecordChunks: ...


class StoreProgress(Protocol):
    """`storage.metric_reads.MetricReads`."""

    async def stored_below(self, partition: int) -> int:
        """The event store has the records of the partition below this offset."""


class Interval(NamedTuple):
    """[start, end) in seconds since the epoch."""

    start: int
    end: int


@dataclass
class Read:
    """What was read for a plan."""

    fresh_at: datetime
    series: list[RollupSeries] = field(default_factory=list)
    windows: list[tuple[WindowKey, Aggregate]] = field(default_factory=list)
    sources: list[Source] = field(default_factory=list)
    degraded_because: str | None = None

    @property
    def size(self) -> int:
        """Windows and rows."""
        return len(self.windows) + sum(len(series.starts) for series in self.series)

    def name(self, source: SourceName, interval: Interval) -> None:
        start, end = (datetime.fromtimestamp(second, UTC) for second in interval)
        self.sources.append(Source(source, start, end))


class _Unusable(Exception):
    """The windows may not be asked; the text says why. `rolled`: whether the metric has roll-ups of the live hours."""

    def __init__(self, reason: str, *, rolled: bool = True) -> None:
        super().__init__(reason)
        self.rolled = rolled


class _Moved(Exception):
    """The windows got another owner while they were read."""


class MetricReader:
    """One per worker."""

    def __init__(
        self,
        settings: WindowSettings,
        windows: WindowStore,
        rollups: RollupStore,
        events: StoredEvents,
        progress: StoreProgress,
        *,
        partitions: int,
        max_ahead_s: float,
        counted: CountedOffsets | None = None,
        clock_s: Callable[[], float] = time.time,
    ) -> None:
        """No event's time is later than its receipt by more than `max_ahead_s`."""
        self._settings = settings
        self._windows = windows
        self._rollups = rollups
        self._events = events
        self._progress = progress
        self._partitions = partitions
        self._max_ahead_s = max_ahead_s
        self._clock_s = clock_s
        self._counted = counted or CountedOffsets(partitions=partitions)
        self._redis_away_until = 0.0
        self._counting = asyncio.Semaphore(MAX_CONCURRENT_COUNTS)

    @property
    def now_s(self) -> float:
        return self._clock_s()

    def is_closed(self, plan: Plan) -> bool:
        """Whether the plan's range lies wholly in the time of the roll-ups."""
        return self._settings.enabled and plan.end <= live_from(self._clock_s(), self._settings)

    async def read(self, plan: Plan) -> Read:
        """Raises `ApiError` where the answer would take too much, `StorageError` where nobody can answer."""
        now_s = self._clock_s()
        live = live_from(now_s, self._settings) if self._settings.enabled else plan.start
        read = Read(datetime.fromtimestamp(now_s, UTC))
        rolled = Interval(plan.start, min(plan.end, live))
        # Nothing is later, so nothing is asked for it.
        latest = (int(now_s + self._max_ahead_s) // DAY_S + 1) * DAY_S
        current = Interval(max(plan.start, live), min(plan.end, latest))
        if rolled.start < rolled.end:
            await self._read_rollups(plan, read, rolled)
        if current.start < current.end:
            await self._read_current(plan, read, current)
        return read

    async def _read_current(self, plan: Plan, read: Read, interval: Interval) -> None:
        if not self._settings.enabled:
            await self._count_events(plan, read, interval, late_s=None)
            return
        rolled = True
        try:
            if time.monotonic() < self._redis_away_until:
                raise Unavailable("Redis did not answer a moment ago")
            await self._read_windows(plan, read, interval)
            return
        except (Unavailable, Misconfigured) as error:
            if self._redis_away_until <= time.monotonic():
                fields = {"action": "windows_unavailable", "reason": str(error)}
                _log.warning("metrics are answered without windows", extra=fields)
                self._redis_away_until = time.monotonic() + REDIS_PAUSE_S
            read.degraded_because = "Redis does not answer"
        except _Unusable as unusable:
            read.degraded_because, rolled = str(unusable), unusable.rolled
        await self._read_without_windows(plan, read, interval, rolled=rolled)

    # Windows

    async def _read_windows(self, plan: Plan, read: Read, interval: Interval) -> None:
        try:
            await self._read_of_one_owner(plan, read, interval)
        except _Moved:
            try:
                await self._read_of_one_owner(plan, read, interval)
            except _Moved as moved:
                raise _Unusable("the windows are being taken over") from moved

    async def _read_of_one_owner(self, plan: Plan, read: Read, interval: Interval) -> None:
        """What is read is complete only if the windows were the same owner's, and live, before and after."""
        partition = partition_of(plan.project_id, self._partitions)
        before = await self._usable(partition, plan)
        windows = await self._load(plan, interval)
        after = await self._usable(partition, plan)
        if after.epoch != before.epoch:
            raise _Moved
        self._counted.reached(partition, after.next_offset)
        read.windows += windows
        if after.watermark_ms:
            read.fresh_at = datetime.fromtimestamp(after.watermark_ms / 1000, UTC)
        read.name("windows", interval)

    async def _usable(self, partition: int, plan: Plan) -> WindowsCheckpoint:
        """The checkpoint of windows that may be asked; raises `_Unusable` when they may not."""
        [checkpoint] = await self._windows.checkpoints([partition])
        if checkpoint is None:
            raise _Unusable("the windows were lost and are not rebuilt yet")
        if checkpoint.state != "live":
            raise _Unusable("the windows are being rebuilt")
        if not is_built(checkpoint.built.get(plan.project_id), plan.definition.name, plan.version):
            raise _Unusable("the metric is new or was changed, and its windows are being built", rolled=False)
        if checkpoint.next_offset < self._counted[partition]:
            raise _Unusable("the windows are behind what was counted already")
        return checkpoint

    async def _load(self, plan: Plan, interval: Interval) -> list[tuple[WindowKey, Aggregate]]:
        size = next(size for size in plan.sizes if size != "1d")
        starts = range(interval.start, interval.end, SIZE_S[size])
        if len(starts) > MAX_WINDOWS:
            raise _too_many_windows()
        keys = await self._keys(plan, size, starts)
        found: list[tuple[WindowKey, Aggregate]] = []
        for at in range(0, len(keys), WINDOWS_PER_LOAD):
            chunk = keys[at : at + WINDOWS_PER_LOAD]
            loaded = await self._windows.load(chunk)
            found += [(key, window) for key, window in zip(chunk, loaded, strict=True) if window is not None]
        return found

    async def _keys(self, plan: Plan, size: Size, starts: Sequence[int]) -> list[WindowKey]:
        project_id, metric = plan.project_id, plan.definition.name
        if not plan.grouped:
            return [WindowKey(project_id, metric, size, start, TOTAL) for start in starts]
        groups = await self._windows.groups(project_id, metric, size, starts)
        keys = [
            WindowKey(project_id, metric, size, start, dimensions)
            for start, tuples in zip(starts, groups, strict=True)
            for dimensions in tuples
            if _wanted(plan, dimensions)
        ]
        if len(keys) > MAX_WINDOWS:
            raise _too_many_windows()
        return keys

    # Roll-ups

    async def _read_rollups(self, plan: Plan, read: Read, interval: Interval) -> None:
        if "1d" in plan.sizes:
            await self._read_days(plan, read, interval)
        elif "1h" in plan.sizes:
            self._add(plan, read, await self._rolled(plan, "1h", interval))
        else:
            self._add(plan, read, await self._rolled(plan, "1m", interval))
        read.name("rollups", interval)

    async def _read_days(self, plan: Plan, read: Read, interval: Interval) -> None:
        """Whole days by their own rows where there are some, everything else by hours."""
        days = Interval(interval.start, interval.end // DAY_S * DAY_S)
        columns = await self._rolled(plan, "1d", days)
        self._add(plan, read, columns)
        there = {start for series in columns.series for start in series.starts.tolist()}
        for run in runs_without(there, interval):
            self._add(plan, read, await self._rolled(plan, "1h", run), without=there)

    async def _rolled(self, plan: Plan, size: RolledSize, interval: Interval) -> RollupColumns:
        return await self._rollups.read(
            plan.project_id, plan.definition.name, size, interval.start, interval.end, grouped=plan.grouped
        )

    def _add(self, plan: Plan, read: Read, columns: RollupColumns, *, without: set[int] | None = None) -> None:
        for series in columns.series:
            if _wanted(plan, series.dimensions):
                read.series.append(_without_days(series, without) if without else series)

    # Stored events

    async def _read_without_windows(self, plan: Plan, read: Read, interval: Interval, *, rolled: bool) -> None:
        """The live hours from stored events, without those that are too late for windows; where they are too many, the
        closed hours from roll-ups, which lack what came late in the last seconds."""
        if rolled and await self._events_about(plan, interval) > MAX_COUNTED_EVENTS:
            closed_until = int(self._clock_s() - 2 * self._settings.close_after_s) // HOUR_S * HOUR_S
            closed = Interval(interval.start, min(max(closed_until, interval.start), interval.end))
            if closed.start < closed.end:
                await self._read_rollups(plan, read, closed)
            interval = Interval(closed.end, interval.end)
        if interval.start < interval.end:
            await self._count_events(plan, read, interval, late_s=lateness_s(self._settings))

    async def _events_about(self, plan: Plan, interval: Interval) -> int:
        """How many events, as far as the roll-ups of closed hours know."""
        begin = interval.start // HOUR_S * HOUR_S
        columns = await self._rollups.read(plan.project_id, "events", "1h", begin, interval.end, grouped=False)
        return sum(int(series.counts.sum()) for series in columns.series)

    async def _count_events(self, plan: Plan, read: Read, interval: Interval, *, late_s: float | None) -> None:
        """Count stored events; with `late_s` without those that were so much older than their receipt."""
        partition = partition_of(plan.project_id, self._partitions)
        counted = _Counted(plan.definition, late_s)
        async with self._counting:
            await self._catch_up(partition)
            rows = self._events.rows([plan.project_id], start_s=interval.start, end_s=interval.end)
            async with aclosing(cast(AsyncGenerator[pa.RecordBatch], rows)) as batches:
                async for batch in batches:
                    if counted.events + batch.num_rows > MAX_COUNTED_EVENTS:
                        raise _too_many_events(read.degraded_because)
                    await asyncio.to_thread(counted.add, batch)
            records = self._events.records([plan.project_id], start_s=interval.start, end_s=interval.end)
            async with aclosing(cast(AsyncGenerator[RecordChunk], records)) as chunks:
                async for chunk in chunks:
                    await asyncio.to_thread(counted.add_records, chunk)
            stored = await self._progress.stored_below(partition)
        self._counted.reached(partition, stored)
        read.windows += [(key, value) for key, value in counted.windows.items() if bool(key.dimensions) == plan.grouped]
        if counted.newest_us:
            read.fresh_at = datetime.fromtimestamp(counted.newest_us / 1e6, UTC)
        read.name("events", interval)

    async def _catch_up(self, partition: int) -> None:
        """Wait until the event store has what earlier answers had, `CATCH_UP_S` at most."""
        began = time.monotonic()
        while time.monotonic() - began < CATCH_UP_S:
            if await self._progress.stored_below(partition) >= self._counted[partition]:
                return
            await asyncio.sleep(CATCH_UP_PAUSE_S)


class _Counted:
    """Windows counted from stored events, batch by batch."""

    def __init__(self, definition: MetricDefinition, late_s: float | None) -> None:
        self._definition = definition
        self._late_s = late_s
        self.windows: dict[WindowKey, Aggregate] = {}
        self.events = 0
        self.newest_us = 0

    def add(self, batch: pa.RecordBatch) -> None:
        self.events += batch.num_rows
        if not batch.num_rows:
            return
        self.newest_us = max(self.newest_us, int(microseconds(batch, "received_at").max()))
        if self._late_s is not None:
            batch = batch.filter(pa.array(~late_mask(batch, self._late_s)))
        self._merge(aggregate(batch, lambda _: (self._definition,)))

    def add_records(self, records: RecordChunk) -> None:
        """Of aggregate-only events. Their rows are not there, so they are not among `events`."""
        counted = [(key, record) for key, record in records if self._late_s is None or not key.late]
        self.newest_us = max([self.newest_us, *(record.received_ms * 1000 for _, record in counted)])
        self._merge(deltas_of(counted, lambda _: (self._definition,)))

    def _merge(self, deltas: Mapping[WindowKey, Aggregate]) -> None:
        for key, value in deltas.items():
            if key in self.windows:
                self.windows[key].merge(value)
            else:
                self.windows[key] = value


def is_built(built: str | None, metric: str, version: int) -> bool:
    """Whether the windows of a project have this version of a metric. `built` is what its checkpoint says, see
    `analytics_actors.windows.definition_book`; a project that it does not name has no windows, so none is missing."""
    if built is None:
        return True
    own = dict(each.rpartition("=")[::2] for each in built.split(";")[1:])
    return own.get(metric, "0") == str(version)


def runs_without(days: set[int], interval: Interval) -> list[Interval]:
    """What of the interval lies in none of these days, in at most `MAX_RUNS` pieces (which may then touch some)."""
    first = interval.start // DAY_S * DAY_S
    absent = [start for start in range(first, interval.end, DAY_S) if start not in days]
    runs: list[Interval] = []
    for start in absent:
        piece = Interval(max(start, interval.start), min(start + DAY_S, interval.end))
        if runs and runs[-1].end == piece.start:
            runs[-1] = Interval(runs[-1].start, piece.end)
        else:
            runs.append(piece)
    if len(runs) > MAX_RUNS:
        return [Interval(runs[0].start, runs[-1].end)]
    return runs


def _without_days(series: RollupSeries, days: set[int]) -> RollupSeries:
    kept = ~np.isin(series.starts // DAY_S * DAY_S, np.fromiter(days, np.int64, len(days)))
    if kept.all():
        return series
    at = np.flatnonzero(kept).tolist()
    return RollupSeries(
        series.dimensions,
        series.starts[kept],
        series.counts[kept],
        [series.sums[row] for row in at],
        series.minima[kept],
        series.maxima[kept],
        None if series.sketches is None else [series.sketches[row] for row in at],
    )


def _wanted(plan: Plan, dimensions: Dimensions) -> bool:
    """Windows of a former definition, with other dimensions, may still be there."""
    if not plan.grouped:
        return not dimensions
    return tuple(name for name, _ in dimensions) == plan.definition.dimension_names


def _too_many_windows() -> ApiError:
    message = f"This answer would be made of more than {MAX_WINDOWS} windows."
    hint = "Ask for a shorter range, a coarser granularity or fewer dimensions."
    return ApiError("invalid_parameter", message, hint=hint)


def _too_many_events(because: str | None) -> ApiError:
    reason = f" ({because})" if because else ""
    message = f"More than {MAX_COUNTED_EVENTS} stored events would have to be counted for this answer{reason}."
    return ApiError("unavailable", message, hint="Ask for a shorter range, or again later.", retry_after_s=10)
