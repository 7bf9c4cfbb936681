"""The law of `storage.event_columns.StoredEvents`: the same events come back wherever they are."""

import asyncio
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest

from analytics_actors.batch.worker import BatchWorker
from analytics_actors.windows.definition_book import DefinitionBook
from analytics_actors.windows.recount import Recount
from analytics_actors.windows.sources import in_thread
from config.settings import WindowSettings
from storage.batch_jobs import PlannedPiece, Request
from storage.errors import FileUnavailable, Unavailable
from storage.event_batch import COLUMNS
from storage.event_columns import MemoryEventColumns, PostgresEventColumns, StoredEvents
from storage.folder_objects import FolderObjects
from storage.lake_files import LakeFiles
from storage.memory_store import MemoryStore
from storage.metric_registry import MemoryMetricRegistry
from storage.object_store import ObjectStore, open_object_store
from storage.past_events import PastEvents, PostgresHorizon
from storage.postgres_batch_jobs import PostgresBatchJobs
from storage.postgres_rollups import PostgresRollups
from tests.contract.lake_subject import BLOG, ELSEWHERE, PARTITIONS, TIME, MemoryLake, PostgresLake, postgres_lake
from tests.contract.log_records import event
from tests.contract.real_lake import RealLake
from tests.contract.test_object_store import settings_of
from tests.object_servers import ObjectServer

DAY_S = 86400.0
AHEAD_S = 86400.0
PLACES = ("memory", "postgres", "tail", "half exported", "exported", "afar", "removed", "merged")

_Step = Callable[[], Awaitable[None]]


class Subject(NamedTuple):
    events: StoredEvents
    store: Callable[..., Awaitable[None]]
    """Events of one partition."""
    settle: _Step
    """Between two parts of what is stored."""
    finish: _Step
    """When all is stored."""

    async def rows(
        self, *projects: str, start: datetime, end: datetime, columns: Sequence[str] | None = None
    ) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        batches = self.events.rows(projects, start_s=start.timestamp(), end_s=end.timestamp(), columns=columns)
        async for batch in batches:
            assert batch.schema.equals(COLUMNS)
            found += map(compact, batch.to_pylist())
        return sorted(found, key=lambda row: str(row["event_id"]))


def compact(row: dict[str, Any]) -> dict[str, Any]:
    """PostgreSQL writes spaces into JSON, the lake has none."""
    return row | {name: row[name] and msgspec.json.format(row[name], indent=-1) for name in ("properties", "context")}


async def _nothing() -> None:
    pass


@pytest.fixture(params=PLACES)
def place(request: pytest.FixtureRequest) -> str:
    if request.param != "memory":
        request.getfixturevalue("postgres_server")
    return str(request.param)


@pytest.fixture
def database_url(place: str, request: pytest.FixtureRequest) -> str:
    return "" if place == "memory" else str(request.getfixturevalue("postgres_url"))


@pytest.fixture
async def subject(
    place: str, database_url: str, tmp_path: Path, request: pytest.FixtureRequest
) -> AsyncIterator[Subject]:
    if place == "memory":
        memory = MemoryLake()
        assert isinstance(memory.store, MemoryStore)
        yield Subject(MemoryEventColumns(memory.store, chunk_rows=2), memory.store_events, _nothing, _nothing)
        return
    async for lake in postgres_lake(database_url):
        objects: ObjectStore = FolderObjects(tmp_path / "lake")
        if place == "afar":
            objects = request.getfixturevalue("bucket")
        real = RealLake(lake, objects, tmp_path)
        past, files = past_of(lake, objects, tmp_path, prefer_lake=place != "postgres")

        async def merge(real: RealLake = real) -> None:
            await real.export()
            for ago in range(-1, 3):
                await real.compact(ago=ago)

        async def remove(lake: PostgresLake = lake, real: RealLake = real) -> None:
            await real.export()
            await remove_stored(lake)

        settle: dict[str, _Step] = {
            "half exported": real.export,
            "exported": real.export,
            "afar": real.export,
            "merged": real.export,
            "removed": real.export,
        }
        finish: dict[str, _Step] = {"exported": real.export, "afar": real.export, "merged": merge, "removed": remove}
        yield Subject(past, lake.store_events, settle.get(place, _nothing), finish.get(place, _nothing))
        await files.close()


def past_of(
    lake: PostgresLake, objects: ObjectStore, folder: Path, *, prefer_lake: bool = False
) -> tuple[PastEvents, LakeFiles]:
    files = LakeFiles(lambda: objects, cache=folder / "cache", folder=folder / "links", max_cache_bytes=1 << 30)
    past = PastEvents(
        PostgresEventColumns(lake.postgres, partitions=PARTITIONS, max_event_ahead_s=AHEAD_S),
        PostgresHorizon(lake.postgres, max_event_ahead_s=AHEAD_S),
        snapshots=lake.snapshots,
        files=files,
        prefer="lake" if prefer_lake else "postgres",
    )
    return past, files


async def remove_stored(lake: PostgresLake) -> None:
    """What the retention does, of all that is exported."""
    async with lake.connection.transaction():
        await lake.connection.execute(
            "INSERT INTO expired_events SELECT DISTINCT project_id, now() FROM events_log"
            " ON CONFLICT (project_id) DO UPDATE SET stored_before = excluded.stored_before"
        )
        await lake.connection.execute(
            "DELETE FROM events_log USING checkpoints WHERE sink = 'lake'"
            " AND events_log.partition_id = checkpoints.partition_id AND log_offset < next_offset"
        )


async def test_events_come_back_as_they_were_stored(subject: Subject) -> None:
    full = event(
        "a",
        user_id='ü\U0001f600",\r\n\\.',
        anonymous_id="",
        session_id="\\N",
        timestamp=TIME.replace(microsecond=120),
        properties='{"a":[1,null],"text":"x"}',
        context='{"ip":"::1"}',
    )
    plain = event("b", timestamp=TIME + timedelta(hours=1))
    await subject.store(full)
    await subject.settle()
    await subject.store(plain)
    await subject.finish()
    assert await subject.rows("shop", start=TIME - timedelta(days=1), end=TIME + timedelta(days=1)) == [full, plain]


async def test_rows_are_of_the_projects_and_the_range(subject: Subject) -> None:
    end = TIME + timedelta(hours=2)
    times = {
        "before": TIME - timedelta(microseconds=1),
        "first": TIME,
        "last": end - timedelta(microseconds=1),
        "after": end,
        "long ago": TIME - timedelta(days=3000),
    }
    await subject.store(*(event(name, timestamp=at) for name, at in times.items()))
    await subject.settle()
    await subject.store(event("blog", BLOG, timestamp=TIME), partition=ELSEWHERE)
    await subject.store(event("next record", timestamp=TIME))
    await subject.finish()

    async def names(*projects: str, start: datetime = TIME) -> list[str]:
        return [row["event_id"] for row in await subject.rows(*projects, start=start, end=end)]

    assert await names("shop") == ["first", "last", "next record"]
    assert await names(BLOG, "shop", "shop") == ["blog", "first", "last", "next record"]
    assert await names("nobody") == await names() == []
    assert await names("shop", start=TIME - timedelta(days=3001)) == sorted(
        ["before", "first", "last", "long ago", "next record"]
    )
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    async for batch in subject.events.rows(["shop"], start_s=-1e11, end_s=epoch.timestamp()):
        assert not batch.num_rows


async def test_columns_that_are_not_needed_may_be_absent(subject: Subject) -> None:
    made = event("a", timestamp=TIME, user_id="u", properties='{"a":1}', context='{"ip":"::1"}')
    await subject.store(made)
    await subject.settle()
    await subject.finish()
    [row] = await subject.rows("shop", start=TIME, end=TIME + timedelta(1), columns=["event_type", "properties"])
    wanted = ("project_id", "timestamp", "event_type", "properties")
    assert {name: row[name] for name in wanted} == {name: made[name] for name in wanted}
    assert all(row[name] in (None, made[name]) for name in COLUMNS.names)


async def test_a_caller_may_stop_anywhere(subject: Subject) -> None:
    for number in range(3):
        await subject.store(*(event(f"{number}-{n}", timestamp=TIME) for n in range(3)))
        await subject.settle()
    await subject.finish()
    for _ in range(3):
        rows = subject.events.rows(["shop"], start_s=0, end_s=1e10)
        assert (await anext(rows)).num_rows
        await rows.aclose()  # type: ignore[attr-defined]
    assert len(await subject.rows("shop", start=TIME, end=TIME + timedelta(1))) == 9


@pytest.fixture
async def lake(postgres_url: str) -> AsyncIterator[PostgresLake]:
    async for made in postgres_lake(postgres_url):
        yield made


@pytest.fixture
def bucket(moto_server: ObjectServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[ObjectStore]:
    """Of S3."""
    for name, value in moto_server.environment().items():
        monkeypatch.setenv(name, value)
    store = open_object_store(settings_of(moto_server), data=tmp_path)
    yield store
    asyncio.run(store.close())


@pytest.fixture
async def real(lake: PostgresLake, tmp_path: Path) -> RealLake:
    return RealLake(lake, FolderObjects(tmp_path / "lake"), tmp_path)


async def _count(past: StoredEvents) -> int:
    return sum([batch.num_rows async for batch in past.rows(["shop"], start_s=0, end_s=1e10)])


async def test_postgresql_is_read_as_long_as_it_has_all(lake: PostgresLake, real: RealLake, tmp_path: Path) -> None:
    past, _ = past_of(lake, real.objects, tmp_path)
    await real.store(["shop"])
    await real.export()
    assert await past.place_of(["shop"], start_s=0) == "postgres"
    await remove_stored(lake)
    assert await past.place_of(["shop"], start_s=0) == "lake"
    assert await past.place_of(["shop", "other"], start_s=0) == "lake"
    assert await past.place_of(["other"], start_s=0) == "postgres"
    # What is later than this was stored later than anything that was removed.
    later_s = datetime.now(UTC).timestamp() + AHEAD_S + 3600
    assert await past.place_of(["shop"], start_s=later_s) == "postgres"
    assert await past.place_of(["shop"], start_s=later_s - 60) == "lake"
    assert await _count(past) == 3


async def test_what_is_removed_during_a_read_ends_it(
    lake: PostgresLake, real: RealLake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    past, _ = past_of(lake, real.objects, tmp_path)
    await real.store(["shop"])
    await real.export()
    rows = past.rows(["shop"], start_s=0, end_s=1e10)
    await anext(rows)
    await remove_stored(lake)
    with pytest.raises(Unavailable, match="removed"):
        [batch async for batch in rows]
    assert await _count(past) == 3


@pytest.mark.parametrize("where", ["folder", "bucket"])
@pytest.mark.parametrize("change", ["gone", "cut", "a bit", "another's"])
async def test_a_file_that_is_not_as_it_was_put_is_never_a_part(
    change: str, where: str, lake: PostgresLake, real: RealLake, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if where == "bucket":
        real.objects = request.getfixturevalue("bucket")
    past, _ = past_of(lake, real.objects, tmp_path, prefer_lake=True)
    for _ in range(2):
        await real.store(["shop"], count=1)
        await real.export()
    first, second = await real.keys()
    whole = await real.objects.get(first)
    other = await real.objects.get(second)
    if change == "gone":
        await real.objects.delete([first])
    else:
        flipped = whole[:200] + bytes([whole[200] ^ 1]) + whole[201:]
        await real.damage(first, lambda _: {"cut": whole[:-9], "a bit": flipped, "another's": other}[change])
    with pytest.raises(FileUnavailable, match=first):
        await _count(past)
    await real.objects.delete([first])
    await real.objects.put_if_absent(first, whole)
    assert await _count(past) == 2


async def test_a_batch_job_changes_no_roll_up_by_what_is_left_of_a_damaged_lake(
    lake: PostgresLake, bucket: ObjectStore, tmp_path: Path
) -> None:
    """The lake is on S3. The piece says which file, is given back, and is counted when the file is there again."""
    real, book = RealLake(lake, bucket, tmp_path), DefinitionBook(MemoryMetricRegistry(), WindowSettings())
    await book.refresh()
    past, files = past_of(lake, bucket, tmp_path, prefer_lake=True)
    rollups = PostgresRollups(lake.postgres, partitions=PARTITIONS, aggregation_of=book.aggregation)
    jobs = PostgresBatchJobs(lake.postgres)
    recount = Recount(past, rollups, book, settings=WindowSettings(), compute=in_thread)
    worker = BatchWorker(jobs, recount, book.refresh)

    async def job() -> int:
        job_id = await jobs.ask(Request("command"))
        assert job_id is not None
        await jobs.begin(job_id, [PlannedPiece(TIME.date(), TIME.date(), ("shop",))], days_open=0)
        return job_id

    async def rolled_up() -> list[Any]:
        return [
            tuple(row) for row in await lake.connection.fetch("SELECT * FROM metric_aggregates ORDER BY 1, 2, 3, 4")
        ]

    for _ in range(2):
        await real.store(["shop"], count=2)
        await real.export()
    assert await worker.run(await job(), "w", budget_s=60) == 1
    before = await rolled_up()
    assert before

    key, _ = await real.keys()
    whole = await bucket.get(key)
    at = whole.index(b"amount")
    await real.damage(key, lambda raw: raw[:at] + b"A" + raw[at + 1 :])
    # What this machine has of it is whole.
    shutil.rmtree(tmp_path / "cache")
    again = await job()
    assert await worker.run(again, "w", budget_s=60) == 0
    assert await rolled_up() == before
    [found] = [each for each in await jobs.jobs(limit=2) if each.job_id == again]
    assert key in found.progress.errors[0] and found.state == "running"

    await real.damage(key, lambda _: whole)
    await lake.connection.execute("UPDATE batch_pieces SET not_before = now() WHERE job_id = $1", again)
    assert await worker.run(again, "w", budget_s=60) == 1
    assert await rolled_up() == before
    assert await jobs.end(again) == "done"
    await files.close()


async def test_events_that_go_before_the_read_begins_make_it_unavailable(
    lake: PostgresLake, real: RealLake, tmp_path: Path
) -> None:
    """PostgreSQL was chosen because it had all; what it has after that is a part, and nothing may be made of it."""
    past, _ = past_of(lake, real.objects, tmp_path)
    await real.store(["shop"], count=2)
    await real.export()
    ask = past._horizon.has_all

    async def lose_after(project_ids: Sequence[str], *, start_s: float) -> bool:
        had_all = await ask(project_ids, start_s=start_s)
        await remove_stored(lake)
        return had_all

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(past._horizon, "has_all", lose_after)
        with pytest.raises(Unavailable):
            await _count(past)
    assert await _count(past) == 2


async def test_each_event_comes_once_while_it_moves(lake: PostgresLake, real: RealLake, tmp_path: Path) -> None:
    """Into the lake, into larger files, and out of PostgreSQL."""
    past, _ = past_of(lake, real.objects, tmp_path, prefer_lake=True)
    eager, _ = past_of(lake, real.objects, tmp_path)
    done = False

    async def read(events: StoredEvents) -> None:
        seen = 0
        while not done:
            try:
                found = [
                    event_id
                    async for batch in events.rows(["shop"], start_s=0, end_s=1e10)
                    for event_id in batch.column("event_id").to_pylist()
                ]
            except Unavailable:
                continue
            assert len(found) == len(set(found)) and seen <= len(found)
            seen = len(found)
            await asyncio.sleep(0)

    readers = [asyncio.create_task(read(each)) for each in (past, eager)]
    for number in range(8):
        await real.store(["shop"], count=2)
        await real.export()
        if number % 3 == 2:
            await real.compact()
        if number % 3 == 1:
            await remove_stored(lake)
    done = True
    await asyncio.gather(*readers)
    assert await _count(past) == await _count(eager) == 16
