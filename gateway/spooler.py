"""The spool at work: batches go in while a shard cannot be reached, and a drainer sends them on.

A shard is *tripped* by an append that failed. From then on its batches are spooled, so that their order
stays, until the drainer has sent everything: it tries the oldest batches again and again, and when less than
one call's worth is left it holds newcomers back for that moment (`handing over`), so that the spool of a busy
shard does come to its end.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from enum import StrEnum
from pathlib import Path
from typing import Protocol, TypeVar

from analytics_actors.messages import APPENDED, REPEATED, AppendReply
from analytics_actors.ring import HashRing
from config.settings import Settings
from gateway.shard_stream import LinkError
from storage.errors import SpoolFull, Unavailable
from storage.event_batch import EventBatch, encode_batches
from storage.spool import Spool, SpoolDepth, SpooledBatch, read_counts, read_depth, spool_holds

DRAIN_CALL_BYTES = 2 * 1024 * 1024
"""Sent in one append call: large enough to catch up quickly, small enough for the deadline."""

RETRY_PAUSES_S = (0.1, 0.2, 0.5, 1.0)
HAND_OVER_BATCHES = 8

_log = logging.getLogger(__name__)

T = TypeVar("T")


class AppendLink(Protocol):
    async def append(self, shard: int, raw: bytes, *, deadline_s: float) -> list[AppendReply]: ...


class ShardMode(StrEnum):
    DIRECT = "direct"
    SPOOLING = "spooling"
    HANDING_OVER = "handing over"


class Spooler:
    """One per worker; `run` for each shard drains what is spooled, from an earlier life too."""

    def __init__(self, settings: Settings, spool: Spool, link: AppendLink) -> None:
        self._link = link
        self._spool = spool
        self._deadline_s = settings.gateway.append_deadline_s
        shards = settings.actors.shards
        ring = HashRing(range(shards), partitions=settings.log.partitions)
        self._partitions = [ring.partitions_of(shard) for shard in range(shards)]
        # What an earlier life has left goes first (OR-1).
        self._modes = [ShardMode.SPOOLING if self._depth(s) else ShardMode.DIRECT for s in range(shards)]
        self._tripped = [asyncio.Event() for _ in range(shards)]
        self._handed_over = [asyncio.Event() for _ in range(shards)]
        for shard, mode in enumerate(self._modes):
            if mode is ShardMode.SPOOLING:
                self._tripped[shard].set()
        # One thread: SQLite's commits wait for the disk, and the spool takes one caller at a time.
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="spool")

    def _depth(self, shard: int) -> int:
        return sum(self._spool.depth[partition] for partition in self._partitions[shard])

    @property
    def bytes(self) -> int:
        return self._spool.bytes

    @property
    def has_room(self) -> bool:
        return self._spool.has_room

    @property
    def batches(self) -> int:
        return sum(self._spool.depth.values())

    @property
    def modes(self) -> list[str]:
        return [mode.value for mode in self._modes]

    async def counts_of(self, project_id: str) -> tuple[Counter[int], Counter[int]]:
        """Spooled events and refused ones of a project, by hour since the Unix epoch.

        Of all workers of this machine. Raises `Unavailable`.
        """
        spools = [await asyncio.to_thread(read_counts, path) for path in self._other_paths()]
        # A copy from the spool's own thread, which changes them.
        spools.append(await self._in_thread(lambda: (self._spool.events.copy(), self._spool.rejected.copy())))
        events, rejected = Counter[int](), Counter[int]()
        for spooled in spools:
            for source, target in zip(spooled, (events, rejected), strict=True):
                for key, amount in source.items():
                    if key.project_id == project_id:
                        target[key.hour] += amount
        return events, rejected

    async def holds(self, project_id: str, event_id: str) -> bool:
        """Whether the event is in a spool of this machine; reads all of them. Raises `Unavailable`."""
        paths = [self._spool.path, *self._other_paths()]
        return any([await asyncio.to_thread(spool_holds, path, project_id, event_id) for path in paths])

    async def depths(self) -> dict[str, SpoolDepth]:
        """The spools of this machine by their files' names. Raises `Unavailable`."""
        paths = sorted([self._spool.path, *self._other_paths()])
        return {path.stem: await asyncio.to_thread(read_depth, path) for path in paths}

    def _other_paths(self) -> list[Path]:
        """The spools of the other workers of this machine: they lie side by side."""
        return [path for path in self._spool.path.parent.glob("spool-*.sqlite") if path != self._spool.path]

    async def goes_direct(self, shard: int) -> bool:
        """Whether a batch can be appended now. Waits for the end of a hand-over."""
        while self._modes[shard] is ShardMode.HANDING_OVER:
            await self._handed_over[shard].wait()
        return self._modes[shard] is ShardMode.DIRECT

    def trip(self, shard: int, reason: str) -> None:
        """An append failed: what follows goes through the spool."""
        if self._modes[shard] is ShardMode.DIRECT:
            self._modes[shard] = ShardMode.SPOOLING
            self._tripped[shard].set()
            _log.warning("spooling", extra={"action": "spooling", "shard": shard, "reason": reason})

    async def put(self, shard: int, batches: Sequence[EventBatch]) -> None:
        """On disk when it returns. Raises `SpoolFull`."""
        # Only of a batch whose own append has failed: it trips the shard anew.
        if await self.goes_direct(shard):
            self.trip(shard, "spooled")
        await self._in_thread(lambda: self._spool.put(batches))

    async def run(self, shard: int) -> None:
        """Drain the shard's part of the spool whenever there is one; runs until cancelled."""
        while True:
            await self._tripped[shard].wait()
            # The first attempt must show that the shard takes appends again, before newcomers wait for it.
            failures = 1
            while not (failures == 0 and await self._hand_over(shard)):
                if await self._drain_once(shard):
                    failures = 0
                    continue
                await asyncio.sleep(RETRY_PAUSES_S[min(failures, len(RETRY_PAUSES_S) - 1)])
                failures += 1

    async def _hand_over(self, shard: int) -> bool:
        """Back to direct appends, if little is left. Newcomers wait for that moment."""
        if self._depth(shard) > HAND_OVER_BATCHES:
            return False
        self._modes[shard] = ShardMode.HANDING_OVER
        self._handed_over[shard].clear()
        drained = False
        try:
            # Behind every put that was already on its way into the thread.
            await self._in_thread(_nothing)
            drained = await self._drain_rest(shard)
        finally:
            # Whatever has happened: those who wait for the end of this have no other.
            self._modes[shard] = ShardMode.DIRECT if drained else ShardMode.SPOOLING
            self._handed_over[shard].set()
        if drained:
            self._tripped[shard].clear()
            _log.info("the spool is drained", extra={"action": "spool_drained", "shard": shard})
        return drained

    async def _drain_rest(self, shard: int) -> bool:
        while self._depth(shard):
            if not await self._drain_once(shard):
                return False
        return True

    async def _drain_once(self, shard: int) -> bool:
        """Send the oldest batches on; whether that got anywhere."""
        try:
            oldest: list[SpooledBatch] = await self._in_thread(
                lambda: self._spool.oldest(self._partitions[shard], max_bytes=DRAIN_CALL_BYTES)
            )
            if not oldest:
                return True
            raw = encode_batches([spooled.batch for spooled in oldest])
            replies = await self._link.append(shard, raw, deadline_s=self._deadline_s)
        except (LinkError, Unavailable) as error:
            _log.debug("not drained yet", extra={"action": "drain_failed", "shard": shard, "reason": str(error)})
            return False
        safe = [s for s, r in zip(oldest, replies, strict=True) if r.status in (APPENDED, REPEATED)]
        if safe:
            try:
                await self._in_thread(lambda: self._spool.remove(safe))
            except SpoolFull as error:
                # They will be sent once more, and their ids will be known.
                _log.warning("spool rows stay", extra={"action": "spool_remove_failed", "error": str(error)})
                return False
        return bool(safe)

    async def _in_thread(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, call)

    def close(self) -> None:
        self._thread.shutdown(wait=True)
        self._spool.close()


def _nothing() -> None: ...
