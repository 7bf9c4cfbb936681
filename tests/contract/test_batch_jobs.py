"""The law of `storage.batch_jobs`, kept by the jobs in memory and by those in PostgreSQL alike."""

from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, date, datetime, timedelta
from typing import NamedTuple

import asyncpg
import pytest

from storage.batch_jobs import MAX_TURNS, BatchJobs, DueDay, Outcome, PlannedPiece, Request
from storage.memory_batch_jobs import MemoryBatchJobs
from storage.memory_rollups import MemoryRollups
from storage.migrate import migrate
from storage.postgres import Postgres
from storage.postgres_batch_jobs import PostgresBatchJobs
from storage.postgres_rollups import PostgresRollups
from storage.rollups import DAY_S, RollupStore, day_start

DAY = date(2026, 5, 1)
NEXT = DAY + timedelta(days=1)
START = day_start(DAY)
PIECES = [PlannedPiece(DAY, NEXT, ("a", "b")), PlannedPiece(NEXT, NEXT, ("c",))]


class Subject(NamedTuple):
    jobs: BatchJobs
    rollups: RollupStore
    wait: Callable[[], Awaitable[None]]
    """A day goes by."""

    async def begun(self, **request: object) -> int:
        job_id = await self.jobs.ask(Request("command", **request))  # type: ignore[arg-type]
        assert job_id is not None
        await self.jobs.begin(job_id, PIECES, days_open=3)
        return job_id


@pytest.fixture
async def subject(url: str) -> AsyncIterator[Subject]:
    if not url:
        rollups = MemoryRollups(partitions=4)
        now = [datetime.now(UTC)]

        async def go_on() -> None:
            now[0] += timedelta(days=1)

        yield Subject(MemoryBatchJobs(rollups, clock=lambda: now[0]), rollups, go_on)
        return
    await migrate(url)
    postgres = Postgres(url, owner="test", pool_size=4, deadline_s=10)
    connection = await asyncpg.connect(url)

    async def let_pass() -> None:
        await connection.execute("UPDATE batch_pieces SET not_before = not_before - interval '1 day'")

    yield Subject(PostgresBatchJobs(postgres), PostgresRollups(postgres, partitions=4), let_pass)
    await connection.close()
    await postgres.close()


async def test_a_daily_job_is_there_once(subject: Subject) -> None:
    jobs = subject.jobs
    assert await jobs.last_daily() is None
    first = await jobs.ask(Request("daily", daily=DAY))
    assert first is not None
    assert await jobs.ask(Request("daily", daily=DAY)) is None
    assert await jobs.ask(Request("command")) not in (None, first)
    assert await jobs.ask(Request("daily", daily=NEXT)) is not None
    assert await jobs.last_daily() == NEXT
    job = await jobs.open_job()
    assert job is not None
    assert (job.job_id, job.state, job.request) == (first, "waiting", Request("daily", daily=DAY))


async def test_a_job_from_asking_to_its_end(subject: Subject) -> None:
    jobs = subject.jobs
    request = Request("backfill", first_day=DAY, last_day=NEXT, project_id="a", metric="m", dry_run=True)
    job_id = await jobs.ask(request)
    assert job_id is not None
    await jobs.begin(job_id, PIECES, days_open=3)
    await jobs.begin(job_id, PIECES[:1], days_open=4)
    assert await jobs.unfinished(job_id) == (2, 2)
    first, second = await jobs.take(job_id, "x"), await jobs.take(job_id, "y")
    assert first is not None and second is not None
    assert await jobs.take(job_id, "z") is None
    assert (first.plan, second.plan) == tuple(PIECES)
    assert (first.turn, first.dry_run) == (1, True)
    assert await jobs.unfinished(job_id) == (0, 2)
    assert await jobs.done(first, Outcome(10, 20, 3, 1.5))
    assert not await jobs.done(first, Outcome(99, 99, 99, 9.0))
    assert await jobs.end(job_id) == "running"
    assert await jobs.done(second, Outcome(seconds=0.5, superseded=True))
    assert await jobs.end(job_id) == await jobs.end(job_id) == "done"
    assert await jobs.open_job() is None
    [job] = await jobs.jobs(limit=9)
    assert (job.request, job.state) == (request, "done")
    assert job.created_at <= (job.started_at or job.created_at) <= (job.ended_at or job.created_at)
    progress = job.progress
    assert (progress.days, progress.days_left, progress.days_superseded, progress.days_open) == (5, 0, 1, 3)
    assert (progress.projects, progress.events, progress.rows, progress.changed) == (3, 10, 20, 3)
    assert (progress.seconds, progress.errors) == (2.0, ())


async def test_what_failed_comes_again_after_a_pause(subject: Subject) -> None:
    jobs = subject.jobs
    job_id = await subject.begun()
    piece = await jobs.take(job_id, "x")
    assert piece is not None
    assert await jobs.fail(piece, "the lake is away", retry_after_s=60)
    assert not await jobs.fail(piece, "again", retry_after_s=60)
    assert not await jobs.done(piece, Outcome())
    other = await jobs.take(job_id, "x")
    assert other is not None and other.number != piece.number
    assert await jobs.take(job_id, "x") is None
    [job] = await jobs.jobs(limit=1)
    assert job.progress.errors == ("the lake is away",)
    await subject.wait()
    again = await jobs.take(job_id, "x")
    assert again is not None and (again.number, again.turn) == (piece.number, 2)


@pytest.mark.parametrize("how", ["fails", "dies"])
async def test_at_last_it_is_left(subject: Subject, how: str) -> None:
    jobs = subject.jobs
    job_id = await subject.begun()
    second = None
    for _ in range(MAX_TURNS):
        first = await jobs.take(job_id, "x")
        second = second or await jobs.take(job_id, "y")
        assert first is not None and second is not None
        if how == "fails":
            await jobs.fail(first, "damaged", retry_after_s=1)
            await subject.wait()
        else:
            assert await jobs.release(job_id, "x") == 1
    assert await jobs.take(job_id, "x") is None
    assert second is not None and await jobs.done(second, Outcome())
    assert await jobs.end(job_id) == "incomplete"
    [job] = await jobs.jobs(limit=1)
    assert (job.progress.days_failed, job.progress.days_left) == (4, 0)
    assert job.progress.errors == ("damaged" if how == "fails" else "its worker has ended",)


async def test_who_is_released_reports_nothing(subject: Subject) -> None:
    jobs = subject.jobs
    job_id = await subject.begun()
    ghost = await jobs.take(job_id, "x")
    other = await jobs.take(job_id, "y")
    assert ghost is not None and other is not None
    assert await jobs.release(job_id, "nobody") == 0
    assert await jobs.release(job_id) == 2
    taken = await jobs.take(job_id, "z")
    assert taken is not None and (taken.number, taken.turn) == (ghost.number, 2)
    assert not await jobs.done(ghost, Outcome(1, 1, 1, 1.0))
    assert await jobs.done(taken, Outcome(2, 2, 2, 2.0))
    [job] = await jobs.jobs(limit=1)
    assert (job.progress.events, job.progress.days_left) == (2, 1)


async def test_days_left_of_a_project(subject: Subject) -> None:
    jobs = subject.jobs
    job_id = await subject.begun()
    dry = await jobs.ask(Request("command", dry_run=True))
    assert dry is not None
    await jobs.begin(dry, PIECES, days_open=0)
    assert [await jobs.days_left(each) for each in "acx"] == [2, 1, 0]
    piece = await jobs.take(job_id, "x")
    assert piece is not None
    assert await jobs.days_left("a") == 2
    await jobs.done(piece, Outcome())
    assert [await jobs.days_left(each) for each in "ac"] == [0, 1]


async def test_touched_days_are_due_until_they_are_audited(subject: Subject) -> None:
    jobs, rollups = subject.jobs, subject.rollups
    daily = Request("daily", daily=DAY)
    assert await jobs.due_days(daily) == []
    ticket = await rollups.begin_recount(["b", "a"], START, START + DAY_S)
    await rollups.end_recount(START, START + DAY_S, {"b": "x;m=1", "a": "x"}, ticket=ticket)
    await rollups.mark_days("c", [NEXT])
    due = [DueDay("a", DAY, ""), DueDay("b", DAY, "x;m=1"), DueDay("c", NEXT, "")]
    found = await jobs.due_days(daily)
    assert [each._replace(built=each.built if ";" in each.built else "") for each in found] == due
    ticket = await rollups.begin_recount(["b"], START, START + DAY_S)
    await rollups.end_recount(START, START + DAY_S, {"b": "x;m=2"}, ticket=ticket, audited=True)
    assert [each.project_id for each in await jobs.due_days(daily)] == ["a", "c"]
    ticket = await rollups.begin_recount(["b"], START, START + DAY_S)
    await rollups.end_recount(START, START + DAY_S, {"b": "x;m=2"}, ticket=ticket)
    assert [each.project_id for each in await jobs.due_days(daily)] == ["a", "b", "c"]
