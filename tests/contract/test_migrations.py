"""Migrations: what they make, and what they refuse to touch."""

import asyncio
import subprocess
from collections.abc import Iterator
from importlib.resources import files

import asyncpg
import pytest

from storage import migrate as migrate_module
from storage.embedded.postgres import POSTGRES_BIN_PATH
from storage.embedded.process import free_port
from storage.errors import Misconfigured, Unavailable
from storage.migrate import Migration, migrate, migrations

NAMES = [migration.name for migration in migrations()]


@pytest.fixture
def postgres_url(empty_postgres_url: str) -> str:
    return empty_postgres_url


@pytest.fixture
def second_url(postgres_url: str) -> Iterator[str]:
    """Another empty database beside that of the test."""
    server, name = postgres_url.rsplit("/", 1)
    asyncio.run(_run(postgres_url, f"CREATE DATABASE {name}_2"))
    yield f"{server}/{name}_2"
    asyncio.run(_run(postgres_url, f"DROP DATABASE {name}_2 WITH (FORCE)"))


async def _run(url: str, sql: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(sql)
    finally:
        await connection.close()


def _dump(url: str) -> str:
    command = [str(POSTGRES_BIN_PATH / "pg_dump"), "--schema-only", "--no-owner", "-d", url]
    dumped = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    # Its session key is another each time.
    return "\n".join(line for line in dumped.splitlines() if not line.startswith(("\\restrict", "\\unrestrict")))


async def test_the_migrations_make_what_schema_sql_says(postgres_url: str, second_url: str) -> None:
    assert await migrate(postgres_url) == NAMES
    await _run(second_url, files("storage").joinpath("sql", "schema.sql").read_text())
    assert "CREATE TABLE public.events_log" in _dump(postgres_url)
    assert _dump(postgres_url) == _dump(second_url)


async def test_days_of_an_earlier_release_get_what_new_ones_have(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = [migration for migration in migrations() if migration.version < 13]
    monkeypatch.setattr(migrate_module, "migrations", lambda: before)
    await migrate(postgres_url)
    await _run(postgres_url, "SELECT events_log_add_day('2026-01-01')")
    monkeypatch.undo()
    await migrate(postgres_url)
    await _run(postgres_url, "SELECT events_log_add_day('2026-01-02')")
    connection = await asyncpg.connect(postgres_url)
    try:
        options = await connection.fetch(
            "SELECT day.reloptions, long.reloptions FROM pg_inherits JOIN pg_class AS day ON day.oid = inhrelid"
            " JOIN pg_class AS long ON long.oid = day.reltoastrelid WHERE inhparent = 'events_log'::regclass"
        )
    finally:
        await connection.close()
    assert [tuple(option) for option in options] == [(["autovacuum_vacuum_insert_threshold=-1"],) * 2] * 2


async def test_a_second_time_nothing_is_done(postgres_url: str) -> None:
    await migrate(postgres_url)
    assert await migrate(postgres_url) == []


async def test_several_at_once_apply_each_migration_once(postgres_url: str) -> None:
    applied = await asyncio.gather(*(migrate(postgres_url) for _ in range(5)))
    assert sorted(applied, key=len) == [[], [], [], [], NAMES]


async def test_a_failing_migration_leaves_the_earlier_ones(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = Migration(9000, "9000_broken", "CREATE TABLE half (n integer); SELECT 1/0")
    monkeypatch.setattr(migrate_module, "migrations", lambda: [*migrations(), broken])
    with pytest.raises(Unavailable, match="division by zero"):
        await migrate(postgres_url)
    monkeypatch.undo()
    assert await migrate(postgres_url) == []
    with pytest.raises(asyncpg.UndefinedTableError):
        await _run(postgres_url, "SELECT * FROM half")


async def test_a_newer_database_is_refused(postgres_url: str) -> None:
    await migrate(postgres_url)
    await _run(postgres_url, "INSERT INTO schema_migrations (version, name, checksum) VALUES (9999, '9999_new', '')")
    with pytest.raises(Misconfigured, match=r"9999_new.*newer release"):
        await migrate(postgres_url)


async def test_another_history_is_refused(postgres_url: str) -> None:
    await migrate(postgres_url)
    await _run(postgres_url, "UPDATE schema_migrations SET checksum = 'x' WHERE version = 2")
    with pytest.raises(Misconfigured, match="0002_events"):
        await migrate(postgres_url)


async def test_an_older_server_is_refused(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(migrate_module, "MIN_SERVER_VERSION", 19)
    with pytest.raises(Misconfigured, match="19 or later"):
        await migrate(postgres_url)
    monkeypatch.undo()
    assert await migrate(postgres_url) == NAMES


async def test_what_cannot_be_used_is_told_from_what_is_away(postgres_url: str) -> None:
    with pytest.raises(Misconfigured, match="no_such_database"):
        await migrate(f"{postgres_url.rsplit('/', 1)[0]}/no_such_database")
    with pytest.raises(Unavailable):
        await migrate(f"postgresql://postgres@127.0.0.1:{free_port()}/postgres")


@pytest.mark.parametrize("url", ["foo", "postgresql://u@127.0.0.1:1/x?sslmode=zz"])
async def test_what_is_no_url_of_a_postgres_is_told(url: str) -> None:
    with pytest.raises(Misconfigured, match=r"store\.postgres_url is no URL of a PostgreSQL"):
        await migrate(url)
