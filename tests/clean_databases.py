"""Databases of one schema that many tests use in turn, each as if it were new.

To make a database is to make four hundred files, and to drop one is to remove as many: with hundreds of tests that was
most of what a file system did, and half of the processors' time. What a test leaves is taken back instead: rows and
counters. Who has left more than that, such as a table, has had the last turn with that database.
"""

import asyncio
import uuid
from collections.abc import Sequence

import asyncpg

_TABLES = """
    SELECT oid::regclass::text FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace ORDER BY 1
"""
_REFERENCES = """
    SELECT confrelid::regclass::text, conrelid::regclass::text FROM pg_constraint WHERE contype = 'f'
"""
_COUNTERS = "SELECT format('%I.%I', schemaname, sequencename) FROM pg_sequences WHERE last_value IS NOT NULL"
_SCHEMA = """
    WITH spaces AS (SELECT oid FROM pg_namespace WHERE nspname NOT LIKE 'pg\\_%' AND nspname <> 'information_schema'),
    relations AS (SELECT * FROM pg_class WHERE relnamespace IN (SELECT oid FROM spaces))
    SELECT md5(string_agg(part, ',' ORDER BY part COLLATE "C")) FROM (
        SELECT format('%s %s %s', nspname, nspowner, nspacl) FROM pg_namespace
        UNION ALL SELECT format('%s %s %s %s %s', relnamespace, relname, relkind, reloptions, relacl) FROM relations
        UNION ALL SELECT format('%s %s %s %s %s', relname, attname, atttypid, attnotnull, attnum)
            FROM pg_attribute JOIN relations ON relations.oid = attrelid
        UNION ALL SELECT format('%s %s', relname, pg_get_expr(adbin, adrelid))
            FROM pg_attrdef JOIN relations ON relations.oid = adrelid
        UNION ALL SELECT format('%s %s', conname, pg_get_constraintdef(oid))
            FROM pg_constraint WHERE connamespace IN (SELECT oid FROM spaces)
        UNION ALL SELECT format('%s %s %s', indexrelid::regclass, indisvalid, pg_get_indexdef(indexrelid))
            FROM pg_index JOIN relations ON relations.oid = indexrelid
        UNION ALL SELECT format('%s %s %s', tgrelid::regclass, tgname, tgenabled) FROM pg_trigger WHERE NOT tgisinternal
        UNION ALL SELECT format('%s %s', proname, prosrc) FROM pg_proc WHERE pronamespace IN (SELECT oid FROM spaces)
        UNION ALL SELECT format('%s %s', relname, pg_get_viewdef(oid)) FROM relations WHERE relkind IN ('v', 'm')
        UNION ALL SELECT extname FROM pg_extension
        UNION ALL SELECT setconfig::text FROM pg_db_role_setting JOIN pg_database ON pg_database.oid = setdatabase
            WHERE datname = current_database()
    ) AS parts (part)
"""
_LEFT_OPEN = """
    SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'
"""


class CleanDatabases:
    """Copies of one database, which nobody may be connected to while one is made."""

    def __init__(self, server_url: str, template: str) -> None:
        self._server_url = server_url
        self._template = template
        self._free: list[str] = []
        self._as_new: tuple[str, dict[str, str]] | None = None

    def url_of(self, name: str) -> str:
        return f"{self._server_url.rsplit('/', 1)[0]}/{name}"

    def take(self) -> str:
        """The name of one that is as the template."""
        return self._free.pop() if self._free else asyncio.run(self._make())

    def put_back(self, name: str) -> None:
        if asyncio.run(self._clean(name)):
            self._free.append(name)
        else:
            asyncio.run(self._execute(f"DROP DATABASE {name} WITH (FORCE)"))

    async def _make(self) -> str:
        if self._as_new is None:
            self._as_new = await self._look(self._template)
        name = f"test_{uuid.uuid4().hex}"
        # Copied as files, not through the log: that takes two thirds of the time where nothing is synced.
        await self._execute(f"CREATE DATABASE {name} TEMPLATE {self._template} STRATEGY FILE_COPY")
        return name

    async def _execute(self, statement: str) -> None:
        connection = await asyncpg.connect(self._server_url)
        try:
            await connection.execute(statement)
        finally:
            await connection.close()

    async def _look(self, name: str) -> tuple[str, dict[str, str]]:
        connection = await asyncpg.connect(self.url_of(name))
        try:
            return await _schema(connection), await _rows(connection, await _tables(connection))
        finally:
            await connection.close()

    async def _clean(self, name: str) -> bool:
        """Whether it is as new again."""
        connection = await asyncpg.connect(self.url_of(name))
        try:
            await connection.execute(_LEFT_OPEN)
            assert self._as_new is not None
            schema, rows = self._as_new
            if await _schema(connection) != schema:
                return False
            emptied = await _with_what_refers_to(await _filled(connection, rows), connection)
            kept = {table: before for table, before in rows.items() if before}
            if emptied & kept.keys() or await _rows(connection, list(kept)) != kept:
                return False
            if emptied:
                await connection.execute(f"TRUNCATE {', '.join(emptied)}")
            for (counter,) in await connection.fetch(_COUNTERS):
                await connection.execute(f"ALTER SEQUENCE {counter} RESTART")
        finally:
            await connection.close()
        return True


async def _schema(connection: "asyncpg.Connection[asyncpg.Record]") -> str:
    return str(await connection.fetchval(_SCHEMA))


async def _tables(connection: "asyncpg.Connection[asyncpg.Record]") -> list[str]:
    return [table for (table,) in await connection.fetch(_TABLES)]


async def _rows(connection: "asyncpg.Connection[asyncpg.Record]", tables: Sequence[str]) -> dict[str, str]:
    """By table what tells its rows from others; empty without rows."""
    tells = "coalesce(md5(string_agg(t::text, ',' ORDER BY t::text)), '')"
    return {table: await connection.fetchval(f"SELECT {tells} FROM {table} AS t") for table in tables}


async def _filled(connection: "asyncpg.Connection[asyncpg.Record]", rows: dict[str, str]) -> set[str]:
    """Tables that have rows and had none."""
    each = (f"SELECT '{table}' WHERE EXISTS (SELECT FROM {table})" for table, before in rows.items() if not before)
    return {table for (table,) in await connection.fetch(" UNION ALL ".join(each))}


async def _with_what_refers_to(tables: set[str], connection: "asyncpg.Connection[asyncpg.Record]") -> set[str]:
    references = [tuple(row) for row in await connection.fetch(_REFERENCES)] if tables else []
    while more := {child for parent, child in references if parent in tables} - tables:
        tables = tables | more
    return tables
