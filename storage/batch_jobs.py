"""Jobs that count whole days of roll-ups again: what was asked for, in which pieces, how far it is. `PostgresBatchJobs`
and `MemoryBatchJobs` both keep this contract.

The law:
- A job waits until it is planned: `begin` gives it its pieces, once. A daily job is there once for its day.
- A piece is given to one worker at a time, under a turn of its own. Who reports under an earlier turn changes nothing.
- A piece that failed comes again after a pause, up to `MAX_TURNS` turns in all; then it is left, and the job is
  `incomplete`: its days are due again for the next daily job.
- What was done stays done: whoever goes on with a job after a crash releases what was under way and takes the rest.
- Calls end at their deadline with `Unavailable`; every one of them may be repeated.
"""

from collections.abc import Sequence
from datetime import date, datetime
from typing import Literal, NamedTuple, Protocol

MAX_TURNS = 8
MAX_ERRORS = 5
"""Of a job, that are told."""

Kind = Literal["daily", "command", "backfill"]
State = Literal["waiting", "running", "done", "incomplete"]


class Request(NamedTuple):
    """Without bounds: every day. A daily job has those that late events have touched since it last counted them."""

    kind: Kind
    daily: date | None = None
    first_day: date | None = None
    last_day: date | None = None
    project_id: str | None = None
    metric: str | None = None
    """Only the days that were not counted with it as it is defined."""
    dry_run: bool = False


class DueDay(NamedTuple):
    project_id: str
    day: date
    built: str
    """With which metrics it was counted again last; "" if never."""


class PlannedPiece(NamedTuple):
    """The days from the first to the last, of all these projects."""

    first_day: date
    last_day: date
    projects: tuple[str, ...]

    @property
    def days(self) -> int:
        """Of projects."""
        return ((self.last_day - self.first_day).days + 1) * len(self.projects)


class Piece(NamedTuple):
    job_id: int
    number: int
    turn: int
    plan: PlannedPiece
    dry_run: bool


class Outcome(NamedTuple):
    events: int = 0
    rows: int = 0
    changed: int = 0
    seconds: float = 0.0
    superseded: bool = False
    """Somebody began to count one of the days later: theirs is what stands."""


class Progress(NamedTuple):
    """Days are those of projects: two projects on one day are two."""

    days: int
    days_left: int
    days_superseded: int
    days_failed: int
    days_open: int
    """Left out because late events may still change their windows: the next daily job has them."""
    projects: int
    events: int
    rows: int
    changed: int
    """Roll-ups that were not there, were otherwise, or are no more: what the audit has found."""
    seconds: float
    """Of work, of all workers together."""
    errors: tuple[str, ...]


class Job(NamedTuple):
    job_id: int
    request: Request
    state: State
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    progress: Progress


class BatchJobs(Protocol):
    async def ask(self, request: Request) -> int | None:
        """Its id; None when there is a job for that `daily` already."""

    async def open_job(self) -> Job | None:
        """The oldest that has not ended."""

    async def due_days(self, request: Request) -> list[DueDay]:
        """By day, then by project. A daily request: those that were recomputed and not audited since, or are marked;
        another: those that hold events, in files or roll-ups, of its days and project."""

    async def begin(self, job_id: int, pieces: Sequence[PlannedPiece], *, days_open: int) -> None:
        """Nothing happens unless the job waits."""

    async def take(self, job_id: int, worker: str) -> Piece | None:
        """The next piece that is due, for this worker."""

    async def unfinished(self, job_id: int) -> tuple[int, int]:
        """How many pieces are due now, and how many are neither done nor failed."""

    async def done(self, piece: Piece, outcome: Outcome) -> bool:
        """Whether it was this turn's to report."""

    async def fail(self, piece: Piece, error: str, *, retry_after_s: float) -> bool: ...

    async def release(self, job_id: int, worker: str | None = None) -> int:
        """What this worker has under way (None: whoever) is open again; how many pieces."""

    async def end(self, job_id: int) -> State:
        """Once nothing is left to do."""

    async def jobs(self, *, limit: int) -> list[Job]:
        """The newest first."""

    async def last_daily(self) -> date | None:
        """The day of the last daily job."""

    async def days_left(self, project_id: str) -> int:
        """Days of the project that open jobs have still to count."""
