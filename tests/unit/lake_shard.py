"""A whole shard with its lake in memory and in virtual time: batcher, stores, exporters that follow one another."""

import asyncio
import random
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from analytics_actors.batcher import Batcher
from analytics_actors.exporter import Exporter
from analytics_actors.lake.progress import lake_progress
from analytics_actors.store_sink import no_other_sinks
from config.settings import LakeSettings, LogSettings, Settings, StoreSettings
from gateway.columns import Part, build_batch
from gateway.ingest import new_batch_id
from gateway.rows import Row
from storage.aggregated import Folded
from storage.fingerprint import partition_of
from storage.folded_events import MemoryFolded
from storage.lake_file import read_summary
from storage.ledger_counts import RowKey
from storage.memory_lake_listing import MemoryLakeListing
from storage.memory_log import MemoryLog
from storage.memory_manifest import MemoryManifest
from storage.memory_objects import MemoryObjects
from storage.memory_store import MemoryStore
from storage.stored_log import MemoryStoredLog
from tests.unit.aggregation import START_S, Slow, VirtualTail, compute_here

PARTITIONS = 4
HOUR_S = 3600
LAKE = LakeSettings(part_interval_s=5, part_bytes=20_000)
SETTINGS = Settings(
    log=LogSettings(partitions=PARTITIONS), store=StoreSettings(batch_interval_ms=200, batch_size=50), lake=LAKE
)
POISON = '{"text":"\\u0000"}'
FOLDED_TYPE = "only aggregated"


class Crash(Exception):
    """The exporter's process has ended at a named point."""


def fold(rows: pa.RecordBatch) -> Folded:
    names = ("partition_id", "log_offset", "row_number")
    is_folded = [row["event_type"] == FOLDED_TYPE for row in rows.to_pylist()]
    keys = [RowKey(*(row[name] for name in names)) for row in rows.filter(pa.array(is_folded, pa.bool_())).to_pylist()]
    return Folded(rows.filter(pa.array([not each for each in is_folded], pa.bool_())), {}, keys)


class LakeShard:
    """`chance` makes every call take a while, before and after its effect: where a crash may hit."""

    def __init__(self, *, chance: random.Random | None = None, keeps_log: bool = True) -> None:
        self.chance = chance
        self.keeps_log = keeps_log
        self.log = MemoryLog(clock_ms=self.clock_ms)
        self.store = MemoryStore(clock_ms=self.clock_ms, fold=fold)
        self.manifest = MemoryManifest(self.store, PARTITIONS, clock=self.now)
        self.objects = MemoryObjects(clock_s=self.clock_s)
        self.exporters: list[Exporter] = []
        self.crash_at: str | None = None
        self.batcher: Batcher | None = None

    def clock_s(self) -> float:
        return START_S + asyncio.get_running_loop().time()

    def clock_ms(self) -> int:
        return int(self.clock_s() * 1000)

    def now(self) -> datetime:
        return datetime.fromtimestamp(self.clock_s(), UTC)

    async def start_batcher(self) -> None:
        self.batcher = Batcher(
            0,
            range(PARTITIONS),
            MemoryLog(owner=f"batcher {self.clock_s()}", sharing=self.log, clock_ms=self.clock_ms),
            self.store,
            SETTINGS,
            clock_ms=self.clock_ms,
            other_sinks=lake_progress(self._checkpoints) if self.keeps_log else no_other_sinks,
        )
        await self.batcher.open()

    async def _checkpoints(self, partitions: Sequence[int]) -> dict[int, int]:
        return {partition: self.manifest.checkpoint(partition).next_offset for partition in partitions}

    def start_exporter(self, *, lake: LakeSettings = LAKE) -> Exporter:
        """A new incarnation; the one before it is not told."""
        exporter = Exporter(
            0,
            range(PARTITIONS),
            tail=VirtualTail(self.log),
            stored=MemoryStoredLog(self.store),
            folded=MemoryFolded(self.store),
            pending=MemoryLakeListing(self.manifest).pending,
            manifest=Slow(self.manifest, self.chance),
            objects=Slow(self.objects, self.chance),
            settings=lake,
            clock_s=self.clock_s,
            compute=compute_here,
            reached=self._reached,
        )
        self.exporters.append(exporter)
        exporter.start()
        return exporter

    def _reached(self, point: str) -> None:
        if point == self.crash_at:
            self.crash_at = None
            raise Crash(point)

    @property
    def current(self) -> Exporter:
        return self.exporters[-1]

    async def send(self, project: str, rows: Sequence[tuple[str, float]], *, kind: str = "t", text: str = "{}") -> None:
        """Events (id, age in seconds) as one batch."""
        assert self.batcher is not None
        made = [
            Row(event_id, kind, None, None, None, None, self.now() - timedelta(seconds=age), text.encode(), None)
            for event_id, age in rows
        ]
        batch = build_batch(
            partition_of(project, PARTITIONS), [Part(project, self.now(), made, 0)], batch_id=new_batch_id()
        )
        await self.batcher.append([batch])

    async def settle(self) -> None:
        """Until all that was taken is stored, and all that is stored is in the lake."""
        assert self.batcher is not None
        async with asyncio.timeout(5000):
            while self.batcher.observe().lag_events or not await self._is_exported():
                self.restart_failed()
                await asyncio.sleep(0.5)

    def restart_failed(self) -> None:
        """As Ray does when the controller has asked."""
        if self.current.failure is not None:
            self.start_exporter()

    async def _is_exported(self) -> bool:
        stored = await self.store.checkpoints(range(PARTITIONS))
        return all(self.manifest.checkpoint(each.partition).next_offset == each.next_offset for each in stored)

    def rows(self) -> list[dict[str, Any]]:
        """What readers find: the rows of all live files."""
        return [
            row
            for kept in self.manifest.live()
            for row in pq.read_table(pa.BufferReader(self.objects.objects[kept.file.key])).to_pylist()
        ]

    def check(self) -> None:
        """The lake has exactly the stored events (EX-1, ND-1), and its files are what the manifest says."""
        found = Counter(
            (row["log_partition"], row["log_offset"], row["project_id"], row["event_id"], row["properties_json"])
            for row in self.rows()
        )
        wanted = Counter(
            (row["partition_id"], row["log_offset"], row["project_id"], row["event_id"], row["properties"])
            for row in self.store.rows
        )
        assert found == wanted
        for kept in self.manifest.live():
            assert read_summary(self.objects.objects[kept.file.key]).at(kept.file.key) == kept.file

    async def close(self) -> None:
        for exporter in self.exporters:
            await exporter.close()
        if self.batcher is not None:
            await self.batcher.close()
