"""The event store and the lake's manifest over it, in memory and in PostgreSQL, for tests of both."""

from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg

from config.settings import StoreSettings
from storage.event_store import Checkpoint, EventStore
from storage.fingerprint import fingerprint, partition_of
from storage.lake_listing import LakeListing
from storage.lake_manifest import LakeFile, LakeManifest, LakeSnapshots, OffsetRange, Plan
from storage.memory_lake_listing import MemoryLakeListing
from storage.memory_manifest import MemoryManifest
from storage.memory_store import MemoryStore
from storage.migrate import migrate
from storage.postgres import Postgres
from storage.postgres_lake_listing import PostgresLakeListing
from storage.postgres_lake_snapshots import PostgresLakeSnapshots
from storage.postgres_manifest import PostgresManifest
from storage.postgres_store import PostgresStore
from storage.stored_log import MemoryStoredLog, PostgresStoredLog, StoredLog
from tests.contract.cut_proxy import CutProxy
from tests.contract.log_records import batch, event, record, write

PARTITIONS = 4
SHOP = partition_of("shop", PARTITIONS)
BLOG = next(f"p{n}" for n in range(99) if partition_of(f"p{n}", PARTITIONS) != SHOP)
ELSEWHERE = partition_of(BLOG, PARTITIONS)
TIME = datetime.now(UTC).replace(minute=30, second=0, microsecond=0) - timedelta(hours=2)
HOUR = TIME.replace(minute=0)


class LakeSubject:
    """`store_events` puts one record into the event store; `export` what an exporter does from plan to commit."""

    store: EventStore
    manifest: LakeManifest
    snapshots: LakeSnapshots
    listing: LakeListing
    stored_log: StoredLog

    def lose_next_commit(self, *, committed: bool) -> None:
        raise NotImplementedError

    async def age_plans(self) -> None:
        """Let the open plans be a day old."""
        raise NotImplementedError

    async def store_events(self, *events: dict[str, Any], partition: int = SHOP) -> None:
        [checkpoint] = await self.store.checkpoints([partition])
        if not checkpoint.epoch:
            await self.store.claim(partition, epoch=1)
        await self.store.write(
            [write(record(batch(*events)), partition=partition, epoch=1, first=checkpoint.next_offset)]
        )

    async def store_numbered(self, count: int, *, project: str = "shop", first: int = 0) -> None:
        """Records of one event each."""
        for number in range(first, first + count):
            made = event(f"e{number}", project, timestamp=TIME)
            await self.store_events(made, partition=partition_of(project, PARTITIONS))

    async def export(
        self, claimed: dict[int, Checkpoint], *ranges: OffsetRange, events: Sequence[tuple[str, str]]
    ) -> LakeFile:
        """Into one file of `HOUR`. The events are named by project and id."""
        epochs = epochs_of(claimed)
        plan = await self.manifest.plan(ranges, epochs)
        file = lake_file(plan, events)
        marks = await self.manifest.stored(list(epochs))
        assert await self.manifest.commit(plan.plan_id, epochs, [file], marks=list(marks.values())) == "committed"
        return file

    async def found(self, project: str = "shop", *, start: datetime | None = None) -> tuple[list[str], list[str]]:
        """Of one snapshot the keys of the files, and the ids in the tail."""
        async with self.snapshots.snapshot([project], start=start) as snapshot:
            tail = [row["event_id"] async for rows in snapshot.tail for row in rows.to_pylist()]
            return [entry.key for entry in snapshot.files], sorted(tail)

    async def close(self) -> None:
        await self.store.close()


class MemoryLake(LakeSubject):
    def __init__(self) -> None:
        memory = MemoryStore()
        self.memory = MemoryManifest(memory, partitions=PARTITIONS)
        self.store, self.manifest, self.snapshots = memory, self.memory, self.memory
        self.listing, self.stored_log = MemoryLakeListing(self.memory), MemoryStoredLog(memory)

    def lose_next_commit(self, *, committed: bool) -> None:
        self.memory.fail_next(committed=committed)

    async def age_plans(self) -> None:
        for kept in self.memory.plans.values():
            kept.plan = kept.plan._replace(created_at=kept.plan.created_at - timedelta(days=1))


class PostgresLake(LakeSubject):
    """The manifest's own connections go through a proxy."""

    def __init__(self, url: str, proxy: CutProxy, connection: "asyncpg.Connection[asyncpg.Record]") -> None:
        self.connection = connection
        self.proxy = proxy
        self.cut = Postgres(proxy.url, owner="test-manifest", pool_size=4, deadline_s=10)
        self.postgres = Postgres(url, owner="test-lake", pool_size=8, deadline_s=10)
        self.store = PostgresStore(StoreSettings(postgres_url=url), owner="test")
        self.manifest = PostgresManifest(self.cut, write_timeout_s=30)
        self.snapshots = PostgresLakeSnapshots(self.postgres, partitions=PARTITIONS)
        self.listing = PostgresLakeListing(self.postgres)
        self.stored_log = PostgresStoredLog(self.postgres)

    def lose_next_commit(self, *, committed: bool) -> None:
        self.proxy.cut_next("reply" if committed else "request", b"COMMIT;")

    async def age_plans(self) -> None:
        await self.connection.execute("UPDATE lake_plans SET created_at = created_at - interval '1 day'")

    async def close(self) -> None:
        await super().close()
        await self.connection.close()
        await self.postgres.close()
        await self.cut.close()
        await self.proxy.stop()


async def postgres_lake(url: str) -> AsyncIterator[PostgresLake]:
    await migrate(url)
    proxy = CutProxy(url)
    await proxy.start()
    made = PostgresLake(url, proxy, await asyncpg.connect(url, server_settings={"timezone": "UTC"}))
    try:
        yield made
    finally:
        await made.close()


def epochs_of(claimed: dict[int, Checkpoint]) -> dict[int, int]:
    return {partition: checkpoint.epoch for partition, checkpoint in claimed.items()}


def lake_file(
    plan: Plan, events: Sequence[tuple[str, str]], *, number: int = 0, hour: datetime = HOUR, **changed: Any
) -> LakeFile:
    """What an exporter makes of a plan's events of one hour, named by project and id."""
    projects: dict[str, int] = {}
    for project, _ in events:
        projects[project] = projects.get(project, 0) + 1
    fields: dict[str, Any] = {
        "key": f"events/{hour:year=%Y/month=%m/day=%d/hour=%H}/part-{plan.plan_id:012d}-{number:05d}.parquet",
        "hour": hour,
        "rows": len(events),
        "bytes": 100 * len(events) + 1,
        "checksum": "0" * 64,
        "id_digest": sum(fingerprint(*each) for each in events) % (1 << 64),
        "min_timestamp": hour,
        "max_timestamp": hour + timedelta(minutes=59),
        "ranges": plan.ranges,
        "projects": projects,
    }
    return LakeFile(**(fields | changed))


def merged(key: str, *files: LakeFile, **changed: Any) -> LakeFile:
    """What a compaction makes of an hour's files."""
    projects: dict[str, int] = {}
    for file in files:
        for project, rows in file.projects.items():
            projects[project] = projects.get(project, 0) + rows
    fields: dict[str, Any] = {
        "key": key,
        "hour": files[0].hour,
        "rows": sum(file.rows for file in files),
        "bytes": sum(file.bytes for file in files),
        "checksum": "1" * 64,
        "id_digest": sum(file.id_digest for file in files) % (1 << 64),
        "min_timestamp": min(file.min_timestamp for file in files),
        "max_timestamp": max(file.max_timestamp for file in files),
        "ranges": [each for file in files for each in file.ranges],
        "projects": projects,
    }
    return LakeFile(**(fields | changed))


def named(first: int, next_: int, project: str = "shop") -> list[tuple[str, str]]:
    """The events that `store_numbered` stores."""
    return [(project, f"e{number}") for number in range(first, next_)]
