"""Raw events leave PostgreSQL: whole days where all of a day may go, else the rows of projects whose time is over.

The law:
- No row goes that the lake still needs: it must have been exported early enough, and be in a live file now unless its
  time in the lake is over too (where limits are near one another the file goes first). A day of which a row waits for
  that stays, but for rows of projects with shorter limits, and is told. While the lake is behind with what was stored
  then, the day stays as a whole.
- A day stays while a project with a longer limit has rows in it; the others' rows are deleted in bounded batches, and
  their room on disk is free when the day is dropped.
- A day that is in use (a long read) is tried a few times, and told as busy then: ingest never waits longer for us than
  `storage.retention.LOCK_TIMEOUT_S`.
"""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, date, datetime, timedelta

from analytics_actors.lake.carrying import CrashPoint, no_crash
from analytics_actors.retention.policy import Due, Policy
from analytics_actors.retention.report import Report
from storage.errors import Conflict
from storage.lake_listing import LakeListing
from storage.retention import Removal, RetentionStore, Share, StoredDay

BUSY_PAUSES_S = (0.5, 2.0, 5.0, 10.0)


class StoredDays:
    def __init__(self, store: RetentionStore, listing: LakeListing, reached: CrashPoint = no_crash) -> None:
        self._store = store
        self._listing = listing
        self._reached = reached

    async def work(self, policy: Policy, now: datetime, report: Report, run_id: int) -> AsyncIterator[Removal]:
        """Step by step. A dry run removes nothing."""
        needed_since = await self._listing.needed_since() if policy.with_lake else None
        for day in await self._store.days():
            end = _end(day.day)
            projects = await self._store.projects_of(day.day) if end <= now else []
            due = _due(projects, policy, end, now)
            if not due and (projects or policy.raw_due(policy.raw, end, now) is None):
                continue
            if due and needed_since is not None and needed_since < end:
                # To look through its rows would take long and tell no more.
                report.kept.append(
                    f"{day.day}: the lake has not all that was stored since {needed_since:%Y-%m-%d %H:%M}Z"
                )
                continue
            total, may_go = await self._shares(day.day, due, policy, now, report)
            if len(may_go) == len(projects):
                async for removal in self._drop(day, total, report, run_id):
                    yield removal
            elif len(due) < len(projects):
                async for removal in self._delete(day, total, may_go, report, run_id):
                    yield removal

    async def _shares(
        self, day: date, due: dict[str, Due], policy: Policy, now: datetime, report: Report
    ) -> tuple[int, list[Share]]:
        """How many rows the day has, and the shares that may go."""
        by_time: defaultdict[Due, set[str]] = defaultdict(set)
        for project_id, when in due.items():
            by_time[when].add(project_id)
        total = 0
        may_go: list[Share] = []
        waiting: list[Share] = []
        for when, projects in by_time.items():
            shares = await self._store.shares(
                day,
                exported_before=when.exported_before,
                lake_before=policy.lake_before(now),
                lake_limited=policy.lake_limits(now),
            )
            total = sum(share.rows for share in shares)
            for share in shares:
                if share.project_id in projects:
                    (waiting if share.waiting else may_go).append(share)
        if waiting:
            rows = sum(share.waiting for share in waiting)
            report.kept.append(f"{day}: {rows:,} rows of {_some(waiting)} are not in the lake, or not for long enough")
        return total, may_go

    async def _drop(self, day: StoredDay, rows: int, report: Report, run_id: int) -> AsyncIterator[Removal]:
        if report.dry_run:
            yield Removal("partitions", day.day.isoformat(), 0, rows, day.bytes)
            return
        self._reached("day due")
        for pause_s in (*BUSY_PAUSES_S, None):
            try:
                gone = await self._store.drop_day(run_id, day.day, size=day.bytes)
            except Conflict:
                if pause_s is None:
                    report.busy = True
                    report.kept.append(f"{day.day}: it is being read; tried again later")
                    return
                await asyncio.sleep(pause_s)
            else:
                self._reached("day dropped")
                yield Removal("partitions", day.day.isoformat(), 0, gone, day.bytes)
                return

    async def _delete(
        self, day: StoredDay, total: int, shares: Sequence[Share], report: Report, run_id: int
    ) -> AsyncIterator[Removal]:
        row_bytes = day.bytes / max(total, 1)
        name, projects = day.day.isoformat(), [share.project_id for share in shares]
        if report.dry_run:
            rows = sum(share.rows for share in shares)
            if rows:
                yield Removal("events", name, 0, rows, int(rows * row_bytes))
            return
        page: int | None = 0 if projects else None
        while page is not None:
            gone, page = await self._store.expire_rows(run_id, day.day, projects, first_page=page, row_bytes=row_bytes)
            yield Removal("events", name, 0, gone, int(gone * row_bytes))


def _due(projects: Sequence[str], policy: Policy, end: datetime, now: datetime) -> dict[str, Due]:
    found = {project: policy.raw_due(policy.raw_of(project), end, now) for project in projects}
    return {project: due for project, due in found.items() if due is not None}


def _some(shares: Sequence[Share]) -> str:
    more = f" and {len(shares) - 1} projects more" if len(shares) > 1 else ""
    return f"{shares[0].project_id}{more}"


def _end(day: date) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=UTC) + timedelta(days=1)
