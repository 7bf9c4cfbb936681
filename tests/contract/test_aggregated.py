"""Aggregate-only events: folded by the batcher's part, stored by the event stores in memory and in PostgreSQL alike."""

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import asyncpg
import pytest

from analytics_actors.event_folding import EventFolding
from config.settings import StoreSettings
from storage.aggregated import AggregatedRecord, RecordKey
from storage.errors import Fenced, Unavailable
from storage.event_columns import EventColumns, MemoryEventColumns, PostgresEventColumns
from storage.event_store import EventStore, WriteResult
from storage.fingerprint import partition_of
from storage.ledger import Ledger
from storage.memory_rollups import MemoryRollups
from storage.memory_store import MemoryStore
from storage.metric_definitions import MetricDefinition
from storage.metric_registry import MemoryMetricRegistry
from storage.migrate import migrate
from storage.postgres import Postgres
from storage.postgres_rollups import PostgresRollups
from storage.postgres_store import PostgresStore
from storage.rollups import RollupStore
from tests.contract.cut_proxy import CutProxy
from tests.contract.log_records import NOW, batch, event, record, write

PARTITIONS = 4
SHOP = partition_of("shop", PARTITIONS)
LATENESS_S = 22 * 3600.0
MAX_GROUPS = 2
MINUTE = int(NOW.timestamp()) // 60 * 60
RESPONSES = MetricDefinition(
    "responses",
    "p95",
    event_types=["response_time", "db_time"],
    property="ms",
    dimensions=["route"],
    filters=[],
    aggregate_only=True,
)


class Subject(NamedTuple):
    store: EventStore
    columns: EventColumns
    rollups: RollupStore
    memory: MemoryStore | None
    proxy: CutProxy | None

    async def records(self) -> dict[RecordKey, AggregatedRecord]:
        chunks = self.columns.records(["shop", "blog"], start_s=0, end_s=MINUTE + 86400)
        return {key: each async for chunk in chunks for key, each in chunk}

    async def rows(self) -> list[str]:
        batches = self.columns.rows(["shop", "blog"], start_s=0, end_s=MINUTE + 86400)
        return sorted([text async for each in batches for text in each.column("event_id").to_pylist()])

    def lose_next_commit(self, *, committed: bool) -> None:
        if self.memory is not None:
            self.memory.fail_next(committed=committed)
        else:
            assert self.proxy is not None
            self.proxy.cut_next("reply" if committed else "request", b"COMMIT;")


async def folding(*definitions: MetricDefinition) -> EventFolding:
    registry = MemoryMetricRegistry()
    for definition in definitions:
        await registry.create("shop", definition)
    made = EventFolding(registry, lateness_s=LATENESS_S, max_groups=MAX_GROUPS)
    await made.refresh()
    return made


@pytest.fixture
async def subject(url: str) -> AsyncIterator[Subject]:
    fold = (await folding(RESPONSES)).fold
    if not url:
        memory = MemoryStore(fold=fold)
        rollups = MemoryRollups(partitions=PARTITIONS, store=memory)
        yield Subject(memory, MemoryEventColumns(memory, chunk_rows=2), rollups, memory, None)
        return
    await migrate(url)
    proxy = CutProxy(url)
    await proxy.start()
    settings = StoreSettings(postgres_url=proxy.url, write_timeout_seconds=20.0)
    store = PostgresStore(settings, owner="test", lateness_s=LATENESS_S, fold=fold)
    postgres = Postgres(url, owner="test-columns", pool_size=2, deadline_s=10)
    rollups_of = PostgresRollups(postgres, partitions=PARTITIONS)
    yield Subject(store, PostgresEventColumns(postgres, partitions=PARTITIONS), rollups_of, None, proxy)
    await store.close()
    await postgres.close()
    await proxy.stop()


def response(
    event_id: str, ms: Any = None, kind: str = "response_time", *, route: str = "/a", **columns: Any
) -> dict[str, Any]:
    properties = json.dumps({"route": route} | ({} if ms is None else {"ms": ms}))
    return event(event_id, event_type=kind, properties=properties, **columns)


async def test_a_hundred_events_of_a_minute_become_one_record(subject: Subject) -> None:
    await subject.store.claim(SHOP, epoch=1)
    for first in range(4):
        events = [response(f"r{first}-{n}", 25 * first + n) for n in range(25)]
        result = await subject.store.write([write(record(batch(*events)), partition=SHOP, first=first)])
        assert result == WriteResult(stored=0, duplicate=0, dead_lettered=0, aggregated=25)
    [(key, found)] = (await subject.records()).items()
    assert key[:4] == ("shop", MINUTE, "responses", "response_time")
    assert (key.late, key.dimensions) == (False, (("route", "/a"),))
    assert (found.partition, found.events, found.first_offset, found.next_offset) == (SHOP, 100, 0, 4)
    assert found.received_ms == int(NOW.timestamp() * 1000)
    value = found.aggregate
    assert (value.count, int(value.total), value.minimum, value.maximum) == (100, 4950, 0, 99)
    assert value.value("p95") == pytest.approx(94, abs=1)
    assert await subject.rows() == []


async def test_events_without_a_value_are_counted_and_others_are_stored(subject: Subject) -> None:
    await subject.store.claim(SHOP, epoch=1)
    events = [response("a", 1), response("b"), response("c", "x"), response("d", 2, "db_time"), event("e")]
    elsewhere = event("f", "blog", event_type="response_time", properties='{"ms": 1}')
    first = record(batch(*events, elsewhere, response("g", 3), duplicates=[6]))
    result = await subject.store.write([write(first, partition=SHOP)])
    assert result == WriteResult(stored=2, duplicate=1, dead_lettered=0, aggregated=4)
    assert await subject.rows() == ["e", "f"]
    found = {key.event_type: each for key, each in (await subject.records()).items()}
    assert {kind: (each.events, each.aggregate.count) for kind, each in found.items()} == {
        "response_time": (3, 1),
        "db_time": (1, 1),
    }


@pytest.mark.parametrize("committed", [True, False])
async def test_a_write_of_unknown_outcome_counts_once(subject: Subject, committed: bool) -> None:
    await subject.store.claim(SHOP, epoch=1)
    await subject.store.write([write(record(batch(response("a", 1))), partition=SHOP)])
    attempt = [write(record(batch(response("b", 2), response("c", 3))), partition=SHOP, first=1)]
    subject.lose_next_commit(committed=committed)
    with pytest.raises(Unavailable):
        await subject.store.write(attempt)
    checkpoint = await subject.store.claim(SHOP, epoch=1)
    assert checkpoint.next_offset == (2 if committed else 1)
    if not committed:
        await subject.store.write(attempt)
    with pytest.raises(Fenced):
        await subject.store.write(attempt)
    [found] = (await subject.records()).values()
    assert (found.events, int(found.aggregate.total)) == (3, 6)


async def test_late_events_have_records_of_their_own_and_mark_their_day(subject: Subject) -> None:
    await subject.store.claim(SHOP, epoch=1)
    old = NOW - timedelta(hours=23)
    events = [response("late", 1, timestamp=old), response("in time", 2, timestamp=old, received_at=old)]
    await subject.store.write([write(record(batch(*events)), partition=SHOP)])
    assert sorted((key.late, int(each.aggregate.total)) for key, each in (await subject.records()).items()) == [
        (False, 2),
        (True, 1),
    ]
    if subject.memory is None:
        marks = await subject.rollups.late_days(range(PARTITIONS), quiet_s=0, max_wait_s=0, limit=10)
        assert [(mark.project_id, mark.day) for mark in marks] == [("shop", old.date())]
    assert await subject.rollups.mark_days("shop") == 1


async def test_groups_beyond_the_bound_are_one_record(subject: Subject) -> None:
    """Over all writes; each minute, and each event type, admits its own."""
    await subject.store.claim(SHOP, epoch=1)
    later = NOW + timedelta(minutes=1)
    first = [response("a", 1, route="/b"), response("b", 2, route="/c"), response("c", 3, route="/d")]
    second = [
        *(response(f"e{route}", 10, route=route) for route in ("/a", "/b", "/d", "/e", "__other__")),
        response("f", 20, "db_time", route="/d"),
        response("g", 30, route="/d", timestamp=later),
    ]
    results = [
        await subject.store.write([write(record(batch(*events)), partition=SHOP, first=at)])
        for at, events in enumerate((first, second))
    ]
    assert [(each.aggregated, each.overflow) for each in results] == [(3, 1), (7, 3)]
    found = await subject.records()
    assert {(k.minute - MINUTE, k.event_type, k.dimensions[0][1]): each.events for k, each in found.items()} == {
        (0, "response_time", "/b"): 2,
        (0, "response_time", "/c"): 1,
        (0, "response_time", "__other__"): 5,
        (0, "db_time", "/d"): 1,
        (60, "response_time", "/d"): 1,
    }
    [rest] = [each for key, each in found.items() if key.dimensions == (("route", "__other__"),)]
    assert (int(rest.aggregate.total), rest.first_offset, rest.next_offset) == (43, 0, 2)


async def test_poison_among_them_becomes_a_dead_letter(subject: Subject) -> None:
    await subject.store.claim(SHOP, epoch=1)
    bad = event("bad", event_type="response_time", properties='{"ms": 1, "route": "\\u0000"}')
    result = await subject.store.write([write(record(batch(response("a", 1), bad, event("e"))), partition=SHOP)])
    assert result == WriteResult(stored=1, duplicate=0, dead_lettered=1, aggregated=1)


async def test_unreadable_json_stops_nobody(subject: Subject) -> None:
    await subject.store.claim(SHOP, epoch=1)
    bad = event("bad", event_type="response_time", properties='{"ms": ')
    result = await subject.store.write([write(record(batch(response("a", 1), bad)), partition=SHOP)])
    assert result == WriteResult(stored=1, duplicate=0, dead_lettered=1, aggregated=0)
    assert await subject.rows() == ["a"]


async def test_a_snapshot_has_the_records_below_its_checkpoint(subject: Subject) -> None:
    await subject.store.claim(SHOP, epoch=1)
    old = NOW - timedelta(hours=5)
    events = [response("a", 1), event("e"), response("old", 1, timestamp=old, received_at=old)]
    await subject.store.write([write(record(batch(*events)), partition=SHOP)])
    async with subject.columns.snapshot(SHOP, since_s=MINUTE - 60) as (checkpoint, batches, records):
        rows = [text async for each in batches for text in each.column("event_id").to_pylist()]
        if subject.memory is None:
            more = [write(record(batch(response("b", 1))), partition=SHOP, first=1)]
            await subject.store.write(more)
        found = [each async for chunk in records for _, each in chunk]
    assert checkpoint.next_offset == 1
    assert rows == ["e"]
    assert [each.events for each in found] == [1]


async def test_another_form_of_the_definition_has_records_of_its_own(subject: Subject) -> None:
    store: Any = subject.store
    await subject.store.claim(SHOP, epoch=1)
    await subject.store.write([write(record(batch(response("a", 1))), partition=SHOP)])
    other = MetricDefinition("responses", "p50", ["response_time"], property="route", aggregate_only=True)
    store._fold = (await folding(other)).fold
    await subject.store.write([write(record(batch(response("b", 1))), partition=SHOP, first=1)])
    assert sorted(each.events for each in (await subject.records()).values()) == [1, 1]


async def test_until_the_declarations_are_known_nothing_is_stored() -> None:
    store = MemoryStore(fold=EventFolding(MemoryMetricRegistry(), lateness_s=LATENESS_S, max_groups=MAX_GROUPS).fold)
    await store.claim(SHOP, epoch=1)
    with pytest.raises(Unavailable):
        await store.write([write(record(batch(event("e"))), partition=SHOP)])


async def test_columns_tell_people_what_the_records_are(postgres_url: str) -> None:
    await migrate(postgres_url)
    fold = (await folding(RESPONSES)).fold
    store = PostgresStore(StoreSettings(postgres_url=postgres_url), owner="test", lateness_s=LATENESS_S, fold=fold)
    await store.claim(SHOP, epoch=1)
    events = [response(f"r{n}", n / 10) for n in range(100)]
    await store.write([write(record(batch(*events)), partition=SHOP)])
    await store.close()
    connection = await asyncpg.connect(postgres_url)
    [row] = await connection.fetch("SELECT *, dimensions ->> 'route' AS route FROM aggregated_events")
    await connection.close()
    assert row["minute"] == datetime.fromtimestamp(MINUTE, UTC)
    assert (row["events"], row["count"], row["route"], row["unique_count"]) == (100, 100, "/a", None)
    assert str(row["sum"]) == "495.0" or float(row["sum"]) == 495
    assert (row["minimum"], row["maximum"], row["mean"]) == (0, 9.9, 4.95)
    assert row["p50"] == pytest.approx(5, abs=0.2) and row["p99"] == pytest.approx(9.8, abs=0.2)


async def test_partitions_are_written_at_the_same_time_and_the_ledger_balances(postgres_url: str) -> None:
    """Each owner has its own keys; both merge into records that are there, ten times over."""
    await migrate(postgres_url)
    registry = MemoryMetricRegistry()
    other = next(f"p{n}" for n in range(99) if partition_of(f"p{n}", PARTITIONS) != SHOP)
    for project in ("shop", other):
        await registry.create(project, RESPONSES)
    made = EventFolding(registry, lateness_s=LATENESS_S, max_groups=MAX_GROUPS)
    await made.refresh()
    store = PostgresStore(StoreSettings(postgres_url=postgres_url), owner="test", lateness_s=LATENESS_S, fold=made.fold)

    async def run(project: str) -> None:
        partition = partition_of(project, PARTITIONS)
        await store.claim(partition, epoch=1)
        for first in range(10):
            events = [response(f"{first}-{n}", n, project_id=project) for n in range(50)]
            await store.write([write(record(batch(*events, rejected=1)), partition=partition, first=first)])

    await asyncio.gather(run("shop"), run(other))
    await store.close()
    postgres = Postgres(postgres_url, owner="test", pool_size=1, deadline_s=10)
    ledger = Ledger(postgres)
    try:
        [hour] = await ledger.hours("shop")
        assert (hour.received, hour.aggregated, hour.rejected, hour.stored) == (510, 500, 10, 0)
        assert await ledger.check() == []
        async with postgres.session() as connection:
            assert await connection.fetchval("SELECT count(*) FROM aggregated_events") == 2
            await connection.execute("UPDATE aggregated_events SET events = events - 1 WHERE project_id = 'shop'")
        [difference] = await ledger.check()
        assert (difference.project_id, difference.what, difference.in_ledger, difference.found) == (
            "shop",
            "aggregated",
            500,
            499,
        )
        assert await ledger.check(start=hour.hour) == []
    finally:
        await postgres.close()
