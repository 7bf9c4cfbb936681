"""The exporter of one shard: it writes the stored events of its partitions to files of the lake.

A plain class; `analytics_actors.exporter_actor` makes a Ray actor of it. One task in one event loop, in turns:

    event store's checkpoints → log (or event store) → pieces in memory → plan → files, put → manifest, checkpoints

The law:
- The lake's checkpoint follows the event store's and never passes it: what is in live files and what is stored at or
  above the checkpoint are together exactly the stored events, each once (EX-1, ND-1).
- A crash anywhere is followed by a claim, after which a plan that was begun is finished with the same ranges and names.
  A stale exporter commits nothing (FN-1).
- Neither ingest nor the other sinks wait for an exporter. While the object store is away it keeps the part that it
  has and reads no further: the log is the buffer, and behind it the event store, so the log's bound does not depend on
  the lake.
- What is in memory is bounded: one part, a quarter of `lake.max_resident_bytes` at most, and four times that while it
  becomes files (BP-1).
- `observe` is cheap and may be called from another thread.
"""

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import pyarrow as pa

from analytics_actors.background import Background
from analytics_actors.counters import Counters
from analytics_actors.lake.carrying import Carrying, CrashPoint, NameTaken, Patience, no_crash
from analytics_actors.lake.piece import Piece, ranges_of, rows_of_records, without_rows
from analytics_actors.lake.reading import Pending, Reading
from analytics_actors.messages import ExporterView, LakePartitionView
from analytics_actors.windows.sources import Compute, in_thread
from config.settings import LakeSettings
from storage.errors import FormatError, StorageError
from storage.folded_events import FoldedEvents
from storage.lake_manifest import LakeManifest, OffsetRange, Plan, StoredMark
from storage.log_tail import Tail
from storage.object_store import ObjectStore
from storage.partition_log import OFFSET_BLOCK
from storage.stored_log import StoredLog

MAX_POLL_S = 2.0
TAIL_INTERVAL_S = 60.0
_MEMORY_TIMES = 4
"""What a part takes while it becomes files, times its columns; `load_tests/measure_lake_file.py` shows it."""

_log = logging.getLogger(__name__)


@dataclass
class LakePartition:
    """`checkpoint` is as committed (CK-1); records below `position` are held or exported."""

    partition: int
    epoch: int = 0
    checkpoint: int = 0
    position: int = 0
    stored: int = 0
    """The event store's checkpoint, as last asked."""

    @property
    def lag_records(self) -> int:
        """At least so many are stored and not in the lake. Of offsets of a block that was left (a lost log goes on in a
        fresh one) nobody knows how many became records: they are one."""
        begun = self.stored - self.stored % OFFSET_BLOCK
        if self.checkpoint < begun:
            return self.stored - begun + 1
        return max(0, self.stored - self.checkpoint)


class Exporter:
    """`start` it, then ask for `failure` from time to time."""

    def __init__(
        self,
        shard: int,
        partitions: Sequence[int],
        *,
        tail: Tail,
        stored: StoredLog,
        folded: FoldedEvents,
        pending: Pending,
        manifest: LakeManifest,
        objects: ObjectStore,
        settings: LakeSettings,
        clock_s: Callable[[], float] = time.time,
        compute: Compute = in_thread,
        reached: CrashPoint = no_crash,
    ) -> None:
        self.shard = shard
        self._partitions = {number: LakePartition(number) for number in partitions}
        self._manifest = manifest
        self._stored = stored
        self._folded = folded
        self._compute = compute
        self._counters = Counters()
        self._patience = Patience(self._counters)
        self._reading = Reading(tail, stored, self._counters, pending=pending)
        self._carrying = Carrying(
            manifest, objects, self._counters, compression=settings.compression, compute=compute, reached=reached
        )
        self._part_bytes = min(settings.part_bytes, settings.max_resident_bytes // _MEMORY_TIMES)
        self._part_interval_s = settings.part_interval_s
        self._poll_s = min(MAX_POLL_S, settings.part_interval_s / 5)
        self._background = Background()
        self._started_ms = int(clock_s() * 1000)
        self._clock_s = clock_s
        self._marks: list[StoredMark] = []
        """The latest, and those before, which everything that is held has reached."""
        self._latest: list[StoredMark] = []
        self._held: list[Piece] = []
        self._held_plain_bytes = 0
        self._held_since_s = 0.0
        self._held_at_s = 0.0
        self._plan: Plan | None = None
        self._resident_bytes = 0
        self._last_export_s = 0.0
        self._tails_s = 0.0
        self._wake = asyncio.Event()
        self._draining = False
        self._ended = asyncio.Event()
        self.ready = False
        """Whether the partitions are claimed."""

    def start(self) -> None:
        """Begin to export; needs a running event loop."""
        self._background.spawn(self._run(), on_end=self._ended.set)

    async def close(self) -> None:
        """End at once: whoever comes next finishes the plan. The collaborators stay open."""
        await self._background.close()

    async def drain(self, *, deadline_s: float) -> bool:
        """Begin no further plan; whether the one under way, if any, was finished in time. What is stored and not
        exported is for the next exporter."""
        self._draining = True
        self._wake.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(deadline_s):
                await self._ended.wait()
        return self._plan is None

    @property
    def failure(self) -> BaseException | None:
        """Why this exporter must be replaced by a new life of the same actor, if it must: see `Batcher.failure`."""
        return self._background.failure

    async def _run(self) -> None:
        await self._open()
        while not self._draining:
            await self._take_in()
            if self._held and not self._draining:
                await self._export(self._held)

    async def _open(self) -> None:
        """Take the partitions over and finish what was begun."""
        partitions = list(self._partitions)
        claimed = await self._patience.wait_for("manifest", lambda: self._manifest.claim(partitions))
        for partition, checkpoint in claimed.items():
            owner = self._partitions[partition]
            owner.epoch = checkpoint.epoch
            owner.checkpoint = owner.position = checkpoint.next_offset
        self.ready = True
        plans = await self._patience.wait_for("manifest", lambda: self._manifest.open_plans(partitions))
        for plan in plans:
            if self._draining:
                return
            self._plan = plan
            _log.info("finishing a plan", extra={"action": "finish_plan", "plan": plan.plan_id})
            pieces = await self._patience.wait_for("log", partial(self._reading.read_all, plan.ranges))
            for each in plan.ranges:
                self._partitions[each.partition].position = each.next_offset
            await self._export(pieces)

    async def _take_in(self) -> None:
        """Read until there is enough for a part, or what there is has waited long enough."""
        loop = asyncio.get_running_loop()
        while not self._draining:
            wanted = self._wanted() or await self._poll()
            if wanted:
                read = partial(self._reading.read, wanted, max_bytes=self._part_bytes - self._held_plain_bytes)
                self._hold(await self._patience.wait_for("log", read))
            is_full = self._held_plain_bytes >= self._part_bytes
            if self._held and (is_full or loop.time() - self._held_since_s >= self._part_interval_s):
                return
            if not wanted:
                await self._pause()

    def _wanted(self) -> dict[int, OffsetRange]:
        return {
            owner.partition: OffsetRange(owner.partition, owner.position, owner.stored)
            for owner in self._partitions.values()
            if owner.position < owner.stored
        }

    async def _poll(self) -> dict[int, OffsetRange]:
        """Ask how far the event store is."""
        partitions = list(self._partitions)
        found = await self._patience.wait_for("manifest", lambda: self._manifest.stored(partitions))
        latest = list(found.values())
        self._marks, self._latest = [*self._latest, *latest], latest
        for mark in latest:
            self._partitions[mark.partition].stored = mark.next_offset
        return self._wanted()

    def _hold(self, pieces: Sequence[Piece]) -> None:
        if pieces and not self._held:
            self._held_since_s = asyncio.get_running_loop().time()
            self._held_at_s = self._clock_s()
        for piece in pieces:
            self._partitions[piece.range.partition].position = piece.range.next_offset
        self._held += pieces
        self._held_plain_bytes += sum(piece.plain_bytes for piece in pieces)
        self._resident_bytes = sum(piece.held_bytes for piece in self._held)

    async def _pause(self) -> None:
        now_s = asyncio.get_running_loop().time()
        if not self._held and now_s - self._tails_s >= TAIL_INTERVAL_S:
            self._tails_s = now_s
            await self._patience.wait_for("manifest", lambda: self._manifest.advance_tails(self._marks))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._poll_s):
                await self._wake.wait()

    async def _export(self, pieces: Sequence[Piece]) -> None:
        """What is held goes out; again under another plan for as long as a name is taken."""
        ranges, marks = ranges_of(pieces), self._marks
        events = await self._patience.wait_for("event store", lambda: self._events(pieces, ranges))
        self._held, self._held_plain_bytes = [], 0
        self._resident_bytes = events.nbytes
        started_s = time.monotonic()
        watching = asyncio.create_task(self._watch())
        try:
            await self._carry_out(events, ranges, marks)
        finally:
            watching.cancel()
        self._plan = None
        for each in ranges:
            self._partitions[each.partition].checkpoint = each.next_offset
        self._resident_bytes = 0
        self._last_export_s = self._clock_s()
        self._counters.count("export_seconds", time.monotonic() - started_s)
        del events
        pa.default_memory_pool().release_unused()

    async def _carry_out(self, events: pa.Table, ranges: Sequence[OffsetRange], marks: Sequence[StoredMark]) -> None:
        while True:
            plan = self._plan or await self._begin(ranges)
            try:
                await self._carrying.carry_out(plan, events, self._epochs(ranges), marks)
            except NameTaken as error:
                await self._renew(plan, ranges, error)
            else:
                return

    async def _watch(self) -> None:
        """How far behind the lake falls is seen also while a part waits."""
        while True:
            await asyncio.sleep(self._poll_s)
            with contextlib.suppress(StorageError):
                for mark in (await self._manifest.stored(list(self._partitions))).values():
                    self._partitions[mark.partition].stored = mark.next_offset

    async def _events(self, pieces: Sequence[Piece], ranges: Sequence[OffsetRange]) -> pa.Table:
        """The stored events of the pieces, each once."""
        try:
            rows = await self._compute(rows_of_records, pieces)
        except FormatError:
            pieces = await self._reading.without_damage(pieces)
            rows = await self._compute(rows_of_records, pieces)
        dead = await self._stored.dead_rows(ranges)
        names = {(row.partition, row.log_offset, row.row_number) for row in dead}
        events = await self._folded.without(await self._compute(without_rows, rows, names))
        return pa.concat_tables([events, *(p.content for p in pieces if isinstance(p.content, pa.Table))])

    async def _begin(self, ranges: Sequence[OffsetRange]) -> Plan:
        self._plan = await self._patience.wait_for(
            "manifest", lambda: self._manifest.plan(ranges, self._epochs(ranges))
        )
        return self._plan

    async def _renew(self, plan: Plan, ranges: Sequence[OffsetRange], error: NameTaken) -> None:
        fields = {"action": "name_taken", "plan": plan.plan_id}
        _log.error("an object of a plan is something else: the plan begins anew", exc_info=error, extra=fields)
        self._counters.count("names_taken")
        await self._patience.wait_for("manifest", lambda: self._manifest.cancel(plan.plan_id, self._epochs(ranges)))
        self._plan = None

    def _epochs(self, ranges: Sequence[OffsetRange]) -> Mapping[int, int]:
        return {each.partition: self._partitions[each.partition].epoch for each in ranges}

    def observe(self) -> ExporterView:
        owners = list(self._partitions.values())
        plan = self._plan
        return ExporterView(
            shard=self.shard,
            pid=os.getpid(),
            started_ms=self._started_ms,
            claimed=self.ready,
            partitions=[
                LakePartitionView(owner.partition, owner.epoch, owner.checkpoint, owner.stored) for owner in owners
            ],
            lag_records=sum(owner.lag_records for owner in owners),
            held_s=self._clock_s() - self._held_at_s if self._held else 0.0,
            resident_bytes=self._resident_bytes,
            open_plan=plan.plan_id if plan else 0,
            last_export_ms=int(self._last_export_s * 1000),
            counters=dict(self._counters.totals),
            trouble=self._counters.troubles,
        )
