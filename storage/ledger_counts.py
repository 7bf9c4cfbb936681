"""The ledger's counts of one write (LG-1).

received = stored + duplicate + dead_lettered + rejected + lost + aggregated, where `aggregated` are events that were
folded into records and have no row (`storage.aggregated`).
"""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np

from storage.event_batch import LogRecord, RecordBatch
from storage.event_store import PartitionWrite, WriteResult


class LedgerKey(NamedTuple):
    project_id: str
    hour: int
    """Of receipt, in hours since the Unix epoch."""


class RowKey(NamedTuple):
    """Names a row of the log: its number counts over the batches of its record."""

    partition: int
    offset: int
    row_number: int


@dataclass(slots=True)
class Counts:
    """What became of the events of one project received in one hour. Fields in the order of the ledger's columns."""

    received: int = 0
    stored: int = 0
    duplicate: int = 0
    dead_lettered: int = 0
    rejected: int = 0
    lost: int = 0
    aggregated: int = 0

    def add(self, other: "Counts") -> None:
        for name in COUNTED:
            setattr(self, name, getattr(self, name) + getattr(other, name))


COUNTED = tuple(field.name for field in fields(Counts))


def total(counts: Iterable[Counts]) -> WriteResult:
    result = WriteResult(0, 0, 0)
    for counted in counts:
        result = WriteResult(
            result.stored + counted.stored,
            result.duplicate + counted.duplicate,
            result.dead_lettered + counted.dead_lettered,
            result.aggregated + counted.aggregated,
        )
    return result


def count(
    writes: Sequence[PartitionWrite], dead: Sequence[RowKey], folded: Sequence[RowKey] = ()
) -> Mapping[LedgerKey, Counts]:
    """The counts that a write adds; `dead` names the rows that became dead letters, `folded` those that were only
    aggregated."""
    counts: defaultdict[LedgerKey, Counts] = defaultdict(Counts)
    dead_of_record, folded_of_record = _by_record(dead), _by_record(folded)
    for write in writes:
        for lost in write.lost:
            counted = counts[LedgerKey(lost.project_id, lost.hour)]
            counted.received += lost.received
            counted.duplicate += lost.duplicate
            counted.rejected += lost.rejected
            counted.lost += lost.lost
        for offset, record in write.records:
            key = (write.partition, offset)
            _count_record(record, dead_of_record.get(key, []), folded_of_record.get(key, []), counts)
    return counts


def _by_record(rows: Sequence[RowKey]) -> Mapping[tuple[int, int], list[int]]:
    """Row numbers in ascending order."""
    found: defaultdict[tuple[int, int], list[int]] = defaultdict(list)
    for partition, offset, row_number in sorted(rows):
        found[partition, offset].append(row_number)
    return found


def _count_record(
    record: LogRecord, dead: list[int], folded: list[int], counts: defaultdict[LedgerKey, Counts]
) -> None:
    start = 0
    for batch in record.batches:
        for segment, duplicate in zip(batch.segments, _duplicates(batch), strict=True):
            end = start + segment.events
            dead_lettered = bisect_left(dead, end) - bisect_left(dead, start)
            aggregated = bisect_left(folded, end) - bisect_left(folded, start)
            counted = counts[LedgerKey(segment.project_id, segment.hour)]
            counted.received += segment.events + segment.rejected
            counted.stored += segment.events - duplicate - dead_lettered - aggregated
            counted.duplicate += duplicate
            counted.dead_lettered += dead_lettered
            counted.aggregated += aggregated
            counted.rejected += segment.rejected
            start = end


def _duplicates(batch: RecordBatch) -> list[int]:
    """How many rows of each segment are marked."""
    mask = batch.duplicate_mask()
    if mask is None:
        return [0] * len(batch.segments)
    ends = np.cumsum([segment.events for segment in batch.segments])
    marked = np.concatenate(([0], np.cumsum(mask)))
    return np.diff(marked[np.concatenate(([0], ends))]).tolist()  # type: ignore[no-any-return]
