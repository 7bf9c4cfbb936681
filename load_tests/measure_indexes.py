"""What each index on events_log costs COPY, and what the lookups that it serves take.

    python -m load_tests.measure_indexes [--rows 2000000] [--rounds 12]

Costs: for every candidate a database of its own; the same 20,000 rows are copied into each in turn, so that
what else the machine does falls on all alike; told is the mean CPU time of the server's session and the fastest
wall time, µs a row.
Reads: a day of `--rows` events, half of them of one project, with the indexes of the migrations; told is the
median of some runs through `storage.event_queries`, in ms. storage/sql/indexes.md keeps the results.
"""

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import asyncpg
import numpy as np
import psutil
import pyarrow as pa

from storage.copy_format import COPY_COLUMNS, STORED, encode_copy, in_pieces
from storage.embedded.postgres import EmbeddedPostgres
from storage.event_queries import EventQueries
from storage.migrate import migrate
from storage.postgres import Postgres

BATCH_ROWS = 20_000
REQUEST_ROWS = 100
BIG_PROJECT = "shop.example"

NEWEST = 'CREATE INDEX ON events_log (project_id, "timestamp")'
LOOKUP = "the migration's"
CANDIDATES: dict[str, list[str]] = {
    "none": [],
    "(project_id, timestamp)": [NEWEST],
    "(project_id, created_at)": ["CREATE INDEX ON events_log (project_id, created_at)"],
    "(event_id)": ["CREATE INDEX ON events_log (event_id)"],
    "hash (event_id)": ["CREATE INDEX ON events_log USING hash (event_id)"],
    "(project_id, user_id)": ["CREATE INDEX ON events_log (project_id, user_id)"],
    "BRIN lookup": [LOOKUP],
    "chosen: newest and lookup": [NEWEST, LOOKUP],
}


_SUMMARISE = (
    "SELECT brin_summarize_new_values(inhrelid) FROM pg_inherits WHERE inhparent = 'events_log_lookup'::regclass"
)


class Events:
    """Made-up events of a web shop: requests of 100 of one project each, Zipf users, ids without order."""

    def __init__(self, *, seed: int = 1) -> None:
        self._random = np.random.default_rng(seed)

    def batch(self, *, now: datetime) -> pa.RecordBatch:
        count, random = BATCH_ROWS, self._random
        users = random.zipf(1.3, count) % 100_000
        hexed = random.bytes(16 * count).hex()
        ids = [hexed[at : at + 32] for at in range(0, 32 * count, 32)]
        late_us = random.integers(0, 5_000_000, count)
        received = int(now.timestamp() * 1e6)
        instants = pa.array(received - late_us, pa.int64()).cast(pa.timestamp("us", tz="UTC"))
        columns = {
            "project_id": pa.array(np.repeat(self._projects(count // REQUEST_ROWS), REQUEST_ROWS)),
            "event_id": pa.array(ids),
            "event_type": pa.array(np.array(["page_view", "click", "scroll", "purchase"])[users % 4]),
            "user_id": pa.array([f"user-{user}" for user in users]),
            "session_id": pa.array([f"session-{user}-{received // 1_800_000_000}" for user in users]),
            "timestamp": instants,
            "received_at": pa.array([now] * count, pa.timestamp("us", tz="UTC")),
            "properties": pa.array([_properties(int(user)) for user in users]),
            "context": pa.array([_CONTEXT] * count),
            "partition_id": pa.array(np.full(count, 3, np.int16)),
            "log_offset": pa.array(np.arange(count) // 1000),
            "row_number": pa.array(np.arange(count) % 1000, pa.int32()),
        }
        nothing = pa.nulls(count, pa.string())
        return pa.RecordBatch.from_arrays([columns.get(name, nothing) for name in STORED.names], schema=STORED)

    def _projects(self, requests: int) -> list[str]:
        return [BIG_PROJECT if draw < 0.5 else f"project-{int(draw * 400)}" for draw in self._random.random(requests)]


_CONTEXT = json.dumps(
    {"ip": "203.0.113.7", "userAgent": "Mozilla/5.0 (X11; Linux x86_64) Firefox/130.0", "page": {"path": "/product"}}
)


def _properties(user: int) -> str:
    return json.dumps(
        {
            "page": f"/product/{user % 977}",
            "title": "A page that people read",
            "price": round(user * 0.37, 2),
            "currency": "EUR",
            "campaign": {"source": "newsletter", "medium": "email"},
            "items": [user % 7, user % 13],
        }
    )


async def measure_costs(server: EmbeddedPostgres, rounds: int) -> None:
    batches = [encode_copy(Events(seed=seed).batch(now=datetime.now(UTC))) for seed in range(rounds)]
    connections = {name: await _database(server, number, name) for number, name in enumerate(CANDIDATES)}
    sessions = {name: psutil.Process(connection.get_server_pid()) for name, connection in connections.items()}
    before = {name: sum(session.cpu_times()[:2]) for name, session in sessions.items()}
    taken: dict[str, list[float]] = {name: [] for name in connections}
    for encoded in batches:
        for name, connection in connections.items():
            started = time.perf_counter()
            await connection.copy_to_table(
                "events_log", source=in_pieces(encoded), columns=COPY_COLUMNS, format="binary"
            )
            taken[name].append((time.perf_counter() - started) / BATCH_ROWS * 1e6)
    print("COPY, µs a row                   CPU  fastest")
    for name, values in taken.items():
        cpu_s = sum(sessions[name].cpu_times()[:2]) - before[name]
        print(f"{name:28} {cpu_s / len(batches) / BATCH_ROWS * 1e6:7.2f} {min(values):8.2f}")
        await connections[name].close()


async def _database(server: EmbeddedPostgres, number: int, candidate: str) -> "asyncpg.Connection[asyncpg.Record]":
    """A migrated database whose events_log has just the candidate's indexes, and a partition for today."""
    url = await _new_database(server, f"candidate_{number}")
    connection = await asyncpg.connect(url)
    lookup = await connection.fetchval("SELECT pg_get_indexdef('events_log_lookup'::regclass)")
    await connection.execute("DROP INDEX events_log_newest; DROP INDEX events_log_lookup")
    for index in CANDIDATES[candidate]:
        await connection.execute(lookup if index == LOOKUP else index)
    await connection.execute(
        "SELECT events_log_add_day((now() AT TIME ZONE 'UTC')::date + d) FROM generate_series(0, 1) d"
    )
    return connection


async def _new_database(server: EmbeddedPostgres, name: str) -> str:
    connection = await asyncpg.connect(server.url)
    await connection.execute(f"CREATE DATABASE {name}")
    await connection.close()
    url = f"{server.url.rsplit('/', 1)[0]}/{name}"
    await migrate(url)
    return url


async def measure_reads(server: EmbeddedPostgres, rows: int) -> None:
    url = await _new_database(server, "reads")
    day = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    last = await _fill(url, rows, day)
    postgres = Postgres(url, owner="measure_indexes", pool_size=1, deadline_s=60)
    queries = EventQueries(postgres)
    noon, user = day + timedelta(hours=12), "user-17"

    async def typed(event_type: str) -> object:
        return await queries.list_events(BIG_PROJECT, event_type=event_type, limit=100)

    reads: dict[str, Callable[[], Awaitable[object]]] = {
        "newest of the big project": lambda: queries.list_events(BIG_PROJECT, limit=100),
        "newest of a small project": lambda: queries.list_events("project-300", limit=100),
        "newest before noon": lambda: queries.list_events(BIG_PROJECT, end=noon, limit=100),
        "a frequent type": lambda: typed("click"),
        "a type that never was": lambda: typed("never"),
        "a frequent user": lambda: queries.list_events(BIG_PROJECT, user_id="user-1", limit=100),
        "a user of 0.1 %": lambda: queries.list_events(BIG_PROJECT, user_id="user-70", limit=100),
        "a rare user": lambda: queries.list_events(BIG_PROJECT, user_id=f"{user}171", limit=100),
        "a session": lambda: queries.list_events(BIG_PROJECT, session_id=last["session_id"], limit=100),
        "one event": lambda: queries.find_event(last["project_id"], last["event_id"]),
        "no such event": lambda: queries.find_event(BIG_PROJECT, "never"),
        "received since a moment ago": lambda: queries.list_events(
            BIG_PROJECT, start=last["created_at"] - timedelta(seconds=1), order="received", limit=100
        ),
    }
    print(f"\nreads at {rows:,} rows of one day, ms (median of 5)")
    for name, read in reads.items():
        taken = []
        for _ in range(5):
            started = time.perf_counter()
            await read()
            taken.append((time.perf_counter() - started) * 1000)
        print(f"{name:32} {statistics.median(taken):8.1f}")
    await postgres.close()


async def _fill(url: str, rows: int, day: datetime) -> asyncpg.Record:
    """A day's rows, evenly over the day; returns the last of them."""
    connection = await asyncpg.connect(url)
    await connection.execute("SELECT events_log_add_day($1)", day.date())
    events, batches = Events(), rows // BATCH_ROWS
    summarising_s = 0.0
    for number in range(batches):
        now = day + timedelta(days=1) * (number / batches)
        await connection.execute(
            f"ALTER TABLE events_log_{day:%Y%m%d} ALTER created_at SET DEFAULT '{now.isoformat()}'"
        )
        encoded = encode_copy(events.batch(now=now))
        table = f"events_log_{day:%Y%m%d}"
        await connection.copy_to_table(table, source=in_pieces(encoded), columns=COPY_COLUMNS, format="binary")
        if number % 10 == 9:
            started = time.perf_counter()
            await connection.execute(_SUMMARISE)
            summarising_s += time.perf_counter() - started
    print(f"\nsummarising the lookup every 200,000 rows: {summarising_s / rows * 1e6:.2f} µs a row")
    sizes = await connection.fetch(
        "SELECT relname, pg_total_relation_size(oid) FROM pg_class WHERE relname LIKE 'events_log_2%' ORDER BY relname"
    )
    for name, size in sizes:
        print(f"{name:60} {size / rows:7.1f} bytes a row")
    row = await connection.fetchrow("SELECT * FROM events_log ORDER BY ctid DESC LIMIT 1")
    await connection.close()
    assert row is not None
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--rounds", type=int, default=12)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        server = EmbeddedPostgres(Path(directory))
        server.start()
        try:
            if arguments.rounds:
                asyncio.run(measure_costs(server, arguments.rounds))
            asyncio.run(measure_reads(server, arguments.rows))
        finally:
            server.stop()


if __name__ == "__main__":
    main()
