"""What only PostgreSQL shows of the lake: many at once, the views, and which daily partitions are read."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from storage.errors import Fenced, Unavailable
from storage.lake_manifest import LakeFile, OffsetRange, StoredMark, joined
from storage.postgres import Postgres
from storage.postgres_manifest import PostgresManifest
from storage.statements import statement
from tests.contract.lake_subject import (
    BLOG,
    ELSEWHERE,
    HOUR,
    SHOP,
    TIME,
    PostgresLake,
    epochs_of,
    lake_file,
    merged,
    named,
    postgres_lake,
)
from tests.contract.log_records import event


@pytest.fixture
async def subject(postgres_url: str) -> AsyncIterator[PostgresLake]:
    async for made in postgres_lake(postgres_url):
        yield made


class MovingLake:
    """Events of two hours that are stored, exported, compacted and read at the same time."""

    RECORDS = 150
    HOURS = (HOUR, HOUR - timedelta(hours=1))

    def __init__(self, subject: PostgresLake, seed: int) -> None:
        self._subject = subject
        self._random = random.Random(seed)
        self._records: list[list[tuple[str, datetime]]] = []
        self._content: dict[str, list[str]] = {}
        self.snapshots = Counter[str]()
        self.exported_below = 0

    @property
    def done(self) -> bool:
        return self.exported_below == self.RECORDS

    async def store(self) -> None:
        for offset in range(self.RECORDS):
            record = [(f"{offset}-{n}", self._random.choice(self.HOURS)) for n in range(self._random.randint(1, 4))]
            self._records.append(record)
            await self._subject.store_events(*(event(event_id, timestamp=time) for event_id, time in record))

    async def export(self) -> None:
        """Now and then another owner takes over between the plan and its commit."""
        manifest = self._subject.manifest
        claimed = await manifest.claim([SHOP])
        marks: list[StoredMark] = []
        while not self.done:
            marks = [*marks[-20:], *(await manifest.stored([SHOP])).values()]
            first, stored = self.exported_below, marks[-1].next_offset if marks else 0
            if stored > first:
                plan = await manifest.plan(
                    [OffsetRange(SHOP, first, self._random.randint(first + 1, stored))], epochs_of(claimed)
                )
                if self._random.random() < 0.2:
                    claimed = await manifest.claim([SHOP])
                    assert await manifest.open_plans([SHOP]) == [plan]
                files = self._files(plan.plan_id, plan.ranges[0])
                await manifest.commit(plan.plan_id, epochs_of(claimed), files, marks=marks)
                self.exported_below = plan.ranges[0].next_offset
            await asyncio.sleep(0)

    def _files(self, plan_id: int, exported: OffsetRange) -> list[LakeFile]:
        files: list[LakeFile] = []
        for number, hour in enumerate(self.HOURS):
            records = self._records[exported.first_offset : exported.next_offset]
            ids = [event_id for record in records for event_id, time in record if time == hour]
            if ids:
                key = f"part-{plan_id}-{number}"
                self._content[key] = ids
                files.append(_file(key, hour, ids, [exported]))
        return files

    async def compact(self) -> None:
        while not self.done:
            for hour in self.HOURS:
                parts = await self._subject.listing.small_files(hour, small_bytes=1 << 20)
                chosen = self._random.sample(parts, min(len(parts), self._random.randint(2, 5)))
                if len(chosen) > 1:
                    await self._merge([entry.file_id for entry in chosen])
            await asyncio.sleep(0.01)

    async def _merge(self, file_ids: list[int]) -> None:
        swap = await self._subject.manifest.plan_swap("compact", file_ids)
        files = list((await self._subject.listing.load(file_ids)).values())
        assert swap is not None
        key = f"compact-{swap}"
        self._content[key] = [event_id for file in files for event_id in self._content[file.key]]
        ranges = joined([each for file in files for each in file.ranges])
        assert await self._subject.manifest.swap(swap, [merged(key, *files, ranges=ranges)]) == "committed"

    async def read(self) -> None:
        while not self.done:
            async with self._subject.snapshots.snapshot(["shop"]) as snapshot:
                tail = [row["event_id"] async for rows in snapshot.tail for row in rows.to_pylist()]
            filed = [event_id for entry in snapshot.files for event_id in self._content[entry.key]]
            [position] = snapshot.positions
            stored = [event_id for record in self._records[: position.stored_below] for event_id, _ in record]
            assert Counter(filed + tail) == Counter(stored)
            self.snapshots["both" if filed and tail else "one"] += 1


def _file(key: str, hour: datetime, ids: list[str], ranges: list[OffsetRange]) -> LakeFile:
    return LakeFile(
        key=key,
        hour=hour,
        rows=len(ids),
        bytes=10 * len(ids),
        checksum="",
        id_digest=sum(map(len, ids)),
        min_timestamp=hour,
        max_timestamp=hour,
        ranges=ranges,
        projects={"shop": len(ids)},
    )


@pytest.mark.parametrize("seed", range(3))
async def test_each_event_is_seen_once_while_it_moves(subject: PostgresLake, seed: int) -> None:
    lake = MovingLake(subject, seed)
    async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
        for work in (lake.store(), lake.export(), lake.compact(), lake.read(), lake.read()):
            tasks.create_task(work)
    assert lake.snapshots["both"] > 10
    assert await subject.listing.gaps() == []


async def test_of_owners_that_fight_each_commit_is_of_one(subject: PostgresLake) -> None:
    """Claims of one, the other and both partitions, at any moment of the others' plans."""
    for number in range(30):
        await subject.store_numbered(1, first=number)
        await subject.store_numbered(1, project=BLOG, first=number)
    won = Counter[int]()

    async def own(owner: int, seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(25):
            partitions = chance.choice([[SHOP], [ELSEWHERE], [SHOP, ELSEWHERE]])
            with suppress(Fenced):
                claimed = await subject.manifest.claim(partitions)
                begun = await subject.manifest.open_plans(partitions)
                for plan in begun:
                    await subject.manifest.commit(plan.plan_id, epochs_of(claimed), [])
                done = {each.partition for plan in begun for each in plan.ranges}
                ranges = [OffsetRange(each, at, at + 1) for each, _, at in claimed.values() if each not in done]
                if not ranges:
                    continue
                plan = await subject.manifest.plan(ranges, epochs_of(claimed))
                await asyncio.sleep(chance.random() * 0.01)
                await subject.manifest.commit(plan.plan_id, epochs_of(claimed), [])
                won[owner] += 1

    async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
        for owner in range(3):
            tasks.create_task(own(owner, owner))
    assert sum(won.values()) > 5
    assert await subject.listing.gaps() == []
    exported = sum(each.exported_below for each in await subject.listing.pending())
    assert exported == await subject.connection.fetchval("SELECT count(*) FROM lake_exports")


async def test_an_owner_that_stands_still_in_its_commit_is_not_waited_for_for_long(subject: PostgresLake) -> None:
    """It holds the rows until the server ends its transaction; its COMMIT comes too late."""
    await subject.store_numbered(2)
    postgres = Postgres(subject.proxy.url, owner="still", pool_size=1, deadline_s=1.0)
    still = PostgresManifest(postgres, write_timeout_s=30)
    epochs = epochs_of(await still.claim([SHOP]))
    plan = await still.plan([OffsetRange(SHOP, 0, 2)], epochs)
    subject.proxy.cut_next("hold", b"COMMIT;")
    with pytest.raises(Unavailable):
        await still.commit(plan.plan_id, epochs, [lake_file(plan, named(0, 2))])
    claimed = await subject.manifest.claim([SHOP])
    await subject.proxy.release()
    await postgres.close()
    assert claimed[SHOP].next_offset == 0
    assert await subject.manifest.open_plans([SHOP]) == [plan]
    file = lake_file(plan, named(0, 2))
    assert await subject.manifest.commit(plan.plan_id, epochs_of(claimed), [file]) == "committed"
    assert len(await subject.listing.files()) == 1


async def test_the_metadata_of_events_names_their_file(subject: PostgresLake) -> None:
    await subject.store_events(event("now", timestamp=TIME, user_id="u"), event("then", timestamp=TIME - timedelta(1)))
    await subject.store_events(event("last", timestamp=TIME))
    claimed = await subject.manifest.claim([SHOP])
    epochs = epochs_of(claimed)
    plan = await subject.manifest.plan([OffsetRange(SHOP, 0, 1)], epochs)
    file = lake_file(plan, [("shop", "now")])
    old = lake_file(plan, [("shop", "then")], number=1, hour=HOUR - timedelta(days=1))
    await subject.manifest.commit(plan.plan_id, epochs, [file, old])
    rows = await subject.connection.fetch("SELECT * FROM events_metadata ORDER BY event_id")
    assert [(row["event_id"], row["storage_path"], row["status"]) for row in rows] == [
        ("last", None, "pending"),
        ("now", file.key, "processed"),
        ("then", old.key, "processed"),
    ]
    assert list(rows[0].keys()) == [
        "id",
        "event_id",
        "user_id",
        "event_type",
        "project_id",
        "timestamp",
        "ingested_at",
        "storage_path",
        "file_partition",
        "properties_hash",
        "status",
        "created_at",
    ]
    assert [row["file_partition"] for row in rows[1:]] == [
        f"{each.hour:year=%Y/month=%m/day=%d}" for each in (file, old)
    ]
    assert rows[1]["properties_hash"] == "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
    assert len({row["id"] for row in rows}) == 3 and all(row["id"] >= 0 for row in rows)

    [entry, *_] = await subject.listing.files(start=HOUR)
    swap = await subject.manifest.plan_swap("compact", [entry.file_id])
    assert swap is not None
    await subject.manifest.swap(swap, [merged("compacted", file)])
    path = "SELECT storage_path FROM events_metadata WHERE project_id = 'shop' AND event_id = 'now'"
    assert await subject.connection.fetchval(path) == "compacted"


async def test_the_export_of_events_is_told_by_offsets(subject: PostgresLake) -> None:
    await subject.store_numbered(5)
    await subject.store_numbered(2, project=BLOG)
    claimed = await subject.manifest.claim([SHOP])
    await subject.export(claimed, OffsetRange(SHOP, 0, 2), events=named(0, 2))
    await subject.export(claimed, OffsetRange(SHOP, 2, 4), events=named(2, 4))
    rows = await subject.connection.fetch("SELECT * FROM events_export WHERE project_id = 'shop' ORDER BY log_offset")
    assert [row["export_status"] for row in rows] == [*["exported"] * 4, "pending"]
    times = [row["processed_at"] for row in rows]
    assert times[0] == times[1] < times[2] == times[3] and times[4] is None
    assert {"client_id", "visitor_id", "batch_id", "raw_event_data", "url"} <= set(rows[0].keys())

    counted: list[Any] = await subject.connection.fetch("""
        SELECT project_id, count(*), count(*) FILTER (WHERE export_status = 'exported'), max(processed_at)
        FROM events_export WHERE created_at >= date_trunc('day', now()) - interval '1 day'
        GROUP BY project_id ORDER BY project_id
    """)
    assert [tuple(row) for row in counted] == [(BLOG, 2, 0, None), ("shop", 5, 4, times[3])]
    assert [(each.project_id, each.rows) for each in await subject.listing.volumes()] == [("shop", 4)]


async def test_a_tail_opens_only_the_days_that_may_hold_it(subject: PostgresLake) -> None:
    """Retention drops days: those before `since` are not locked, let alone read."""
    await subject.connection.execute(
        "SELECT events_log_add_day(day::date) FROM generate_series(now() - interval '9 days', now(), '1 day') AS day"
    )
    since = datetime.now(UTC) - timedelta(minutes=1)
    bounds = ("ARRAY['shop']", "NULL", "NULL", "ARRAY[7]", f"ARRAY['{since}'::timestamptz]", f"'{since}'")
    query = statement("copy_tail")
    for number, bound in enumerate(bounds, 1):
        query = query.replace(f"${number}", bound)
    plan = "\n".join(row[0] for row in await subject.connection.fetch("EXPLAIN " + query))
    assert f"events_log_{since:%Y%m%d}" in plan
    assert not any(f"events_log_{since - timedelta(days=days):%Y%m%d}" in plan for days in range(1, 10))
