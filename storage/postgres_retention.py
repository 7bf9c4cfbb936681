"""What retention looks at and removes in PostgreSQL. The law is `storage.retention`'s.

Those who remove events of a day do so one after another (an advisory lock), each in one transaction that counts what it
removes. A day is counted first, which takes a while and disturbs nobody, and detached and dropped at the end, which
takes a moment.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Any

import asyncpg

from storage.errors import Conflict, NotFound
from storage.postgres import Connection, Postgres
from storage.retention import LOCK_TIMEOUT_S, NO_LIMITS, Gone, Group, ProjectLimits, Removal, Run, Share, StoredDay
from storage.statements import statement

SCAN_DEADLINE_S = 600.0
"""Of looking through a day's rows."""
PAGES_AT_ONCE = 1024
"""8 MB of rows, some 20,000 events."""

_DAYS = statement("stored_days")
_DAY_PROJECTS = statement("day_projects")
_SHARES = statement("day_shares")
_COUNT_EXPIRED = statement("count_expired")
_EXPIRE_DAY = statement("expire_day") + _COUNT_EXPIRED
_EXPIRE_ROWS = statement("expire_rows") + _COUNT_EXPIRED
_NOTE = statement("note_removal")
_SET_LIMITS = statement("set_retention")
_SERIES = statement("rollup_series")
_AGGREGATED = statement("aggregated_projects")
_COUNTED = statement("counted_projects")
_LIMITS = "SELECT project_id, raw_days, lake_days, rollup_days FROM retention_limits"
_CLEAR_LIMITS = "DELETE FROM retention_limits WHERE project_id = $1"
_STORED_BEFORE = "SELECT stored_before FROM expired_events WHERE project_id = $1"
_LAKE_WAS_USED = "SELECT EXISTS (SELECT FROM checkpoints WHERE sink = 'lake')"
_BEGIN_RUN = "INSERT INTO retention_runs (started_at) VALUES ($1) RETURNING run_id"
_END_RUN = "UPDATE retention_runs SET finished_at = $2, kept = $3 WHERE run_id = $1"
_LAST_RUN = "SELECT max(started_at) FROM retention_runs WHERE finished_at IS NOT NULL"
_RUNS = "SELECT run_id, started_at, finished_at, kept FROM retention_runs ORDER BY run_id DESC LIMIT $1"
_REMOVALS = """
    SELECT run_id, kind, name, files, rows, bytes FROM retention_removals WHERE run_id = ANY($1)
    ORDER BY removed_at, name
"""
_ONE_AT_A_TIME = "SELECT pg_advisory_xact_lock(hashtext('retention'))"
_IS_THERE = "SELECT to_regclass($1) IS NOT NULL"
_PAGES = "SELECT pg_relation_size($1::text::regclass) / current_setting('block_size')::integer"
_SINGLE_GROUPS = (Group("dead_letters"), Group("patterns"), Group("recomputed_days"), Group("runs"))
_COUNT = "SELECT count(*), coalesce(sum(pg_column_size({table}.*)), 0)::bigint FROM {table} WHERE {condition}"


class PostgresRetention:
    """`storage.retention.RetentionStore`."""

    def __init__(self, postgres: Postgres) -> None:
        self._postgres = postgres

    async def limits(self) -> dict[str, ProjectLimits]:
        async with self._postgres.session() as connection:
            return {row[0]: ProjectLimits(*row[1:]) for row in await connection.fetch(_LIMITS)}

    async def set_limits(self, project_id: str, limits: ProjectLimits) -> None:
        async with self._postgres.session() as connection:
            if await connection.fetchrow(_SET_LIMITS, project_id, *limits) is None:
                raise NotFound(f"there is no project {project_id}")

    async def clear_limits(self, project_id: str) -> None:
        async with self._postgres.session() as connection:
            await connection.execute(_CLEAR_LIMITS, project_id)

    async def stored_before(self, project_id: str) -> datetime | None:
        async with self._postgres.session() as connection:
            found: datetime | None = await connection.fetchval(_STORED_BEFORE, project_id)
        return found

    async def lake_was_used(self) -> bool:
        async with self._postgres.session() as connection:
            return bool(await connection.fetchval(_LAKE_WAS_USED))

    async def begin_run(self, at: datetime) -> int:
        async with self._postgres.session() as connection:
            return int(await connection.fetchval(_BEGIN_RUN, at))

    async def end_run(self, run_id: int, at: datetime, kept: Sequence[str]) -> None:
        async with self._postgres.session() as connection:
            await connection.execute(_END_RUN, run_id, at, kept)

    async def last_run(self) -> datetime | None:
        async with self._postgres.session() as connection:
            found: datetime | None = await connection.fetchval(_LAST_RUN)
        return found

    async def runs(self, *, limit: int) -> list[Run]:
        async with self._postgres.transaction(snapshot=True) as connection:
            runs = await connection.fetch(_RUNS, limit)
            removals = await connection.fetch(_REMOVALS, [row["run_id"] for row in runs])
        removed: defaultdict[int, list[Removal]] = defaultdict(list)
        for row in removals:
            removed[row["run_id"]].append(Removal(*row[1:]))
        return [_run(row, removed[row["run_id"]]) for row in runs]

    async def note(self, run_id: int, removal: Removal) -> None:
        async with self._postgres.session() as connection:
            await _note(connection, run_id, removal)

    async def days(self) -> list[StoredDay]:
        async with self._postgres.session() as connection:
            return [StoredDay(*row) for row in await connection.fetch(_DAYS)]

    async def projects_of(self, day: date) -> list[str]:
        async with self._postgres.session() as connection:
            if not await connection.fetchval(_IS_THERE, _table(day)):
                return []
            return [row[0] for row in await connection.fetch(_on(day, _DAY_PROJECTS))]

    async def shares(
        self,
        day: date,
        *,
        exported_before: datetime | None,
        projects: Sequence[str] | None = None,
        lake_before: datetime | None = None,
        lake_limited: Mapping[str, datetime | None] = NO_LIMITS,
    ) -> list[Share]:
        limited = (list(lake_limited), list(lake_limited.values()))
        asked = (projects, exported_before is not None, exported_before, lake_before, *limited)
        async with self._postgres.transaction(snapshot=True, deadline_s=SCAN_DEADLINE_S) as connection:
            if not await connection.fetchval(_IS_THERE, _table(day)):
                return []
            return [Share(*row) for row in await connection.fetch(_on(day, _SHARES), *asked)]

    async def drop_day(self, run_id: int, day: date, *, size: int) -> int:
        table = _table(day)
        async with self._postgres.transaction(deadline_s=SCAN_DEADLINE_S) as connection:
            await connection.execute(_ONE_AT_A_TIME)
            if not await connection.fetchval(_IS_THERE, table):
                return 0
            rows = int(await connection.fetchval(_on(day, _EXPIRE_DAY), _end(day)))
            await _note(connection, run_id, Removal("partitions", day.isoformat(), 0, rows, size))
            await connection.execute(f"SET LOCAL lock_timeout = {int(LOCK_TIMEOUT_S * 1000)}")
            try:
                await connection.execute(f"ALTER TABLE events_log DETACH PARTITION {table}")
                await connection.execute(f"DROP TABLE {table}")
            except (asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError) as error:
                raise Conflict(f"the day {day} is in use") from error
        return rows

    async def expire_rows(
        self, run_id: int, day: date, projects: Sequence[str], *, first_page: int, row_bytes: float
    ) -> tuple[int, int | None]:
        table, after = _table(day), first_page + PAGES_AT_ONCE
        async with self._postgres.transaction() as connection:
            await connection.execute(_ONE_AT_A_TIME)
            if not await connection.fetchval(_IS_THERE, table):
                return 0, None
            pages = int(await connection.fetchval(_PAGES, table))
            asked = (_end(day), projects, (first_page, 0), (after, 0))
            rows = int(await connection.fetchval(_on(day, _EXPIRE_ROWS), *asked))
            if rows:
                removal = Removal("events", day.isoformat(), 0, rows, int(rows * row_bytes))
                await _note(connection, run_id, removal)
        return rows, after if after < pages else None

    async def groups(self) -> list[Group]:
        async with self._postgres.session() as connection:
            series = [Group("rollups", *row) for row in await connection.fetch(_SERIES)]
            aggregated = [Group("aggregated", row[0]) for row in await connection.fetch(_AGGREGATED)]
            counted = [Group("counted_days", row[0]) for row in await connection.fetch(_COUNTED)]
        return [*series, *aggregated, *counted, *_SINGLE_GROUPS]

    async def count_old(self, group: Group, before: datetime) -> Gone:
        async with self._postgres.transaction(snapshot=True, deadline_s=SCAN_DEADLINE_S) as connection:
            query, *arguments = self._count(group, before)
            [row] = await connection.fetch(query, *arguments)
        return Gone(*row)

    def _count(self, group: Group, before: datetime) -> tuple[str, *tuple[object, ...]]:
        match group.kind:
            case "rollups":
                return statement("count_old_rollups"), *group[1:], before
            case "aggregated" | "counted_days":
                return statement(f"count_old_{group.kind}"), group.project_id, before
            case "dead_letters":
                return statement("count_old_dead_letters"), before
            case "patterns":
                condition = "detected_at < $1 AND delivery <> 'pending'"
                return _COUNT.format(table="patterns", condition=condition), before
            case "recomputed_days":
                return _COUNT.format(table="recomputed_days", condition="recomputed_at < $1"), before
            case "runs":
                return _COUNT.format(table="retention_runs", condition="started_at < $1"), before

    async def delete_old(self, run_id: int, group: Group, before: datetime, *, limit: int) -> Gone:
        async with self._postgres.transaction() as connection:
            query, *arguments = self._delete(group, before, limit)
            [row] = await connection.fetch(query, *arguments)
            gone = Gone(*row)
            if gone.rows:
                await _note(connection, run_id, Removal(group.kind, group.name, 0, *gone))
        return gone

    def _delete(self, group: Group, before: datetime, limit: int) -> tuple[str, *tuple[object, ...]]:
        query = statement(f"delete_old_{group.kind}")
        match group.kind:
            case "rollups":
                return query, *group[1:], before, limit
            case "aggregated" | "counted_days":
                return query, group.project_id, before, limit
            case _:
                return query, before, limit


def _run(row: Any, removals: Sequence[Removal]) -> Run:
    return Run(row["run_id"], row["started_at"], row["finished_at"], row["kept"], removals)


async def _note(connection: Connection, run_id: int, removal: Removal) -> None:
    await connection.execute(_NOTE, run_id, *removal)


def _table(day: date) -> str:
    return f"events_log_{day:%Y%m%d}"


def _on(day: date, query: str) -> str:
    """The statement over the table of the day."""
    return query.replace("events_log_day", _table(day))


def _end(day: date) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=UTC) + timedelta(days=1)
