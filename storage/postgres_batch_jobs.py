"""Batch jobs in PostgreSQL: batch_jobs and batch_pieces. The law is `storage.batch_jobs`'s."""

from collections.abc import Sequence
from datetime import date, timedelta
from typing import get_args

import asyncpg

from storage.batch_jobs import (
    MAX_ERRORS,
    MAX_TURNS,
    DueDay,
    Job,
    Outcome,
    Piece,
    PlannedPiece,
    Progress,
    Request,
    State,
)
from storage.postgres import Postgres
from storage.statements import statement

_ASK = statement("batch_ask")
_JOBS = statement("batch_jobs")
_TOUCHED = statement("batch_touched_days")
_DAYS = statement("batch_days")
_BEGIN = statement("batch_begin")
_TAKE = statement("batch_take")
_DONE = statement("batch_done")
_FAIL = statement("batch_fail")
_RELEASE = statement("batch_release")
_END = statement("batch_end")
_INSERT = "INSERT INTO batch_pieces (job_id, piece, first_day, last_day, projects) VALUES ($1, $2, $3, $4, $5)"
_UNFINISHED = (
    "SELECT count(*) FILTER (WHERE state = 'open' AND not_before <= clock_timestamp()), count(*)"
    " FROM batch_pieces WHERE job_id = $1 AND state IN ('open', 'running')"
)
_FORGET = "DELETE FROM batch_jobs WHERE ended_at < now() - $1::interval"
_STATE = "SELECT state FROM batch_jobs WHERE job_id = $1"
_LAST_DAILY = "SELECT max(daily) FROM batch_jobs"
_DAYS_LEFT = (
    "SELECT coalesce(sum(piece.last_day - piece.first_day + 1), 0)::bigint"
    " FROM batch_pieces AS piece JOIN batch_jobs AS job USING (job_id)"
    " WHERE job.state = 'running' AND NOT job.dry_run AND piece.state IN ('open', 'running')"
    " AND $1 = ANY(piece.projects)"
)

KEPT = timedelta(days=400)
"""Jobs that have ended, and their pieces."""
PLAN_DEADLINE_S = 120.0
"""Finding the days, and writing the pieces, of a system with many projects."""


class PostgresBatchJobs:
    """Every call has the deadline of the `Postgres` it is given, but for planning."""

    def __init__(self, postgres: Postgres) -> None:
        self._postgres = postgres

    async def ask(self, request: Request) -> int | None:
        async with self._postgres.session() as connection:
            job_id: int | None = await connection.fetchval(_ASK, *request)
        return job_id

    async def open_job(self) -> Job | None:
        found = await self._jobs(only_open=True, limit=1)
        return found[0] if found else None

    async def jobs(self, *, limit: int) -> list[Job]:
        return await self._jobs(only_open=False, limit=limit)

    async def _jobs(self, *, only_open: bool, limit: int) -> list[Job]:
        async with self._postgres.session() as connection:
            return [_job(row) for row in await connection.fetch(_JOBS, only_open, limit, MAX_ERRORS)]

    async def due_days(self, request: Request) -> list[DueDay]:
        async with self._postgres.transaction(deadline_s=PLAN_DEADLINE_S) as connection:
            if request.kind == "daily":
                rows = await connection.fetch(_TOUCHED)
            else:
                rows = await connection.fetch(_DAYS, request.first_day, request.last_day, request.project_id)
        return [DueDay(*row) for row in rows]

    async def begin(self, job_id: int, pieces: Sequence[PlannedPiece], *, days_open: int) -> None:
        async with self._postgres.transaction(deadline_s=PLAN_DEADLINE_S) as connection:
            if await connection.fetchval(_BEGIN, job_id, days_open) is None:
                return
            rows = [(job_id, number, *piece) for number, piece in enumerate(pieces, start=1)]
            await connection.executemany(_INSERT, rows)

    async def take(self, job_id: int, worker: str) -> Piece | None:
        async with self._postgres.session() as connection:
            row = await connection.fetchrow(_TAKE, job_id, worker)
        if row is None:
            return None
        plan = PlannedPiece(row["first_day"], row["last_day"], tuple(row["projects"]))
        return Piece(job_id, row["piece"], row["turn"], plan, row["dry_run"])

    async def unfinished(self, job_id: int) -> tuple[int, int]:
        async with self._postgres.session() as connection:
            [(due, left)] = await connection.fetch(_UNFINISHED, job_id)
        return due, left

    async def done(self, piece: Piece, outcome: Outcome) -> bool:
        async with self._postgres.session() as connection:
            return await connection.fetchval(_DONE, *piece[:3], *outcome) is not None

    async def fail(self, piece: Piece, error: str, *, retry_after_s: float) -> bool:
        async with self._postgres.session() as connection:
            return await connection.fetchval(_FAIL, *piece[:3], error, retry_after_s, MAX_TURNS) is not None

    async def release(self, job_id: int, worker: str | None = None) -> int:
        async with self._postgres.session() as connection:
            return len(await connection.fetch(_RELEASE, job_id, worker, MAX_TURNS))

    async def end(self, job_id: int) -> State:
        async with self._postgres.transaction() as connection:
            await connection.execute(_END, job_id)
            await connection.execute(_FORGET, KEPT)
            state: State = await connection.fetchval(_STATE, job_id)
        assert state in get_args(State)
        return state

    async def last_daily(self) -> date | None:
        async with self._postgres.session() as connection:
            last: date | None = await connection.fetchval(_LAST_DAILY)
        return last

    async def days_left(self, project_id: str) -> int:
        async with self._postgres.session() as connection:
            return await connection.fetchval(_DAYS_LEFT, project_id) or 0


def _job(row: asyncpg.Record) -> Job:
    columns = tuple(row)
    state, created_at, started_at, ended_at = columns[8:12]
    progress = Progress._make((*columns[12:-1], tuple(columns[-1])))
    return Job(row["job_id"], Request(*columns[:7]), state, created_at, started_at, ended_at, progress)
