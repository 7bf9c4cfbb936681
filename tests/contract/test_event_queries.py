"""Lists by page, one event, a dead letter: against a plain Python filter over the same events."""

import random
import re
from base64 import urlsafe_b64encode
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import asyncpg
import msgspec
import pytest

from config.settings import StoreSettings
from storage import event_queries
from storage.event_queries import EventPage, EventQueries, InvalidCursor, Order
from storage.migrate import migrate
from storage.postgres import Postgres
from storage.postgres_store import PostgresStore
from tests.contract.log_records import NOW, batch, event, record, write

Event = dict[str, Any]

MIB = 1024 * 1024


@pytest.fixture
async def store(postgres_url: str) -> AsyncIterator[PostgresStore]:
    await migrate(postgres_url)
    made = PostgresStore(StoreSettings(postgres_url=postgres_url), owner="test")
    await made.claim(0, epoch=1)
    yield made
    await made.close()


@pytest.fixture
async def queries(postgres_url: str) -> AsyncIterator[EventQueries]:
    postgres = Postgres(postgres_url, owner="test", pool_size=2, deadline_s=10)
    yield EventQueries(postgres)
    await postgres.close()


def _events() -> list[Event]:
    """Three projects, some times equal, most rare things rare; order of the log is not that of time."""
    chance = random.Random(7)
    return [
        event(
            f"e{number:03}",
            chance.choice(["shop", "shop", "blog"]),
            event_type=chance.choice(["click", "click", "view"]) if number != 40 else "rare",
            user_id=chance.choice(["ann", "bob", None]),
            session_id=f"s{number // 30}",
            timestamp=NOW - timedelta(minutes=chance.randrange(60)),
        )
        for number in range(150)
    ]


async def _store_all(store: PostgresStore, events: list[Event]) -> None:
    for offset in range(5):
        await store.write([write(record(batch(*events[offset * 30 : offset * 30 + 30])), first=offset)])


async def _all_pages(read: Callable[..., Awaitable[EventPage]]) -> list[str]:
    ids: list[str] = []
    cursor = None
    while True:
        page = await read(cursor=cursor)
        ids += [msgspec.json.decode(raw)["eventId"] for raw in page.events]
        if page.next_cursor is None or not page.events:
            return ids
        cursor = page.next_cursor


FILTERS: list[dict[str, str]] = [
    {},
    {"event_type": "click"},
    {"event_type": "rare"},
    {"event_type": "never"},
    {"user_id": "ann"},
    {"session_id": "s2"},
    {"user_id": "bob", "event_type": "view", "session_id": "s1"},
]


@pytest.mark.parametrize("probed", [20_000, 5])
@pytest.mark.parametrize("summarised", [True, False])
async def test_pages_of_the_newest_hold_each_matching_event_once_in_order(
    store: PostgresStore, queries: EventQueries, monkeypatch: pytest.MonkeyPatch, probed: int, summarised: bool
) -> None:
    monkeypatch.setattr(event_queries, "_PROBED_EVENTS", probed)
    events = _events()
    await _store_all(store, events)
    if summarised:
        await store.prepare_days()
    start, end = NOW - timedelta(minutes=45), NOW - timedelta(minutes=10)
    for filters in FILTERS:
        for times in ({}, {"start": start}, {"start": start, "end": end}):
            given: dict[str, Any] = filters | times
            found = await _all_pages(partial(queries.list_events, "shop", limit=7, **given))
            assert found == [
                row["event_id"]
                for row in sorted(events, key=lambda row: (row["timestamp"], row["event_id"]), reverse=True)
                if row["project_id"] == "shop"
                and all(row[column] == value for column, value in filters.items())
                and times.get("start", row["timestamp"]) <= row["timestamp"]
                and ("end" not in times or row["timestamp"] < end)
            ]


async def test_following_sees_each_event_once_in_the_order_of_the_log(
    store: PostgresStore, queries: EventQueries
) -> None:
    events = _events()
    seen: list[str] = []
    cursor: str | None = None
    for offset in range(5):
        await store.write([write(record(batch(*events[offset * 30 : offset * 30 + 30])), first=offset)])
        while True:
            page = await queries.list_events("shop", order="received", limit=4, cursor=cursor)
            cursor = page.next_cursor
            seen += [msgspec.json.decode(raw)["eventId"] for raw in page.events]
            if not page.events:
                break
    assert seen == [row["event_id"] for row in events if row["project_id"] == "shop"]


@pytest.mark.parametrize("filters", FILTERS)
@pytest.mark.parametrize("probed", [20_000, 5])
async def test_pages_that_end_at_their_bytes_leave_nothing_out(
    store: PostgresStore, queries: EventQueries, monkeypatch: pytest.MonkeyPatch, probed: int, filters: dict[str, Any]
) -> None:
    events = [row | {"properties": f'{{"x":"{"x" * (number % 7 * 40)}"}}'} for number, row in enumerate(_events())]
    await _store_all(store, events)
    monkeypatch.setattr(event_queries, "_PROBED_EVENTS", probed)
    for order in ("newest", "received"):
        read = partial(queries.list_events, "shop", limit=50, order=order, **filters)
        whole = await _all_pages(read)
        with monkeypatch.context() as smaller:
            smaller.setattr(event_queries, "_STEP_BYTES", 500)
            assert await _all_pages(read) == whole
            smaller.setattr(event_queries, "_PAGE_BYTES", 2000)
            assert await _all_pages(read) == whole
            assert len((await read()).events) < 12


@pytest.mark.parametrize("order", ["newest", "received"])
async def test_a_page_of_large_events_ends_after_a_number_of_bytes(
    store: PostgresStore, queries: EventQueries, order: Order
) -> None:
    for first in range(0, 20, 5):
        large = [event(f"e{first + number:02}", properties=f'{{"x":"{"x" * MIB}"}}') for number in range(5)]
        await store.write([write(record(batch(*large)), first=first // 5)])
    read = partial(queries.list_events, "shop", limit=1000, order=order)
    assert len((await read()).events) == 8
    assert sorted(await _all_pages(read)) == [f"e{number:02}" for number in range(20)]


async def test_numbers_of_few_bytes_and_many_digits_do_not_make_a_page_large(
    store: PostgresStore, queries: EventQueries
) -> None:
    """Gateways refuse most of such events; earlier releases have stored them."""
    small = f'{{"a":[{",".join(["1e308"] * 10_000)}]}}'
    large = f'{{"a":[{",".join(["1e308"] * 80_000)}]}}'
    events = [event(f"e{number:02}", properties=small if number < 20 else large) for number in range(22)]
    await store.write([write(record(batch(*events)))])
    sizes, cursor = [], None
    while True:
        page = await queries.list_events("shop", cursor=cursor)
        sizes.append([len(bytes(raw)) // MIB for raw in page.events])
        cursor = page.next_cursor
        if cursor is None:
            break
    assert sizes[:2] == [[23], [23]]
    assert sum(map(len, sizes[2:])) == 20
    assert max(map(sum, sizes[2:])) <= 8 + 20


async def test_following_begins_at_a_time_of_storing(store: PostgresStore, queries: EventQueries) -> None:
    old = event("a", timestamp=NOW - timedelta(days=3000))
    await store.write([write(record(batch(old)))])
    now = datetime.now(UTC)
    assert len((await queries.list_events("shop", order="received", start=now - timedelta(minutes=10))).events) == 1
    assert (await queries.list_events("shop", order="received", start=now + timedelta(minutes=10))).events == []
    assert (await queries.list_events("shop", order="received", end=now - timedelta(minutes=10))).events == []


async def test_an_event_comes_in_the_words_of_the_api(store: PostgresStore, queries: EventQueries) -> None:
    stored = event(
        "a",
        anonymous_id="n",
        timestamp=datetime(2026, 3, 4, 5, 6, 7, 8, tzinfo=UTC),
        received_at=datetime(2026, 3, 4, 5, 6, 8, tzinfo=UTC),
        properties='{"a":[1,{"b":null}],"ü":"\\"\\n"}',
        context='{"ip":"::1"}',
    )
    await store.write([write(record(batch(stored)))])
    page = await queries.list_events("shop")
    [view] = [msgspec.json.decode(raw) for raw in page.events]
    created_at = datetime.fromisoformat(view.pop("createdAt"))
    assert abs(created_at - datetime.now(UTC)) < timedelta(minutes=10)
    assert view == {
        "eventId": "a",
        "eventType": "click",
        "projectId": "shop",
        "userId": None,
        "anonymousId": "n",
        "sessionId": None,
        "siteId": None,
        "timestamp": "2026-03-04T05:06:07.000008Z",
        "receivedAt": "2026-03-04T05:06:08.000000Z",
        "properties": {"a": [1, {"b": None}], "ü": '"\n'},
        "context": {"ip": "::1"},
    }
    found = await queries.find_event("shop", "a")
    assert found is not None
    assert msgspec.json.decode(found.event)["properties"] == view["properties"]
    assert (found.partition, found.offset, found.stored_at) == (0, 0, created_at)
    assert found.received_at == stored["received_at"]


async def test_one_event_is_found_in_its_project_only(store: PostgresStore, queries: EventQueries) -> None:
    await store.write([write(record(batch(event("a")), batch(event("a", "blog"))), record(batch(event("b"))))])
    found = await queries.find_event("blog", "a")
    assert found is not None and msgspec.json.decode(found.event)["projectId"] == "blog"
    found = await queries.find_event("shop", "b")
    assert found is not None and found.offset == 1
    assert await queries.find_event("shop", "c") is None
    assert await queries.find_event("other", "a") is None


async def test_a_dead_letter_is_found_with_its_reason(store: PostgresStore, queries: EventQueries) -> None:
    await store.write([write(record(batch(event("good"), event("bad", properties="{"))))])
    letter = await queries.find_dead_letter("shop", "bad")
    assert letter is not None
    assert (letter.partition, letter.offset, letter.row_number, letter.error_code) == (0, 0, 1, "22P02")
    assert "json" in letter.message and letter.received_at == NOW
    assert await queries.find_dead_letter("shop", "good") is None
    assert await queries.find_event("shop", "bad") is None


@pytest.mark.parametrize("text", ["\0", "a\0b", "\ud800"])
async def test_what_cannot_be_stored_is_not_found(store: PostgresStore, queries: EventQueries, text: str) -> None:
    await store.write([write(record(batch(event("a"))))])
    assert await queries.find_event("shop", text) is None
    assert await queries.find_event(text, "a") is None
    assert await queries.find_dead_letter("shop", text) is None
    assert await queries.list_events("shop", event_type=text) == EventPage([], None)
    assert await queries.list_events("shop", user_id=text) == EventPage([], None)
    assert await queries.list_events("shop", session_id=text) == EventPage([], None)
    assert await queries.list_events(text) == EventPage([], None)


async def test_cursors_are_of_their_list(store: PostgresStore, queries: EventQueries) -> None:
    await store.write([write(record(batch(event("a"), event("b"))))])
    newest = (await queries.list_events("shop", limit=1)).next_cursor
    assert newest is not None
    with pytest.raises(InvalidCursor, match="order newest"):
        await queries.list_events("shop", cursor=newest, order="received")
    beyond = urlsafe_b64encode(b'["newest","0001-01-01T00:00:00+23:59",0,"a"]').decode()
    for damaged in ("", "x", newest[:-3], newest + "AAAA", "WyJuZXdlc3QiXQ", "ü", "\ud800", beyond):
        with pytest.raises(InvalidCursor, match="not one that this server made"):
            await queries.list_events("shop", cursor=damaged)


async def test_old_events_that_arrived_today_are_found_by_their_time(
    store: PostgresStore, queries: EventQueries
) -> None:
    then = datetime(2015, 9, 12, tzinfo=UTC)
    await store.write([write(record(batch(event("old", timestamp=then), event("new"))))])
    for start in (datetime.min.replace(tzinfo=UTC), datetime(1, 1, 2, tzinfo=UTC)):
        assert len((await queries.list_events("shop", start=start)).events) == 2
    page = await queries.list_events("shop", start=then, end=then + timedelta(days=1))
    assert [msgspec.json.decode(raw)["eventId"] for raw in page.events] == ["old"]


async def test_each_statement_is_served_by_its_index(store: PostgresStore, postgres_url: str) -> None:
    await store.write([write(record(batch(event("needle"))))])
    connection = await asyncpg.connect(postgres_url)
    await connection.execute(
        "INSERT INTO events_log (project_id, event_id, event_type, timestamp, received_at, properties, partition_id,"
        " log_offset) SELECT 'shop', 'e' || n, 'click', now() - n * interval '1 ms', now(),"
        " jsonb_build_object('filling', repeat('x', 1800)), 0, n FROM generate_series(1, 10000) AS n"
    )
    await store.prepare_days()
    pages = await connection.fetchval("SELECT sum(pg_relation_size(relid)) / 8192 FROM pg_partition_tree('events_log')")
    try:
        find = await _explain(connection, event_queries._BY_LOOKUP, event_queries._FIND_EVENT, ["shop", "needle"])
        lossy = sum(int(blocks) for blocks in re.findall(r"Heap Blocks: lossy=(\d+)", find))
        assert 0 < lossy < pages / 5
        listing = event_queries._Listing("newest", "shop", limit=5)
        newest = await _explain(connection, event_queries._BY_NEWEST, listing.statement_by_newest(), listing.values)
        assert "project_id_timestamp_idx" in newest
        assert "Seq Scan" not in newest
        rows = [float(found) for found in re.findall(r"actual rows=([\d.]+)", newest)]
        assert max(rows) < 100
    finally:
        await connection.close()


async def _explain(connection: Any, plan: str, sql: str, values: list[object]) -> str:
    """The plan as it ran."""
    async with connection.transaction():
        await connection.execute(plan)
        rows = await connection.fetch(f"EXPLAIN (ANALYZE, TIMING OFF) {sql}", *values)
        return "\n".join(row[0] for row in rows)
