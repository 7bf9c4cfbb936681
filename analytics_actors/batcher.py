"""The batcher of one shard: the single writer of its partitions' logs, and their way into PostgreSQL.

A plain class; `analytics_actors.actors` makes a Ray actor of it. Everything runs in one event loop:

    append → queue of the partition → Appender → partition log → StoreSink → event store

The law:
- `append` answers each batch when it is in the log on disk, or says why it is not; it never blocks on PostgreSQL.
- A batch may be appended again under its own id at any time; it is then answered `REPEATED`.
- `observe` and `pending_of` are cheap and may be called from another thread.
- After `drain` everything that was acknowledged is in the event store, unless the deadline passed.
"""

import asyncio
import os
import time
from collections.abc import Callable, Sequence

from analytics_actors.appender import Appender
from analytics_actors.background import Background
from analytics_actors.counters import Counters
from analytics_actors.event_folding import EventFolding
from analytics_actors.messages import FULL, NOT_OWNER, UNAVAILABLE, AppendReply, BatcherView, PartitionView
from analytics_actors.owned_partition import Call, OwnedPartition, PartitionState, Submission, Waiting
from analytics_actors.pending import Backlog, HourCount
from analytics_actors.store_sink import OtherSinks, StoreSink, no_other_sinks
from analytics_actors.takeover import Takeover
from config.settings import Settings
from storage.errors import Fenced, Misconfigured, Unavailable
from storage.event_batch import EventBatch
from storage.event_store import EventStore
from storage.fingerprint import fingerprint, partition_of
from storage.partition_log import PartitionLog

MAX_WAITING_BYTES = 64 * 1024 * 1024
"""Of batches that wait for the log, over all partitions: some seconds of the highest rate that was measured.
Beyond it callers are told FULL and slow down (BP-1)."""

PREPARE_DAYS_INTERVAL_S = 10.0
"""Days are made ahead, and the lookup index is told of new pages: of few at a time, since a minute's at a high rate
took a second of a core, which was seen in the answers."""


def wall_clock_ms() -> int:
    return time.time_ns() // 1_000_000


class Batcher:
    """Owns the given partitions once `open` has returned."""

    def __init__(
        self,
        shard: int,
        partitions: Sequence[int],
        log: PartitionLog,
        store: EventStore,
        settings: Settings,
        *,
        other_sinks: OtherSinks = no_other_sinks,
        clock_ms: Callable[[], int] = wall_clock_ms,
        folding: EventFolding | None = None,
    ) -> None:
        """`other_sinks` tells how far they are: the log keeps stored records for them up to half of its bound.
        `folding` is the store's; it is kept up to date here."""
        self.shard = shard
        self._settings = settings
        self._clock_ms = clock_ms
        self._log = log
        self._store = store
        self._folding = folding
        self._counters = Counters()
        self._background = Background()
        self._started_ms = clock_ms()
        window_s = settings.log.dedupe_window_s
        self._backlog = Backlog()
        self._owned = {p: OwnedPartition(p, window_s=window_s, backlog=self._backlog) for p in partitions}
        self._max_log_bytes = settings.log.max_bytes // settings.actors.shards
        self._takeover = Takeover(
            log,
            store,
            self._counters,
            partitions=settings.log.partitions,
            window_s=window_s,
            clock_ms=clock_ms,
            keep=self._has_memory_for,
        )
        self._sink = StoreSink(
            self._owned.values(),
            log,
            store,
            self._counters,
            self._background,
            settings.store,
            backlog=self._backlog,
            clock_ms=clock_ms,
            window_s=window_s,
            on_lost=self._reopen,
            other_sinks=other_sinks,
            max_kept_bytes=self._max_log_bytes // 2,
        )
        self._appender = Appender(
            self._owned.values(),
            log,
            self._counters,
            self._background,
            clock_ms=clock_ms,
            keep=self._has_memory_for,
            on_appended=self._sink.appended,
            on_lost=self._reopen,
        )
        self._waiting = Waiting()
        self._draining = False

    async def open(self) -> None:
        """Take the partitions over and start the loops. Returns when appends are taken."""
        if self._folding is not None:
            self._background.spawn(self._folding.run(self._counters))
        await self._takeover.open(list(self._owned.values()))
        for run in (self._appender.run(), self._sink.run(), self._sink.run_trimming(), self._prepare_days()):
            self._background.spawn(run)
        self._appender.wake()
        self._sink.wake()

    async def append(self, batches: Sequence[EventBatch]) -> list[AppendReply]:
        """One reply a batch, in order."""
        # All are queued before the first await: the order of calls is the order of the log (OR-1).
        call = Call(len(batches))
        for index, batch in enumerate(batches):
            owner = self._owned.get(batch.partition)
            refusal = self._refusal(owner)
            if refusal is not None or owner is None:
                call.answer(index, AppendReply(NOT_OWNER if refusal is None else refusal))
            else:
                owner.waiting.append(Submission(batch, call, index, self._waiting))
        self._appender.wake()
        return await call.answered

    def _refusal(self, owner: OwnedPartition | None) -> int | None:
        if owner is None or owner.state is PartitionState.FENCED:
            return NOT_OWNER
        if self._draining or owner.state in {PartitionState.RESOLVING, PartitionState.LOST}:
            return UNAVAILABLE
        if self._waiting.bytes > MAX_WAITING_BYTES or self._backlog.log_bytes > self._max_log_bytes:
            self._counters.count("appends_refused")
            return FULL
        return None

    async def wait_stored(self, partition: int, offset: int, *, deadline_s: float) -> bool:
        """Whether the record was in the event store before the deadline."""
        owner = self._owned.get(partition)
        if owner is None:
            return False
        waiter = owner.stored(offset)
        self._sink.wake()
        done, _ = await asyncio.wait([waiter], timeout=deadline_s)
        if not done:
            waiter.cancel()
        return bool(done) and not waiter.cancelled()

    async def drain(self, *, deadline_s: float) -> bool:
        """Take no more, store what was taken. Whether nothing is left."""
        self._draining = self._sink.draining = True
        until = time.monotonic() + deadline_s
        while self._waiting.bytes or any(owner.pending for owner in self._owned.values()):
            if time.monotonic() > until:
                return False
            self._appender.wake()
            self._sink.wake()
            await asyncio.sleep(0.02)
        return True

    async def close(self) -> None:
        await self._background.close()
        await self._log.close()
        await self._store.close()

    @property
    def failure(self) -> BaseException | None:
        """Why this batcher must be replaced by a new life of the same actor, if it must.

        A loop has ended, which none should; or a partition was taken over. If that was by a stale process, the
        new life takes it back; if this is the stale process, nobody starts it again.
        """
        fenced = [owner.partition for owner in self._owned.values() if owner.state is PartitionState.FENCED]
        if fenced and not self._background.failure:
            return Fenced(f"partitions {fenced} were taken over")
        return self._background.failure

    def _reopen(self, owner: OwnedPartition) -> None:
        if owner.state in {PartitionState.OPENING, PartitionState.FENCED}:
            return
        owner.state = PartitionState.LOST
        if owner.appending:
            # The appender calls again.
            return
        owner.state = PartitionState.OPENING
        self._background.spawn(self._reopen_one(owner))

    async def _reopen_one(self, owner: OwnedPartition) -> None:
        await self._takeover.reopen(owner)
        self._appender.wake()
        self._sink.wake()

    async def _prepare_days(self) -> None:
        while True:
            try:
                await self._store.prepare_days()
            except (Unavailable, Misconfigured) as error:
                self._counters.trouble("postgres", f"daily partitions: {error}")
                await asyncio.sleep(5)
            else:
                await asyncio.sleep(PREPARE_DAYS_INTERVAL_S)

    def _has_memory_for(self, size: int) -> bool:
        return self._backlog.resident_bytes + size <= self._settings.store.max_resident_bytes

    def pending_of(self, project_id: str) -> list[HourCount]:
        """What of a project is in the log and not yet in the event store."""
        owner = self._owned.get(partition_of(project_id, self._settings.log.partitions))
        return [count for count in owner.pending.counts() if count.project_id == project_id] if owner else []

    def knows(self, project_id: str, event_id: str) -> bool:
        """Whether the event was accepted within the dedupe window."""
        owner = self._owned.get(partition_of(project_id, self._settings.log.partitions))
        return owner is not None and owner.window.contains(fingerprint(project_id, event_id))

    def observe(self) -> BatcherView:
        owned = list(self._owned.values())
        oldest = [owner.pending.oldest_ms for owner in owned if owner.pending.oldest_ms is not None]
        return BatcherView(
            shard=self.shard,
            pid=os.getpid(),
            started_ms=self._started_ms,
            open_partitions=sum(owner.state is PartitionState.OPEN for owner in owned),
            partitions=[_view(owner) for owner in owned],
            waiting_events=sum(len(owner.waiting) for owner in owned),
            waiting_bytes=self._waiting.bytes,
            lag_events=self._backlog.events,
            lag_s=max(0.0, (self._clock_ms() - min(oldest)) / 1000) if oldest else 0.0,
            log_bytes=self._backlog.log_bytes,
            resident_bytes=self._backlog.resident_bytes,
            window_ids=sum(len(owner.window) for owner in owned),
            window_bytes=sum(owner.window.resident_bytes for owner in owned),
            counters=dict(self._counters.totals),
            trouble=self._counters.troubles,
        )


def _view(owner: OwnedPartition) -> PartitionView:
    return PartitionView(
        partition=owner.partition,
        state=owner.state.value,
        epoch=owner.epoch,
        next_offset=owner.next_offset,
        checkpoint=owner.checkpoint,
        lag_events=owner.pending.events,
        window_ids=len(owner.window),
    )
