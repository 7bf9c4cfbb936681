"""Projects, their keys, and facts fixed when a system is created. Strong: a change is visible when the call returns.

**How gateways follow changes.** `changed_keys(since)` returns the keys that changed since an earlier call.
Each row carries the id of the transaction that wrote it. A call remembers, as the next `since`, the oldest
transaction that was still running before it read (`pg_snapshot_xmin`): every older one had ended and was
seen; every later one, however late it commits, is asked for again the next time. Nothing is missed, and what
is seen twice does no harm. (A time or a sequence would miss a transaction that began early and ended late.)
"""

import re
from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

import asyncpg
import msgspec

from storage.errors import Conflict, NotFound
from storage.key_text import KeyKind, hash_key, make_key
from storage.postgres import Connection, Postgres
from storage.statements import statement

PROJECT_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
FIRST_PROJECT = "default"

_PROJECT_COLUMNS = "project_id, created_at, coalesce(client_id, project_id)"
_CREATE_PROJECT = (
    f"INSERT INTO projects (project_id, client_id) VALUES ($1, $2) ON CONFLICT DO NOTHING RETURNING {_PROJECT_COLUMNS}"
)
_HAS_PROJECT = "SELECT EXISTS (SELECT FROM projects WHERE project_id = $1)"
_KEY_COLUMNS = "key_id, project_id, kind, key_hash, created_at, expires_at, revoked_at"
_LIST_KEYS = statement("list_keys")
_CHANGED_KEYS = f"SELECT {_KEY_COLUMNS} FROM api_keys WHERE changed_by >= $1::text::xid8 ORDER BY key_id"
_FIND_KEYS = f"SELECT {_KEY_COLUMNS} FROM api_keys WHERE key_hash = ANY($1)"
_CREATE_KEY = "INSERT INTO api_keys (project_id, kind, key_hash, expires_at) VALUES ($1, $2, $3, $4) RETURNING key_id"
_REVOKE_KEY = statement("revoke_key")
_OLDEST_RUNNING = "SELECT pg_snapshot_xmin(pg_current_snapshot())::text"
_ONE_BOOTSTRAP = "SELECT pg_advisory_xact_lock(hashtext('ensure_bootstrap'))"


class Project(NamedTuple):
    project_id: str
    created_at: datetime
    client_id: str
    """Of whom it is; its own name unless it was given to a client (`storage.destinations`)."""


class KeyRecord(NamedTuple):
    """A key as it is kept. `project_id` is None for the system's admin key."""

    key_id: str
    project_id: str | None
    kind: KeyKind
    key_hash: bytes
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None

    def is_valid(self, now: datetime) -> bool:
        return self.revoked_at is None and (self.expires_at is None or now < self.expires_at)


class NewKey(NamedTuple):
    """The only time that the text of a key is known."""

    key_id: str
    key: str


class KeyChanges(NamedTuple):
    keys: list[KeyRecord]
    since: int
    """To be given to the next `changed_keys`."""


class Bootstrap(NamedTuple):
    """What was made for a new system: the texts of its first keys."""

    project_id: str
    write_key: str
    read_key: str
    admin_key: str


class Registry:
    """Every call is one transaction with the deadline of the `Postgres` it is given."""

    def __init__(self, postgres: Postgres) -> None:
        self._postgres = postgres

    async def create_project(self, project_id: str, *, client_id: str | None = None) -> Project:
        """Raises `Conflict` when there is one of that name, `ValueError` for a name that is none."""
        async with self._postgres.session() as connection:
            return await _create_project(connection, project_id, client_id)

    async def list_projects(self, *, limit: int, after: str = "") -> list[Project]:
        """By name; the next page begins after the last name of this one. `ValueError` when `after` is no name."""
        if after:
            _check_project_id(after)
        async with self._postgres.session() as connection:
            rows = await connection.fetch(
                f"SELECT {_PROJECT_COLUMNS} FROM projects WHERE project_id > $1 ORDER BY project_id LIMIT $2",
                after,
                limit,
            )
        return [Project(*row) for row in rows]

    async def has_project(self, project_id: str) -> bool:
        async with self._postgres.session() as connection:
            return bool(await connection.fetchval(_HAS_PROJECT, project_id))

    async def create_key(self, project_id: str | None, kind: KeyKind, *, expires_at: datetime | None = None) -> NewKey:
        """Raises `NotFound` when there is no such project. Only an admin key may be of no project."""
        async with self._postgres.session() as connection:
            return await _create_key(connection, project_id, kind, expires_at)

    async def list_keys(
        self, project_id: str | None = None, *, limit: int, after: str | None = None
    ) -> list[KeyRecord]:
        """Of one project, or of all and the system, oldest first; the next page begins after the last key id
        of this one. Raises `ValueError` when `after` is no key id."""
        after_id = None if after is None else UUID(after)
        async with self._postgres.session() as connection:
            return _keys(await connection.fetch(_LIST_KEYS, project_id, after_id, limit))

    async def revoke_key(self, key_id: str, *, project_id: str | None = None) -> KeyRecord:
        """Raises `NotFound`, also for a key that is not the given project's. Revoking twice keeps the first time."""
        async with self._postgres.session() as connection:
            keys = _keys(await connection.fetch(_REVOKE_KEY, _key_id(key_id), project_id))
        if not keys:
            raise NotFound(f"there is no key {key_id}")
        return keys[0]

    async def find_keys(self, key_hashes: Sequence[bytes]) -> list[KeyRecord]:
        """Those of these `hash_key` that there are, in any order, revoked and expired ones too."""
        async with self._postgres.session() as connection:
            return _keys(await connection.fetch(_FIND_KEYS, key_hashes))

    async def changed_keys(self, since: int = 0) -> KeyChanges:
        """Keys made or revoked since that call, all for 0; see the module's head."""
        async with self._postgres.session() as connection:
            oldest_running = int(await connection.fetchval(_OLDEST_RUNNING))
            # A database restored into a new cluster counts from the beginning: everything is read again then.
            begin = since if since <= oldest_running else 0
            return KeyChanges(_keys(await connection.fetch(_CHANGED_KEYS, str(begin))), oldest_running)

    async def ensure_bootstrap(self) -> Bootstrap | None:
        """A first project, its keys and the system's admin key when there is no project; else None."""
        async with self._postgres.transaction() as connection:
            await connection.execute(_ONE_BOOTSTRAP)
            if await connection.fetchval("SELECT EXISTS (SELECT FROM projects)"):
                return None
            await _create_project(connection, FIRST_PROJECT)
            write = await _create_key(connection, FIRST_PROJECT, "write", None)
            read = await _create_key(connection, FIRST_PROJECT, "read", None)
            admin = await _create_key(connection, None, "admin", None)
            return Bootstrap(FIRST_PROJECT, write.key, read.key, admin.key)

    async def fix_at_creation(self, name: str, value: Any) -> Any:
        """Record a fact (as JSON) unless it is recorded, and return what is recorded: the caller compares."""
        async with self._postgres.session() as connection:
            await connection.execute(
                "INSERT INTO system (name, value) VALUES ($1, $2) ON CONFLICT DO NOTHING",
                name,
                msgspec.json.encode(value).decode(),
            )
            return msgspec.json.decode(await connection.fetchval("SELECT value FROM system WHERE name = $1", name))


async def _create_project(connection: Connection, project_id: str, client_id: str | None = None) -> Project:
    _check_project_id(project_id)
    if client_id is not None:
        check_client_id(client_id)
    row = await connection.fetchrow(_CREATE_PROJECT, project_id, client_id)
    if row is None:
        raise Conflict(f"there is a project {project_id} already")
    return Project(*row)


def _check_project_id(project_id: str) -> None:
    if PROJECT_ID.fullmatch(project_id) is None:
        raise ValueError(f"{project_id!r} is no project id: 1 to 100 letters, digits, '.', '_', '-', the first no sign")


def check_client_id(client_id: str) -> None:
    """Raises `ValueError`."""
    if PROJECT_ID.fullmatch(client_id) is None:
        raise ValueError(f"{client_id!r} is no client id: 1 to 100 letters, digits, '.', '_', '-', the first no sign")


async def _create_key(
    connection: Connection, project_id: str | None, kind: KeyKind, expires_at: datetime | None
) -> NewKey:
    if project_id is None:
        if kind != "admin":
            raise ValueError(f"a {kind} key needs a project")
    elif PROJECT_ID.fullmatch(project_id) is None:
        raise NotFound(f"there is no project {project_id!r}")
    key = make_key(kind)
    try:
        key_id = await connection.fetchval(_CREATE_KEY, project_id, kind, hash_key(key), expires_at)
    except asyncpg.ForeignKeyViolationError:
        raise NotFound(f"there is no project {project_id}") from None
    return NewKey(str(key_id), key)


def _keys(rows: list[asyncpg.Record]) -> list[KeyRecord]:
    return [KeyRecord(str(row["key_id"]), *row[1:]) for row in rows]


def _key_id(text: str) -> UUID:
    try:
        return UUID(text)
    except ValueError:
        raise NotFound(f"there is no key {text!r}") from None
