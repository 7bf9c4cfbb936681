"""The law of `storage.event_columns`, kept over the store in memory and the one in PostgreSQL alike."""

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import asyncpg
import pyarrow as pa
import pytest

from config.settings import StoreSettings
from storage import copied_rows
from storage.embedded.process import free_port
from storage.errors import Unavailable
from storage.event_batch import COLUMNS
from storage.event_columns import EventColumns, MemoryEventColumns, PostgresEventColumns
from storage.event_store import Checkpoint, EventStore
from storage.fingerprint import partition_of
from storage.memory_store import MemoryStore
from storage.migrate import migrate
from storage.postgres import Postgres
from storage.postgres_store import PostgresStore
from tests.contract.log_records import NOW, batch, event, record, write

PARTITIONS = 4
SHOP = partition_of("shop", PARTITIONS)
ELSEWHERE = next(f"p{n}" for n in range(99) if partition_of(f"p{n}", PARTITIONS) != SHOP)
NEXT_DOOR = next(f"p{n}" for n in range(99) if partition_of(f"p{n}", PARTITIONS) == SHOP)


class Subject(NamedTuple):
    columns: EventColumns
    store: EventStore

    async def store_events(self, *events: dict[str, Any], first: int = 0, partition: int = SHOP) -> None:
        if first == 0:
            await self.store.claim(partition, epoch=1)
        await self.store.write([write(record(batch(*events)), partition=partition, first=first)])

    async def snapshot(self, since: datetime) -> tuple[Checkpoint, list[dict[str, Any]]]:
        async with self.columns.snapshot(SHOP, since_s=since.timestamp()) as (checkpoint, batches, _):
            return checkpoint, await _rows(batches)

    async def rows(self, *projects: str, start: datetime, end: datetime, below: int | None = None) -> list[str]:
        found = self.columns.rows(projects, start_s=start.timestamp(), end_s=end.timestamp(), below_offset=below)
        return [row["event_id"] for row in await _rows(found)]


async def _rows(batches: AsyncIterator[pa.RecordBatch]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    async for each in batches:
        assert each.schema.equals(COLUMNS)
        found += each.to_pylist()
    return sorted(found, key=lambda row: str(row["event_id"]))


@pytest.fixture
async def subject(url: str) -> AsyncIterator[Subject]:
    if not url:
        memory = MemoryStore()
        yield Subject(MemoryEventColumns(memory, chunk_rows=2), memory)
        return
    async for made in _postgres_subject(url):
        yield made


@pytest.fixture
async def postgres_subject(postgres_url: str) -> AsyncIterator[Subject]:
    async for made in _postgres_subject(postgres_url):
        yield made


async def _postgres_subject(url: str) -> AsyncIterator[Subject]:
    await migrate(url)
    postgres = Postgres(url, owner="test-columns", pool_size=2, deadline_s=10)
    store = PostgresStore(StoreSettings(postgres_url=url), owner="test")
    yield Subject(PostgresEventColumns(postgres, partitions=PARTITIONS), store)
    await postgres.close()
    await store.close()


async def test_events_come_back_as_they_were_stored(subject: Subject) -> None:
    full = event(
        "a",
        user_id='ü\U0001f600",\r\n\\.',
        anonymous_id="",
        session_id="\\N",
        site_id="  ",
        timestamp=NOW.replace(microsecond=120),
        received_at=NOW.replace(microsecond=0),
        properties='{"text": "line\\nbreak, \\"quoted\\" \\u00e9"}',
        context='{"page": {"path": "/x"}}',
    )
    empty = event("b", timestamp=NOW.replace(microsecond=999999))
    await subject.store_events(full, empty)
    _, found = await subject.snapshot(NOW - timedelta(hours=1))
    assert len(found) == 2
    for row, original in zip(found, (full, empty), strict=True):
        for name in ("properties", "context"):
            assert (row[name] and json.loads(row[name])) == (original[name] and json.loads(original[name]))
        assert {n: v for n, v in row.items() if n not in ("properties", "context")} == {
            n: v for n, v in original.items() if n not in ("properties", "context")
        }


async def test_a_snapshot_has_a_partitions_events_from_a_time_on(subject: Subject) -> None:
    since = NOW - timedelta(hours=22)
    events = [
        event("at since", timestamp=since),
        event("too late, though after since", timestamp=since, received_at=NOW + timedelta(hours=1)),
        event("before since", timestamp=since - timedelta(microseconds=1)),
        event("ahead", timestamp=NOW + timedelta(hours=23)),
        event("next door", project_id=NEXT_DOOR),
    ]
    await subject.store_events(*events)
    await subject.store_events(event("elsewhere", project_id=ELSEWHERE), partition=partition_of(ELSEWHERE, PARTITIONS))
    checkpoint, found = await subject.snapshot(since)
    assert checkpoint == Checkpoint(SHOP, 1, 1)
    assert {row["event_id"] for row in found} == {
        "at since",
        "too late, though after since",
        "ahead",
        "next door",
    }


async def test_an_empty_partition_is_at_its_beginning(subject: Subject) -> None:
    assert await subject.snapshot(NOW) == (Checkpoint(SHOP, 0, 0), [])


async def test_checkpoint_and_events_are_of_one_moment(subject: Subject) -> None:
    """What is stored while a snapshot is read is not in it."""
    await subject.store_events(*(event(f"old {n}") for n in range(5)))
    async with subject.columns.snapshot(SHOP, since_s=0) as (checkpoint, batches, _):
        await subject.store_events(event("new"), first=1)
        found = await _rows(batches)
    assert checkpoint.next_offset == 1
    assert len(found) == 5
    checkpoint, found = await subject.snapshot(datetime(1970, 1, 1, tzinfo=UTC))
    assert (checkpoint.next_offset, len(found)) == (2, 6)


async def test_rows_of_projects_in_a_range_below_an_offset(subject: Subject) -> None:
    day = datetime(2020, 5, 1, tzinfo=UTC)
    await subject.store_events(
        event("first", timestamp=day),
        event("last", timestamp=day + timedelta(days=1, microseconds=-1)),
        event("after", timestamp=day + timedelta(days=1)),
        event("before", timestamp=day - timedelta(microseconds=1)),
        event("next door", project_id=NEXT_DOOR, timestamp=day),
    )
    await subject.store_events(event("second record", timestamp=day), first=1)
    end = day + timedelta(days=1)
    assert await subject.rows("shop", start=day, end=end) == ["first", "last", "second record"]
    assert await subject.rows("shop", NEXT_DOOR, start=day, end=end) == ["first", "last", "next door", "second record"]
    assert await subject.rows("shop", start=day, end=end, below=1) == ["first", "last"]
    assert await subject.rows("shop", start=day, end=end, below=0) == []
    assert await subject.rows("nobody", start=day, end=end) == await subject.rows(start=day, end=end) == []


async def test_old_and_far_times(subject: Subject) -> None:
    times = [datetime(1, 1, 1, tzinfo=UTC), datetime(1969, 12, 31, 23, 59, 59, 999999, tzinfo=UTC)]
    times.append(datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC))
    await subject.store_events(*(event(f"{n}", timestamp=at) for n, at in enumerate(times)))
    found = await _rows(subject.columns.rows(["shop"], start_s=-1e11, end_s=1e12))
    assert [row["timestamp"] for row in found] == times


async def test_a_caller_may_stop_anywhere(subject: Subject) -> None:
    await subject.store_events(*(event(f"{n}") for n in range(5)))
    for _ in range(3):
        async with subject.columns.snapshot(SHOP, since_s=0) as (_, batches, _):
            assert (await anext(batches)).num_rows
        async with subject.columns.snapshot(SHOP, since_s=0):
            pass
        rows = subject.columns.rows(["shop"], start_s=0, end_s=1e10)
        assert (await anext(rows)).num_rows
        await rows.aclose()  # type: ignore[attr-defined]
        with pytest.raises(KeyError):
            async with subject.columns.snapshot(SHOP, since_s=0) as (_, batches, _):
                raise KeyError
    assert len((await subject.snapshot(datetime(1970, 1, 1, tzinfo=UTC)))[1]) == 5


async def test_many_rows_come_in_chunks(postgres_subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copied_rows, "CHUNK_BYTES", 100_000)
    for number in range(3):
        events = [event(f"{number}-{n}", properties=json.dumps({"x": "y" * (n % 300)})) for n in range(1000)]
        await postgres_subject.store_events(*events, first=number)
    await postgres_subject.store_events(event("large", properties=json.dumps({"x": "y" * 900_000})), first=3)
    sizes, ids = [], set()
    async with postgres_subject.columns.snapshot(SHOP, since_s=0) as (checkpoint, batches, _):
        async for each in batches:
            sizes.append(each.num_rows)
            ids |= set(each.column("event_id").to_pylist())
    assert checkpoint.next_offset == 4 and len(ids) == sum(sizes) == 3001
    # The driver hands over all messages that one read of the socket brought (256 KiB at most), so that a block
    # may be larger by that much.
    assert len(sizes) > 2


async def test_what_is_abandoned_leaves_nothing_behind(
    postgres_subject: Subject, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copied_rows, "CHUNK_BYTES", 10_000)
    for number in range(4):
        events = [event(f"{number}-{n}", properties=json.dumps({"x": "y" * 2000})) for n in range(2000)]
        await postgres_subject.store_events(*events, first=number)
    async with postgres_subject.columns.snapshot(SHOP, since_s=0) as (_, batches, _):
        await anext(batches)
    connection = await asyncpg.connect(postgres_url)
    busy = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'test-columns' AND state <> 'idle'"
    async with asyncio.timeout(5):
        while await connection.fetchval(busy):
            await asyncio.sleep(0.02)
    await connection.close()


async def test_a_session_that_the_server_ends_is_unavailable(
    postgres_subject: Subject, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copied_rows, "CHUNK_BYTES", 10_000)
    for number in range(4):
        events = [event(f"{number}-{n}", properties=json.dumps({"x": "y" * 2000})) for n in range(2000)]
        await postgres_subject.store_events(*events, first=number)
    connection = await asyncpg.connect(postgres_url)
    with pytest.raises(Unavailable):
        async with postgres_subject.columns.snapshot(SHOP, since_s=0) as (_, batches, _):
            await anext(batches)
            await connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'test-columns'"
            )
            await _rows(batches)
    await connection.close()


async def test_a_chunk_that_does_not_come_is_unavailable_in_time(
    postgres_subject: Subject, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copied_rows, "CHUNK_DEADLINE_S", 0.3)
    await postgres_subject.store_events(event("a"))
    connection = await asyncpg.connect(postgres_url)
    await connection.execute("BEGIN; LOCK TABLE events_log IN ACCESS EXCLUSIVE MODE")
    with pytest.raises(Unavailable):
        async with asyncio.timeout(5):
            await _rows(postgres_subject.columns.rows(["shop"], start_s=0, end_s=1e10))
    await connection.close()


async def test_a_server_that_is_away_is_unavailable() -> None:
    postgres = Postgres(f"postgresql://postgres@127.0.0.1:{free_port()}/x", owner="test", pool_size=1, deadline_s=2)
    columns = PostgresEventColumns(postgres, partitions=PARTITIONS)
    with pytest.raises(Unavailable):
        async with columns.snapshot(SHOP, since_s=0):
            pass
    with pytest.raises(Unavailable):
        await _rows(columns.rows(["shop"], start_s=0, end_s=1))
    await postgres.close()
