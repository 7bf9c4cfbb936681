"""The metrics that users define, in PostgreSQL. Strong: a change is visible when the call returns.

**Versions.** Every change of what a metric counts gets a number that was never used before: whoever builds something
for a definition remembers it. One of its patterns alone keeps number and time, since what was built still holds.
**Changes** are followed as those of keys are, see `storage.registry`: by the transactions
that made them, not by version, because a transaction with a lower number may end later.
"""

import logging
from collections.abc import Callable, Collection, Sequence
from datetime import UTC, datetime
from typing import NamedTuple

import asyncpg
import msgspec

from storage.errors import Conflict, FormatError, NotFound
from storage.metric_definitions import MetricDefinition, counts_alike, validate, validate_among
from storage.postgres import Connection, Postgres
from storage.registry import PROJECT_ID
from storage.statements import statement

_COLUMNS = "project_id, definition, version, created_at, changed_at, deleted_at"
_LIST = f"""SELECT {_COLUMNS} FROM metric_definitions
WHERE project_id = $1 AND (deleted_at IS NULL OR name = ANY($2::text[])) ORDER BY name"""
_CHANGED = f"SELECT {_COLUMNS} FROM metric_definitions WHERE changed_by >= $1::text::xid8 ORDER BY project_id, name"
_OLDEST_RUNNING = "SELECT pg_snapshot_xmin(pg_current_snapshot())::text"
_LOCK_PROJECT = "SELECT FROM projects WHERE project_id = $1 FOR NO KEY UPDATE"
_CREATE = statement("create_metric")
_REPLACE = statement("replace_metric")
_DELETE = statement("delete_metric")


_log = logging.getLogger(__name__)


class StoredDefinition(NamedTuple):
    """`created_at` is when the metric was first made (a deleted one that is made again begins anew), `changed_at` since
    when it counts as it does; `version` and it stay where nothing but patterns was replaced."""

    project_id: str
    definition: MetricDefinition
    version: int
    created_at: datetime
    changed_at: datetime
    deleted_at: datetime | None


class Changes(NamedTuple):
    definitions: Sequence[StoredDefinition]
    """Deleted ones too."""
    next_since: int
    """To be given to the next `changes_since`."""


class MetricRegistry:
    """Every call is one transaction with the deadline of the `Postgres` it is given."""

    def __init__(self, postgres: Postgres) -> None:
        self._postgres = postgres

    async def create(self, project_id: str, definition: MetricDefinition) -> StoredDefinition:
        """Raises `ValueError` (see `storage.metric_definitions.validate`), `Conflict` when the project has a metric of
        that name, `NotFound` when there is no such project."""
        validate(definition)
        if PROJECT_ID.fullmatch(project_id) is None:
            raise NotFound(f"there is no project {project_id!r}")
        async with self._postgres.transaction() as connection:
            await _check_others(connection, project_id, definition)
            try:
                row = await connection.fetchrow(_CREATE, project_id, definition.name, _encode(definition))
            except asyncpg.ForeignKeyViolationError:
                raise NotFound(f"there is no project {project_id}") from None
        if row is None:
            raise Conflict(f"{project_id} has a metric {definition.name} already")
        return _stored(row)

    async def replace(self, project_id: str, definition: MetricDefinition) -> StoredDefinition:
        """Give the metric of that name this definition. Raises `ValueError`, and `NotFound` when there is none."""
        validate(definition)
        async with self._postgres.transaction() as connection:
            await _check_others(connection, project_id, definition)
            row = await connection.fetchrow(_REPLACE, project_id, definition.name, _encode(definition))
        if row is None:
            raise NotFound(f"{project_id} has no metric {definition.name}")
        return _stored(row)

    async def delete(self, project_id: str, name: str) -> StoredDefinition:
        """What it has counted stays. Raises `NotFound`."""
        async with self._postgres.session() as connection:
            row = await connection.fetchrow(_DELETE, project_id, name)
        if row is None:
            raise NotFound(f"{project_id} has no metric {name}")
        return _stored(row)

    async def list(self, project_id: str, *, deleted: Collection[str] = ()) -> Sequence[StoredDefinition]:
        """The project's metrics by name, and those named in `deleted` that there were once."""
        async with self._postgres.session() as connection:
            return _usable(await connection.fetch(_LIST, project_id, list(deleted)))

    async def changes_since(self, since: int = 0) -> Changes:
        """Metrics made, replaced or deleted since that call, all for 0; some may be told twice."""
        async with self._postgres.session() as connection:
            oldest_running = int(await connection.fetchval(_OLDEST_RUNNING))
            # A database restored into a new cluster counts from the beginning: everything is read again then.
            begin = since if since <= oldest_running else 0
            rows = await connection.fetch(_CHANGED, str(begin))
        return Changes(_usable(rows, warn=True), oldest_running)


async def _check_others(connection: Connection, project_id: str, definition: MetricDefinition) -> None:
    if definition.aggregate_only:
        # Until the end of the transaction nobody else makes one.
        await connection.execute(_LOCK_PROJECT, project_id)
        others = await connection.fetch(_LIST, project_id, [])
        validate_among(definition, [each.definition for each in _usable(others)])


class MemoryMetricRegistry:
    """The registry in memory: for tests, and proved by the contract suite that `MetricRegistry` passes."""

    def __init__(
        self, projects: Sequence[str] = (), *, clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        """Without `projects` every project is there."""
        self._clock = clock
        self._projects = frozenset(projects)
        self._metrics: dict[tuple[str, str], StoredDefinition] = {}
        self._changed_by: dict[tuple[str, str], int] = {}
        self._version = 0
        self._changes = 0

    async def create(self, project_id: str, definition: MetricDefinition) -> StoredDefinition:
        validate(definition)
        if self._projects and project_id not in self._projects:
            raise NotFound(f"there is no project {project_id}")
        known = self._metrics.get((project_id, definition.name))
        if known is not None and known.deleted_at is None:
            raise Conflict(f"{project_id} has a metric {definition.name} already")
        validate_among(definition, [each.definition for each in await self.list(project_id)])
        return self._put(project_id, definition, self._clock())

    async def replace(self, project_id: str, definition: MetricDefinition) -> StoredDefinition:
        validate(definition)
        validate_among(definition, [each.definition for each in await self.list(project_id)])
        known = self._known(project_id, definition.name)
        if counts_alike(known.definition, definition):
            return self._keep(known._replace(definition=definition))
        return self._put(project_id, definition, known.created_at)

    async def delete(self, project_id: str, name: str) -> StoredDefinition:
        known = self._known(project_id, name)
        return self._put(project_id, known.definition, known.created_at, deleted_at=self._clock())

    async def list(self, project_id: str, *, deleted: Collection[str] = ()) -> Sequence[StoredDefinition]:
        mine = [self._metrics[key] for key in sorted(self._metrics) if key[0] == project_id]
        return [each for each in mine if each.deleted_at is None or each.definition.name in deleted]

    async def changes_since(self, since: int = 0) -> Changes:
        begin = since if since <= self._changes + 1 else 0
        changed = [self._metrics[key] for key in sorted(self._metrics) if self._changed_by[key] >= begin]
        return Changes(changed, self._changes + 1)

    def _known(self, project_id: str, name: str) -> StoredDefinition:
        known = self._metrics.get((project_id, name))
        if known is None or known.deleted_at is not None:
            raise NotFound(f"{project_id} has no metric {name}")
        return known

    def _put(
        self, project_id: str, definition: MetricDefinition, created_at: datetime, deleted_at: datetime | None = None
    ) -> StoredDefinition:
        self._version += 1
        return self._keep(
            StoredDefinition(project_id, definition, self._version, created_at, self._clock(), deleted_at)
        )

    def _keep(self, stored: StoredDefinition) -> StoredDefinition:
        key = stored.project_id, stored.definition.name
        self._changes += 1
        self._metrics[key], self._changed_by[key] = stored, self._changes
        return stored


def _encode(definition: MetricDefinition) -> str:
    return msgspec.json.encode(definition).decode()


def _usable(rows: Sequence[asyncpg.Record], *, warn: bool = False) -> list[StoredDefinition]:
    """Those that could be made today. One that could not (an earlier release let it through) must not end what counts
    all projects' metrics: it is as if it was not there. Who counts warns of it, once for each change; who answers
    queries would each time."""
    usable = []
    for row in rows:
        stored = _stored(row)
        try:
            validate(stored.definition)
        except ValueError as error:
            if warn:
                fields = {"action": "metric_refused", "project_id": row["project_id"], "reason": str(error)}
                _log.warning("a stored metric is left out", extra=fields)
        else:
            usable.append(stored)
    return usable


def _stored(row: asyncpg.Record) -> StoredDefinition:
    try:
        definition = msgspec.json.decode(row["definition"], type=MetricDefinition)
    except msgspec.MsgspecError as error:
        raise FormatError(f"a metric of {row['project_id']} is not one that this release reads: {error}") from error
    times = (row["created_at"], row["changed_at"], row["deleted_at"])
    return StoredDefinition(row["project_id"], definition, row["version"], *times)
