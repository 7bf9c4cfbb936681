"""What of the stored events is in the lake, out of PostgreSQL. The law is `storage.lake_exports`'s."""

from collections.abc import Sequence
from datetime import UTC, datetime

from storage.fingerprint import partition_of
from storage.lake_exports import (
    COUNTED_EVENTS,
    Backlog,
    EventFile,
    ExportedFile,
    ExportedTotals,
    ExportOverview,
    PartitionState,
    fresh_at,
    row_group_of,
)
from storage.postgres import Connection, Postgres
from storage.statements import statement

_FILES = statement("export_files")
_FILES_OF_PROJECT = statement("export_files_of_project")
_TOTALS = statement("export_totals")
_TOTALS_OF_PROJECT = statement("export_totals_of_project")
_STATES = statement("export_states")
_PENDING_EVENTS = statement("export_pending_events")
_FILE_OF_EVENT = statement("file_of_event")
_PLAN = statement("copy_recent_plan")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class PostgresLakeExports:
    """`storage.lake_exports.LakeExports`. Every call has the deadline of the `Postgres` it is given."""

    def __init__(self, postgres: Postgres, *, partitions: int) -> None:
        self._postgres = postgres
        self._partitions = partitions

    async def files(
        self,
        *,
        project_id: str | None = None,
        start: datetime | None = None,
        end: datetime | None = None,
        after: tuple[datetime, int] | None = None,
        limit: int = 100,
    ) -> list[ExportedFile]:
        wanted = (start, end, *(after or (None, None)), limit)
        async with self._postgres.session() as connection:
            if project_id is None:
                rows = await connection.fetch(_FILES, *wanted)
            else:
                rows = await connection.fetch(_FILES_OF_PROJECT, *wanted, project_id)
        return [ExportedFile(*row) for row in rows]

    async def overview(
        self, *, project_id: str | None = None, start: datetime | None = None, end: datetime | None = None
    ) -> ExportOverview:
        partition = None if project_id is None else partition_of(project_id, self._partitions)
        async with self._postgres.transaction(snapshot=True) as connection:
            if project_id is None:
                [totals] = await connection.fetch(_TOTALS, start, end)
            else:
                [totals] = await connection.fetch(_TOTALS_OF_PROJECT, start, end, project_id)
            states = [PartitionState(*row) for row in await connection.fetch(_STATES, partition)]
            pending = await _backlog(connection, project_id, [state for state in states if state.behind])
        exports = [state.last_export_at for state in states if state.last_export_at is not None]
        return ExportOverview(ExportedTotals(*totals), pending, max(exports, default=None), fresh_at(states))

    async def file_of(self, partition: int, offset: int, timestamp: datetime) -> EventFile | None:
        async with self._postgres.session() as connection:
            row = await connection.fetchrow(_FILE_OF_EVENT, partition, offset, timestamp)
        if row is None:
            return None
        return EventFile(row["key"], row_group_of(row["key"], row["rows"]), row["exported_at"])


async def _backlog(connection: Connection, project_id: str | None, behind: Sequence[PartitionState]) -> Backlog:
    if not behind:
        return Backlog(0, 0, complete=True)
    await connection.execute(_PLAN)
    found = await connection.fetchval(
        _PENDING_EVENTS,
        project_id,
        [state.partition for state in behind],
        [state.exported_below for state in behind],
        min(state.since or _EPOCH for state in behind),
        COUNTED_EVENTS + 1,
    )
    records = sum(state.behind for state in behind)
    return Backlog(records, min(found, COUNTED_EVENTS), complete=found <= COUNTED_EVENTS)
