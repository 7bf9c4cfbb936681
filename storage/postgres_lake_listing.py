"""What is in the lake, out of PostgreSQL. The law is `storage.lake_listing`'s."""

from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime
from typing import Any

from storage.lake_listing import AgingFile, HourParts, LakeTotals, PendingExport, Volume, needed_since
from storage.lake_manifest import FileEntry, LakeFile
from storage.postgres import Postgres
from storage.postgres_lake_files import entry_of, load_files
from storage.statements import statement

_FILES = statement("list_lake_files")
_TOTALS = statement("lake_totals")
_TOTALS_OF_PROJECT = statement("lake_totals_of_project")
_PENDING = statement("lake_pending")
_VOLUMES = statement("lake_volumes")
_HOLDINGS = statement("lake_holdings")
_HOURS = statement("hours_to_compact")
_SMALL = statement("small_lake_files")
_AGING = statement("aging_files")
_EXPIRED = statement("expired_lake_files")
_GAPS = statement("lake_gaps")
_FORGET_HISTORY = statement("forget_history")
_FORGET = "DELETE FROM lake_files WHERE file_id = ANY($1) AND retired_at IS NOT NULL"
_KNOWN = "SELECT key FROM lake_files WHERE key = ANY($1)"
_ENDED = "SELECT plan_id, created_at FROM lake_plans WHERE plan_id = ANY($1) AND state <> 'open'"
_OPEN_PLANS = "SELECT plan_id FROM lake_plans WHERE state = 'open'"
_COUNT_HISTORY = "SELECT count(*) FROM lake_plans WHERE state <> 'open' AND ended_at < $1"
_NEVER = datetime(1, 1, 1, tzinfo=UTC)


class PostgresLakeListing:
    """`storage.lake_listing.LakeListing`. Every call has the deadline of the `Postgres` it is given."""

    def __init__(self, postgres: Postgres) -> None:
        self._postgres = postgres

    async def files(
        self,
        *,
        project_id: str | None = None,
        start: datetime | None = None,
        end: datetime | None = None,
        after: tuple[datetime, int] | None = None,
        limit: int = 1000,
    ) -> list[FileEntry]:
        return await self._entries(_FILES, project_id, start, end, *(after or (None, None)), limit)

    async def load(self, file_ids: Sequence[int]) -> dict[int, LakeFile]:
        async with self._postgres.session() as connection:
            return await load_files(connection, file_ids)

    async def totals(self, project_id: str | None = None) -> LakeTotals:
        wanted = (_TOTALS,) if project_id is None else (_TOTALS_OF_PROJECT, project_id)
        async with self._postgres.session() as connection:
            [row] = await connection.fetch(*wanted)
        return LakeTotals(*row)

    async def pending(self) -> list[PendingExport]:
        async with self._postgres.session() as connection:
            return [PendingExport(*row) for row in await connection.fetch(_PENDING)]

    async def needed_since(self) -> datetime | None:
        return needed_since(await self.pending())

    async def volumes(
        self, *, project_id: str | None = None, start: date | None = None, end: date | None = None
    ) -> list[Volume]:
        async with self._postgres.session() as connection:
            return [Volume(*row) for row in await connection.fetch(_VOLUMES, project_id, start, end)]

    async def holdings(
        self, *, project_id: str | None = None, start: date | None = None, end: date | None = None
    ) -> list[Volume]:
        async with self._postgres.session() as connection:
            return [Volume(*row) for row in await connection.fetch(_HOLDINGS, project_id, start, end)]

    async def hours_to_compact(
        self, *, small_bytes: int, quiet_s: float, max_parts: int, limit: int
    ) -> list[HourParts]:
        async with self._postgres.session() as connection:
            rows = await connection.fetch(_HOURS, small_bytes, quiet_s, max_parts, limit)
        return [HourParts(*row) for row in rows]

    async def small_files(self, hour: datetime, *, small_bytes: int) -> list[FileEntry]:
        return await self._entries(_SMALL, hour, small_bytes)

    async def aging(
        self,
        *,
        hot_before: datetime | None,
        before: datetime | None,
        limited: Mapping[str, datetime | None],
        after: tuple[datetime, int] | None = None,
        limit: int,
    ) -> list[AgingFile]:
        times = [time or _NEVER for time in limited.values()]
        asked = (hot_before or _NEVER, before or _NEVER, list(limited), times, *(after or (None, None)), limit)
        async with self._postgres.session() as connection:
            rows = await connection.fetch(_AGING, *asked)
        return [_aging(row) for row in rows]

    async def expired(self, *, grace_s: float, limit: int) -> list[FileEntry]:
        return await self._entries(_EXPIRED, grace_s, limit)

    async def forget(self, file_ids: Sequence[int]) -> None:
        async with self._postgres.session() as connection:
            await connection.execute(_FORGET, file_ids)

    async def known(self, keys: Sequence[str]) -> set[str]:
        async with self._postgres.session() as connection:
            return {row["key"] for row in await connection.fetch(_KNOWN, keys)}

    async def ended(self, plan_ids: Sequence[int]) -> dict[int, datetime]:
        async with self._postgres.session() as connection:
            return {row["plan_id"]: row["created_at"] for row in await connection.fetch(_ENDED, plan_ids)}

    async def open_plan_ids(self) -> set[int]:
        async with self._postgres.session() as connection:
            return {row["plan_id"] for row in await connection.fetch(_OPEN_PLANS)}

    async def gaps(self) -> list[str]:
        async with self._postgres.session() as connection:
            return [row[0] for row in await connection.fetch(_GAPS)]

    async def count_history(self, *, before: datetime) -> int:
        async with self._postgres.session() as connection:
            return int(await connection.fetchval(_COUNT_HISTORY, before))

    async def forget_history(self, *, before: datetime) -> int:
        async with self._postgres.session() as connection:
            return int(await connection.fetchval(_FORGET_HISTORY, before))

    async def _entries(self, query: str, *arguments: object) -> list[FileEntry]:
        async with self._postgres.session() as connection:
            return [entry_of(row) for row in await connection.fetch(query, *arguments)]


def _aging(row: Any) -> AgingFile:
    projects = dict(zip(row["projects"], row["project_rows"], strict=True))
    return AgingFile(
        row["file_id"],
        row["key"],
        row["hour"],
        row["exported_at"],
        row["tier"],
        row["rows"],
        row["bytes"],
        projects,
    )
