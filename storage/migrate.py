"""Brings a database to this release's schema: storage/sql/migrations/NNNN_name.sql, in order, each once.

One at a time (an advisory lock), each in a transaction, recorded with its checksum in schema_migrations.
A database that is newer than this release, or whose recorded migrations are not the ones of this release,
is refused and left as it is; so is a server older than PostgreSQL 18.
"""

import asyncio
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from typing import NamedTuple

import asyncpg

from storage.errors import Misconfigured
from storage.postgres import translated

MIN_SERVER_VERSION = 18

_LOCK_ID = 0x6161_6D69
"""Any number that only this program locks by."""


class Migration(NamedTuple):
    version: int
    name: str
    sql: str

    @property
    def checksum(self) -> str:
        return hashlib.sha256(self.sql.encode()).hexdigest()


def migrations() -> list[Migration]:
    """Those of this release, in order."""
    found = []
    for file in files("storage").joinpath("sql", "migrations").iterdir():
        name = file.name.removesuffix(".sql")
        found.append(Migration(int(name[:4]), name, file.read_text(encoding="utf-8")))
    return sorted(found)


async def migrate(url: str, *, deadline_s: float = 300.0, connect_timeout_s: float = 5.0) -> list[str]:
    """Apply what is missing and return its names. Raises `Misconfigured` when the database is not ours to change."""
    with translated(), _usable():
        async with asyncio.timeout(deadline_s):
            connection = await asyncpg.connect(url, timeout=connect_timeout_s)
            try:
                _check_server(connection)
                await connection.execute("SELECT pg_advisory_lock($1)", _LOCK_ID)
                return await _apply_missing(connection, migrations())
            finally:
                await connection.close(timeout=connect_timeout_s)


@contextmanager
def _usable() -> Iterator[None]:
    """A person waits for `migrate`: what no other try mends is told as such."""
    try:
        yield
    except (
        asyncpg.InvalidAuthorizationSpecificationError,
        asyncpg.InvalidCatalogNameError,
        asyncpg.InsufficientPrivilegeError,
    ) as error:
        raise Misconfigured(f"PostgreSQL is there and cannot be used: {error}") from error
    except asyncpg.ClientConfigurationError as error:
        raise Misconfigured(f"store.postgres_url is no URL of a PostgreSQL: {error}") from error


def _check_server(connection: "asyncpg.Connection[asyncpg.Record]") -> None:
    version = connection.get_server_version()
    if version.major < MIN_SERVER_VERSION:
        raise Misconfigured(
            f"the server is PostgreSQL {version.major}.{version.minor}; {MIN_SERVER_VERSION} or later is needed"
        )


async def _apply_missing(connection: "asyncpg.Connection[asyncpg.Record]", known: list[Migration]) -> list[str]:
    applied = await _applied(connection)
    check_history(applied, known)
    missing = known[len(applied) :]
    for migration in missing:
        async with connection.transaction():
            await connection.execute(migration.sql)
            await connection.execute(
                "INSERT INTO schema_migrations (version, name, checksum) VALUES ($1, $2, $3)",
                migration.version,
                migration.name,
                migration.checksum,
            )
    return [migration.name for migration in missing]


async def _applied(connection: "asyncpg.Connection[asyncpg.Record]") -> list[tuple[int, str, str]]:
    if await connection.fetchval("SELECT to_regclass('schema_migrations') IS NULL"):
        return []
    rows = await connection.fetch("SELECT version, name, checksum FROM schema_migrations ORDER BY version")
    return [(row["version"], row["name"], row["checksum"]) for row in rows]


def check_history(applied: list[tuple[int, str, str]], known: list[Migration]) -> None:
    """What was applied must be the beginning of what is known, word for word."""
    for (version, name, checksum), migration in zip(applied, known, strict=False):
        if version != migration.version or checksum != migration.checksum:
            raise Misconfigured(
                f"the database has migration {name}, this release has {migration.name} with other content: "
                "the database belongs to another release; nothing was changed"
            )
    if len(applied) > len(known):
        raise Misconfigured(
            f"the database has migration {applied[-1][1]}, which this release does not know: "
            "it was made by a newer release; upgrade this one. Nothing was changed"
        )
