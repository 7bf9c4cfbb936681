"""Batch jobs in memory: for tests, and proved by the contract suite that `PostgresBatchJobs` passes.

Which days hold events is told by `days`, which touched and marked ones by the `MemoryRollups` that is given.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import Literal

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
from storage.errors import Unavailable
from storage.memory_rollups import MemoryRollups


@dataclass
class _Piece:
    plan: PlannedPiece
    not_before: datetime
    state: Literal["open", "running", "done", "failed"] = "open"
    turn: int = 0
    worker: str = ""
    outcome: Outcome = field(default_factory=Outcome)
    error: str | None = None


@dataclass
class _Job:
    request: Request
    created_at: datetime
    state: State = "waiting"
    days_open: int = 0
    started_at: datetime | None = None
    ended_at: datetime | None = None
    pieces: list[_Piece] = field(default_factory=list)


class MemoryBatchJobs:
    def __init__(
        self,
        rollups: MemoryRollups,
        *,
        days: Callable[[], Iterable[tuple[str, date]]] = tuple,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._rollups = rollups
        self._days = days
        self._clock = clock
        self._jobs: dict[int, _Job] = {}
        self.available = True
        """While False every call raises `Unavailable`."""

    async def ask(self, request: Request) -> int | None:
        self._require_available()
        if request.daily is not None and any(job.request.daily == request.daily for job in self._jobs.values()):
            return None
        self._jobs[len(self._jobs) + 1] = _Job(request, self._clock())
        return len(self._jobs)

    async def open_job(self) -> Job | None:
        self._require_available()
        return next((_told(n, job) for n, job in self._jobs.items() if job.state in ("waiting", "running")), None)

    async def due_days(self, request: Request) -> list[DueDay]:
        self._require_available()
        if request.kind == "daily":
            found = self._rollups.touched_days()
        else:
            found = {
                (project_id, day)
                for project_id, day in {*self._days(), *self._rollups.marked_days()}
                if request.project_id in (None, project_id)
                and (request.first_day is None or day >= request.first_day)
                and (request.last_day is None or day <= request.last_day)
            }
        ordered = sorted(found, key=lambda each: (each[1], each[0]))
        return [DueDay(*each, self._rollups.built.get(each, "")) for each in ordered]

    async def begin(self, job_id: int, pieces: Sequence[PlannedPiece], *, days_open: int) -> None:
        self._require_available()
        job = self._jobs[job_id]
        if job.state == "waiting":
            job.state, job.started_at, job.days_open = "running", self._clock(), days_open
            job.pieces = [_Piece(plan, self._clock()) for plan in pieces]

    async def take(self, job_id: int, worker: str) -> Piece | None:
        self._require_available()
        job = self._jobs[job_id]
        for number, piece in enumerate(job.pieces, start=1):
            if piece.state == "open" and piece.not_before <= self._clock():
                piece.state, piece.worker, piece.turn = "running", worker, piece.turn + 1
                return Piece(job_id, number, piece.turn, piece.plan, job.request.dry_run)
        return None

    async def unfinished(self, job_id: int) -> tuple[int, int]:
        self._require_available()
        left = [piece for piece in self._jobs[job_id].pieces if piece.state in ("open", "running")]
        return sum(piece.state == "open" and piece.not_before <= self._clock() for piece in left), len(left)

    async def done(self, piece: Piece, outcome: Outcome) -> bool:
        kept = self._of_turn(piece)
        if kept is None:
            return False
        kept.state, kept.error = "done", None
        kept.outcome = outcome._replace(seconds=kept.outcome.seconds + outcome.seconds)
        return True

    async def fail(self, piece: Piece, error: str, *, retry_after_s: float) -> bool:
        kept = self._of_turn(piece)
        if kept is None:
            return False
        kept.state = "open" if kept.turn < MAX_TURNS else "failed"
        kept.error, kept.not_before = error, self._clock() + timedelta(seconds=retry_after_s)
        return True

    def _of_turn(self, piece: Piece) -> _Piece | None:
        self._require_available()
        kept = self._jobs[piece.job_id].pieces[piece.number - 1]
        return kept if (kept.turn, kept.state) == (piece.turn, "running") else None

    async def release(self, job_id: int, worker: str | None = None) -> int:
        self._require_available()
        released = 0
        for piece in self._jobs[job_id].pieces:
            if piece.state == "running" and worker in (None, piece.worker):
                piece.state = "open" if piece.turn < MAX_TURNS else "failed"
                piece.error = piece.error or "its worker has ended"
                released += 1
        return released

    async def end(self, job_id: int) -> State:
        self._require_available()
        job = self._jobs[job_id]
        states = {piece.state for piece in job.pieces}
        if job.state == "running" and not states & {"open", "running"}:
            job.state, job.ended_at = "incomplete" if "failed" in states else "done", self._clock()
        return job.state

    async def jobs(self, *, limit: int) -> list[Job]:
        self._require_available()
        return [_told(n, job) for n, job in reversed(self._jobs.items())][:limit]

    async def last_daily(self) -> date | None:
        self._require_available()
        return max((job.request.daily for job in self._jobs.values() if job.request.daily), default=None)

    async def days_left(self, project_id: str) -> int:
        self._require_available()
        return sum(
            (piece.plan.last_day - piece.plan.first_day).days + 1
            for job in self._jobs.values()
            if job.state == "running" and not job.request.dry_run
            for piece in job.pieces
            if piece.state in ("open", "running") and project_id in piece.plan.projects
        )

    def _require_available(self) -> None:
        if not self.available:
            raise Unavailable("made to be away")


def _told(job_id: int, job: _Job) -> Job:
    progress = Progress(
        days=sum(piece.plan.days for piece in job.pieces),
        days_left=sum(piece.plan.days for piece in job.pieces if piece.state in ("open", "running")),
        days_superseded=sum(piece.plan.days for piece in job.pieces if piece.outcome.superseded),
        days_failed=sum(piece.plan.days for piece in job.pieces if piece.state == "failed"),
        days_open=job.days_open,
        projects=len({project_id for piece in job.pieces for project_id in piece.plan.projects}),
        events=sum(piece.outcome.events for piece in job.pieces),
        rows=sum(piece.outcome.rows for piece in job.pieces),
        changed=sum(piece.outcome.changed for piece in job.pieces),
        seconds=sum(piece.outcome.seconds for piece in job.pieces),
        errors=tuple(sorted({piece.error for piece in job.pieces if piece.error is not None})[:MAX_ERRORS]),
    )
    return Job(job_id, job.request, job.state, job.created_at, job.started_at, job.ended_at, progress)
