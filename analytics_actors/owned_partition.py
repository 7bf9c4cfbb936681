"""What the owner of a partition knows of it: epoch, offsets, dedupe window, queue, unstored records."""

import asyncio
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from analytics_actors.dedupe import DedupeWindow
from analytics_actors.messages import AppendReply
from analytics_actors.pending import Backlog, PendingRecords
from storage.event_batch import EventBatch
from storage.event_store import Checkpoint
from storage.partition_log import OFFSET_BLOCK


class PartitionState(StrEnum):
    OPENING = "opening"
    """Being taken over: appends wait."""
    OPEN = "open"
    RESOLVING = "resolving"
    """An append's outcome is unknown: nothing may be appended before it is known."""
    LOST = "lost"
    """The log's state is gone: to be taken over again."""
    FENCED = "fenced"
    """Another owner has it: this one has nothing to say any more."""


class Call:
    """One append call, which is answered when each of its batches is."""

    __slots__ = ("_left", "_replies", "answered")

    def __init__(self, batches: int) -> None:
        self._replies: list[AppendReply | None] = [None] * batches
        self._left = batches
        self.answered: asyncio.Future[list[AppendReply]] = asyncio.get_running_loop().create_future()
        if not batches:
            self.answered.set_result([])

    def answer(self, index: int, reply: AppendReply) -> bool:
        """False if that batch has its reply already."""
        if self._replies[index] is not None:
            return False
        self._replies[index] = reply
        self._left -= 1
        if not self._left and not self.answered.done():
            self.answered.set_result([reply for reply in self._replies if reply is not None])
        return True


@dataclass
class Waiting:
    """What waits for the log in all partitions of a shard."""

    bytes: int = 0


class Submission:
    """A batch that waits to be appended, and the call that waits for its outcome."""

    __slots__ = ("_call", "_index", "_waiting", "batch", "size")

    def __init__(self, batch: EventBatch, call: Call, index: int, waiting: Waiting) -> None:
        self.batch = batch
        self.size = batch.resident_bytes
        self._call = call
        self._index = index
        self._waiting = waiting
        waiting.bytes += self.size

    def answer(self, reply: AppendReply) -> None:
        if self._call.answer(self._index, reply):
            self._waiting.bytes -= self.size


class OwnedPartition:
    """State only; the appender, the store sink and the takeover act on it, all in one event loop."""

    def __init__(self, partition: int, *, window_s: float, backlog: Backlog) -> None:
        self.partition = partition
        self.state = PartitionState.OPENING
        self.epoch = 0
        self.next_offset = 0
        self.window = DedupeWindow(window_s)
        # Bounded by the batcher in bytes (`MAX_WAITING_BYTES`), over all partitions.
        self.waiting: deque[Submission] = deque()
        self.pending = PendingRecords(backlog)
        self.checkpoint = 0
        self.store_epoch: int | None = None
        """The epoch under which the event store's checkpoint is ours; None: to be claimed first."""
        self.lost_below = 0
        """Records below it that are not in memory are not in the log either: it was lost."""
        self.trimmed_below = 0
        self.writing = False
        self.appending = False
        """An append is under way, or its outcome is not known yet."""
        self._stored_waiters: list[tuple[int, asyncio.Future[None]]] = []

    def take_waiting(self, *, max_bytes: int, max_plain_bytes: int) -> list[Submission]:
        """The oldest waiting batches up to a size, in the log and as columns, one at least."""
        taken: list[Submission] = []
        size = plain = 0
        while self.waiting:
            size += self.waiting[0].size
            plain += self.waiting[0].batch.rows.plain_bytes
            if taken and (size > max_bytes or plain > max_plain_bytes):
                break
            taken.append(self.waiting.popleft())
        return taken

    def refuse_waiting(self, status: int) -> None:
        while self.waiting:
            self.waiting.popleft().answer(AppendReply(status))

    def fence(self, status: int) -> None:
        """Another owner has it (FN-1): give up everything that only an owner may do."""
        self.state = PartitionState.FENCED
        self.refuse_waiting(status)
        self.pending.clear()
        for _, waiter in self._stored_waiters:
            waiter.cancel()
        self._stored_waiters.clear()

    def claimed(self, checkpoint: Checkpoint) -> None:
        """The event store's checkpoint is under our epoch, and this is where it really stands."""
        self.store_epoch = checkpoint.epoch
        self.checkpoint = checkpoint.next_offset
        self.advance(checkpoint.next_offset)

    def has_trimmed_beyond(self, checkpoint: Checkpoint) -> bool:
        """Whether the log has let go of records that the event store does not have: it was set back. A log that was
        begun anew in a block of its own has let go of nothing yet."""
        return checkpoint.next_offset < self.trimmed_below and self.trimmed_below % OFFSET_BLOCK != 0

    def advance(self, next_offset: int, *, lost: bool = False) -> None:
        """The event store has everything below `next_offset` (CK-1: never moves back within an epoch). With `lost` it
        has stepped over what was not there yet, and nobody is told that it is stored."""
        self.checkpoint = max(self.checkpoint, next_offset)
        self.pending.drop_below(self.checkpoint)
        still_waiting = []
        for offset, waiter in self._stored_waiters:
            if offset >= self.checkpoint:
                still_waiting.append((offset, waiter))
            elif lost:
                waiter.cancel()
            elif not waiter.done():
                waiter.set_result(None)
        self._stored_waiters = still_waiting

    def stored(self, offset: int) -> "asyncio.Future[None]":
        """Done when the record at `offset` is in the event store; cancelled when it never will be."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if offset < self.checkpoint:
            waiter.set_result(None)
        else:
            self._stored_waiters.append((offset, waiter))
        return waiter

    @property
    def somebody_waits(self) -> bool:
        """Whether a caller asked for an answer only when its events are stored."""
        return any(not waiter.done() for _, waiter in self._stored_waiters)

    def missing_in_memory(self) -> Iterator[int]:
        """Offsets of unstored records that only the log has."""
        return (pending.offset for pending in self.pending if pending.record is None)
