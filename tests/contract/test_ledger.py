"""The ledger balances (LG-1), and its check finds what does not."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import asyncpg
import pytest

from config.settings import StoreSettings
from storage.event_store import LostEvents
from storage.ledger import Difference, Ledger, LedgerHour
from storage.migrate import migrate
from storage.postgres import Postgres
from storage.postgres_retention import PostgresRetention
from storage.postgres_store import PostgresStore
from tests.contract.log_records import NOW, batch, event, hour_of, record, write

HOUR = NOW.replace(minute=0, second=0, microsecond=0)
BEFORE = NOW - timedelta(hours=1)


@pytest.fixture
async def ledger(postgres_url: str) -> AsyncIterator[Ledger]:
    """Of a store that has: stored, duplicate, refused, dead and lost events of two projects and two hours."""
    await migrate(postgres_url)
    store = PostgresStore(StoreSettings(postgres_url=postgres_url), owner="test")
    await store.claim(0, epoch=1)
    first = batch(event("a"), event("b"), event("c", received_at=BEFORE), event("d", "blog"), duplicates=[1])
    second = batch(event("e", properties="{"), event("f"), rejected=3)
    lost = LostEvents("shop", hour_of(NOW), received=7, duplicate=1, rejected=2, lost=4)
    await store.write([write(record(first), record(second), lost=[lost])])
    await store.close()
    postgres = Postgres(postgres_url, owner="test", pool_size=1, deadline_s=10)
    # A day that is there since before: hours of yesterday are then compared too, also just after midnight.
    async with postgres.session() as connection:
        await connection.execute("SELECT events_log_add_day($1)", datetime.now(UTC).date() - timedelta(days=1))
    yield Ledger(postgres)
    await postgres.close()


async def spoil(url: str, sql: str) -> None:
    connection = await asyncpg.connect(url)
    await connection.execute(sql)
    await connection.close()


async def test_every_event_is_in_one_column_of_its_hour(ledger: Ledger) -> None:
    assert await ledger.hours("shop") == [
        LedgerHour(HOUR - timedelta(hours=1), received=1, stored=1, duplicate=0, dead_lettered=0, rejected=0, lost=0),
        LedgerHour(HOUR, received=14, stored=2, duplicate=2, dead_lettered=1, rejected=5, lost=4),
    ]
    assert await ledger.hours("blog") == [LedgerHour(HOUR, 1, 1, 0, 0, 0, 0)]
    assert await ledger.hours("other") == []


async def test_hours_are_asked_for_by_their_bounds(ledger: Ledger) -> None:
    assert [row.hour for row in await ledger.hours("shop", start=HOUR)] == [HOUR]
    assert [row.hour for row in await ledger.hours("shop", end=HOUR)] == [HOUR - timedelta(hours=1)]


async def test_a_right_ledger_has_no_differences(ledger: Ledger) -> None:
    assert await ledger.check() == []
    assert await ledger.check(deadline_s=60) == []


@pytest.mark.parametrize(
    ("spoiling", "difference"),
    [
        ("DELETE FROM events_log WHERE event_id = 'a'", Difference("shop", HOUR, "stored", 2, 1)),
        ("DELETE FROM events_log WHERE project_id = 'blog'", Difference("blog", HOUR, "stored", 1, 0)),
        ("DELETE FROM dead_letters", Difference("shop", HOUR, "dead_lettered", 1, 0)),
        ("UPDATE ledger SET lost = lost - 1 WHERE lost > 0", Difference("shop", HOUR, "received", 14, 13)),
        ("DELETE FROM ledger WHERE project_id = 'blog'", Difference("blog", HOUR, "stored", 0, 1)),
        (
            "INSERT INTO events_log (project_id, event_id, event_type, timestamp, received_at, properties,"
            " partition_id, log_offset) SELECT project_id, 'twice', event_type, timestamp, received_at, properties,"
            " partition_id, log_offset FROM events_log WHERE event_id = 'c'",
            Difference("shop", HOUR - timedelta(hours=1), "stored", 1, 2),
        ),
    ],
)
async def test_what_was_spoiled_is_found(
    ledger: Ledger, postgres_url: str, spoiling: str, difference: Difference
) -> None:
    await spoil(postgres_url, spoiling)
    assert await ledger.check() == [difference]


async def test_a_check_keeps_to_its_project_and_hours(ledger: Ledger, postgres_url: str) -> None:
    await spoil(postgres_url, "DELETE FROM events_log")
    assert len(await ledger.check()) == 3
    assert [found.project_id for found in await ledger.check("blog")] == ["blog"]
    assert [found.hour for found in await ledger.check("shop", start=HOUR)] == [HOUR]
    assert [found.hour for found in await ledger.check(end=HOUR)] == [HOUR - timedelta(hours=1)]


async def test_what_expired_counts_as_found_and_what_is_merely_gone_does_not(ledger: Ledger, postgres_url: str) -> None:
    postgres = Postgres(postgres_url, owner="test", pool_size=1, deadline_s=10)
    retention = PostgresRetention(postgres)
    run = await retention.begin_run(NOW)
    today = datetime.now(UTC).date()
    assert await retention.expire_rows(run, today, ["blog"], first_page=0, row_bytes=1.0) == (1, None)
    assert await ledger.check() == []
    assert [row.expired for row in await ledger.hours("blog")] == [1]
    assert await retention.drop_day(run, today, size=1) == 3
    await postgres.close()
    assert await ledger.check() == []
    await spoil(postgres_url, "UPDATE ledger SET expired = expired - 1 WHERE project_id = 'blog'")
    assert await ledger.check() == [Difference("blog", HOUR, "stored", 1, 0)]
