"""Opening partitions: a new epoch, the dedupe window rebuilt, the unstored records found again.

Where the log's state is there, Redis alone is needed; but PostgreSQL is asked, if it answers soon, whether one of the
two was set back (a replica was promoted, an older copy of its disk is in place, a backup was restored):

- The log: PostgreSQL has stored more than it knows, or under a later epoch. It is gone on with as if it was lost.
- PostgreSQL: it has less than was trimmed from the log because it had it. What it has forgotten is gone, and so are the
  ids: whoever sends it again is no duplicate. What the log still has is stored again. Offsets go on in a fresh block
  here too, which is how the windows' owner sees that they are to be counted again from what there is.

Where its state is gone (a new system, FLUSHALL, a lost disk), PostgreSQL says how far epochs and offsets had come, and
both go on in a fresh block, so that none is used twice: PostgreSQL knows the checkpoint and epoch of the last write,
not what came after them. The window then comes back from the event store; but not the ids of events that were only
aggregated, which have no row: those come back from the log's ids alone, so that an event of theirs that is sent again
after a lost log counts again.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import TypeVar

import numpy as np

from analytics_actors.counters import Counters
from analytics_actors.messages import NOT_OWNER
from analytics_actors.owned_partition import OwnedPartition, PartitionState
from analytics_actors.pending import PendingRecord
from storage.errors import Fenced, FormatError, LogLost, Misconfigured, Unavailable
from storage.event_batch import RECORD_VERSION, LogRecord, decode_record, read_rows
from storage.event_store import Checkpoint, EventStore, PartitionWrite
from storage.fingerprint import batch_fingerprint, fingerprint, partition_of
from storage.partition_log import OFFSET_BLOCK, IdsEntry, LogState, PartitionLog

EPOCH_BLOCK = 1 << 20
"""The same for epochs: more owners than a partition can have between two writes."""

_log = logging.getLogger(__name__)

READ_RECORDS = 64
LOAD_ENTRIES = 1000
"""Of ids at a time: bounds the memory and the time of one step of a rebuild."""
RETRY_PAUSES_S = (0.1, 0.2, 0.5, 1.0, 2.0)

LOOK_S = 2.0
"""So long a new owner waits for PostgreSQL to say whether the log was set back."""

T = TypeVar("T")


class Takeover:
    """Opens partitions; retries for ever while a service that it needs is away."""

    def __init__(
        self,
        log: PartitionLog,
        store: EventStore,
        counters: Counters,
        *,
        partitions: int,
        window_s: float,
        clock_ms: Callable[[], int],
        keep: Callable[[int], bool],
    ) -> None:
        self._log = log
        self._store = store
        self._counters = counters
        self._window_ms = int(window_s * 1000)
        self._partitions = partitions
        self._clock_ms = clock_ms
        self._keep = keep

    async def open(self, owners: Sequence[OwnedPartition]) -> None:
        """Bring every partition to `OPEN`. A record that this release cannot read is in its place among those that are
        pending, and stops its own partition when its turn comes."""
        missing = [owner for owner in owners if not await self._acquire(owner, at_least=None)]
        if missing:
            await self._start_anew(missing)
        set_back = await self._set_back([owner for owner in owners if owner not in missing])
        for owner, checkpoint in set_back:
            if owner.has_trimmed_beyond(checkpoint):
                await self._forget_as_store_did(owner, checkpoint)
            else:
                await self._go_on_behind(owner, checkpoint)
        now_ms = self._clock_ms()
        rebuild_from_store = []
        for owner in owners:
            ids_since_ms = await self._load_window(owner)
            await self._load_pending(owner)
            if ids_since_ms > now_ms - self._window_ms:
                rebuild_from_store.append(owner)
        if rebuild_from_store:
            # Claimed first: what an older owner still has in memory cannot be stored after we have looked.
            for owner in rebuild_from_store:
                await self._claim(owner)
            await self._retry("postgres", lambda: self._load_window_from_store(rebuild_from_store, now_ms))
        for owner, checkpoint in set_back:
            if owner.has_trimmed_beyond(checkpoint):
                await self._step_over_forgotten(owner)
        for owner in owners:
            if owner.state is PartitionState.OPENING:
                owner.state = PartitionState.OPEN

    async def reopen(self, owner: OwnedPartition) -> None:
        """Take a partition over again after its log's state was lost.

        What is still in memory is kept and will be stored; what is not is lost, and named by the ledger.
        PostgreSQL is asked first whether another owner has been there: epochs of Redis begin anew, its do not.
        """
        self._counters.count("log_losses")
        [checkpoint] = await self._retry("postgres", lambda: self._store.checkpoints([owner.partition]))
        if checkpoint.epoch > owner.epoch:
            owner.fence(NOT_OWNER)
            return
        floor = self._fresh_block(owner.epoch, max(owner.next_offset, checkpoint.next_offset))
        owner.lost_below = floor.next_offset
        await self._acquire(owner, at_least=floor)
        await self._claim(owner)
        if any(True for _ in owner.missing_in_memory()):
            # Ids of lost records must not make their events' retries duplicates.
            owner.window.clear()
            await self._retry("postgres", lambda: self._load_window_from_store([owner], self._clock_ms()))
        if owner.state is PartitionState.OPENING:
            owner.state = PartitionState.OPEN

    async def _claim(self, owner: OwnedPartition) -> None:
        try:
            checkpoint = await self._retry("postgres", partial(self._store.claim, owner.partition, epoch=owner.epoch))
        except Fenced:
            owner.fence(NOT_OWNER)
        else:
            owner.claimed(checkpoint)

    async def _acquire(self, owner: OwnedPartition, *, at_least: LogState | None) -> bool:
        try:
            state = await self._retry("log", lambda: self._log.acquire(owner.partition, at_least=at_least))
        except LogLost:
            return False
        owner.epoch, owner.next_offset = state.epoch, state.next_offset
        owner.trimmed_below = state.first_offset
        owner.store_epoch = None
        return True

    async def _start_anew(self, owners: Sequence[OwnedPartition]) -> None:
        """The log knows nothing of these partitions: they are new, or their log was lost."""
        checkpoints = await self._retry(
            "postgres", lambda: self._store.checkpoints([owner.partition for owner in owners])
        )
        for owner, checkpoint in zip(owners, checkpoints, strict=True):
            floor = self._floor(checkpoint)
            owner.lost_below = floor.next_offset
            await self._acquire(owner, at_least=floor)
            # PostgreSQL must know that the partition is in use before anything is acknowledged in it.
            await self._claim(owner)

    async def _set_back(self, owners: Sequence[OwnedPartition]) -> list[tuple[OwnedPartition, Checkpoint]]:
        """Partitions of which the event store has more than the log ever had, or from a later owner; or less than was
        trimmed from the log."""
        try:
            async with asyncio.timeout(LOOK_S):
                checkpoints = await self._store.checkpoints([owner.partition for owner in owners])
        except (Unavailable, Misconfigured, TimeoutError) as error:
            # Appends are taken without it, and the sink tries on; its first write clears this.
            self._counters.trouble("postgres", str(error) or "no answer about the log's offsets")
            return []
        found = [
            (owner, checkpoint)
            for owner, checkpoint in zip(owners, checkpoints, strict=True)
            if checkpoint.next_offset > owner.next_offset
            or checkpoint.epoch >= owner.epoch
            or owner.has_trimmed_beyond(checkpoint)
        ]
        states = await self._retry("log", lambda: self._log.state([owner.partition for owner, _ in found]))
        # Another epoch in the log by now: the later owner is a real one, and will refuse us.
        return [pair for pair, state in zip(found, states, strict=True) if state and state.epoch == pair[0].epoch]

    async def _go_on_behind(self, owner: OwnedPartition, checkpoint: Checkpoint) -> None:
        fields = {"action": "log_set_back", "partition": owner.partition, "log": owner.next_offset}
        _log.warning("the log is behind the event store", extra=fields | {"store": checkpoint.next_offset})
        self._counters.count("log_losses")
        epoch, offset = max(owner.epoch, checkpoint.epoch), max(owner.next_offset, checkpoint.next_offset)
        await self._acquire(owner, at_least=self._fresh_block(epoch, offset))
        await self._claim(owner)

    async def _forget_as_store_did(self, owner: OwnedPartition, checkpoint: Checkpoint) -> None:
        """Until the gap is stepped over, which is last, the next owner does all of it again."""
        fields = {"action": "store_set_back", "partition": owner.partition, "log": owner.next_offset}
        _log.warning("the event store was set back", extra=fields | {"store": checkpoint.next_offset})
        self._counters.count("store_losses")
        epoch, offset = max(owner.epoch, checkpoint.epoch), max(owner.next_offset, checkpoint.next_offset)
        # The other ids are complete: they are not to be looked for in the event store.
        await self._acquire(owner, at_least=self._fresh_block(epoch, offset)._replace(ids_since_ms=0))
        forgotten = range(checkpoint.next_offset, owner.trimmed_below)
        await self._retry("log", lambda: self._log.forget_ids(owner.partition, forgotten, epoch=owner.epoch))

    async def _step_over_forgotten(self, owner: OwnedPartition) -> None:
        await self._claim(owner)
        if owner.store_epoch is None:
            return
        first = next((pending.offset for pending in owner.pending), owner.next_offset)
        gap = PartitionWrite(owner.partition, owner.store_epoch, owner.checkpoint, first, ())
        try:
            await self._retry("postgres", lambda: self._store.write([gap]))
        except Fenced:
            # It was written although it did not look so, or somebody else has the partition: the sink's claim tells.
            owner.store_epoch = None
        else:
            owner.advance(first, lost=True)

    def _floor(self, checkpoint: Checkpoint) -> LogState:
        if checkpoint.epoch == 0:
            return LogState(0, 0, 0, ids_since_ms=0)
        return self._fresh_block(checkpoint.epoch, checkpoint.next_offset)

    def _fresh_block(self, epoch: int, offset: int) -> LogState:
        base = (offset // OFFSET_BLOCK + 1) * OFFSET_BLOCK
        return LogState((epoch // EPOCH_BLOCK + 1) * EPOCH_BLOCK, base, base, self._clock_ms())

    async def _load_window(self, owner: OwnedPartition) -> int:
        """Rebuild the window from the log's ids; returns the time since which they are complete."""
        [state] = await self._retry("log", lambda: self._log.state([owner.partition]))
        if state is None:
            raise LogLost(f"partition {owner.partition} lost its state while it was being opened")
        chunk: list[IdsEntry] = []
        async for entry in self._log.read_ids(owner.partition):
            chunk.append(entry)
            if len(chunk) == LOAD_ENTRIES:
                owner.window.load(chunk, self._clock_ms())
                chunk = []
        owner.window.load(chunk, self._clock_ms())
        return state.ids_since_ms

    async def _load_pending(self, owner: OwnedPartition) -> None:
        offset = owner.trimmed_below
        while offset < owner.next_offset:
            chunk = await self._retry("log", partial(self._log.read, owner.partition, offset, max_records=READ_RECORDS))
            if not chunk:
                return
            for found, raw in chunk:
                self._add_pending(owner, found, raw)
            offset = chunk[-1][0] + 1

    def _add_pending(self, owner: OwnedPartition, offset: int, raw: bytes) -> None:
        try:
            owner.pending.add(PendingRecord(offset, decode_record(raw), len(raw)), keep=self._keep(len(raw)))
        except FormatError:
            # How many events it has nobody can tell.
            unknown = LogRecord(RECORD_VERSION, self._clock_ms(), [])
            owner.pending.add(PendingRecord(offset, unknown, len(raw)), keep=False)

    async def _load_window_from_store(self, owners: Sequence[OwnedPartition], now_ms: int) -> None:
        """Add the ids of stored events, and of unstored ones that are in memory. Nobody knows those that were only
        aggregated and are not in the log any more."""
        by_partition = {owner.partition: owner for owner in owners}
        since_ms = now_ms - self._window_ms
        async for chunk in self._store.recent_ids(list(by_partition), since_ms=since_ms):
            grouped: dict[int, list[int]] = {}
            for stored in chunk:
                partition = partition_of(stored.project_id, self._partitions)
                grouped.setdefault(partition, []).append(fingerprint(stored.project_id, stored.event_id))
            for partition, fingerprints in grouped.items():
                by_partition[partition].window.add(np.array(fingerprints, dtype=np.uint64), now_ms=now_ms)
        for owner in owners:
            for pending in owner.pending:
                if pending.record is not None:
                    with contextlib.suppress(FormatError):
                        owner.window.add(_ids_of(pending.record), now_ms=now_ms)

    async def _retry(self, service: str, call: Callable[[], Awaitable[T]]) -> T:
        attempt = 0
        while True:
            try:
                result = await call()
            except Unavailable as error:
                self._counters.trouble(service, str(error))
                await asyncio.sleep(RETRY_PAUSES_S[min(attempt, len(RETRY_PAUSES_S) - 1)])
                attempt += 1
            else:
                self._counters.clear_trouble(service)
                return result


def _ids_of(record: LogRecord) -> np.ndarray:
    ids: list[int] = []
    for batch in record.batches:
        ids.append(batch_fingerprint(batch.batch_id))
        if batch.rows.block:
            rows = read_rows(batch)
            projects, events = rows.column("project_id").to_pylist(), rows.column("event_id").to_pylist()
            ids += [fingerprint(project, event) for project, event in zip(projects, events, strict=True)]
    return np.array(ids, dtype=np.uint64)
