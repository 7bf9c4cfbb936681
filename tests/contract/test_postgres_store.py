"""What the event store does with PostgreSQL beyond the law: fencing a stuck owner, days, deadlines, the table."""

import asyncio
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from ipaddress import IPv6Address
from typing import TypeAlias

import asyncpg
import numpy as np
import pyarrow as pa
import pytest

from config.settings import StoreSettings
from storage import postgres_store
from storage.embedded.process import free_port
from storage.errors import Fenced, Unavailable
from storage.event_batch import COLUMNS, RecordBatch, Segment, pack_rows
from storage.event_store import Checkpoint, WriteResult
from storage.migrate import migrate
from storage.postgres_store import PostgresStore
from tests.contract.log_records import NOW, batch, event, hour_of, record, write

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"


@pytest.fixture
async def store(postgres_url: str) -> AsyncIterator[PostgresStore]:
    await migrate(postgres_url)
    made = PostgresStore(StoreSettings(postgres_url=postgres_url, write_timeout_seconds=10.0), owner="test")
    await made.claim(0, epoch=1)
    yield made
    await made.close()


@pytest.fixture
async def connection(store: PostgresStore, postgres_url: str) -> AsyncIterator[Connection]:
    made = await asyncpg.connect(postgres_url)
    yield made
    made.terminate()


LOCK = "SELECT FROM checkpoints WHERE partition_id = 0 FOR UPDATE"


async def test_a_claim_ends_a_session_that_sits_on_the_checkpoint(store: PostgresStore, connection: Connection) -> None:
    await connection.execute(f"BEGIN; {LOCK}")
    started = time.monotonic()
    assert await store.claim(0, epoch=2) == Checkpoint(0, 2, 0)
    assert time.monotonic() - started < 20
    with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)):
        await connection.execute("COMMIT")


async def test_a_claim_ends_an_owner_that_was_stopped_within_copy(
    store: PostgresStore, connection: Connection, postgres_url: str
) -> None:
    """Such a session waits for its client and heeds neither a cancellation nor a statement's deadline."""
    await connection.execute(f"BEGIN; {LOCK}")
    stopped = asyncio.Event()

    async def rows() -> AsyncIterator[bytes]:
        stopped.set()
        await asyncio.Event().wait()
        yield b""

    copying = asyncio.create_task(connection.copy_to_table("dead_letters", source=rows(), format="binary"))
    await stopped.wait()
    async with asyncio.timeout(5):
        assert await store.claim(0, epoch=2) == Checkpoint(0, 2, 0)
    copying.cancel()
    await asyncio.gather(copying, return_exceptions=True)
    with pytest.raises(Fenced):
        await store.write([write(record(batch(event("a"))), epoch=1)])


async def test_a_stale_claim_ends_nobody(store: PostgresStore, connection: Connection) -> None:
    await store.claim(0, epoch=5)
    await connection.execute(f"BEGIN; {LOCK}")
    claiming = asyncio.create_task(store.claim(0, epoch=4))
    await asyncio.sleep(0.5)
    await connection.execute("COMMIT")
    with pytest.raises(Fenced):
        await claiming


async def test_many_claims_at_once_do_not_starve_each_other(store: PostgresStore, connection: Connection) -> None:
    await connection.execute(f"BEGIN; {LOCK}")
    async with asyncio.timeout(20):
        claimed = await asyncio.gather(*(store.claim(partition, epoch=2) for partition in range(40)))
    assert claimed == [Checkpoint(partition, 2, 0) for partition in range(40)]


async def test_a_write_that_cannot_get_its_lock_ends_at_its_deadline(postgres_url: str, connection: Connection) -> None:
    impatient = PostgresStore(StoreSettings(postgres_url=postgres_url, write_timeout_seconds=0.5), owner="impatient")
    await connection.execute(f"BEGIN; {LOCK}")
    with pytest.raises(Unavailable):
        await impatient.write([write(record(batch(event("a"))))])
    await connection.execute("COMMIT")
    assert (await impatient.write([write(record(batch(event("a"))))])).stored == 1
    await impatient.close()


async def test_a_server_that_is_away_is_unavailable_and_comes_back(postgres_url: str) -> None:
    nowhere = f"postgresql://postgres@127.0.0.1:{free_port()}/postgres"
    store = PostgresStore(StoreSettings(postgres_url=nowhere), owner="test")
    with pytest.raises(Unavailable):
        await store.checkpoints([0])
    with pytest.raises(Unavailable):
        await store.write([write(record(batch(event("a"))))])
    await store.close()


async def test_a_session_ended_by_the_server_is_replaced(store: PostgresStore, connection: Connection) -> None:
    await connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'test'")
    try:
        await store.checkpoints([0])
    except Unavailable:
        await store.checkpoints([0])


async def test_a_missing_day_is_made_and_the_rows_go_in(store: PostgresStore, connection: Connection) -> None:
    assert await _days(connection) == []
    assert await store.write([write(record(batch(event("a"))))]) == WriteResult(1, 0, 0)
    today = datetime.now(UTC).date()
    assert await _days(connection) == [f"events_log_{today + timedelta(days=ahead):%Y%m%d}" for ahead in range(4)]
    assert await connection.fetchval("SELECT count(*) FROM dead_letters") == 0


async def test_days_are_added_while_rows_are_copied(
    store: PostgresStore, connection: Connection, postgres_url: str
) -> None:
    await store.prepare_days()
    await connection.execute("BEGIN")
    await connection.execute(
        "INSERT INTO events_log (project_id, event_id, event_type, timestamp, received_at, properties, partition_id,"
        " log_offset) VALUES ('shop', 'a', 'click', now(), now(), '{}', 0, 0)"
    )
    other = PostgresStore(StoreSettings(postgres_url=postgres_url, partition_days_ahead=9), owner="other")
    async with asyncio.timeout(5):
        await asyncio.gather(other.prepare_days(), store.prepare_days(), other.prepare_days())
        await store.write([write(record(batch(event("b"))))])
    await connection.execute("COMMIT")
    await other.close()
    assert len(await _days(connection)) == 10
    assert await connection.fetchval("SELECT count(*) FROM events_log") == 2


async def _days(connection: Connection) -> list[str]:
    rows = await connection.fetch(
        "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = 'events_log'::regclass ORDER BY 1"
    )
    return [row[0] for row in rows]


async def test_rows_of_a_write_have_one_time_and_all_their_columns(
    store: PostgresStore, connection: Connection
) -> None:
    full = event(
        "a",
        user_id="ü\U0001f600",
        anonymous_id="n",
        session_id="s",
        site_id="shop.example",
        timestamp=NOW - timedelta(days=4000, microseconds=1),
        properties='{"b":[1,1.50,null],"a":"\\u00e9"}',
        context='{"ip":"2001:db8::1","userAgent":"Firefox","page":{"url":"https://e.example/x?y","path":"/x"}}',
    )
    await store.write([write(record(batch(full)), record(batch(event("b"), event("c"))))])
    rows = await connection.fetch("SELECT * FROM events_log ORDER BY event_id")
    assert len({row["created_at"] for row in rows}) == 1
    assert [(row["partition_id"], row["log_offset"]) for row in rows] == [(0, 0), (0, 1), (0, 1)]
    stored = dict(rows[0])
    assert {name: stored[name] for name in COLUMNS.names if name not in ("properties", "context")} == {
        name: full[name] for name in COLUMNS.names if name not in ("properties", "context")
    }
    assert stored["properties"] == '{"a": "é", "b": [1, 1.50, null]}'


async def test_a_query_of_the_documents_runs(store: PostgresStore, connection: Connection) -> None:
    context = '{"ip":"2001:db8::1","userAgent":"Firefox","page":{"url":"https://e.example/x?y","path":"/x"}}'
    then = datetime(2026, 3, 4, 5, 6, 7, 8, tzinfo=UTC)
    seen = event("a", anonymous_id="v1", site_id="shop.example", timestamp=then, context=context, properties='{"n":1}')
    await store.write([write(record(batch(seen)))])
    row = await connection.fetchrow(
        "SELECT visitor_id, data, event_data, url, path, user_agent, ip_address, batch_id, client_id,"
        " raw_event_data->>'timestamp' AS at, raw_event_data->'properties'->>'n' AS n, raw_event_data->>'eventId' AS id"
        " FROM events_log WHERE visitor_id = 'v1' AND ip_address <<= '2001:db8::/32' AND site_id = 'shop.example'"
    )
    assert row is not None
    assert dict(row) == {
        "visitor_id": "v1",
        "data": '{"n": 1}',
        "event_data": '{"n": 1}',
        "url": "https://e.example/x?y",
        "path": "/x",
        "user_agent": "Firefox",
        "ip_address": IPv6Address("2001:db8::1"),
        "batch_id": "0-0",
        "client_id": None,
        "at": "2026-03-04T05:06:07.000008Z",
        "n": "1",
        "id": "a",
    }
    await connection.execute(
        "SELECT batch_id, client_id, COUNT(*), MIN(created_at), MAX(created_at) FROM events_log"
        " WHERE created_at > NOW() - INTERVAL '1 hour' AND batch_id IS NOT NULL GROUP BY batch_id, client_id"
        " HAVING MIN(created_at) != MAX(created_at)"
    )


def _with_raw_column(name: str, array: pa.Array) -> RecordBatch:
    """Two good rows around a bad one, whose column holds what Python could not put there."""
    rows = pa.RecordBatch.from_pylist([event("first"), event("bad"), event("last")], schema=COLUMNS)
    at = COLUMNS.names.index(name)
    column = pa.concat_arrays([rows.column(at).slice(0, 1), array, rows.column(at).slice(2, 1)])
    rows = rows.set_column(at, COLUMNS.field(name), column)
    return RecordBatch(b"b" * 16, [Segment("shop", hour_of(NOW), 3, 0)], b"", pack_rows(rows))


def _text(raw: bytes) -> pa.Array:
    offsets = np.array([0, len(raw)], np.int32).tobytes()
    return pa.StringArray.from_buffers(1, pa.py_buffer(offsets), pa.py_buffer(raw))


def _instant(microseconds: int) -> pa.Array:
    return pa.array([microseconds], pa.int64()).cast(pa.timestamp("us", tz="UTC"))


@pytest.mark.parametrize(
    ("column", "value", "code"),
    [
        ("event_type", _text(b"\xff\xfe"), "22021"),
        ("session_id", _text(b"s" * 257), "22001"),
        ("event_type", pa.nulls(1, pa.string()), "23502"),
        ("properties", _text(b'{"n":1e200000}'), "22003"),
        ("timestamp", _instant(-(2**63) + 1), "encode"),
    ],
)
async def test_the_reason_of_a_dead_letter_is_kept_with_its_event(
    store: PostgresStore, connection: Connection, column: str, value: pa.Array, code: str
) -> None:
    result = await store.write([write(record(_with_raw_column(column, value)))])
    assert result == WriteResult(stored=2, duplicate=0, dead_lettered=1)
    letter = await connection.fetchrow("SELECT * FROM dead_letters")
    assert letter is not None
    assert (letter["event_id"], letter["row_number"], letter["error_code"]) == ("bad", 1, code)
    assert letter["received_at"] == NOW and letter["message"]
    assert b'"event_id":"bad"' in letter["payload"]
    ids = await connection.fetch("SELECT event_id FROM events_log ORDER BY 1")
    assert [row[0] for row in ids] == ["first", "last"]


async def test_scattered_and_gathered_poison_is_found_to_the_row(store: PostgresStore, connection: Connection) -> None:
    bad = {0, 1, 2, 70, 499, *range(200, 260)}
    events = [event(f"{n}", properties='"\\u0000"' if n in bad else "{}") for n in range(500)]
    result = await store.write([write(record(batch(*events[:300])), record(batch(*events[300:])))])
    assert result == WriteResult(stored=500 - len(bad), duplicate=0, dead_lettered=len(bad))
    letters = await connection.fetch("SELECT event_id, log_offset, row_number FROM dead_letters")
    assert {tuple(row) for row in letters} == {(f"{n}", n // 300, n % 300) for n in bad}
    assert await connection.fetchval("SELECT count(*) FROM events_log") == 500 - len(bad)


async def test_a_trigger_that_drops_rows_is_noticed(store: PostgresStore, connection: Connection) -> None:
    await store.prepare_days()
    await connection.execute(
        "CREATE FUNCTION drop_row() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';"
        "CREATE TRIGGER drop_row BEFORE INSERT ON events_log FOR EACH ROW EXECUTE FUNCTION drop_row()"
    )
    with pytest.raises(Unavailable, match="trigger"):
        await store.write([write(record(batch(event("a"))))])
    assert await store.checkpoints([0]) == [Checkpoint(0, 1, 0)]


async def test_recent_ids_come_from_all_pages_of_all_days(
    store: PostgresStore, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_store, "_PAGES_AT_A_TIME", 2)
    await store.prepare_days()
    await store.write([write(record(batch(*(event(f"{n}") for n in range(1000)))))])
    yesterday = datetime.now(UTC).date() - timedelta(days=1)
    await connection.execute("SELECT events_log_add_day($1)", yesterday)
    await connection.execute(
        "INSERT INTO events_log (project_id, event_id, event_type, timestamp, received_at, created_at, properties,"
        " partition_id, log_offset) SELECT 'shop', 'old', 'click', now(), now(), now() - interval '1 day', '{}', 0, 0"
    )
    chunks = [chunk async for chunk in store.recent_ids([0, 1], since_ms=0)]
    assert len(chunks) > 5
    assert {stored.event_id for chunk in chunks for stored in chunk} == {"old", *(f"{n}" for n in range(1000))}
    hour_ago_ms = int((datetime.now(UTC) - timedelta(hours=1)).timestamp() * 1000)
    recent = [stored.event_id async for chunk in store.recent_ids([0], since_ms=hour_ago_ms) for stored in chunk]
    assert len(recent) == 1000 and "old" not in recent


LATENESS_S = 22 * 3600.0


@pytest.fixture
async def marking_store(store: PostgresStore, postgres_url: str) -> AsyncIterator[PostgresStore]:
    settings = StoreSettings(postgres_url=postgres_url, write_timeout_seconds=10.0)
    made = PostgresStore(settings, owner="marking", lateness_s=LATENESS_S)
    yield made
    await made.close()


async def _marks(connection: Connection) -> list[tuple[str, str, int]]:
    rows = await connection.fetch("SELECT project_id, day, partition_id FROM late_days ORDER BY 1, 2")
    return [(row["project_id"], f"{row['day']}", row["partition_id"]) for row in rows]


async def test_days_of_events_too_late_for_windows_are_marked(
    marking_store: PostgresStore, connection: Connection
) -> None:
    received = datetime(2026, 5, 10, 12, tzinfo=UTC)
    limit = timedelta(seconds=LATENESS_S)
    times = {
        "in time": received - limit,
        "too late": received - limit - timedelta(microseconds=1),
        "ahead": received + timedelta(hours=20),
        "old": datetime(2019, 12, 31, 23, 59, 59, 999999, tzinfo=UTC),
        "old too": datetime(2019, 12, 31, tzinfo=UTC),
        "older than 1970": datetime(1969, 12, 31, 23, tzinfo=UTC),
    }
    events = [event(name, received_at=received, timestamp=time) for name, time in times.items()]
    other = event("x", project_id="zoo", received_at=received, timestamp=times["old"])
    bad = event("bad", received_at=received, timestamp=datetime(2018, 1, 1, tzinfo=UTC), properties='"\\u0000"')
    await marking_store.write([write(record(batch(other, *events, bad)))])
    assert await _marks(connection) == [
        ("shop", "1969-12-31", 0),
        # Of the row that became a dead letter: to count a day again for nothing is harmless.
        ("shop", "2018-01-01", 0),
        ("shop", "2019-12-31", 0),
        ("shop", "2026-05-09", 0),
        ("zoo", "2019-12-31", 0),
    ]


async def test_a_mark_is_renewed_by_every_write(marking_store: PostgresStore, connection: Connection) -> None:
    then = datetime(2019, 12, 31, tzinfo=UTC)
    marks = []
    for number in range(2):
        await marking_store.write([write(record(batch(event(f"{number}", timestamp=then))), first=number)])
        marks += await connection.fetch("SELECT version, first_marked, last_marked FROM late_days")
    first, second = marks
    assert first["version"] != second["version"]
    assert first["first_marked"] == second["first_marked"] < second["last_marked"]


async def test_marks_come_and_go_with_their_transaction(marking_store: PostgresStore, connection: Connection) -> None:
    late = event("a", timestamp=datetime(2019, 12, 31, tzinfo=UTC))
    with pytest.raises(Fenced):
        await marking_store.write([write(record(batch(late)), epoch=9)])
    assert await _marks(connection) == []


async def test_writers_of_the_same_late_days_do_not_block_each_other_for_ever(
    marking_store: PostgresStore, connection: Connection
) -> None:
    """Projects of two partitions, in opposite order."""
    await marking_store.claim(1, epoch=1)
    then = datetime(2019, 12, 31, tzinfo=UTC)
    days = [then - timedelta(days=n) for n in range(200)]

    async def write_all(partition: int, order: int) -> None:
        for number in range(5):
            events = [
                event(f"{project}{day}", project_id=project, timestamp=day)
                for project in ("a", "b")[::order]
                for day in days[::order]
            ]
            await marking_store.write([write(record(batch(*events)), partition=partition, first=number)])

    async with asyncio.timeout(20):
        await asyncio.gather(write_all(0, 1), write_all(1, -1))
    assert len(await _marks(connection)) == 400


async def test_without_a_lateness_nothing_is_marked(store: PostgresStore, connection: Connection) -> None:
    await store.write([write(record(batch(event("a", timestamp=datetime(2019, 12, 31, tzinfo=UTC)))))])
    assert await _marks(connection) == []
