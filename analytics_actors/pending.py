"""The records of one partition that are in the log and not yet in the event store.

Kept by the partition's owner: a summary of each record always (it is what the ledger calls pending, and
what is named if the log loses the record), the record itself while the shard has memory for it. A record
that was let go is read from the log again when its turn comes.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from storage.event_batch import LogRecord
from storage.event_store import LostEvents


class HourCount(NamedTuple):
    """Events of one project received in one hour (hours since the Unix epoch)."""

    project_id: str
    hour: int
    accepted: int
    """Rows that were not duplicates: what the event store will take."""
    duplicate: int
    rejected: int

    @property
    def received(self) -> int:
        return self.accepted + self.duplicate + self.rejected

    def as_lost(self) -> LostEvents:
        return LostEvents(self.project_id, self.hour, self.received, self.duplicate, self.rejected, self.accepted)


class PendingRecord:
    """One record: `record` is None while only the log has it."""

    __slots__ = ("appended_ms", "counts", "events", "log_bytes", "offset", "plain_bytes", "record")

    def __init__(self, offset: int, record: LogRecord, log_bytes: int) -> None:
        self.offset = offset
        self.log_bytes = log_bytes
        self.appended_ms = record.appended_ms
        self.counts = count_hours(record)
        self.events = sum(count.accepted for count in self.counts)
        self.plain_bytes = record.plain_bytes
        self.record: LogRecord | None = record


def count_hours(record: LogRecord) -> tuple[HourCount, ...]:
    """The record's events by project and hour, with duplicates told apart, from its segments."""
    totals: dict[tuple[str, int], list[int]] = {}
    for batch in record.batches:
        mask = batch.duplicate_mask()
        row = 0
        for segment in batch.segments:
            duplicates = 0 if mask is None else int(np.count_nonzero(mask[row : row + segment.events]))
            row += segment.events
            total = totals.setdefault((segment.project_id, segment.hour), [0, 0, 0])
            total[0] += segment.events - duplicates
            total[1] += duplicates
            total[2] += segment.rejected
    return tuple(HourCount(project, hour, *total) for (project, hour), total in totals.items())


@dataclass
class Backlog:
    """What is pending in all partitions of a shard, kept as a sum: the shard's bounds are looked at for every batch."""

    events: int = 0
    log_bytes: int = 0
    resident_bytes: int = 0


class PendingRecords:
    """A queue of `PendingRecord` by ascending offset. It is counted in the shard's `Backlog` too."""

    def __init__(self, backlog: Backlog) -> None:
        self._records: deque[PendingRecord] = deque()
        self._backlog = backlog
        self.events = 0
        self.log_bytes = 0
        self.resident_bytes = 0

    def __len__(self) -> int:
        return len(self._records)

    def __iter__(self) -> Iterator[PendingRecord]:
        return iter(self._records)

    @property
    def oldest_ms(self) -> int | None:
        return self._records[0].appended_ms if self._records else None

    def add(self, pending: PendingRecord, *, keep: bool) -> None:
        """Append at the end; with `keep` the record stays in memory."""
        self._records.append(pending)
        if not keep:
            pending.record = None
        self._count(pending.events, pending.log_bytes, pending.log_bytes if keep else 0)

    def restore(self, pending: PendingRecord, record: LogRecord) -> None:
        """A record that was let go is back in memory."""
        if pending.record is None:
            pending.record = record
            self._count(0, 0, pending.log_bytes)

    def let_go(self, pending: PendingRecord) -> None:
        """A record is to be read from the log again when its turn comes."""
        if pending.record is not None:
            pending.record = None
            self._count(0, 0, -pending.log_bytes)

    def head(self, *, max_events: int, max_plain_bytes: int) -> list[PendingRecord]:
        """The oldest records with at most that many events, and bytes as columns; one at least."""
        chosen: list[PendingRecord] = []
        events = plain_bytes = 0
        for pending in self._records:
            events += pending.events
            plain_bytes += pending.plain_bytes
            if chosen and (events > max_events or plain_bytes > max_plain_bytes):
                break
            chosen.append(pending)
        return chosen

    def drop_below(self, offset: int) -> None:
        """Forget what is stored."""
        while self._records and self._records[0].offset < offset:
            done = self._records.popleft()
            self._count(-done.events, -done.log_bytes, -done.log_bytes if done.record is not None else 0)

    def clear(self) -> None:
        self._records.clear()
        self._count(-self.events, -self.log_bytes, -self.resident_bytes)

    def _count(self, events: int, log_bytes: int, resident_bytes: int) -> None:
        for counted in (self, self._backlog):
            counted.events += events
            counted.log_bytes += log_bytes
            counted.resident_bytes += resident_bytes

    def counts(self) -> Iterator[HourCount]:
        # A snapshot: another thread may be asking.
        for pending in tuple(self._records):
            yield from pending.counts


def lost_of(records: Sequence[PendingRecord]) -> list[LostEvents]:
    return [count.as_lost() for pending in records for count in pending.counts]
