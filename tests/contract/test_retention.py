"""What retention looks at and removes: in memory and in PostgreSQL, over a lake that was exported."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, date, datetime, timedelta
from typing import Any

import asyncpg
import pytest

from storage.errors import Conflict, NotFound
from storage.lake_manifest import OffsetRange
from storage.ledger import Ledger
from storage.memory_retention import MemoryRetention
from storage.postgres_retention import PostgresRetention
from storage.retention import Gone, Group, ProjectLimits, Removal, RetentionStore, Share
from tests.contract.lake_subject import (
    BLOG,
    ELSEWHERE,
    SHOP,
    TIME,
    LakeSubject,
    MemoryLake,
    PostgresLake,
    named,
    postgres_lake,
)
from tests.contract.log_records import event

DAYS_AGO = 40
NOW = datetime.now(UTC)
OLD = NOW - timedelta(days=DAYS_AGO)
OLD_DAY = OLD.date()
LONG_AGO = NOW - timedelta(days=5000)


class Subject:
    """A lake and its retention. `age` makes what is stored, and when it was exported, `DAYS_AGO` older."""

    lake: LakeSubject
    retention: RetentionStore

    async def age(self) -> None:
        raise NotImplementedError

    async def add_patterns(self, *detected: datetime) -> Group:
        raise NotImplementedError

    async def differences(self) -> list[Any]:
        """What the ledger does not agree with."""
        raise NotImplementedError

    async def expired(self, project: str) -> int:
        """As the ledger has it."""
        raise NotImplementedError


class InMemory(Subject):
    def __init__(self) -> None:
        lake = MemoryLake()
        self.lake, self.manifest = lake, lake.memory
        self.memory = MemoryRetention(lake.memory, projects={"shop", BLOG})
        self.retention = self.memory

    async def age(self) -> None:
        for row in self.manifest.store.rows:
            row["stored_ms"] -= DAYS_AGO * 86_400_000
        for each in self.manifest.exports:
            each.at -= timedelta(days=DAYS_AGO)

    async def add_patterns(self, *detected: datetime) -> Group:
        group = Group("patterns")
        self.memory.records[group] += detected
        return group

    async def differences(self) -> list[Any]:
        return []

    async def expired(self, project: str) -> int:
        return sum(count for key, count in self.memory.expired.items() if key.project_id == project)


class InPostgres(Subject):
    def __init__(self, lake: PostgresLake) -> None:
        self.lake, self.connection = lake, lake.connection
        self.retention = PostgresRetention(lake.postgres)
        self.ledger = Ledger(lake.postgres)

    async def age(self) -> None:
        days = await self.connection.fetch(
            "SELECT DISTINCT (created_at AT TIME ZONE 'UTC')::date AS day FROM events_log"
        )
        for row in days:
            await self.connection.execute("SELECT events_log_add_day($1)", row["day"] - timedelta(days=DAYS_AGO))
        ago = timedelta(days=DAYS_AGO)
        await self.connection.execute("UPDATE events_log SET created_at = created_at - $1::interval", ago)
        await self.connection.execute("UPDATE lake_exports SET exported_at = exported_at - $1::interval", ago)

    async def add_patterns(self, *detected: datetime) -> Group:
        for number, at in enumerate(detected):
            await self.connection.execute(
                "INSERT INTO patterns (pattern_id, window_start, detected_at, value, mean, expected, sigmas, events,"
                " windows, seasonal, project_id, metric_name, kind, direction, window_size, dimensions, delivery)"
                " VALUES (gen_random_uuid(), $1, $1, 1, 1, 1, 1, $2, 1, false, 'shop', 'm', 'spike', 'up', '1m', '{}',"
                " 'none')",
                at,
                number,
            )
        return Group("patterns")

    async def differences(self) -> list[Any]:
        return list(await self.ledger.check())

    async def expired(self, project: str) -> int:
        query = "SELECT coalesce(sum(expired), 0)::bigint FROM ledger WHERE project_id = $1"
        return int(await self.connection.fetchval(query, project))


@pytest.fixture
async def subject(url: str) -> AsyncIterator[Subject]:
    if not url:
        yield InMemory()
        return
    async for lake in postgres_lake(url):
        made = InPostgres(lake)
        await made.connection.execute("INSERT INTO projects (project_id) VALUES ('shop'), ($1)", BLOG)
        yield made


@pytest.fixture
async def in_postgres(postgres_url: str) -> AsyncIterator[InPostgres]:
    async for lake in postgres_lake(postgres_url):
        yield InPostgres(lake)


async def fill(subject: Subject, *, exported: int = 3) -> None:
    """Three events of the shop, of which some are exported, and two of the blog, which are not."""
    await subject.lake.store_numbered(3)
    await subject.lake.store_numbered(2, project=BLOG)
    claimed = await subject.lake.manifest.claim([SHOP])
    if exported:
        await subject.lake.export(claimed, OffsetRange(SHOP, 0, exported), events=named(0, exported))


async def stored(subject: Subject) -> list[str]:
    """What is in no file, by the way of readers."""
    return (await subject.lake.found("shop"))[1]


async def run_of(subject: Subject) -> int:
    return await subject.retention.begin_run(NOW)


async def test_a_days_rows_wait_for_their_export_and_for_their_time_after_it(subject: Subject) -> None:
    await fill(subject, exported=2)
    await subject.age()
    ask = subject.retention.shares
    wanted = sorted([Share("shop", 3, 1), Share(BLOG, 2, 2)])
    assert await ask(OLD_DAY, exported_before=NOW - timedelta(days=DAYS_AGO - 1)) == wanted
    early = NOW - timedelta(days=DAYS_AGO + 1)
    assert await ask(OLD_DAY, exported_before=early, projects=["shop"]) == [Share("shop", 3, 3)]
    assert await ask(OLD_DAY, exported_before=None, projects=["shop"]) == [Share("shop", 3, 0)]
    assert await ask(OLD_DAY, exported_before=NOW, projects=["nobody"]) == []
    assert await ask(date(2001, 1, 1), exported_before=NOW) == []


async def test_what_the_checkpoint_has_passed_and_no_file_holds_waits(subject: Subject) -> None:
    await subject.lake.store_numbered(2)
    claimed = await subject.lake.manifest.claim([SHOP])
    await subject.lake.export(claimed, OffsetRange(SHOP, 0, 2), events=named(0, 2))
    [file] = await subject.lake.listing.files()
    await subject.age()
    assert await subject.retention.shares(OLD_DAY, exported_before=NOW) == [Share("shop", 2, 0)]
    plan = await subject.lake.manifest.plan_swap("expire", [file.file_id])
    assert plan is not None and await subject.lake.manifest.swap(plan, []) == "committed"
    assert await subject.retention.shares(OLD_DAY, exported_before=NOW) == [Share("shop", 2, 2)]


async def test_a_row_whose_time_in_the_lake_is_over_needs_no_file(subject: Subject) -> None:
    await fill(subject, exported=2)
    [file] = await subject.lake.listing.files()
    plan = await subject.lake.manifest.plan_swap("expire", [file.file_id])
    assert plan is not None and await subject.lake.manifest.swap(plan, []) == "committed"
    today, later = datetime.now(UTC).date(), datetime.now(UTC) + timedelta(hours=3)

    async def waiting(**options: Any) -> int:
        [share] = await subject.retention.shares(today, exported_before=later, projects=["shop"], **options)
        return share.waiting

    assert await waiting() == 3
    assert await waiting(lake_before=later) == 1, "one was not exported"
    assert await waiting(lake_before=TIME + timedelta(minutes=45)) == 3, "it was exported later than that"
    assert await waiting(lake_before=TIME, lake_limited={"shop": later, BLOG: None}) == 1
    assert await waiting(lake_before=later, lake_limited={"shop": None}) == 3, "never"


async def test_a_day_is_dropped_and_counted(subject: Subject) -> None:
    await fill(subject)
    await subject.age()
    [day] = [each for each in await subject.retention.days() if each.day == OLD_DAY]
    assert day.bytes > 0
    assert sorted(await subject.retention.projects_of(OLD_DAY)) == sorted(["shop", BLOG])
    run = await run_of(subject)
    assert await subject.retention.drop_day(run, OLD_DAY, size=day.bytes) == 5
    assert OLD_DAY not in [each.day for each in await subject.retention.days()]
    assert await subject.retention.projects_of(OLD_DAY) == []
    assert (await subject.expired("shop"), await subject.expired(BLOG)) == (3, 2)
    assert await subject.differences() == []
    end = datetime.combine(OLD_DAY + timedelta(days=1), datetime.min.time(), UTC)
    assert await subject.retention.stored_before("shop") == end
    assert await subject.retention.stored_before("nobody") is None
    assert await subject.retention.drop_day(run, OLD_DAY, size=day.bytes) == 0, "it is not there any more"
    assert await subject.expired("shop") == 3
    await subject.retention.end_run(run, NOW, ["a", "b"])
    [noted] = await subject.retention.runs(limit=5)
    assert list(noted.removals) == [Removal("partitions", OLD_DAY.isoformat(), 0, 5, day.bytes)]
    assert (noted.run_id, noted.started_at, noted.finished_at, list(noted.kept)) == (run, NOW, NOW, ["a", "b"])


async def test_rows_of_some_projects_go_and_the_others_stay(subject: Subject) -> None:
    await fill(subject)
    await subject.lake.store_numbered(1, first=7)
    run = await run_of(subject)
    today = datetime.now(UTC).date()
    gone, page = await subject.retention.expire_rows(run, today, [BLOG], first_page=0, row_bytes=10.0)
    assert (gone, page) == (2, None)
    assert await subject.expired(BLOG) == 2 and await subject.expired("shop") == 0
    assert await subject.differences() == []
    assert await subject.retention.projects_of(today) == ["shop"]
    assert await stored(subject) == ["e7"]
    assert await subject.retention.stored_before("shop") is None
    assert await subject.retention.stored_before(BLOG) is not None
    assert (await subject.retention.runs(limit=1))[0].removals == [Removal("events", today.isoformat(), 0, 2, 20)]
    again = await subject.retention.expire_rows(run, today, [BLOG], first_page=0, row_bytes=10.0)
    assert again == (0, None) and await subject.expired(BLOG) == 2


async def test_limits_of_projects(subject: Subject) -> None:
    retention = subject.retention
    assert await retention.limits() == {}
    await retention.set_limits("shop", ProjectLimits(3, None, 0))
    await retention.set_limits(BLOG, ProjectLimits(lake_days=10))
    await retention.set_limits("shop", ProjectLimits(raw_days=5))
    assert await retention.limits() == {"shop": ProjectLimits(5, None, None), BLOG: ProjectLimits(None, 10, None)}
    with pytest.raises(NotFound):
        await retention.set_limits("nobody", ProjectLimits(1))
    await retention.clear_limits("shop")
    await retention.clear_limits("shop")
    assert list(await retention.limits()) == [BLOG]


async def test_runs_and_what_they_removed(subject: Subject) -> None:
    retention = subject.retention
    assert await retention.last_run() is None
    first = await retention.begin_run(NOW - timedelta(days=1))
    second = await retention.begin_run(NOW)
    assert await retention.last_run() is None, "none has come to its end"
    await retention.note(first, Removal("moved_files", "2026-10-01", 1, 10, 100))
    await retention.note(first, Removal("moved_files", "2026-10-01", 1, 5, 50))
    await retention.end_run(first, NOW, [])
    assert await retention.last_run() == NOW - timedelta(days=1)
    newest, oldest = await retention.runs(limit=2)
    assert (newest.run_id, newest.finished_at, list(newest.removals)) == (second, None, [])
    assert list(oldest.removals) == [Removal("moved_files", "2026-10-01", 2, 15, 150)]


async def test_old_records_go_in_bounded_batches(subject: Subject) -> None:
    new = NOW - timedelta(days=1)
    group = await subject.add_patterns(LONG_AGO, LONG_AGO, LONG_AGO, new)
    assert group in await subject.retention.groups()
    before = NOW - timedelta(days=365)
    counted = await subject.retention.count_old(group, before)
    assert counted.rows == 3 and counted.bytes > 0
    run = await run_of(subject)
    batches = [await subject.retention.delete_old(run, group, before, limit=2) for _ in range(3)]
    assert [batch.rows for batch in batches] == [2, 1, 0]
    assert sum(batch.bytes for batch in batches) == counted.bytes
    assert await subject.retention.count_old(group, before) == Gone(0, 0)
    assert (await subject.retention.count_old(group, NOW)).rows == 1, "the new one stays"
    [removal] = (await subject.retention.runs(limit=1))[0].removals
    assert removal == Removal("patterns", "", 0, *counted)


async def test_files_that_are_due_by_one_limit_or_another(subject: Subject) -> None:
    await fill(subject)
    claimed = await subject.lake.manifest.claim([ELSEWHERE])
    blog = [(BLOG, "e0"), (BLOG, "e1")]
    await subject.lake.export(claimed, OffsetRange(ELSEWHERE, 0, 2), events=blog)
    listing = subject.lake.listing
    shop, others = await listing.files()

    async def due(**options: Any) -> list[int]:
        defaults: dict[str, Any] = {"hot_before": None, "before": None, "limited": {}, "limit": 10}
        return [file.file_id for file in await listing.aging(**(defaults | options))]

    later = datetime.now(UTC) + timedelta(hours=2)
    assert await due() == []
    assert await due(hot_before=TIME - timedelta(days=1), before=TIME, limited={"shop": TIME}) == []
    assert await due(hot_before=later) == [shop.file_id, others.file_id]
    assert await due(before=later) == [shop.file_id, others.file_id]
    assert await due(before=TIME + timedelta(minutes=45)) == [], "it was exported later"
    assert await due(limited={BLOG: later, "shop": None}) == [others.file_id]
    assert await due(before=later, limit=1) == [shop.file_id]
    assert await due(before=later, after=(shop.hour, shop.file_id)) == [others.file_id]
    [found] = await listing.aging(hot_before=None, before=None, limited={BLOG: later}, limit=5)
    assert (found.key, found.tier, found.rows, found.projects) == (others.key, "hot", 2, {BLOG: 2})
    assert found.since == found.exported_at > found.hour


async def test_what_takes_a_files_place_was_exported_when_it_was(subject: Subject) -> None:
    await fill(subject)
    [entry] = await subject.lake.listing.files()
    later = datetime.now(UTC) + timedelta(hours=2)
    [before] = await subject.lake.listing.aging(hot_before=None, before=later, limited={}, limit=5)
    await asyncio.sleep(0.01)
    plan = await subject.lake.manifest.plan_swap("move", [entry.file_id])
    assert plan is not None
    file = (await subject.lake.listing.load([entry.file_id]))[entry.file_id]
    cold = type(file)(**{**vars(file), "key": f"cold/{file.key}", "tier": "cold"})
    assert await subject.lake.manifest.swap(plan, [cold]) == "committed"
    [after] = await subject.lake.listing.aging(hot_before=later, before=later, limited={}, limit=5)
    assert (after.key, after.tier, after.exported_at) == (cold.key, "cold", before.exported_at)
    assert await subject.lake.listing.aging(hot_before=later, before=None, limited={}, limit=5) == [], "it is cold"


async def test_a_day_that_is_in_use_is_let_be(in_postgres: InPostgres, postgres_url: str) -> None:
    subject = in_postgres
    await fill(subject)
    await subject.age()
    reader = await asyncpg.connect(postgres_url)
    async with reader.transaction():
        await reader.fetch("SELECT count(*) FROM events_log")
        run = await run_of(subject)
        began = asyncio.get_running_loop().time()
        dropping = asyncio.create_task(subject.retention.drop_day(run, OLD_DAY, size=1))
        await asyncio.sleep(0.05)
        await subject.lake.store_events(event("e9"))
        assert asyncio.get_running_loop().time() - began < 10, "a writer waits for the lock timeout at most"
        with pytest.raises(Conflict):
            await dropping
    await reader.close()
    assert await subject.expired("shop") == 0 and (await subject.retention.runs(limit=1))[0].removals == []
    assert await subject.retention.drop_day(run, OLD_DAY, size=1) == 5
    assert await subject.differences() == []


async def test_large_days_go_page_by_page(in_postgres: InPostgres, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("storage.postgres_retention.PAGES_AT_ONCE", 2)
    subject = in_postgres
    text = '{"text": "' + "x" * 1500 + '"}'
    for first in range(0, 40, 10):
        names = range(first, first + 10)
        await subject.lake.store_events(*[event(f"e{n}", properties=text, timestamp=TIME) for n in names])
    run = await run_of(subject)
    page: int | None = 0
    batches: list[int] = []
    while page is not None:
        gone, page = await subject.retention.expire_rows(
            run, datetime.now(UTC).date(), ["shop"], first_page=page, row_bytes=1.0
        )
        batches.append(gone)
    assert sum(batches) == 40 and len(batches) >= 4 and max(batches) <= 10
    assert await subject.differences() == []


async def test_every_kind_of_record_can_be_counted_and_deleted(in_postgres: InPostgres) -> None:
    lake, retention = in_postgres, in_postgres.retention
    old = LONG_AGO
    run = await retention.begin_run(NOW)
    await lake.connection.execute(
        "INSERT INTO metric_aggregates (timestamp, dimensions_hash, count, epoch, next_offset, project_id,"
        " metric_name, metric_type, time_granularity, dimensions, dimension_names)"
        " SELECT t, 0, 1, 1, 1, p, 'events', 'count', g, '{}', '{}'"
        " FROM unnest($1::timestamptz[]) t, unnest(ARRAY['shop', 'blog']) p, unnest(ARRAY['hour', 'day']) g",
        [old, NOW],
    )
    await lake.connection.execute(
        "INSERT INTO aggregated_events (minute, received_at, shape, dimensions_hash, first_offset, next_offset,"
        " events, count, partition_id, late, project_id, metric_name, event_type, dimensions, dimension_names,"
        " state) SELECT t, t, 0, 0, 0, 1, 7, 7, 0, false, 'shop', 'm', 't', '{}', '{}', ''"
        " FROM unnest($1::timestamptz[]) t",
        [old, NOW],
    )
    await lake.connection.execute(
        "INSERT INTO ledger (project_id, hour, received, aggregated, dead_lettered)"
        " VALUES ('shop', date_trunc('hour', $1::timestamptz, 'UTC'), 16, 14, 2)",
        old,
    )
    await lake.connection.execute(
        "INSERT INTO dead_letters (partition_id, log_offset, row_number, project_id, event_id, received_at,"
        " created_at, error_code, message, payload) SELECT 0, o, 0, 'shop', 'e', $1, $1, '', '', ''"
        " FROM unnest(ARRAY[1, 5]) o",
        old,
    )
    await lake.connection.execute(
        "INSERT INTO checkpoints (sink, partition_id, epoch, next_offset) VALUES ('lake', 0, 1, 5)"
    )
    await lake.connection.execute("INSERT INTO recomputed_days VALUES ('shop', '2001-01-01', 1, $1)", old)
    days = [(old + timedelta(days=1)).date(), (NOW - timedelta(days=1000)).date()]
    for project in ("shop", "blog"):
        for day in days:
            await lake.connection.execute("INSERT INTO counted_days VALUES ($1, $2, 'x;m=1')", project, day)
    await retention.begin_run(old)
    before, ledger = NOW - timedelta(days=1000), in_postgres.ledger
    assert await ledger.check() == []
    removed: dict[Group, int] = {}
    for group in await retention.groups():
        counted = await retention.count_old(group, before)
        gone = await retention.delete_old(run, group, before, limit=100)
        assert gone.rows == counted.rows
        # A row of another plan is put together otherwise.
        assert gone.bytes == pytest.approx(counted.bytes, rel=0.1)
        removed[group] = gone.rows
        assert await retention.delete_old(run, group, before, limit=100) == Gone(0, 0)
    series = [Group("rollups", p, "events", g) for p in ("blog", "shop") for g in ("day", "hour")]
    assert removed == dict.fromkeys(series, 1) | {
        Group("aggregated", "shop"): 1,
        Group("dead_letters"): 1,
        Group("patterns"): 0,
        Group("recomputed_days"): 1,
        Group("counted_days", "blog"): 1,
        Group("counted_days", "shop"): 1,
        Group("runs"): 1,
    }
    noted = await lake.connection.fetch("SELECT DISTINCT day FROM counted_days")
    assert [row["day"] for row in noted] == days[1:], "of that day there may be roll-ups"
    assert await ledger.check() == [], "what is gone is counted as found"
    kept = await lake.connection.fetch("SELECT log_offset FROM dead_letters")
    assert [row[0] for row in kept] == [5], "the lake has not passed it: it must know what to leave out"
