"""Roll-ups, records of aggregated events, patterns, dead letters and what retention itself has noted: deleted in
bounded batches when they are older than they may be. The lake's history goes with them."""

from collections.abc import AsyncIterator
from datetime import datetime, timedelta

from analytics_actors.retention.policy import Policy
from analytics_actors.retention.report import Report
from storage.lake_listing import LakeListing
from storage.retention import Removal, RetentionStore

DELETED_AT_ONCE = 5000


class OldRecords:
    def __init__(self, store: RetentionStore, listing: LakeListing) -> None:
        self._store = store
        self._listing = listing

    async def work(self, policy: Policy, now: datetime, report: Report, run_id: int) -> AsyncIterator[Removal]:
        for group in await self._store.groups():
            before = policy.records_before(group, now)
            if before is None:
                continue
            if report.dry_run:
                gone = await self._store.count_old(group, before)
                if gone.rows:
                    yield Removal(group.kind, group.name, 0, *gone)
                continue
            while True:
                gone = await self._store.delete_old(run_id, group, before, limit=DELETED_AT_ONCE)
                if gone.rows:
                    yield Removal(group.kind, group.name, 0, *gone)
                if gone.rows < DELETED_AT_ONCE:
                    break
        if policy.with_lake and policy.settings.history_days:
            async for removal in self._forget(policy, now, report, run_id):
                yield removal

    async def _forget(self, policy: Policy, now: datetime, report: Report, run_id: int) -> AsyncIterator[Removal]:
        """When a range was exported is needed as long as there are rows of it."""
        days = await self._store.days()
        oldest = datetime.combine(days[0].day, datetime.min.time(), now.tzinfo) if days else now
        before = min(now - timedelta(days=policy.settings.history_days), oldest)
        forget = self._listing.count_history if report.dry_run else self._listing.forget_history
        removal = Removal("plans", "", 0, await forget(before=before), 0)
        if removal.rows:
            if not report.dry_run:
                await self._store.note(run_id, removal)
            yield removal
