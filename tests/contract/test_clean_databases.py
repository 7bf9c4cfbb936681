"""A database that the tests use in turn is as new each time, or is not used again."""

import asyncio

import asyncpg
import pytest

from tests.clean_databases import CleanDatabases

INSERTED = """
    INSERT INTO projects (project_id) VALUES ('shop');
    INSERT INTO api_keys (project_id, kind, key_hash) VALUES ('shop', 'write', sha256('key'));
    SELECT setval('lake_plans_plan_id_seq', 7);
"""


def ask(url: str, sql: str) -> list[tuple[object, ...]]:
    async def run() -> list[tuple[object, ...]]:
        connection = await asyncpg.connect(url)
        try:
            return [tuple(row) for row in await connection.fetch(sql)]
        finally:
            await connection.close()

    return asyncio.run(run())


async def leave_open(url: str, sql: str) -> None:
    """Within a transaction that is never ended, of a connection that is never closed."""
    connection = await asyncpg.connect(url)
    await connection.execute(sql)
    await connection.execute("BEGIN; LOCK TABLE projects")
    connection.terminate()


def test_rows_and_counters_and_connections_are_taken_back(clean_databases: CleanDatabases) -> None:
    name = clean_databases.take()
    url = clean_databases.url_of(name)
    before = ask(url, "SELECT last_value, is_called FROM lake_plans_plan_id_seq")
    asyncio.run(leave_open(url, INSERTED))
    clean_databases.put_back(name)
    assert clean_databases.take() == name
    assert ask(url, "SELECT FROM projects UNION ALL SELECT FROM api_keys") == []
    assert ask(url, "SELECT last_value, is_called FROM lake_plans_plan_id_seq") == before
    assert ask(url, "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()") == [(1,)]
    clean_databases.put_back(name)


@pytest.mark.parametrize(
    "left",
    [
        "CREATE TABLE more ()",
        "ALTER TABLE projects ADD more int",
        "DROP INDEX events_log_lookup",
        "CREATE FUNCTION more() RETURNS int LANGUAGE sql AS 'SELECT 1'",
        "DELETE FROM schema_migrations",
        "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET work_mem = ''1MB''', current_database()); END $$",
    ],
)
def test_a_changed_schema_is_not_used_again(clean_databases: CleanDatabases, left: str) -> None:
    name = clean_databases.take()
    ask(clean_databases.url_of(name), left)
    clean_databases.put_back(name)
    other = clean_databases.take()
    assert other != name
    assert (name,) not in ask(clean_databases.url_of(other), "SELECT datname FROM pg_database")
    clean_databases.put_back(other)
