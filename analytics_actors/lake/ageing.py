"""Files of the lake grow old: they become cold, lose the events of projects whose time is over, and go.

The law:
- Each change of a file is a swap of the manifest: planned, made, committed once. Whoever does it again, after a crash
  anywhere or at the same time, makes the same object, or hears that it is done.
- What was replaced keeps its object for the grace period (`analytics_actors.lake.removal`), for queries under way.
- An event stays as long as its project's limit says, counted from its hour's end or from its file's export, whichever
  is later. A file goes when the time of all its projects is over; before that it is rewritten without those whose time
  is over. A project with a longer limit keeps the file with its own rows.
- A file becomes cold when its hour is old and nothing was added to it for a while: what is merged is merged before.
"""

import logging
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Literal, NamedTuple

from analytics_actors.counters import Counters
from analytics_actors.lake.carrying import CrashPoint, Patience, no_crash
from analytics_actors.lake.compaction import Compaction, Refused
from analytics_actors.retention.policy import Policy
from analytics_actors.retention.report import Report
from storage.lake_file import cold_key
from storage.lake_listing import AgingFile, LakeListing
from storage.lake_manifest import LakeFile, LakeManifest, Swap
from storage.object_store import ObjectStore
from storage.retention import Kind, Removal

FILES_AT_ONCE = 200

_KINDS: "dict[Literal['move', 'expire', 'rewrite'], Kind]" = {
    "move": "moved_files",
    "expire": "expired_files",
    "rewrite": "rewritten_files",
}

_log = logging.getLogger(__name__)


class Change(NamedTuple):
    """What a file is due for."""

    kind: Literal["move", "expire", "rewrite"]
    leave_out: frozenset[str] = frozenset()


def change_of(file: AgingFile, policy: Policy, now: datetime) -> Change | None:
    before, own = policy.lake_before(now), policy.lake_limits(now)
    limits = {project: own.get(project, before) for project in file.projects}
    over = frozenset(project for project, limit in limits.items() if limit is not None and file.since <= limit)
    if len(over) == len(file.projects):
        return Change("expire")
    if over:
        return Change("rewrite", over)
    return Change("move") if file.tier == "hot" else None


class Ageing:
    def __init__(
        self,
        manifest: LakeManifest,
        listing: LakeListing,
        objects: ObjectStore,
        compaction: Compaction,
        counters: Counters,
        *,
        settled_s: float,
        cold_storage_class: str = "",
        reached: CrashPoint = no_crash,
    ) -> None:
        """A file that was exported less than `settled_s` ago may still be merged: it does not become cold."""
        self._manifest = manifest
        self._listing = listing
        self._objects = objects
        self._compaction = compaction
        self._patience = Patience(counters)
        self._counters = counters
        self._settled = timedelta(seconds=settled_s)
        self._cold_storage_class = cold_storage_class
        self._reached = reached

    async def work(self, policy: Policy, now: datetime, report: Report) -> AsyncIterator[Removal]:
        """A file at a time, the oldest first. A dry run changes nothing."""
        after: tuple[datetime, int] | None = None
        while True:
            page = await self._page(policy, now, after)
            for file in page:
                change = change_of(file, policy, now)
                if change is None or (change.kind == "move" and now - file.exported_at < self._settled):
                    continue
                removal = _removal(file, change)
                if report.dry_run or await self._change(file, change, report):
                    yield removal
            if len(page) < FILES_AT_ONCE:
                return
            after = page[-1].hour, page[-1].file_id

    async def _page(self, policy: Policy, now: datetime, after: tuple[datetime, int] | None) -> list[AgingFile]:
        return await self._patience.wait_for(
            "manifest",
            lambda: self._listing.aging(
                hot_before=policy.hot_before(now),
                before=policy.lake_before(now),
                limited=policy.lake_limits(now),
                after=after,
                limit=FILES_AT_ONCE,
            ),
        )

    async def _change(self, file: AgingFile, change: Change, report: Report) -> bool:
        try:
            if change.kind == "rewrite":
                return await self._compaction.rewrite(file.file_id, change.leave_out)
            begun = [file.file_id]
            plan_id = await self._patience.wait_for("manifest", lambda: self._manifest.plan_swap(change.kind, begun))
            return plan_id is not None and await self._finish(plan_id, change.kind, file.file_id)
        except Refused as error:
            self._counters.count("ageing_refused")
            report.kept.append(f"{file.key}: {error}")
            _log.error("a file of the lake cannot be changed", exc_info=error, extra={"action": "ageing_refused"})
            return False

    async def resume(self, swap: Swap) -> None:
        """End what somebody else has begun. Who rewrites knows alone what was to be left out: that is given up, and
        found again."""
        if swap.kind == "rewrite":
            await self._patience.wait_for("manifest", lambda: self._manifest.cancel_swap(swap.plan_id))
        elif swap.kind in ("move", "expire"):
            try:
                await self._finish(swap.plan_id, swap.kind, swap.file_ids[0])
            except Refused as error:
                _log.error("a file of the lake cannot be changed", exc_info=error, extra={"action": "ageing_refused"})

    async def _finish(self, plan_id: int, kind: str, file_id: int) -> bool:
        self._reached(f"{kind} planned")
        try:
            files = await self._cold(file_id) if kind == "move" else []
            outcome = await self._patience.wait_for("manifest", lambda: self._manifest.swap(plan_id, files))
        except Refused:
            await self._give_up(plan_id)
            raise
        self._reached(f"{kind} committed")
        if outcome == "outdated":
            await self._give_up(plan_id)
            return False
        self._counters.count("files_moved" if kind == "move" else "files_expired")
        return True

    async def _give_up(self, plan_id: int) -> None:
        await self._patience.wait_for("manifest", lambda: self._manifest.cancel_swap(plan_id))

    async def _cold(self, file_id: int) -> list[LakeFile]:
        """The file as it is when its object was copied; none when it is not live any more."""
        found = await self._patience.wait_for("manifest", lambda: self._listing.load([file_id]))
        if file_id not in found:
            return []
        file = found[file_id]
        target = cold_key(file.key)
        kind = self._cold_storage_class
        await self._patience.wait_for_object(
            self._objects, file.key, lambda: self._objects.copy(file.key, target, storage_class=kind)
        )
        self._reached("move copied")
        return [replace(file, key=target, tier="cold")]


def _removal(file: AgingFile, change: Change) -> Removal:
    rows = sum(file.projects[project] for project in change.leave_out) if change.leave_out else file.rows
    return Removal(_KINDS[change.kind], f"{file.hour:%Y-%m-%d}", 1, rows, file.bytes * rows // file.rows)
