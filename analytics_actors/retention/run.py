"""A run of the retention: raw events first, then the lake, then records. Step by step, so that whoever has other things
to do goes on between.

The law:
- A step is bounded: a day that is dropped, some pages of rows, a file of the lake, a batch of records.
- What is due is found anew in each run, and removing is its own note: a run that was killed is simply followed by
  another. Two at once do some of it twice, to the same end.
- Raw events go before the lake's files that hold them.
"""

import logging
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import datetime
from typing import Protocol

from analytics_actors.lake.carrying import CrashPoint, no_crash
from analytics_actors.retention.old_records import OldRecords
from analytics_actors.retention.policy import Policy, policy_of
from analytics_actors.retention.report import Report
from analytics_actors.retention.stored_days import StoredDays
from config.settings import Settings
from storage.lake_listing import LakeListing
from storage.retention import Removal, RetentionStore

DRY = 0
"""Instead of the number of a run."""

_log = logging.getLogger(__name__)


class LakeAgeing(Protocol):
    """`analytics_actors.lake.ageing.Ageing`."""

    def work(self, policy: Policy, now: datetime, report: Report) -> AsyncIterator[Removal]: ...


class RetentionRun:
    """Without a lake `ageing` is None."""

    def __init__(
        self,
        store: RetentionStore,
        listing: LakeListing,
        settings: Settings,
        *,
        ageing: LakeAgeing | None,
        clock: Callable[[], datetime],
        reached: CrashPoint = no_crash,
    ) -> None:
        self._store = store
        self._settings = settings
        self._ageing = ageing
        self._clock = clock
        self._days = StoredDays(store, listing, reached)
        self._records = OldRecords(store, listing)

    async def work(self, report: Report) -> AsyncIterator[Removal]:
        """What each step has removed, or would remove; it is all in the report as well. Raises `Unavailable`."""
        now = report.started_at
        was_used = await self._store.lake_was_used()
        policy = policy_of(self._settings, await self._store.limits(), lake_was_used=was_used)
        run_id = DRY if report.dry_run else await self._store.begin_run(now)
        async for removal in self._days.work(policy, now, report, run_id):
            report.removals.append(removal)
            yield removal
        if self._ageing is not None:
            async for removal in self._ageing.work(policy, now, report):
                report.removals.append(removal)
                if not report.dry_run:
                    await self._store.note(run_id, removal)
                yield removal
        async for removal in self._records.work(policy, now, report, run_id):
            report.removals.append(removal)
            yield removal
        if not report.dry_run:
            await self._store.end_run(run_id, self._clock(), report.kept)
            _tell(report, run_id, self._clock())

    def begin(self, *, dry_run: bool) -> Report:
        return Report(self._clock(), dry_run)

    async def all(self, *, dry_run: bool) -> Report:
        """From beginning to end."""
        report = self.begin(dry_run=dry_run)
        async for _ in self.work(report):
            pass
        return report


def _tell(report: Report, run_id: int, now: datetime) -> None:
    removed = {each.kind: each._asdict() for each in report.totals()}
    for each in removed.values():
        del each["kind"]
    fields = {"action": "retention", "run": run_id, "removed": removed, "kept": _first(report.kept)}
    seconds = round((now - report.started_at).total_seconds(), 3)
    _log.info("what was too old is removed", extra=fields | {"seconds": seconds, "kept_count": len(report.kept)})


def _first(kept: Sequence[str]) -> list[str]:
    """A log line has room for some."""
    return list(kept[:10])
