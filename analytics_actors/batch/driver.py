"""Drives batch jobs: asks for the daily one when it is due, plans what was asked for, keeps workers at it, ends it.

A plain class; `analytics_actors.batch_thread` runs it within the controller, where workers are Ray tasks. All of what
a job has come to is in `storage.batch_jobs`: a driver that comes after another releases what that one had under way and
goes on. One job at a time, the oldest first.

The law:
- `step` is short: nothing here waits for a worker.
- A worker that has ended, in whatever way, leaves nothing under way. One that is past its deadline is ended; should it
  still write, it is fenced (`storage.rollups`), and it reports nothing (`storage.batch_jobs`).
- Idle, it asks for an open job each `STEP_S`, and for nothing else.
"""

import logging
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol

from analytics_actors.batch.planning import plan, without_metric
from analytics_actors.counters import Counters
from analytics_actors.schedule import DailySchedule
from analytics_actors.windows.definition_book import DefinitionBook, version_of
from analytics_actors.windows.shared import FREEZE_S
from config.settings import BatchSettings, WindowSettings
from storage.batch_jobs import BatchJobs, Job, Request
from storage.window_key import live_from

STEP_S = 2.0
RECENT = 100
"""Jobs among which the one that has just ended is."""

_log = logging.getLogger(__name__)


class Worker(Protocol):
    """One that was started."""

    def ended(self) -> str | None:
        """None while it works; then "", or in words why it has failed."""

    def kill(self) -> None: ...


class Workers(Protocol):
    def start(self, job_id: int, worker: str) -> Worker: ...


@dataclass
class _Started:
    worker: Worker
    deadline_s: float


class BatchDriver:
    """Call `step` every `STEP_S`, from one task."""

    def __init__(
        self,
        jobs: BatchJobs,
        workers: Workers,
        book: DefinitionBook,
        *,
        settings: BatchSettings,
        windows: WindowSettings,
        clock_s: Callable[[], float] = time.time,
    ) -> None:
        self._jobs = jobs
        self._workers = workers
        self._book = book
        self._settings = settings
        self._windows = windows
        self._clock_s = clock_s
        self._schedule = DailySchedule.read(settings.run_at)
        self._asked: datetime | None = None
        """Until when daily jobs were asked for."""
        self._job_id: int | None = None
        """The one that this driver goes on with."""
        self._started: dict[str, _Started] = {}
        self.counters = Counters()

    async def step(self) -> None:
        """Raises what the services raise."""
        await self._ask_for_daily()
        job = await self._jobs.open_job()
        if job is None:
            return
        if job.state == "waiting":
            job = await self._plan(job)
        elif job.job_id != self._job_id:
            await self._jobs.release(job.job_id)
        self._job_id = job.job_id
        await self._reap(job.job_id)
        due, left = await self._jobs.unfinished(job.job_id)
        if not left and not self._started:
            await self._end(job.job_id)
        elif due:
            self._start(job.job_id, due)

    async def _ask_for_daily(self) -> None:
        due = self._schedule.last_due(self._now)
        if not self._settings.enabled or due == self._asked:
            return
        job_id = await self._jobs.ask(Request("daily", daily=due.date()))
        self._asked = due
        if job_id is not None:
            _log.info("the daily job is due", extra={"action": "batch_due", "job": job_id})

    @property
    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._clock_s(), UTC)

    async def _plan(self, job: Job) -> Job:
        request = job.request
        due = await self._jobs.due_days(request)
        if request.metric is not None:
            await self._book.refresh()
            metric = request.metric
            due = without_metric(due, metric, lambda project_id: version_of(self._book.wanted(project_id), metric))
        frozen_below = live_from(self._clock_s() + FREEZE_S, self._windows)
        planned = plan(due, frozen_below=frozen_below)
        await self._jobs.begin(job.job_id, planned.pieces, days_open=planned.days_open)
        fields = {"action": "batch_begun", "job": job.job_id, "pieces": len(planned.pieces), "days": len(due)}
        _log.info("a batch job begins", extra=fields)
        return job._replace(state="running")

    async def _reap(self, job_id: int) -> None:
        for name, started in list(self._started.items()):
            why = started.worker.ended()
            if why is None and self._clock_s() > started.deadline_s:
                started.worker.kill()
                why = "it was past its deadline"
            if why is None:
                continue
            if why:
                self.counters.count("workers_failed")
                _log.warning("a worker of a batch job has failed", extra={"action": "batch_worker", "reason": why})
            await self._jobs.release(job_id, name)
            del self._started[name]

    def _start(self, job_id: int, due: int) -> None:
        for _ in range(min(due, self._settings.concurrency - len(self._started))):
            name = uuid.uuid4().hex
            deadline_s = self._clock_s() + self._settings.task_budget_s + self._settings.piece_deadline_s
            self._started[name] = _Started(self._workers.start(job_id, name), deadline_s)

    async def _end(self, job_id: int) -> None:
        state = await self._jobs.end(job_id)
        self._job_id = None
        if state == "running":
            return
        self.counters.count("jobs")
        for job in await self._jobs.jobs(limit=RECENT):
            if job.job_id == job_id:
                self._count(job)

    def _count(self, job: Job) -> None:
        progress = job.progress
        for name in ("days", "days_failed", "events", "rows", "changed", "seconds"):
            self.counters.count(f"batch_{name}", getattr(progress, name))
        fields = {"action": "batch_ended", "job": job.job_id, "state": job.state} | progress._asdict()
        (_log.info if job.state == "done" else _log.error)("a batch job has ended", extra=fields)

    def observe(self) -> dict[str, Any]:
        """For the controller's status."""
        return {
            "job": self._job_id or 0,
            "workers": len(self._started),
            "counters": dict(self.counters.totals),
            "trouble": self.counters.troubles,
        }
