"""Following the log: what was appended is counted and published, some times a second at most."""

import asyncio
from collections import defaultdict
from collections.abc import Mapping, Sequence

from analytics_actors.windows.definition_book import DefinitionBook, Definitions
from analytics_actors.windows.partition import WindowPartition, WindowState
from analytics_actors.windows.prepare import Decoded, DefinitionsOf, Prepared, decode, prepare
from analytics_actors.windows.shared import WindowShard
from storage.aggregate import Aggregate
from storage.errors import FormatError, Misconfigured, StorageError, Unavailable
from storage.log_tail import Tail
from storage.metric_definitions import MetricDefinition
from storage.rollups import RollupStore, day_of
from storage.window_key import WindowKey, lateness_s
from storage.window_store import Publication, WindowStore

BLOCK_MS = 1000
"""A read waits so long at most: then partitions that became live since are followed too."""

MAX_RECORDS = 1024
"""Of one read, over all partitions. What they hold is in memory at once, with the columns made of it; the tail
bounds it in bytes too."""

BUSY_SHARE = 4
MAX_PAUSE_S = 0.5
"""Counting takes a quarter of the time at most, by pausing up to this long: what comes meanwhile changes the same
windows, so fewer are published. Longer pauses than half a second save nothing more (measured at 50,000 events/s: as
much CPU at 0.5 as at 1.5 s, a tenth more at 0.2), and are seen in the answers."""

LEFT_BEHIND_S = 0.2
"""When the newest event of a read is older than this at its reading, the log holds more than one read takes: then
there is no pause."""

WINDOWS_PER_CALL = 2000
"""Redis does nothing else while it takes them; more go in several calls, a partition always in one."""

RETRY_PAUSES_S = (0.1, 0.2, 0.5, 1.0, 2.0)


class Consumer:
    """Runs until cancelled. Follows the partitions that are live."""

    def __init__(
        self, shard: WindowShard, tail: Tail, store: WindowStore, rollups: RollupStore, book: DefinitionBook
    ) -> None:
        self._shard = shard
        self._tail = tail
        self._store = store
        self._rollups = rollups
        self._book = book
        self._lateness_s = lateness_s(shard.settings)
        self._failures = 0

    async def run(self) -> None:
        while True:
            pause_s = await self._step()
            if pause_s:
                await asyncio.sleep(pause_s)

    async def _step(self) -> float:
        """One read and what it gives; how long to pause then."""
        wanted = {p.partition: p.next_offset for p in self._shard.in_state(WindowState.LIVE) if not p.at_gap}
        if not wanted:
            return 0.05
        try:
            read = await self._tail.read(wanted, block_ms=BLOCK_MS, max_records=MAX_RECORDS)
        except (Unavailable, Misconfigured) as error:
            return self._failed("log", error)
        self._shard.counters.clear_trouble("log")
        for partition in read.gaps:
            if self._is_current(partition, wanted):
                self._shard.partitions[partition].at_gap = True
                self._shard.counters.count("log_gaps")
        if not read.records:
            self._shard.lag_s = 0.0
            return 0.0
        loop = asyncio.get_running_loop()
        started_s = loop.time()
        async with self._shard.turn:
            records = {p: entries for p, entries in read.records.items() if self._is_current(p, wanted)}
            try:
                await self._count(records)
            except StorageError as error:
                # Of the read partitions nobody knows what was published: they are claimed, which settles it.
                for partition in records:
                    self._reopen(self._shard.partitions[partition])
                return self._failed("windows", error)
        self._failures = 0
        self._shard.counters.clear_trouble("windows")
        busy_s = loop.time() - started_s
        if self._shard.lag_s - busy_s > LEFT_BEHIND_S:
            return 0.0
        interval_s = self._shard.settings.publish_interval_ms / 1000
        return max(interval_s - busy_s, min((BUSY_SHARE - 1) * busy_s, MAX_PAUSE_S))

    def _is_current(self, partition: int, wanted: Mapping[int, int]) -> bool:
        owner = self._shard.partitions[partition]
        return owner.state is WindowState.LIVE and owner.next_offset == wanted[partition]

    def _reopen(self, owner: WindowPartition) -> None:
        if owner.state is WindowState.LIVE:
            owner.state = WindowState.OPENING
        self._shard.forget(owner)

    def _failed(self, service: str, error: StorageError) -> float:
        self._shard.counters.trouble(service, str(error))
        pause_s = RETRY_PAUSES_S[min(self._failures, len(RETRY_PAUSES_S) - 1)]
        self._failures += 1
        return pause_s

    async def _count(self, records: Mapping[int, Sequence[tuple[int, bytes]]]) -> None:
        used: dict[str, Definitions] = {}

        def definitions_of(project_id: str) -> Sequence[MetricDefinition]:
            found = used[project_id] = self._book.applied(project_id)
            return found.metrics

        frozen_below = self._shard.frozen_below
        decoded, prepared = await self._shard.compute(self._prepare, records, definitions_of, frozen_below)
        for partition, error in decoded.unreadable.items():
            self._shard.counters.trouble(f"partition {partition}", str(error))
            if partition not in decoded.next_offsets:
                self._shard.partitions[partition].state = WindowState.UNREADABLE
        for partition, next_offset in decoded.next_offsets.items():
            self._shard.partitions[partition].counting_to = next_offset
        await self._mark(prepared)
        await self._shard.windows.merge(prepared.deltas)
        await self._publish(decoded, used)
        self._tell(prepared)
        newest_ms = max(decoded.watermarks_ms.values(), default=0)
        self._shard.lag_s = max(0.0, self._shard.clock_s() - newest_ms / 1000) if newest_ms else 0.0

    def _prepare(
        self,
        records: Mapping[int, Sequence[tuple[int, bytes]]],
        definitions_of: DefinitionsOf,
        frozen_below: int,
    ) -> tuple[Decoded, Prepared]:
        decoded = decode(records)
        try:
            return decoded, self._group(decoded, definitions_of, frozen_below)
        except FormatError:
            good = {}
            for partition, entries in records.items():
                alone = decode({partition: entries})
                try:
                    self._group(alone, definitions_of, frozen_below)
                except FormatError as error:
                    decoded.unreadable[partition] = error
                else:
                    good[partition] = entries
            readable = decode(good)
            readable.unreadable |= decoded.unreadable
            return readable, self._group(readable, definitions_of, frozen_below)

    def _group(self, decoded: Decoded, definitions_of: DefinitionsOf, frozen_below: int) -> Prepared:
        return prepare(decoded.batches, definitions_of, lateness_s=self._lateness_s, frozen_below=frozen_below)

    async def _mark(self, prepared: Prepared) -> None:
        """Before the checkpoint passes them: events that only a recomputation counts."""
        days = defaultdict(list)
        for project_id, start in sorted(prepared.frozen_days):
            days[project_id].append(day_of(start))
        for project_id, marked in days.items():
            await self._rollups.mark_days(project_id, marked)

    async def _publish(self, decoded: Decoded, used: Mapping[str, Definitions]) -> None:
        shard = self._shard
        windows: defaultdict[int, list[tuple[WindowKey, Aggregate]]] = defaultdict(list)
        for key, value in shard.windows.unpublished.items():
            windows[shard.partition_of(key.project_id)].append((key, value))
        built: defaultdict[int, dict[str, str]] = defaultdict(dict)
        for project_id, definitions in used.items():
            owner = shard.owner_of(project_id)
            if project_id not in owner.built:
                built[owner.partition][project_id] = definitions.version
        publications = []
        for partition, next_offset in decoded.next_offsets.items():
            owner = shard.partitions[partition]
            watermark_ms = max(owner.watermark_ms, decoded.watermarks_ms.get(partition, 0))
            publications.append(
                Publication(
                    partition,
                    owner.epoch,
                    owner.next_offset,
                    next_offset,
                    watermark_ms,
                    windows[partition],
                    built[partition],
                )
            )
        for call in _calls(publications):
            await self._publish_call(call)
        shard.windows.published()

    async def _publish_call(self, publications: Sequence[Publication]) -> None:
        shard = self._shard
        outcomes = await self._store.publish(publications)
        now_s = shard.clock_s()
        for publication, outcome in zip(publications, outcomes, strict=True):
            owner = shard.partitions[publication.partition]
            if outcome == "published":
                owner.advance(publication.next_offset, publication.watermark_ms, dict(publication.built))
                shard.closing.touched((key for key, _ in publication.windows), now_s)
                shard.counters.count("windows_published", len(publication.windows))
            else:
                owner.state = WindowState.FENCED if outcome == "fenced" else WindowState.LOST
                shard.counters.count(f"partitions_{outcome}")
                shard.forget(owner)
        shard.counters.count("publications")

    def _tell(self, prepared: Prepared) -> None:
        counters = self._shard.counters
        counters.count("events_counted", prepared.events)
        counters.count("events_late", prepared.late_events)
        counters.totals["overflow_events"] = self._shard.windows.overflow_events
        counters.totals["overflow_groups"] = self._shard.windows.overflow_groups


def _calls(publications: Sequence[Publication]) -> list[list[Publication]]:
    calls: list[list[Publication]] = []
    room = 0
    for publication in publications:
        size = len(publication.windows)
        if not calls or size > room:
            calls.append([])
            room = WINDOWS_PER_CALL
        calls[-1].append(publication)
        room -= size
    return calls
