"""Retention as one duty of the lake keeper: a step at a time, once a day.

A run that was missed is made up for when the keeper is there again. What failed because a service was away is begun
again after a while, and so is a run that met days in use: what it had done is done.
"""

from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime

from analytics_actors.counters import Counters
from analytics_actors.retention.report import Report
from analytics_actors.retention.run import RetentionRun
from analytics_actors.schedule import DailySchedule
from storage.errors import Misconfigured, Unavailable
from storage.retention import Removal, RetentionStore

AGAIN_S = 600.0
"""After a run that failed, or met days in use."""
KEPT_SHOWN = 3


class RetentionDuty:
    def __init__(
        self,
        run: RetentionRun,
        store: RetentionStore,
        counters: Counters,
        *,
        schedule: DailySchedule,
        clock_s: Callable[[], float],
    ) -> None:
        self._run = run
        self._store = store
        self._counters = counters
        self._schedule = schedule
        self._clock_s = clock_s
        self._work: AsyncIterator[Removal] | None = None
        self._report: Report | None = None
        self._look_s = 0.0
        """Not before this."""
        self._is_again = False
        """Then a run is due, whatever the schedule says."""
        self.last_run_ms = 0
        """When the last run of this keeper came to its end."""

    async def step(self) -> bool:
        """Some work, if a run is due; whether there was any."""
        try:
            return await self._step()
        except (Unavailable, Misconfigured) as error:
            self._counters.trouble("retention", str(error))
            self._counters.count("retention_failures")
            self._work = None
            self._come_again()
            return False

    async def _step(self) -> bool:
        if self._work is None and not await self._begin():
            return False
        assert self._work is not None and self._report is not None
        removal = await anext(self._work, None)
        if removal is None:
            self._end(self._report)
        else:
            self._count(removal)
        return True

    async def _begin(self) -> bool:
        now_s = self._clock_s()
        if now_s < self._look_s:
            return False
        now = datetime.fromtimestamp(now_s, UTC)
        if not self._is_again and not await self._is_missed(now):
            self._look_s = self._schedule.next_due(now).timestamp()
            return False
        self._is_again = False
        self._report = self._run.begin(dry_run=False)
        self._work = self._run.work(self._report)
        return True

    def _come_again(self) -> None:
        self._look_s, self._is_again = self._clock_s() + AGAIN_S, True

    async def _is_missed(self, now: datetime) -> bool:
        """The first run of all is due at once."""
        return self._schedule.is_due(now, last_run=await self._store.last_run())

    def _end(self, report: Report) -> None:
        self._work = None
        self.last_run_ms = int(self._clock_s() * 1000)
        self._counters.count("retention_runs")
        if report.busy:
            self._come_again()
        if report.kept:
            more = f", and {len(report.kept) - KEPT_SHOWN} more" if len(report.kept) > KEPT_SHOWN else ""
            self._counters.trouble("retention", "; ".join(report.kept[:KEPT_SHOWN]) + more)
        else:
            self._counters.clear_trouble("retention")

    def _count(self, removal: Removal) -> None:
        match removal.kind:
            case "partitions":
                self._counters.count("days_dropped")
                self._counters.count("events_expired", removal.rows)
            case "events":
                self._counters.count("events_expired", removal.rows)
            case "moved_files" | "expired_files" | "rewritten_files":
                # Counted where it is done.
                return
            case _:
                self._counters.count("records_expired", removal.rows)
        self._counters.count("bytes_expired", removal.bytes)
