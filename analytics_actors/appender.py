"""Takes waiting batches into the log: decides duplicates, appends, answers.

One loop a shard. A round takes what waits for every open partition, makes one record a partition, and
sends all of them in one round trip; what arrives meanwhile waits for the next round, so that load makes
the rounds larger, not more. There is at most one append in flight for a partition, and its ids
count as seen only when it has succeeded (ND-1).

An append whose outcome is unknown is settled before its partition takes anything else: a new epoch is
taken first, so that the old append cannot land any more, and the offset then says whether it had. Its
callers are told at once that the log is unavailable; if they send the batch again, from their spool,
its id says that it is here already.
"""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from analytics_actors.background import Background
from analytics_actors.counters import Counters
from analytics_actors.fingerprint_set import Fingerprints
from analytics_actors.messages import APPENDED, FULL, NOT_OWNER, REPEATED, UNAVAILABLE, AppendReply
from analytics_actors.owned_partition import OwnedPartition, PartitionState, Submission
from analytics_actors.pending import PendingRecord
from storage.errors import Fenced, LogLost, Unavailable
from storage.event_batch import RECORD_VERSION, LogRecord, PackedRows, RecordBatch, encode_record, pack_duplicates
from storage.fingerprint import batch_fingerprint
from storage.partition_log import Append, LogState, PartitionLog

MAX_RECORD_BYTES = 4 * 1024 * 1024
"""Batches are put into one record up to this size: large enough that a record's fixed costs vanish, small
enough that one record does not hold up the round trip that all partitions share."""

MAX_RECORD_PLAIN_BYTES = 64 * 1024 * 1024
"""As columns: what compresses well would otherwise be gigabytes where it is read."""

RESOLVE_PAUSES_S = (0.05, 0.1, 0.2, 0.5, 1.0)


class Round(NamedTuple):
    """One partition's part of a round trip."""

    owner: OwnedPartition
    submissions: list[Submission]
    masks: list[npt.NDArray[np.bool_]]
    record: LogRecord
    append: Append


class Appender:
    """Runs until cancelled. `wake` after putting something into a partition's queue."""

    def __init__(
        self,
        partitions: Iterable[OwnedPartition],
        log: PartitionLog,
        counters: Counters,
        background: Background,
        *,
        clock_ms: Callable[[], int],
        keep: Callable[[int], bool],
        on_appended: Callable[[], None],
        on_lost: Callable[[OwnedPartition], None],
    ) -> None:
        self._partitions = list(partitions)
        self._log = log
        self._counters = counters
        self._background = background
        self._clock_ms = clock_ms
        self._keep = keep
        self._on_appended = on_appended
        self._on_lost = on_lost
        self._wake = asyncio.Event()

    def wake(self) -> None:
        self._wake.set()

    async def run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while rounds := self._plan():
                await self._send(rounds)

    def _plan(self) -> list[Round]:
        rounds = []
        for owner in self._partitions:
            if owner.state is PartitionState.OPEN and owner.waiting:
                planned = self._plan_one(owner)
                if planned is not None:
                    rounds.append(planned)
        return rounds

    def _plan_one(self, owner: OwnedPartition) -> Round | None:
        submissions: list[Submission] = []
        while owner.waiting and not submissions:
            taken = owner.take_waiting(max_bytes=MAX_RECORD_BYTES, max_plain_bytes=MAX_RECORD_PLAIN_BYTES)
            submissions, masks, fresh = self._decide(owner, taken)
        if not submissions:
            return None
        owner.appending = True
        record = LogRecord(
            RECORD_VERSION,
            self._clock_ms(),
            [_to_record_batch(s, mask) for s, mask in zip(submissions, masks, strict=True)],
        )
        append = Append(owner.partition, owner.epoch, owner.next_offset, encode_record(record), fresh)
        return Round(owner, submissions, masks, record, append)

    def _decide(
        self, owner: OwnedPartition, taken: list[Submission]
    ) -> tuple[list[Submission], list[npt.NDArray[np.bool_]], bytes]:
        """Which batches are to be appended, which of their rows are duplicates, and the fingerprints to remember."""
        ids, starts = _ids_of(taken)
        known = owner.window.known(ids)
        if known[starts].any():
            # Looked up anew: the rows of a batch that is not appended make no other row a duplicate.
            taken = _not_repeated(owner, taken)
            ids, starts = _ids_of(taken)
            known = owner.window.known(ids)
        masks = [known[start + 1 : start + 1 + s.batch.events] for s, start in zip(taken, starts, strict=True)]
        return taken, masks, ids[~known].tobytes()

    async def _send(self, rounds: list[Round]) -> None:
        try:
            outcomes = await self._log.append([planned.append for planned in rounds])
        except Unavailable as error:
            self._counters.trouble("log", str(error))
            self._resolve_later(rounds)
            return
        self._counters.clear_trouble("log")
        for planned, outcome in zip(rounds, outcomes, strict=True):
            match outcome:
                case "appended":
                    self._settle(planned)
                case "full":
                    _answer_all(planned, FULL)
                case "fenced":
                    _answer_all(planned, NOT_OWNER)
                    planned.owner.fence(NOT_OWNER)
                case "lost":
                    _answer_all(planned, UNAVAILABLE)
                    planned.owner.state = PartitionState.LOST
            self._landed(planned.owner)
        self._on_appended()

    def _settle(self, planned: Round) -> None:
        """The record is in the log: remember its ids, hand it to the sink, answer its callers."""
        owner, append = planned.owner, planned.append
        owner.next_offset = append.offset + 1
        owner.window.add(np.frombuffer(append.fingerprints, dtype=np.dtype("<u8")), now_ms=planned.record.appended_ms)
        pending = PendingRecord(append.offset, planned.record, len(append.record))
        owner.pending.add(pending, keep=self._keep(pending.log_bytes))
        self._counters.appended(pending, batches=len(planned.submissions))
        for submission, mask in zip(planned.submissions, planned.masks, strict=True):
            submission.answer(AppendReply(APPENDED, append.offset, pack_duplicates(mask)))

    def _landed(self, owner: OwnedPartition) -> None:
        """Its append has an outcome. Only now may it be taken over again, also if the sink has missed a record before:
        a new epoch meanwhile would make the append's outcome another one."""
        owner.appending = False
        if owner.state is PartitionState.LOST:
            self._on_lost(owner)

    def _resolve_later(self, rounds: list[Round]) -> None:
        for planned in rounds:
            if planned.owner.state is PartitionState.OPEN:
                planned.owner.state = PartitionState.RESOLVING
            _answer_all(planned, UNAVAILABLE)
            planned.owner.refuse_waiting(UNAVAILABLE)
        self._background.spawn(self._resolve(rounds))

    async def _resolve(self, rounds: list[Round]) -> None:
        for planned in rounds:
            await self._resolve_one(planned)
        self._counters.clear_trouble("log")
        self._on_appended()
        self.wake()

    async def _resolve_one(self, planned: Round) -> None:
        owner = planned.owner
        try:
            state = await self._renew(owner)
        except Fenced:
            owner.fence(NOT_OWNER)
        except LogLost:
            owner.state = PartitionState.LOST
        else:
            owner.epoch = state.epoch
            if state.next_offset == planned.append.offset + 1:
                self._settle(planned)
            elif state.next_offset != planned.append.offset:
                owner.state = PartitionState.LOST
            if owner.state is PartitionState.RESOLVING:
                owner.state = PartitionState.OPEN
        self._landed(owner)

    async def _renew(self, owner: OwnedPartition) -> LogState:
        attempt = 0
        while True:
            try:
                return await self._log.renew(owner.partition, epoch=owner.epoch)
            except Unavailable as error:
                self._counters.trouble("log", str(error))
                await asyncio.sleep(RESOLVE_PAUSES_S[min(attempt, len(RESOLVE_PAUSES_S) - 1)])
                attempt += 1


def _ids_of(taken: Sequence[Submission]) -> tuple[Fingerprints, list[int]]:
    """Of each batch its own and then its rows', and where each batch's begin."""
    parts: list[bytes] = []
    starts: list[int] = []
    start = 0
    for submission in taken:
        batch = submission.batch
        parts += (batch_fingerprint(batch.batch_id).to_bytes(8, "little"), batch.fingerprints)
        starts.append(start)
        start += 1 + batch.events
    return np.frombuffer(b"".join(parts), "<u8"), starts


def _not_repeated(owner: OwnedPartition, taken: Sequence[Submission]) -> list[Submission]:
    """Those to be appended now. A batch that is in the log is answered. A copy of one that goes now waits until that
    has its outcome: if it fails, nothing has happened that the copy could be told (NL-1)."""
    going: list[Submission] = []
    copies: list[Submission] = []
    names: set[bytes] = set()
    for submission in taken:
        name = submission.batch.batch_id
        if name in names:
            copies.append(submission)
        elif owner.window.contains(batch_fingerprint(name)):
            submission.answer(AppendReply(REPEATED))
        else:
            names.add(name)
            going.append(submission)
    owner.waiting.extendleft(reversed(copies))
    return going


def _to_record_batch(submission: Submission, mask: npt.NDArray[np.bool_]) -> RecordBatch:
    batch = submission.batch
    # Rows that every sink would leave out need no room in the log.
    rows = PackedRows() if mask.all() else batch.rows
    return RecordBatch(batch.batch_id, batch.segments, pack_duplicates(mask), rows)


def _answer_all(planned: Round, status: int) -> None:
    for submission in planned.submissions:
        submission.answer(AppendReply(status))
