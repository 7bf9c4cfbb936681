"""The partition log in memory: for tests, and proved by the contract suite that `RedisLog` passes.

Nothing is durable. Its knobs make the failures that a test needs: `fail_next`, `available`, `flush_all`,
`capacity_bytes`.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field

from storage.errors import Fenced, LogLost, Unavailable
from storage.log_tail import Records, TailRead, without_hole
from storage.partition_log import Append, AppendOutcome, IdsEntry, LogState, Trim

_LOOK_AGAIN_S = 0.001


def wall_clock_ms() -> int:
    return time.time_ns() // 1_000_000


@dataclass
class _Partition:
    epoch: int
    owner: str
    first_offset: int
    next_offset: int
    ids_since_ms: int
    records: dict[int, bytes] = field(default_factory=dict)
    ids: dict[int, IdsEntry] = field(default_factory=dict)
    """By the offset of the record that brought them."""
    ids_last_ms: int = 0

    @property
    def state(self) -> LogState:
        return LogState(self.epoch, self.first_offset, self.next_offset, self.ids_since_ms)

    @property
    def resident_bytes(self) -> int:
        return sum(map(len, self.records.values())) + sum(len(entry.fingerprints) for entry in self.ids.values())


class MemoryLog:
    """`sharing` makes a second writer of another log's data, as two processes share one Redis."""

    def __init__(
        self,
        *,
        capacity_bytes: int | None = None,
        owner: str = "memory",
        sharing: "MemoryLog | None" = None,
        clock_ms: Callable[[], int] = wall_clock_ms,
    ) -> None:
        self.capacity_bytes = capacity_bytes
        """Of records and ids together; beyond it an append is "full"."""
        self.available = True
        """While False every call raises `Unavailable` and changes nothing."""
        self._owner = owner
        self._clock_ms = clock_ms
        self._partitions: dict[int, _Partition] = sharing._partitions if sharing else {}
        self._failures: list[bool] = []

    def fail_next(self, *, applied: bool, times: int = 1) -> None:
        """Make the next appends raise `Unavailable`, after they took effect or without."""
        self._failures += [applied] * times

    def flush_all(self) -> None:
        self._partitions.clear()

    async def check(self) -> None:
        self._require_available()

    async def state(self, partitions: Sequence[int]) -> list[LogState | None]:
        self._require_available()
        return [self._partitions[p].state if p in self._partitions else None for p in partitions]

    async def acquire(self, partition: int, *, at_least: LogState | None) -> LogState:
        self._require_available()
        held = self._partitions.get(partition)
        if held is None:
            if at_least is None:
                raise LogLost(f"no state of partition {partition}")
            held = self._partitions[partition] = _Partition(
                at_least.epoch, self._owner, at_least.first_offset, at_least.next_offset, at_least.ids_since_ms
            )
        elif at_least and (at_least.epoch > held.epoch or at_least.next_offset > held.next_offset):
            held.epoch = max(held.epoch, at_least.epoch)
            held.next_offset = max(held.next_offset, at_least.next_offset)
            held.ids_since_ms = max(held.ids_since_ms, at_least.ids_since_ms)
        held.epoch += 1
        held.owner = self._owner
        return held.state

    async def renew(self, partition: int, *, epoch: int) -> LogState:
        self._require_available()
        held = self._partitions.get(partition)
        if held is None or held.epoch < epoch:
            raise LogLost(f"no state of partition {partition}, or one before epoch {epoch}")
        if held.epoch > epoch and held.owner != self._owner:
            raise Fenced(f"partition {partition} has an owner after epoch {epoch}")
        held.epoch += 1
        held.owner = self._owner
        return held.state

    async def append(self, appends: Sequence[Append]) -> list[AppendOutcome]:
        self._require_available()
        if not self._failures:
            return [self._append(each) for each in appends]
        if self._failures.pop(0):
            for each in appends:
                self._append(each)
        raise Unavailable("made to fail")

    def _append(self, append: Append) -> AppendOutcome:
        held = self._partitions.get(append.partition)
        size = len(append.record) + len(append.fingerprints)
        if self.capacity_bytes is not None and self._held_bytes() + size > self.capacity_bytes:
            return "full"
        if held is None:
            return "lost"
        if held.epoch > append.epoch:
            return "fenced"
        if held.epoch < append.epoch or held.next_offset < append.offset:
            return "lost"
        if held.next_offset > append.offset:
            return "fenced"
        held.records[append.offset] = append.record
        if append.fingerprints:
            held.ids_last_ms = max(self._clock_ms(), held.ids_last_ms)
            held.ids[append.offset] = IdsEntry(held.ids_last_ms, append.fingerprints)
        held.next_offset += 1
        return "appended"

    async def read(self, partition: int, from_offset: int, *, max_records: int) -> list[tuple[int, bytes]]:
        self._require_available()
        held = self._partitions.get(partition)
        records = sorted(held.records.items()) if held else []
        return [(offset, record) for offset, record in records if offset >= from_offset][:max_records]

    async def tail(self, from_offsets: Mapping[int, int], *, block_ms: int, max_records: int) -> TailRead:
        """As `storage.log_tail.Tail.read`."""
        until = time.monotonic() + block_ms / 1000
        while True:
            self._require_available()
            found = self._tail(from_offsets, max(1, max_records // max(1, len(from_offsets))))
            if found.records or found.gaps or time.monotonic() >= until:
                return found
            await asyncio.sleep(_LOOK_AGAIN_S)

    def _tail(self, from_offsets: Mapping[int, int], count: int) -> TailRead:
        records: dict[int, Records] = {}
        gaps = []
        for partition, wanted in from_offsets.items():
            held = self._partitions.get(partition)
            entries = sorted(held.records.items()) if held else []
            kept = without_hole([entry for entry in entries if entry[0] >= wanted][:count], wanted)
            if kept:
                records[partition] = kept
            elif (held.next_offset if held else 0) != wanted:
                gaps.append(partition)
        return TailRead(records, sorted(gaps))

    async def read_ids(self, partition: int) -> AsyncIterator[IdsEntry]:
        self._require_available()
        held = self._partitions.get(partition)
        for entry in list(held.ids.values()) if held else []:
            yield entry

    async def ids_of(self, partition: int, offset: int) -> bytes:
        self._require_available()
        held = self._partitions.get(partition)
        return held.ids[offset].fingerprints if held and offset in held.ids else b""

    async def forget_ids(self, partition: int, offsets: range, *, epoch: int) -> None:
        self._require_available()
        held = self._partitions.get(partition)
        if held is not None and held.epoch == epoch:
            held.ids = {offset: entry for offset, entry in held.ids.items() if offset not in offsets}

    async def trim(self, trims: Sequence[Trim]) -> None:
        self._require_available()
        for trim in trims:
            self._trim(trim)

    def _trim(self, trim: Trim) -> None:
        held = self._partitions.get(trim.partition)
        if held is None or held.epoch != trim.epoch:
            return
        held.first_offset = max(held.first_offset, min(trim.below_offset, held.next_offset))
        held.records = {offset: record for offset, record in held.records.items() if offset >= held.first_offset}
        if trim.ids_before_ms > held.ids_since_ms:
            held.ids_since_ms = trim.ids_before_ms
            held.ids = {offset: entry for offset, entry in held.ids.items() if entry.appended_ms >= trim.ids_before_ms}

    async def close(self) -> None:
        pass

    def _require_available(self) -> None:
        if not self.available:
            raise Unavailable("made to be away")

    def _held_bytes(self) -> int:
        return sum(held.resident_bytes for held in self._partitions.values())


class MemoryTail:
    """`storage.log_tail.Tail` over a `MemoryLog`."""

    def __init__(self, log: MemoryLog) -> None:
        self._log = log

    async def read(self, from_offsets: Mapping[int, int], *, block_ms: int, max_records: int) -> TailRead:
        return await self._log.tail(from_offsets, block_ms=block_ms, max_records=max_records)

    async def close(self) -> None:
        """There is nothing to close."""
