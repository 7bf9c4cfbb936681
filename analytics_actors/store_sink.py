"""The log's first sink: takes unstored records into the event store, a transaction at a time.

A write starts when `batch_size` events wait, when the oldest has waited `batch_interval_ms`, when nothing has come for
a tenth of that (in a quiet system an event is soon to be seen), or when a caller asked to be told (`?ack=stored`).
While one is under way it takes a full one, of `max_write_events`, to start
another beside it: load makes writes larger before it makes them many. Up to `max_concurrent_writes` run at once, each
over partitions of its own. A partition is claimed in the event store before its first write and after anything
that left the outcome of one unknown: the claim says where the checkpoint really stands, so that
nothing is stored twice and nothing skipped (CK-1, ND-1). While PostgreSQL is away the records stay in
the log, and the sink tries again for ever.
"""

import asyncio
import contextlib
import time
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from analytics_actors.background import Background
from analytics_actors.counters import Counters
from analytics_actors.messages import NOT_OWNER
from analytics_actors.owned_partition import OwnedPartition, PartitionState
from analytics_actors.pending import Backlog, PendingRecord, lost_of
from analytics_actors.unreadable import Unreadable
from config.settings import StoreSettings
from storage.errors import Fenced, FormatError, Misconfigured, Unavailable
from storage.event_batch import LogRecord, decode_record
from storage.event_store import EventStore, PartitionWrite
from storage.partition_log import PartitionLog, Trim

RETRY_PAUSES_S = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
TRIM_INTERVAL_S = 1.0

MAX_WRITE_BYTES = 64 * 1024 * 1024
"""Of one write's columns, and a record: a log that compresses well holds gigabytes."""

OtherSinks = Callable[[Sequence[int]], Awaitable[Mapping[int, int]]]
"""How far the log's other sinks are, by partition: records below are theirs already. A partition that is not named
has none."""


async def no_other_sinks(partitions: Sequence[int]) -> Mapping[int, int]:
    """The event store is the only sink."""
    return {}


class StoreSetBack(Exception):
    """The event store has less than it had: a backup was restored, a replica was promoted. A new life of the batcher
    begins with what it has now, see `analytics_actors.takeover`."""


class Job(NamedTuple):
    """The oldest unstored records of one partition, chosen for one write."""

    owner: OwnedPartition
    records: list[PendingRecord]


class StoreSink:
    """Runs until cancelled. `wake` after records were added."""

    def __init__(
        self,
        partitions: Iterable[OwnedPartition],
        log: PartitionLog,
        store: EventStore,
        counters: Counters,
        background: Background,
        settings: StoreSettings,
        *,
        backlog: Backlog,
        clock_ms: Callable[[], int],
        window_s: float,
        on_lost: Callable[[OwnedPartition], None],
        other_sinks: OtherSinks = no_other_sinks,
        max_kept_bytes: int = 0,
    ) -> None:
        """Stored records stay in the log for `other_sinks` as long as the shard's log is not above `max_kept_bytes`."""
        self._partitions = list(partitions)
        self._backlog = backlog
        self._other_sinks = other_sinks
        self._max_kept_bytes = max_kept_bytes
        # Offset and size of what this sink has stored and not trimmed. What an earlier owner left is not counted: it
        # was under the same bound.
        self._stored_records: defaultdict[int, deque[tuple[int, int]]] = defaultdict(deque)
        self._log = log
        self._store = store
        self._counters = counters
        self._background = background
        self._settings = settings
        self._clock_ms = clock_ms
        self._window_ms = int(window_s * 1000)
        self._on_lost = on_lost
        self._wake = asyncio.Event()
        self._lull_ms = settings.batch_interval_ms // 10
        self._newest_ms = 0
        self._sleeps_long = False
        """Nothing waited when the sleeper lay down."""
        self._writes = 0
        self._failures = 0
        self._retry_at_ms = 0
        self._unreadable = Unreadable(log, store, counters, clock_ms=clock_ms)
        self.draining = False

    def wake(self) -> None:
        self._wake.set()

    def appended(self) -> None:
        """Records have come. While they are too few to be written at once, the sleeper wakes up in time by himself, but
        for the first ones."""
        self._newest_ms = self._clock_ms()
        if self._backlog.events >= self._enough_events or (self._sleeps_long and not self._writes):
            self._wake.set()

    @property
    def _enough_events(self) -> int:
        """So many start a write at once."""
        settings = self._settings
        return max(settings.batch_size, settings.max_write_events) if self._writes else settings.batch_size

    async def run(self) -> None:
        while True:
            while self._writes < self._settings.max_concurrent_writes and (jobs := self._choose()):
                self._start(jobs)
            await self._sleep_until_due()

    async def run_trimming(self) -> None:
        """Drop what every sink has from the log (TR-1), once a second at most."""
        while True:
            await asyncio.sleep(TRIM_INTERVAL_S)
            untrimmed = [
                owner
                for owner in self._partitions
                if owner.checkpoint > owner.trimmed_below and owner.state is PartitionState.OPEN
            ]
            try:
                held_at = await self._held_at(untrimmed)
                await self._trim(untrimmed, held_at)
            except (Unavailable, Misconfigured) as error:
                self._counters.trouble("log", str(error))

    async def _held_at(self, owners: Sequence[OwnedPartition]) -> Mapping[int, int]:
        """Offsets from which on other sinks still need the log. One that is too far behind is not waited for: it reads
        the event store instead, and writers are not refused for it."""
        if not owners or self._log_bytes > self._max_kept_bytes:
            return {}
        return await self._other_sinks([owner.partition for owner in owners])

    @property
    def _log_bytes(self) -> int:
        stored = sum(size for records in self._stored_records.values() for _, size in records)
        return stored + self._backlog.log_bytes

    async def _trim(self, owners: Sequence[OwnedPartition], held_at: Mapping[int, int]) -> None:
        """All in one round trip: each by itself would be a sync of the log's disk."""
        ids_before_ms = self._clock_ms() - self._window_ms
        trims: dict[OwnedPartition, Trim] = {}
        for owner in owners:
            below = min(owner.checkpoint, held_at.get(owner.partition, owner.checkpoint))
            if below > owner.trimmed_below and owner.state is PartitionState.OPEN:
                trims[owner] = Trim(owner.partition, owner.epoch, below, ids_before_ms)
        if not trims:
            return
        await self._log.trim(list(trims.values()))
        for owner, trim in trims.items():
            owner.trimmed_below = trim.below_offset
            records = self._stored_records[owner.partition]
            while records and records[0][0] < trim.below_offset:
                records.popleft()

    def _advance(self, job: Job, write: PartitionWrite) -> None:
        """The event store has everything below, or has counted it as lost; the log keeps it until it is trimmed."""
        kept = self._stored_records[job.owner.partition]
        if self._max_kept_bytes:
            kept.extend(
                (p.offset, p.log_bytes) for p in job.records if job.owner.checkpoint <= p.offset < write.next_offset
            )
        job.owner.advance(write.next_offset, lost=not write.records)
        self._unreadable.advanced(job.owner)

    async def _sleep_until_due(self) -> None:
        pause_s = self._settings.batch_interval_ms / 1000
        waiting = [owner.pending.oldest_ms or 0 for owner in self._ready()]
        if waiting:
            due_ms = min(waiting) + self._settings.batch_interval_ms
            if not self._writes:
                due_ms = min(due_ms, self._newest_ms + self._lull_ms)
            pause_s = min(pause_s, max(0.001, (max(due_ms, self._retry_at_ms) - self._clock_ms()) / 1000))
        self._sleeps_long = not waiting
        with contextlib.suppress(TimeoutError):
            # Not `wait_for`: in Python 3.11 it may swallow a cancellation that meets its timeout.
            async with asyncio.timeout(pause_s):
                await self._wake.wait()
        self._wake.clear()

    def _ready(self) -> list[OwnedPartition]:
        writable = (PartitionState.OPEN, PartitionState.RESOLVING)
        return [
            owner
            for owner in self._partitions
            if owner.pending and not owner.writing and owner.state in writable and not self._unreadable.holds(owner)
        ]

    def _choose(self) -> list[Job]:
        now_ms = self._clock_ms()
        # A clock that was set back does not make the pause longer.
        if 0 < self._retry_at_ms - now_ms <= RETRY_PAUSES_S[-1] * 1000:
            return []
        ready = self._ready()
        if not self._is_due(ready, now_ms):
            return []
        ready.sort(key=lambda owner: owner.pending.oldest_ms or 0)
        jobs: list[Job] = []
        room, room_bytes = self._settings.max_write_events, MAX_WRITE_BYTES
        for owner in ready:
            if room <= 0 or room_bytes <= 0:
                break
            records = owner.pending.head(max_events=room, max_plain_bytes=room_bytes)
            room -= max(1, sum(pending.events for pending in records))
            room_bytes -= sum(pending.plain_bytes for pending in records)
            jobs.append(Job(owner, records))
        return jobs

    def _is_due(self, ready: list[OwnedPartition], now_ms: int) -> bool:
        if not ready:
            return False
        oldest_ms = min(owner.pending.oldest_ms or now_ms for owner in ready)
        return (
            sum(owner.pending.events for owner in ready) >= self._enough_events
            or not 0 <= now_ms - oldest_ms < self._settings.batch_interval_ms
            or (not self._writes and now_ms - self._newest_ms >= self._lull_ms)
            or self.draining
            or any(owner.somebody_waits for owner in ready)
        )

    def _start(self, jobs: list[Job]) -> None:
        for job in jobs:
            job.owner.writing = True
        self._writes += 1
        self._background.spawn(self._write(jobs), on_end=self._finished)

    def _finished(self) -> None:
        self._writes -= 1
        self.wake()

    async def _write(self, jobs: list[Job]) -> None:
        started = time.monotonic()
        try:
            await self._claim([job.owner for job in jobs])
            writes = [write for job in jobs if (write := await self._next_write(job)) is not None]
            if writes:
                result = await self._store.write(writes)
                self._counters.written(result, seconds=time.monotonic() - started)
                for job, write in _by_partition(jobs, writes):
                    self._advance(job, write)
        except Fenced:
            # Ours was committed although it did not look so, or somebody else owns it: the claim tells.
            for job in jobs:
                job.owner.store_epoch = None
        except (Unavailable, Misconfigured) as error:
            self._failed(jobs, str(error))
        except FormatError as error:
            self._doubt(jobs, error)
        else:
            self._failures = 0
            self._counters.clear_trouble("postgres")
        finally:
            for job in jobs:
                job.owner.writing = False

    def _failed(self, jobs: list[Job], message: str) -> None:
        for job in jobs:
            job.owner.store_epoch = None
        pause_s = RETRY_PAUSES_S[min(self._failures, len(RETRY_PAUSES_S) - 1)]
        self._failures += 1
        self._retry_at_ms = self._clock_ms() + int(pause_s * 1000)
        self._counters.trouble("postgres", message)
        self._counters.count("write_failures")

    def _doubt(self, jobs: list[Job], error: FormatError) -> None:
        """Nothing was written. The next write looks at each record of these partitions before it takes it."""
        if not self._unreadable.doubt({job.owner.partition for job in jobs}):
            # Each record could be read, and all of them together could not.
            self._failed(jobs, str(error))

    async def _claim(self, owners: list[OwnedPartition]) -> None:
        for owner in owners:
            if owner.store_epoch is not None:
                continue
            try:
                checkpoint = await self._store.claim(owner.partition, epoch=owner.epoch)
            except Fenced:
                owner.fence(NOT_OWNER)
                continue
            if checkpoint.next_offset < owner.checkpoint or owner.has_trimmed_beyond(checkpoint):
                raise StoreSetBack(f"the event store was set back in partition {owner.partition}")
            owner.claimed(checkpoint)
            self._unreadable.advanced(owner)
            if checkpoint.next_offset > owner.next_offset:
                # The log is behind what is stored: it was set back (an old copy of Redis's disk).
                owner.next_offset = checkpoint.next_offset
                self._on_lost(owner)

    async def _next_write(self, job: Job) -> PartitionWrite | None:
        """The next contiguous piece of the partition: records, or a gap that the log has lost."""
        owner = job.owner
        todo = [pending for pending in job.records if pending.offset >= owner.checkpoint]
        if owner.store_epoch is None or not todo:
            return None
        lost = [p for p in todo if p.record is None and p.offset < owner.lost_below]
        if todo[0].offset > owner.checkpoint or (lost and lost[0] is todo[0]):
            return self._gap(owner, todo)
        records: list[tuple[int, LogRecord]] = []
        for pending in todo:
            try:
                record = await self._record(owner, pending)
            except FormatError as error:
                # What is before it is written first.
                if records:
                    break
                return await self._unreadable.step_over(owner, pending, error)
            if record is None or pending.offset != owner.checkpoint + len(records):
                break
            records.append((pending.offset, record))
        if not records:
            return None
        first = records[0][0]
        return PartitionWrite(owner.partition, owner.store_epoch, first, first + len(records), records)

    def _gap(self, owner: OwnedPartition, todo: list[PendingRecord]) -> PartitionWrite:
        """Step over offsets that have no record any more; events known to be lost are named."""
        lost: list[PendingRecord] = []
        next_offset = todo[0].offset
        for pending in todo:
            if pending.offset != next_offset or pending.record is not None or pending.offset >= owner.lost_below:
                break
            lost.append(pending)
            next_offset = pending.offset + 1
        assert owner.store_epoch is not None
        self._counters.count("events_lost", sum(pending.events for pending in lost))
        return PartitionWrite(owner.partition, owner.store_epoch, owner.checkpoint, next_offset, (), lost=lost_of(lost))

    async def _record(self, owner: OwnedPartition, pending: PendingRecord) -> LogRecord | None:
        """None when the log has lost it. Raises `FormatError`."""
        record = pending.record or await self._read(owner, pending)
        if record is not None:
            self._unreadable.check(owner, pending, record)
        return record

    async def _read(self, owner: OwnedPartition, pending: PendingRecord) -> LogRecord | None:
        """A record that was let go, from the log; None when the log has lost it."""
        if pending.offset < owner.lost_below:
            return None
        found = await self._log.read(owner.partition, pending.offset, max_records=1)
        if not found or found[0][0] != pending.offset:
            self._on_lost(owner)
            return None
        record = decode_record(found[0][1])
        owner.pending.restore(pending, record)
        return record


def _by_partition(jobs: list[Job], writes: list[PartitionWrite]) -> Iterable[tuple[Job, PartitionWrite]]:
    of = {job.owner.partition: job for job in jobs}
    return [(of[write.partition], write) for write in writes]
