"""The partition log: the contract that `RedisLog` and the in-memory `MemoryLog` both keep.

A partition has one log: records with consecutive offsets, one writer at a time. The writer's right is
its epoch: `acquire` makes a new one, and from then on every older epoch is refused (FN-1). Beside the
records the log keeps the fingerprints of the ids that were accepted (the `ids` of the partition), from
which a new owner rebuilds the dedupe window.

The law:
- `append` is atomic for each partition: the record, its fingerprints and the new next offset are there
  together or not at all, and are on disk before it returns (NL-1).
- Each partition of an `append` has an outcome of its own; one partition's refusal spoils no other.
- If `append` raises `Unavailable`, the outcome is unknown, and not even decided: a server that was stopped may
  read the command after everything that is sent later. The caller settles it with `renew`: under the new epoch
  the old append can no longer land, and the record is in the log if and only if `next_offset` has passed it.
- Nothing else may be appended to that partition before.
- The caller has at most one `append` in flight for a partition.
- No call blocks longer than the configured deadline.
"""

from collections.abc import AsyncIterator, Sequence
from typing import Literal, NamedTuple, Protocol

OFFSET_BLOCK = 1 << 32
"""After a lost log, offsets go on at the next multiple: more records than any partition can have unstored."""


class LogState(NamedTuple):
    """What Redis knows of a partition. Offsets count records; ranges are half open."""

    epoch: int
    first_offset: int
    next_offset: int
    ids_since_ms: int
    """Ids accepted since then are all in the log's `ids`; 0: since ever."""


class Append(NamedTuple):
    partition: int
    epoch: int
    offset: int
    """The offset that this record must get: the fence against a writer with an old view."""
    record: bytes
    fingerprints: bytes
    """8 bytes little endian each: accepted ids (not the duplicates) and batch ids."""


class Trim(NamedTuple):
    partition: int
    epoch: int
    below_offset: int
    """Records below it are dropped."""
    ids_before_ms: int
    """Ids older than this may be dropped."""


AppendOutcome = Literal["appended", "fenced", "lost", "full"]


class IdsEntry(NamedTuple):
    appended_ms: int
    fingerprints: bytes


class PartitionLog(Protocol):
    async def check(self) -> None:
        """Raise `Misconfigured` unless the server keeps what it acknowledges (AOF, appendfsync always,
        noeviction), and `Unavailable` when it cannot be reached."""

    async def state(self, partitions: Sequence[int]) -> list[LogState | None]:
        """The state of each partition, None where Redis has none."""

    async def acquire(self, partition: int, *, at_least: LogState | None) -> LogState:
        """Take the partition over under a new epoch, larger than every earlier one.

        With `at_least` None the state must exist, else `LogLost` is raised: only PostgreSQL knows then
        how far epochs and offsets had come. With it, missing state is created from it; the new epoch is
        larger than `at_least.epoch`, and offsets go on at `at_least.next_offset` if that is higher. State that
        is behind it has lost its tail: `ids_since_ms` then becomes `at_least.ids_since_ms` as well.
        """

    async def renew(self, partition: int, *, epoch: int) -> LogState:
        """Replace the writer's own epoch by a new one, which settles every append under the old one.

        Raises `Fenced` if another writer has taken the partition over, `LogLost` if its state is gone or older
        than `epoch`. After `Unavailable` it may be called again with the same epoch."""

    async def append(self, appends: Sequence[Append]) -> list[AppendOutcome]:
        """Append one record to each partition, in one round trip, with one outcome each."""

    async def read(self, partition: int, from_offset: int, *, max_records: int) -> list[tuple[int, bytes]]:
        """Records from `from_offset` on, with their offsets, in order; [] at the end."""

    def read_ids(self, partition: int) -> AsyncIterator[IdsEntry]:
        """All entries of `ids`, oldest first."""

    async def ids_of(self, partition: int, offset: int) -> bytes:
        """The fingerprints that the record at `offset` brought; empty when they are gone, or it brought none."""

    async def forget_ids(self, partition: int, offsets: range, *, epoch: int) -> None:
        """Drop from `ids` what the records at `offsets` (consecutive ones) brought: a new owner's window will not know
        them. Once more changes nothing; a stale epoch changes nothing. When it fails some may have been dropped."""

    async def trim(self, trims: Sequence[Trim]) -> None:
        """Drop what each says (TR-1), in one round trip. A stale epoch changes nothing."""

    async def close(self) -> None: ...
