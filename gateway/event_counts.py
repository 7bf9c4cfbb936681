"""Windows of an answer counted from stored events: in the database, and of any age in the lake."""

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Protocol, cast

import pyarrow as pa

from analytics_actors.windows.aggregate_only import deltas_of
from analytics_actors.windows.grouping import aggregate
from analytics_actors.windows.needed_columns import columns_of
from gateway.counted_offsets import CountedOffsets
from gateway.metric_query import Plan
from gateway.metric_read import Interval, Read
from storage.aggregate import Aggregate
from storage.event_columns import RecordChunk, StoredEvents
from storage.fingerprint import partition_of
from storage.metric_definitions import MetricDefinition
from storage.past_events import Place
from storage.window_key import WindowKey, late_mask, microseconds

MAX_COUNTED_EVENTS = 500_000
"""Stored events, and records of aggregate-only ones, that one answer counts: two to four seconds of a core, within the
deadline of a query."""

MAX_CONCURRENT_COUNTS = 2
"""Answers that count stored events at once; it is the one thing here that takes seconds of CPU."""

CATCH_UP_S = 2.0
CATCH_UP_PAUSE_S = 0.05
"""How long, and how often, the event store is asked whether it has come up to what an earlier answer had counted."""


class PlacedEvents(StoredEvents, Protocol):
    """`storage.past_events.PastEvents`."""

    async def place_of(self, project_ids: Sequence[str], *, start_s: float) -> Place: ...


class StoreProgress(Protocol):
    """`storage.metric_reads.MetricReads`."""

    async def stored_below(self, partition: int) -> int:
        """The event store has the records of the partition below this offset."""


class TooManyEvents(Exception):
    """More than one answer may count."""


class EventCounts:
    """One per worker."""

    def __init__(
        self, events: PlacedEvents, progress: StoreProgress, counted: CountedOffsets, *, partitions: int
    ) -> None:
        self._events = events
        self._progress = progress
        self._counted = counted
        self._partitions = partitions
        self._counting = asyncio.Semaphore(MAX_CONCURRENT_COUNTS)

    async def read(self, plan: Plan, read: Read, interval: Interval, *, late_s: float | None) -> None:
        """Count stored events; with `late_s` without those that were so much older than their receipt. Raises
        `TooManyEvents`, and what the stores raise; then nothing of it is in `read`."""
        partition = partition_of(plan.project_id, self._partitions)
        counted = _Counted(plan.definition, late_s)
        async with self._counting:
            await self._catch_up(partition)
            place = await self._events.place_of([plan.project_id], start_s=interval.start)
            await self._count(plan, counted, interval)
            stored = await self._progress.stored_below(partition)
        self._counted.reached(partition, stored)
        read.windows += [(key, value) for key, value in counted.windows.items() if bool(key.dimensions) == plan.grouped]
        if counted.newest_us:
            read.fresh_at = datetime.fromtimestamp(counted.newest_us / 1e6, UTC)
        read.name("lake" if place == "lake" else "events", interval)

    async def _count(self, plan: Plan, counted: "_Counted", interval: Interval) -> None:
        projects = [plan.project_id]
        columns = {*columns_of([plan.definition]), "received_at"}
        rows = self._events.rows(projects, start_s=interval.start, end_s=interval.end, columns=columns)
        async with aclosing(cast(AsyncGenerator[pa.RecordBatch], rows)) as batches:
            async for batch in batches:
                if counted.events + batch.num_rows > MAX_COUNTED_EVENTS:
                    raise TooManyEvents
                await asyncio.to_thread(counted.add, batch)
        records = self._events.records(projects, start_s=interval.start, end_s=interval.end)
        async with aclosing(cast(AsyncGenerator[RecordChunk], records)) as chunks:
            async for chunk in chunks:
                if counted.events + len(chunk) > MAX_COUNTED_EVENTS:
                    raise TooManyEvents
                await asyncio.to_thread(counted.add_records, chunk)

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
        """Of aggregate-only events, whose rows are not there. To count one takes as long as to count an event."""
        self.events += len(records)
        counted = [(key, record) for key, record in records if self._late_s is None or not key.late]
        self.newest_us = max([self.newest_us, *(record.received_ms * 1000 for _, record in counted)])
        self._merge(deltas_of(counted, lambda _: (self._definition,)))

    def _merge(self, deltas: Mapping[WindowKey, Aggregate]) -> None:
        for key, value in deltas.items():
            if key in self.windows:
                self.windows[key].merge(value)
            else:
                self.windows[key] = value
