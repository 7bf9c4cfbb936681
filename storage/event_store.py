"""The event store: the contract of the sink that PostgreSQL is, and the values that cross it.

The law:
- `write` commits the rows, the dead letters, the ledger's counts and the checkpoint of every partition it
  carries in one transaction, or nothing (ND-1, CK-1, LG-1).
- A checkpoint moves only from the offset that the caller names and only under the caller's epoch;
  otherwise `Fenced` is raised and nothing has changed (FN-1).
- A row that PostgreSQL can never take becomes a dead letter in the same transaction; its neighbours are
  stored.
- Events that its `storage.aggregated.Fold` folds are not stored as rows: they are merged into records in that same
  transaction, and the ledger counts them as aggregated.
- `Unavailable` leaves the outcome unknown. `claim` settles it: it waits for, or ends, what is still under way,
  and the write was committed if and only if the checkpoint that it returns stands at `next_offset`.
  (`checkpoints` does not wait: a transaction that is about to end may still move what it has returned.)
"""

from collections.abc import AsyncIterator, Sequence
from typing import NamedTuple, Protocol

from storage.event_batch import LogRecord


class Checkpoint(NamedTuple):
    """Progress of the event store in one partition: records below `next_offset` are stored."""

    partition: int
    epoch: int
    next_offset: int


class PartitionWrite(NamedTuple):
    """The records [first_offset, next_offset) of one partition, or a gap there (`records` empty, `lost` set)."""

    partition: int
    epoch: int
    first_offset: int
    next_offset: int
    records: Sequence[tuple[int, LogRecord]]
    lost: Sequence["LostEvents"] = ()
    """Events that were acknowledged and whose records are gone from the log: the ledger names them."""


class LostEvents(NamedTuple):
    project_id: str
    hour: int
    received: int
    duplicate: int
    rejected: int
    lost: int


class WriteResult(NamedTuple):
    stored: int
    duplicate: int
    dead_lettered: int
    aggregated: int = 0
    overflow: int = 0
    """Of those that were aggregated: how many are in records of `__other__`, see `storage.aggregated`."""


class StoredId(NamedTuple):
    project_id: str
    event_id: str
    stored_ms: int


class EventStore(Protocol):
    async def checkpoints(self, partitions: Sequence[int]) -> list[Checkpoint]:
        """The checkpoint of each partition; epoch 0 and offset 0 for one that was never claimed."""

    async def claim(self, partition: int, *, epoch: int) -> Checkpoint:
        """Fence older epochs: the partition's checkpoint is under `epoch` from now on, its offset unchanged.
        Ends sessions of older owners that still hold its row. Raises `Fenced` if a newer epoch has it."""

    async def write(self, writes: Sequence[PartitionWrite]) -> WriteResult: ...

    async def is_set_aside(self, partition: int, offset: int) -> bool:
        """Whether somebody has decided to go without the record (`storage.set_aside`): it may be stepped over as a gap
        whose events are lost."""

    def recent_ids(self, partitions: Sequence[int], *, since_ms: int) -> AsyncIterator[Sequence[StoredId]]:
        """The ids of all events stored since then in the partitions, in chunks. Those that were only aggregated have
        no row, and nobody but the log remembers their ids."""

    async def prepare_days(self) -> None:
        """Create the daily partitions that will be needed next, and index what was stored since the last call.
        To be called every few seconds: until then lookups by id read those events one by one."""

    async def close(self) -> None: ...
