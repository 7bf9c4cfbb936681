"""The fake of the event store for unit tests; it passes the same contract suite as `PostgresStore`."""

import json
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from storage.aggregated import AggregatedRecord, Fold, Folded, RecordKey, bounded, store_all
from storage.copy_format import gather
from storage.errors import Fenced, Unavailable
from storage.event_batch import COLUMNS
from storage.event_store import Checkpoint, PartitionWrite, StoredId, WriteResult
from storage.ledger_counts import Counts, LedgerKey, RowKey, count, total
from storage.rollups import dimensions_hash
from storage.set_aside import MemorySetAside

_CHUNK = 1000


class MemoryStore:
    """What was committed can be looked at: `rows`, `records`, `dead_letters`, `ledger`, `writes`."""

    def __init__(
        self, *, clock_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000, fold: Fold = store_all
    ) -> None:
        self._clock_ms = clock_ms
        self._fold = fold
        self._checkpoints: dict[int, Checkpoint] = {}
        self._failures: list[bool] = []
        self.rows: list[dict[str, Any]] = []
        """Stored events: the columns of `COLUMNS`, partition_id, log_offset, row_number, stored_ms."""
        self.records: dict[RecordKey, AggregatedRecord] = {}
        """What was only aggregated."""
        self.dead_letters: dict[RowKey, dict[str, Any]] = {}
        self.ledger: defaultdict[LedgerKey, Counts] = defaultdict(Counts)
        self.set_aside = MemorySetAside(clock_ms)
        self.writes: list[Sequence[PartitionWrite]] = []
        """Committed writes, in order."""

    def fail_next(self, *, committed: bool) -> None:
        """One more of the next writes raises `Unavailable`: before anything happened, or after its commit."""
        self._failures.append(committed)

    async def checkpoints(self, partitions: Sequence[int]) -> list[Checkpoint]:
        return [self._checkpoint(partition) for partition in partitions]

    async def claim(self, partition: int, *, epoch: int) -> Checkpoint:
        known = self._checkpoint(partition)
        if known.epoch > epoch:
            raise Fenced(f"partition {partition} was claimed under an epoch later than {epoch}")
        self._checkpoints[partition] = known._replace(epoch=epoch)
        return self._checkpoints[partition]

    async def write(self, writes: Sequence[PartitionWrite]) -> WriteResult:
        committed = self._failures.pop(0) if self._failures else None
        if committed is False:
            raise Unavailable("the write was made to fail")
        result = self._commit(writes)
        if committed:
            raise Unavailable("the write was committed and made to fail")
        return result

    def _commit(self, writes: Sequence[PartitionWrite]) -> WriteResult:
        for write in writes:
            if self._checkpoint(write.partition)[1:] != (write.epoch, write.first_offset):
                raise Fenced(f"partition {write.partition} has {self._checkpoint(write.partition)}")
        stored: list[dict[str, Any]] = []
        dead: dict[RowKey, dict[str, Any]] = {}
        folded = self._fold(gather(writes))
        for row in folded.rows.to_pylist():
            if _can_be_stored(row):
                stored.append(row | {"stored_ms": self._clock_ms()})
            else:
                dead[RowKey(row["partition_id"], row["log_offset"], row["row_number"])] = row
        self.rows += stored
        overflow = self._merge_records(folded)
        self.dead_letters |= dead
        for write in writes:
            self._checkpoints[write.partition] = Checkpoint(write.partition, write.epoch, write.next_offset)
            self.set_aside.checkpoints[write.partition] = write.next_offset
            if not write.records:
                self.set_aside.step_over(write.partition, write.first_offset, write.next_offset)
        self.writes.append(writes)
        counts = count(writes, list(dead), folded.folded)
        for key, added in counts.items():
            self.ledger[key].add(added)
        return total(counts.values())._replace(overflow=overflow)

    def _merge_records(self, folded: Folded) -> int:
        admitted: defaultdict[RecordKey, set[int]] = defaultdict(set)
        for key in self.records:
            admitted[key.cell].add(dimensions_hash(key.dimensions))
        records, overflow = bounded(folded.records, admitted, max_groups=folded.max_groups)
        for key, record in records.items():
            if key in self.records:
                self.records[key].merge(record)
            else:
                self.records[key] = record.copy()
        return overflow

    def _checkpoint(self, partition: int) -> Checkpoint:
        return self._checkpoints.get(partition, Checkpoint(partition, 0, 0))

    async def is_set_aside(self, partition: int, offset: int) -> bool:
        return (partition, offset) in self.set_aside.records

    async def recent_ids(self, partitions: Sequence[int], *, since_ms: int) -> AsyncIterator[Sequence[StoredId]]:
        ids = [
            StoredId(row["project_id"], row["event_id"], row["stored_ms"])
            for row in self.rows
            if row["partition_id"] in partitions and row["stored_ms"] >= since_ms
        ]
        for start in range(0, len(ids), _CHUNK):
            yield ids[start : start + _CHUNK]

    async def prepare_days(self) -> None:
        """There are no days here."""

    async def close(self) -> None:
        """There is nothing to close."""


def _can_be_stored(row: dict[str, Any]) -> bool:
    """Roughly what PostgreSQL takes: text without NUL, and JSON without an escaped one."""
    if any("\0" in row[name] for name in COLUMNS.names if isinstance(row[name], str)):
        return False
    return all(text is None or _is_storable_json(text) for text in (row["properties"], row["context"]))


def _is_storable_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return "\\u0000" not in text
