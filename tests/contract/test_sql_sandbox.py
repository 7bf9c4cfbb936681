"""Real sandbox processes over real files: nothing but the project's own events can be had, and nothing lasts for long.

The files hold another project's events too, with a word that must never be seen.
"""

import asyncio
import ctypes
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import duckdb
import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from config.settings import MIB, QuerySettings
from gateway.errors import ApiError
from storage.lake_file import EVENTS
from storage.sandbox.checker import NotAllowed, NotSql
from storage.sandbox.session import Session
from tests.sql_lake import Asker, SqlLake, asking, event

SECRET = "hunter2"
HOURS = [f"2026-03-01T{hour:02d}" for hour in range(6)]


def events(project: str, word: str, count: int) -> list[dict[str, object]]:
    return [
        event(
            f"{project}-{hour}-{number}",
            f"{hour}:{number % 60:02d}:00Z",
            project=project,
            userId=f"{word}{number}",
            properties={"n": number, "word": word, word: 1},
            context={"ip": "192.0.2.7", "userAgent": word},
        )
        for hour in HOURS
        for number in range(count)
    ]


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> SqlLake:
    made = SqlLake(tmp_path_factory.mktemp("sandbox"))
    mine, theirs = events("shop", "", 40), events("spy", SECRET, 40)
    made.add_files(mine[:200] + theirs[:200])
    made.add_tail(mine[200:] + theirs[200:])
    (made.folder / "outside.txt").write_text(SECRET)
    return made


@pytest.fixture
async def ask(lake: SqlLake) -> AsyncIterator[Asker]:
    async with asking(lake, QuerySettings(deadline_s=20, memory_bytes=512 * MIB, warm_processes=0)) as asker:
        yield asker


async def refusal(ask: Asker, sql: str) -> ApiError:
    with pytest.raises(ApiError) as caught:
        answer = await ask.answer("shop", sql)
        raise AssertionError(f"{sql} was answered: {answer.body[:300]!r}")
    assert SECRET not in str(caught.value)
    assert SECRET not in (caught.value.hint or "")
    return caught.value


async def test_files_and_tail_are_one_table_of_one_project(ask: Asker) -> None:
    [row] = await ask.rows(
        "shop", "SELECT count(*), count(DISTINCT event_id), min(project_id), max(project_id) FROM events"
    )
    assert row == (240, 240, "shop", "shop")
    assert await ask.value("spy", "SELECT count(*) FROM events") == 240
    assert await ask.value("nobody", "SELECT count(*) FROM events") == 0


async def test_the_kernel_has_shut_the_process_in(ask: Asker) -> None:
    """Where this is not to be had the code goes on without."""
    result = (await ask.answer("shop", "SELECT 1")).result
    assert (result.is_offline, result.is_confined) == (has_namespaces(), has_landlock())


def has_namespaces() -> bool:
    return subprocess.run(["unshare", "--user", "--net", "true"], check=False).returncode == 0


def has_landlock() -> bool:
    """Of the version that restricts truncation."""
    return int(ctypes.CDLL(None).syscall(444, None, 0, 1)) >= 3


FILE = "{file}"
OUTSIDE = "{outside}"

ESCAPES = [
    # Files, by functions.
    f"SELECT * FROM read_parquet('{FILE}')",
    f"SELECT * FROM parquet_scan(['{FILE}'])",
    f"SELECT * FROM parquet_metadata('{FILE}')",
    f"SELECT * FROM parquet_schema('{FILE}')",
    f"SELECT * FROM parquet_file_metadata('{FILE}')",
    f"SELECT * FROM parquet_kv_metadata('{FILE}')",
    f"SELECT * FROM parquet_full_metadata('{FILE}')",
    f"SELECT * FROM parquet_bloom_probe('{FILE}', 'user_id', '1')",
    f"SELECT * FROM read_text('{OUTSIDE}')",
    f"SELECT * FROM read_blob('{FILE}')",
    f"SELECT * FROM read_csv('{OUTSIDE}')",
    f"SELECT * FROM read_csv_auto('{OUTSIDE}')",
    f"SELECT * FROM read_json('{OUTSIDE}')",
    f"SELECT * FROM read_json_auto('{OUTSIDE}')",
    f"SELECT * FROM read_json_objects('{OUTSIDE}')",
    f"SELECT * FROM read_ndjson('{OUTSIDE}')",
    f"SELECT * FROM sniff_csv('{OUTSIDE}')",
    "SELECT * FROM glob('/**')",
    "SELECT * FROM read_text('/proc/self/environ')",
    f"SELECT * FROM READ_PARQUET('{FILE}')",
    f"SELECT * FROM \"read_parquet\"('{FILE}')",
    f"SELECT * FROM main.read_parquet('{FILE}')",
    f"SELECT * FROM system.main.read_parquet('{FILE}')",
    f"SELECT (SELECT max(user_id) FROM read_parquet('{FILE}'))",
    f"SELECT 1 WHERE EXISTS (FROM read_parquet('{FILE}'))",
    f"SELECT * FROM events, LATERAL (SELECT * FROM read_parquet('{FILE}')) t",
    f"WITH a AS (SELECT * FROM read_parquet('{FILE}')) SELECT * FROM a",
    f"SELECT 1 UNION ALL SELECT length(user_id) FROM read_parquet('{FILE}')",
    f"SELECT 1 ORDER BY (SELECT max(user_id) FROM read_parquet('{FILE}'))",
    f"SELECT 1 LIMIT (SELECT count(*) FROM read_parquet('{FILE}'))",
    f"SELECT list_transform([1], x -> (SELECT max(user_id) FROM read_parquet('{FILE}')))",
    f"SELECT sum(1) OVER (PARTITION BY (SELECT max(user_id) FROM read_parquet('{FILE}')))",
    f"SELECT * FROM events PIVOT (count(*) FOR event_type IN (SELECT user_id FROM read_parquet('{FILE}')))",
    f"SELECT * FROM unnest((SELECT list(user_id) FROM read_parquet('{FILE}')))",
    # Files, as tables.
    f"SELECT * FROM '{FILE}'",
    f'SELECT * FROM "{FILE}"',
    f"FROM '{OUTSIDE}'",
    f"TABLE '{FILE}'",
    f"SELECT * FROM '{FILE}' AS events",
    f"SELECT * FROM events JOIN '{FILE}' AS f USING (user_id)",
    f'SELECT * FROM (WITH "{FILE}" AS (SELECT 1) SELECT 1) a, "{FILE}"',
    f'WITH "{FILE}" AS (SELECT 1) SELECT * FROM "{FILE}"',
    # SQL given as text, and tables by name.
    "SELECT * FROM query('SELECT * FROM duckdb_settings()')",
    "SELECT * FROM query_table('duckdb_settings')",
    f"SELECT * FROM query_table(['{FILE}'])",
    "SELECT * FROM json_execute_serialized_sql(json_serialize_sql('SELECT 1'))",
    "SELECT json_serialize_plan('SELECT * FROM events')",
    "SELECT json_deserialize_sql('{}')",
    "SELECT * FROM histogram_values(events, user_id)",
    "SELECT * FROM seq_scan('events')",
    "SELECT * FROM arrow_scan(1, 2, 3)",
    "SELECT * FROM pandas_scan(1)",
    "SELECT * FROM python_map_function(1)",
    "SELECT * FROM summary((SELECT 1))",
    # What DuckDB knows of itself.
    "SELECT * FROM duckdb_settings()",
    "SELECT * FROM duckdb_settings",
    "SELECT * FROM duckdb_secrets()",
    "SELECT * FROM which_secret('s3://x', 's3')",
    "SELECT * FROM duckdb_tables()",
    "SELECT * FROM duckdb_views",
    "SELECT * FROM duckdb_columns()",
    "SELECT * FROM duckdb_memory()",
    "SELECT * FROM duckdb_temporary_files()",
    "SELECT * FROM duckdb_external_file_cache()",
    "SELECT * FROM duckdb_logs",
    "SELECT * FROM pragma_table_info('events')",
    "SELECT * FROM pragma_database_list",
    "SELECT * FROM information_schema.tables",
    "SELECT * FROM pg_catalog.pg_tables",
    "SELECT * FROM pg_tables",
    "SELECT * FROM sqlite_master",
    "SELECT * FROM memory.main.events",
    "SELECT * FROM main.events",
    "SELECT * FROM temp.events",
    "SELECT * FROM (WITH sqlite_master AS (SELECT 1) SELECT 1) a, sqlite_master",
    "WITH duckdb_views AS (SELECT 1) SELECT * FROM duckdb_views",
    "SELECT current_setting('allowed_paths')",
    "SELECT getvariable('x')",
    "SELECT getenv('HOME')",
    "SELECT version()",
    "SELECT stats(user_id) FROM events LIMIT 1",
    "SELECT write_log('x')",
    "SELECT nextval('s')",
    "SELECT pg_sleep(1)",
    "SELECT sleep_ms(1)",
    "SELECT setseed(0.5)",
    "SELECT current_query()",
    "SELECT filename FROM events",
    "SELECT file_row_number FROM events",
    "SELECT rowid FROM events",
    # Statements that are no query.
    f"COPY (SELECT 1) TO '{OUTSIDE}'",
    f"COPY events FROM '{FILE}'",
    f"ATTACH '{OUTSIDE}' AS x",
    "DETACH memory",
    "SET enable_external_access = true",
    "RESET lock_configuration",
    "SET VARIABLE x = 1",
    "PRAGMA enable_profiling",
    "PRAGMA database_list",
    "INSTALL httpfs",
    "LOAD httpfs",
    f"EXPORT DATABASE '{OUTSIDE}'",
    f"IMPORT DATABASE '{OUTSIDE}'",
    "CALL duckdb_settings()",
    "CHECKPOINT",
    "CREATE TABLE t (i int)",
    "CREATE VIEW v AS SELECT 1",
    "CREATE MACRO m() AS TABLE SELECT * FROM duckdb_settings()",
    "CREATE SECRET s (TYPE s3)",
    "DROP VIEW events",
    "INSERT INTO events VALUES (1)",
    "DELETE FROM events",
    "UPDATE events SET user_id = 'x'",
    "PREPARE p AS SELECT 1",
    "EXECUTE p",
    "EXPLAIN SELECT 1",
    "EXPLAIN ANALYZE SELECT * FROM events",
    "DESCRIBE events",
    "SHOW TABLES",
    "SHOW ALL TABLES",
    "SUMMARIZE events",
    "SELECT * FROM (SHOW TABLES)",
    "SELECT * FROM (DESCRIBE events)",
    "PIVOT events ON event_type",
    "USE memory",
    "BEGIN",
    "COMMIT",
    "VACUUM",
    "KILL 1",
    "",
    "-- nothing",
    ";",
    # More than one, and what would break out of what is put around it.
    "SELECT 1; SELECT 2",
    f"SELECT 1; COPY (SELECT 1) TO '{OUTSIDE}'",
    "SELECT 1; SET threads = 1",
    f"SELECT 1) UNION ALL SELECT * FROM read_text('{OUTSIDE}') WHERE (1 = 1",
    "SELECT 1 /*",
    "SELECT ?",
    "SELECT $1",
    "SELECT $name",
    "SELECT * FROM events AT (VERSION => 1)",
]


def written(lake: SqlLake, sql: str) -> str:
    file = next((lake.folder / "lake").rglob("*.parquet"))
    return sql.replace(FILE, str(file)).replace(OUTSIDE, str(lake.folder / "outside.txt"))


@pytest.fixture
def session() -> Session:
    """What a process judges SQL with before anything is opened."""
    return Session()


@pytest.mark.parametrize("sql", ESCAPES)
async def test_nothing_else_can_be_had(ask: Asker, session: Session, lake: SqlLake, sql: str) -> None:
    """A process is asked where it is more than the parsed text that is refused."""
    try:
        session.check(written(lake, sql))
    except (NotAllowed, NotSql) as refused:
        assert SECRET not in str(refused)
        return
    await check_refused(ask, written(lake, sql))


@pytest.mark.parametrize("sql", ESCAPES[::15])
async def test_what_is_refused_is_refused_by_a_process(ask: Asker, lake: SqlLake, sql: str) -> None:
    await check_refused(ask, written(lake, sql))


async def check_refused(ask: Asker, sql: str) -> None:
    error = await refusal(ask, sql)
    assert error.code in ("sql_not_allowed", "sql_invalid"), error
    assert error.pointer == "/sql"


ADVISED = [
    ("SELECT " + "+".join(["1"] * 1200), "Max expression depth limit of 1000 exceeded."),
    ("SELECT (SELECT * FROM range(2))", "More than one row returned by a subquery used as an expression - scalar"),
    ("SELECT list(user_id ORDER BY 'x') FROM events", "ORDER BY non-integer literal has no effect."),
]


@pytest.mark.parametrize(("sql", "message"), ADVISED)
async def test_nobody_is_told_to_set_what_cannot_be_set(ask: Asker, sql: str, message: str) -> None:
    error = await refusal(ask, sql)
    assert error.message.startswith(message)
    assert "SET" not in error.message
    assert not error.message.endswith("..")


async def test_pivot_without_values_is_told_how(ask: Asker) -> None:
    counted = "PIVOT (SELECT event_type FROM events) ON event_type{} USING count(*)"
    error = await refusal(ask, counted.format(""))
    assert error.hint is not None and "ON event_type IN ('a', 'b')" in error.hint
    assert await ask.answer("shop", counted.format(" IN ('a', 'b')"))


WITHOUT_THE_KERNEL = """
import sys
from storage.sandbox import confine
confine._LANDLOCK_CREATE_RULESET = -1
confine._CLONE_NEWUSER = 1
from storage.sandbox.__main__ import main
sys.exit(main())
"""
"""A sandbox process whose kernel knows no Landlock and gives it no namespace."""


async def test_without_the_kernels_help_it_says_so_and_gives_no_more(
    lake: SqlLake, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = asyncio.create_subprocess_exec

    async def weaker(python: str, isolated: str, _: str, __: str, parent: str, **options: Any) -> Any:
        return await start(python, isolated, "-c", WITHOUT_THE_KERNEL, parent, **options)

    monkeypatch.setattr(asyncio, "create_subprocess_exec", weaker)
    async with asking(lake, QuerySettings(deadline_s=20, memory_bytes=512 * MIB, warm_processes=0)) as ask:
        answer = await ask.answer("shop", "SELECT count(*) FROM events")
        assert (answer.result.is_offline, answer.result.is_confined) == (False, False)
        assert msgspec.json.decode(answer.body) == [[240]]
        await check_refused(ask, written(lake, f"SELECT * FROM read_text('{OUTSIDE}')"))
        assert (await refusal(ask, BOMBS[0])).code == "query_out_of_memory"


@pytest.mark.parametrize(
    "sql",
    [
        f"SELECT * FROM read_text('{OUTSIDE}')",
        f"SELECT * FROM read_csv('{OUTSIDE}')",
        f"COPY (SELECT 1) TO '{OUTSIDE}'",
        f"ATTACH '{OUTSIDE}' AS other",
        "SELECT * FROM glob('/**')",
        "SET enable_external_access = true",
        "RESET allowed_paths",
        "INSTALL httpfs",
    ],
)
def test_duckdb_is_closed_by_itself(session: Session, lake: SqlLake, tmp_path: Path, sql: str) -> None:
    """Were there neither the kernel's walls nor the checker."""
    files = [str(path) for path in (lake.folder / "lake").rglob("*.parquet")]
    session.load(EVENTS.empty_table())
    session.open("shop", files, folder=str(tmp_path), memory_bytes=512 * MIB)
    session.lock(threads=1)
    with pytest.raises(duckdb.Error) as caught:
        session._run(written(lake, sql)).fetchall()
    assert SECRET not in str(caught.value)
    assert (lake.folder / "outside.txt").read_text() == SECRET


LEAKS = [
    # What fails for other projects' values would tell them, were it ever computed for them.
    "SELECT count(*) FROM events WHERE user_id::INT >= 0",
    "SELECT sum(user_id::INT) FROM events WHERE properties->>'word' = '' AND user_id::INT + 1 > 0",
    "SELECT count(*) FROM events WHERE regexp_extract(user_id, '[a-z]+') <> '' OR user_id::INT < 0",
    "SELECT count(*) FROM events WHERE user_id::INT IN (1, 2) AND timestamp::VARCHAR::TIMESTAMPTZ < now()",
    "SELECT min(user_id), max(user_id), min(context.userAgent), max(project_id) FROM events",
    "SELECT approx_top_k(user_id, 100), histogram(context.userAgent), mode(properties->>'word') FROM events",
    "SELECT e FROM events e",
    "SELECT * FROM events a FULL JOIN events b ON a.log_offset = b.log_offset",
    "SELECT DISTINCT unnest(map_keys(properties)) FROM events",
    "SELECT * FROM events a POSITIONAL JOIN events b",
    "SELECT * FROM events TABLESAMPLE 50%",
    "SELECT last(user_id), first(user_id) FROM events",
    "SELECT count(*) FROM events GROUP BY ROLLUP (user_id, project_id)",
]


@pytest.mark.parametrize("sql", LEAKS)
async def test_other_projects_rows_have_no_influence(ask: Asker, sql: str) -> None:
    answer = await ask.answer("shop", sql)
    assert SECRET.encode() not in answer.body
    assert b"spy" not in answer.body


BOMBS = [
    "SELECT length(repeat('x', 2000000000))",
    "SELECT len(range(300000000))",
    "SELECT list(i) FROM range(300000000) t(i)",
    "SELECT string_agg(repeat('x', 100000), '') FROM range(1000000)",
    "SELECT map_from_entries(list((i, i))) FROM range(100000000) t(i)",
    "SELECT length(s.x) FROM (SELECT repeat(user_id || 'x', 1000000000) AS x FROM events) s",
]


@pytest.mark.parametrize("sql", BOMBS)
async def test_memory_is_bounded(ask: Asker, sql: str) -> None:
    error = await refusal(ask, sql)
    assert error.code == "query_out_of_memory"
    assert await ask.value("shop", "SELECT 1") == 1


DEEP = [
    "SELECT " + "(" * 20_000 + "1" + ")" * 20_000,
    "SELECT " + "+".join(["1"] * 30_000),
    "SELECT " + "NOT " * 15_000 + "true",
    "SELECT " + "[" * 20_000 + "]" * 20_000,
    "SELECT * FROM " + "(SELECT * FROM " * 3000 + "events" + ")" * 3000,
    "SELECT " + "CASE WHEN 1=1 THEN " * 2000 + "1" + " END" * 2000,
    "SELECT " + "-" * 1 + " -" * 20_000 + "1",
    "WITH "
    + ", ".join(f"a{n} AS (SELECT * FROM a{n - 1} x, a{n - 1} y)" if n else "a0 AS (FROM events)" for n in range(60))
    + " SELECT count(*) FROM a59",
    "SELECT 1 " + "UNION ALL SELECT 1 " * 3000,
    "SELECT '" + "[" * 60_000 + "'::JSON",
]


@pytest.mark.parametrize("sql", DEEP, ids=range(len(DEEP)))
async def test_deep_nesting_ends_the_query_and_nothing_else(lake: SqlLake, sql: str) -> None:
    async with asking(lake, QuerySettings(deadline_s=5, memory_bytes=512 * MIB, warm_processes=0)) as ask:
        began = time.monotonic()
        try:
            await ask.answer("shop", sql)
        except ApiError as error:
            assert error.code.startswith(("sql_", "query_"))
        assert time.monotonic() - began < 20
        assert await ask.value("shop", "SELECT 1") == 1


ENDLESS = [
    "WITH RECURSIVE a AS (SELECT 1 AS x UNION ALL SELECT x + 1 FROM a) SELECT count(*) FROM a",
    "SELECT count(*) FROM range(10000000) a, range(10000000) b WHERE hash(a.range + b.range) = 0",
    "SELECT max(list_reduce(range(1000000), lambda x, y: (x * y) % 7 + i)) FROM range(1000000) t(i)",
]


@pytest.mark.parametrize("sql", ENDLESS)
async def test_time_is_bounded_and_the_process_is_gone(lake: SqlLake, sql: str) -> None:
    async with asking(lake, QuerySettings(deadline_s=1.5, warm_processes=0)) as ask:
        began = time.monotonic()
        error = await refusal(ask, sql)
        assert (error.code, error.status) == ("query_timeout", 422)
        assert time.monotonic() - began < 10
        assert children() == []
        assert list((ask.queries._folder).iterdir()) == []


def children() -> list[str]:
    found = []
    for path in Path("/proc").iterdir():
        try:
            words = (path / "cmdline").read_bytes().decode().split("\0")
        except (OSError, UnicodeDecodeError):
            continue
        if path.name.isdigit() and "storage.sandbox" in words and str(os.getpid()) in words:
            found.append(path.name)
    return found


async def test_there_are_no_more_processes_than_the_settings_say(lake: SqlLake) -> None:
    """Whoever asks: a trace that looks into the lake is not behind the gate of queries."""
    async with asking(lake, QuerySettings(concurrency=3, warm_processes=0)) as ask:
        answers = asyncio.gather(*(ask.value("shop", "SELECT 1") for _ in range(6)))
        most = 0
        while not answers.done():
            most = max(most, len(children()))
            await asyncio.sleep(0.01)
        assert await answers == [1] * 6
        assert 1 <= most <= 2


async def test_a_process_waits_after_the_first_query_only_and_not_for_ever(lake: SqlLake) -> None:
    async with asking(lake, QuerySettings(warm_processes=1, warm_idle_s=1.0)) as ask:
        assert children() == []
        await ask.value("shop", "SELECT 1")
        for waiting in (1, 0):
            async with asyncio.timeout(20):
                while len(children()) != waiting:
                    await asyncio.sleep(0.02)


async def test_closing_waits_for_processes_that_are_being_ended(lake: SqlLake) -> None:
    """Also when the idle time has just ended them: a loop that is closed before them leaves them running."""
    async with asking(lake, QuerySettings(warm_processes=1, warm_idle_s=0.5)) as ask:
        await ask.value("shop", "SELECT 1")
        sandboxes = ask.queries._sandboxes
        async with asyncio.timeout(20):
            while not sandboxes._waiting:
                await asyncio.sleep(0.01)
            while not sandboxes._endings:
                await asyncio.sleep(0)
    assert children() == []


async def test_each_query_has_a_process_of_its_own(ask: Asker) -> None:
    """One that waited is used once: a table made by one query, could it be made, would be gone for the next."""
    for _ in range(3):
        await asyncio.gather(*(ask.value("shop", "SELECT count(*) FROM events") for _ in range(2)))
        assert len(children()) <= 1 + 1


async def test_it_does_not_outlive_its_service(lake: SqlLake, tmp_path: Path) -> None:
    """A gateway that is killed has no time to end its processes."""
    script = (
        "import asyncio, os, sys\n"
        "from storage.sandbox.sandboxes import _start\n"
        "async def main():\n"
        "    process = await _start()\n"
        "    print(process.pid, flush=True)\n"
        "    await asyncio.sleep(1)\n"
        "    os.kill(os.getpid(), 9)\n"
        "asyncio.run(main())\n"
    )
    command = (sys.executable, "-c", script)
    service = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    told, _ = await service.communicate()
    pid = int(told)
    async with asyncio.timeout(20):
        while Path(f"/proc/{pid}").exists():
            await asyncio.sleep(0.05)


async def test_rows_and_bytes_are_bounded(lake: SqlLake) -> None:
    async with asking(lake, QuerySettings(max_rows=100, max_result_bytes=10_000, warm_processes=0)) as ask:
        few = await ask.answer("shop", "SELECT event_id FROM events LIMIT 100")
        assert (few.result.rows, few.result.truncated) == (100, False)
        many = await ask.answer("shop", "SELECT event_id FROM events")
        assert (many.result.rows, many.result.truncated) == (100, True)
        lower = await ask.answer("shop", "SELECT event_id FROM events", max_rows=5)
        assert (lower.result.rows, lower.result.truncated) == (5, True)
        higher = await ask.answer("shop", "SELECT event_id FROM events", max_rows=1000)
        assert (higher.result.rows, higher.result.truncated) == (100, True)
        large = await ask.answer("shop", "SELECT repeat('x', 900) FROM events")
        assert (large.result.rows, large.result.truncated) == (11, True)
        for form in ("csv", "ndjson", "arrow"):
            answer = await ask.queries.run("shop", "SELECT repeat('x', 900) FROM events", form)
            assert answer.result.truncated
            assert len(answer.body) < 12_000
        # An endless stream of rows ends where the answer does.
        endless = await ask.answer("shop", "SELECT i FROM range(100000000000) t(i)")
        assert (endless.result.rows, endless.result.truncated) == (100, True)


async def test_arrow_stream(ask: Asker) -> None:
    sql = "SELECT timestamp, properties, log_offset, 1.50 AS price FROM events ORDER BY timestamp, event_id"
    answer = await ask.queries.run("shop", sql, "arrow")
    table = pa.ipc.open_stream(answer.body).read_all()
    assert table.num_rows == 240
    assert table.schema.field("timestamp").type == pa.timestamp("us", tz="UTC")
    assert table.schema.field("properties").type == pa.map_(pa.string(), pa.string())
    empty = await ask.queries.run("shop", "SELECT event_id FROM events WHERE false", "arrow")
    assert pa.ipc.open_stream(empty.body).read_all().schema.names == ["event_id"]


async def test_only_what_matters_is_read(ask: Asker) -> None:
    """Files of other hours and projects stay closed: the manifest says which those are."""
    all_files = await ask.answer("shop", "SELECT count(*), sum((properties->>'n')::INT) FROM events")
    assert all_files.files == 5
    one = await ask.answer(
        "shop",
        "SELECT count(*) FROM events WHERE timestamp >= '2026-03-01T02:10:00Z' AND timestamp < '2026-03-01T03:00:00Z'",
    )
    assert (one.files, msgspec.json.decode(one.body)) == (1, [[30]])
    assert one.result.bytes_read < all_files.result.bytes_read / 4
    assert (await ask.answer("nobody", "SELECT * FROM events")).files == 0


async def test_row_groups_of_other_projects_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One file, one hour, a row group for each project: what was read is counted by the kernel."""
    rows, projects = 1000, 20
    monkeypatch.setattr("storage.lake_file.ROW_GROUP_ROWS", rows)
    lake = SqlLake(tmp_path)
    [path] = lake.add_files(
        event(f"{name}-{number}", "2026-03-01T02:00:00Z", project=name, userId=os.urandom(16).hex())
        for name in (f"p{number:02d}" for number in range(projects))
        for number in range(rows)
    )
    assert pq.read_metadata(path).num_row_groups == projects
    async with asking(lake) as ask:
        one = await ask.answer("p07", "SELECT count(DISTINCT user_id), count(DISTINCT event_id) FROM events")
        none = await ask.answer("p07", "SELECT count(DISTINCT user_id) FROM events WHERE event_type > 'view'")
        column = await ask.answer("p07", "SELECT count(DISTINCT event_type) FROM events")
    assert msgspec.json.decode(one.body) == [[rows, rows]]
    footer = pq.read_metadata(path).serialized_size
    columns = sum(
        pq.read_metadata(path).row_group(group).column(index).total_compressed_size
        for group in range(projects)
        for index in (0, 1)
    )
    read = one.result.bytes_read - none.result.bytes_read
    assert footer < none.result.bytes_read < footer + columns / 4
    assert 0 < read < columns / 4
    assert column.result.bytes_read < one.result.bytes_read
