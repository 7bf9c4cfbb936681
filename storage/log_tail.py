"""Following the partition log: one blocking read over many partitions. `storage.redis_log` says what it reads.

The law, which `MemoryTail` keeps as well:
- `read` returns records in order and without a hole, from the offset that was wanted on; it waits until there is
  one, `block_ms` at most. It may return nothing.
- Where the log cannot go on from the wanted offset the partition is named in `gaps`, and has no records: they were
  trimmed, the log was lost (FLUSHALL) and begins elsewhere, or it is shorter than it was. A hole further on shows at
  the read that comes to it. A gap is told again and again until the log or the wanted offset has changed.
- A partition without any log, wanted from offset 0, is one that nothing was ever appended to: no gap.
- One call at a time.

A gap with nothing behind it shows by the partition's state alone, which is looked at every two seconds or so.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from config.settings import LogSettings
from storage.redis_client import RedisClient
from storage.redis_log import log_key, state_key

READ_BYTES = 16 * 1024 * 1024
"""Aimed at for one answer. No less than one record of each partition can be asked for."""

STATE_INTERVAL_S = 2.0

Records = list[tuple[int, bytes]]


class TailRead(NamedTuple):
    records: dict[int, Records]
    """By partition; only those that have some."""
    gaps: list[int]
    """Partitions whose log does not go on at the wanted offset."""


class Tail(Protocol):
    async def read(self, from_offsets: Mapping[int, int], *, block_ms: int, max_records: int) -> TailRead:
        """Records of each partition from its offset on, some `max_records` in all; see the law. `block_ms` 0 waits
        for nothing. Raises `Unavailable`."""

    async def close(self) -> None: ...


class LogTail:
    """`Tail` over Redis, on a connection of its own."""

    def __init__(self, url: str, settings: LogSettings, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._redis = RedisClient(url, connections=1, timeout_s=settings.command_timeout_s)
        self._clock = clock
        self._record_bytes = 1024
        self._busy: set[int] = set()
        self._quiet_since: dict[int, float] = {}

    async def read(self, from_offsets: Mapping[int, int], *, block_ms: int, max_records: int) -> TailRead:
        if not from_offsets:
            return TailRead({}, [])
        wanted = min(max_records, READ_BYTES // self._record_bytes)
        # Redis counts for each stream. Those that had something last time share; what others have got since is no
        # more than was appended meanwhile.
        sharing = len(self._busy & from_offsets.keys()) or len(from_offsets)
        command = _xread(from_offsets, block_ms, max(1, wanted // sharing))
        async with self._redis.deadline("tail", added_s=block_ms / 1000):
            [reply] = await self._redis.send([command])
        found = _by_partition(reply, from_offsets)
        self._adapt(found)
        self._busy = set(found)
        records, gaps = _contiguous(found, from_offsets)
        quiet = self._quiet(from_offsets, found)
        if quiet:
            gaps += await self._hidden_gaps({partition: from_offsets[partition] for partition in quiet})
        return TailRead(records, sorted(gaps))

    def _adapt(self, found: Mapping[int, Records]) -> None:
        sizes = [len(record) for records in found.values() for _, record in records]
        if sizes:
            self._record_bytes = max(1, sum(sizes) // len(sizes))

    def _quiet(self, from_offsets: Mapping[int, int], found: Mapping[int, Records]) -> list[int]:
        """Partitions that nothing came of for the interval, or since they are asked for; each again after it."""
        now = self._clock()
        self._quiet_since = {
            partition: now if partition in found else self._quiet_since.get(partition, now - STATE_INTERVAL_S)
            for partition in from_offsets
        }
        quiet = [p for p, since in self._quiet_since.items() if now - since >= STATE_INTERVAL_S]
        self._quiet_since |= dict.fromkeys(quiet, now)
        return quiet

    async def _hidden_gaps(self, from_offsets: Mapping[int, int]) -> list[int]:
        async with self._redis.deadline("tail's look at the states"):
            states = await self._redis.send(
                [("HMGET", state_key(partition), "next_offset") for partition in from_offsets]
            )
            gaps, ahead = [], []
            for (partition, wanted), [next_offset] in zip(from_offsets.items(), states, strict=True):
                if (next_offset is None and wanted > 0) or (next_offset is not None and int(next_offset) < wanted):
                    gaps.append(partition)
                elif next_offset is not None and int(next_offset) > wanted:
                    ahead.append(partition)
            # A record below next_offset is in the log before the state tells of it: looked for now, it is there.
            firsts = await self._redis.send(
                [("XRANGE", log_key(p), f"{from_offsets[p]}-0", "+", "COUNT", 1) for p in ahead]
            )
        return gaps + [
            partition
            for partition, entries in zip(ahead, firsts, strict=True)
            if not entries or _offset(entries[0][0]) > from_offsets[partition]
        ]

    async def close(self) -> None:
        await self._redis.close()


def _xread(from_offsets: Mapping[int, int], block_ms: int, count: int) -> list[Any]:
    # Redis takes BLOCK 0 for "for ever".
    block = ["BLOCK", block_ms] if block_ms > 0 else []
    # After `<offset>-0`, and an entry's id is `<offset>-1`: from the offset on.
    after = [f"{offset}-0" for offset in from_offsets.values()]
    return ["XREAD", "COUNT", count, *block, "STREAMS", *map(log_key, from_offsets), *after]


def _by_partition(reply: Any, from_offsets: Mapping[int, int]) -> dict[int, Records]:
    partitions = {log_key(partition).encode(): partition for partition in from_offsets}
    return {
        partitions[key]: [(_offset(entry_id), fields[1]) for entry_id, fields in entries]
        for key, entries in reply or ()
    }


def _offset(entry_id: bytes) -> int:
    return int(entry_id.split(b"-", 1)[0])


def _contiguous(found: Mapping[int, Records], from_offsets: Mapping[int, int]) -> tuple[dict[int, Records], list[int]]:
    """The records up to the first hole of each partition, and the partitions that begin with one."""
    records = {partition: without_hole(entries, from_offsets[partition]) for partition, entries in found.items()}
    return {p: kept for p, kept in records.items() if kept}, [p for p, kept in records.items() if not kept]


def without_hole(entries: Sequence[tuple[int, bytes]], first: int) -> Records:
    """Entries whose offsets follow one another from `first` on."""
    for index, (offset, _) in enumerate(entries):
        if offset != first + index:
            return list(entries[:index])
    return list(entries)
