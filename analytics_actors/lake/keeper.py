"""The lake keeper: it makes few large files of many small ones, and removes what nobody needs any more.

A plain class; `analytics_actors.keeper_actor` makes a Ray actor of it, one for the whole lake. One task in one event
loop; a step is one merge, some removals, one page of the objects:

    manifest → hours to compact → merge → object store → manifest;  retired files, orphans → object store

Beside it, once a day, `analytics_actors.retention`. Without a lake that is all it does.

The law:
- A crash anywhere changes nothing that readers see. The next keeper finishes the merges that were begun. Another keeper
  at the same time is harmless (`analytics_actors.lake.compaction`).
- Neither ingest nor queries wait for it: it has a low priority, rests as long as it has worked, and holds no lock
  longer than a transaction takes. While a service is away it waits for it.
- Idle, it asks the manifest a question or two each `lake.keeper_interval_s`.
- An hour whose files cannot be merged stays as it is, is shown as trouble and tried again from time to time; the others
  go on. So it is with objects that cannot be deleted: neither merges nor retention wait for them.
- `observe` is cheap and may be called from another thread.
"""

import asyncio
import logging
import os
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from analytics_actors.background import Background
from analytics_actors.counters import Counters
from analytics_actors.lake.ageing import Ageing
from analytics_actors.lake.carrying import CrashPoint, Patience, no_crash
from analytics_actors.lake.compaction import Compaction, Refused
from analytics_actors.lake.removal import Removal, remove_abandoned
from analytics_actors.messages import KeeperView
from analytics_actors.retention.duty import RetentionDuty
from analytics_actors.retention.run import RetentionRun
from analytics_actors.schedule import DailySchedule
from analytics_actors.windows.sources import Compute, in_thread
from config.settings import LakeSettings, Settings
from storage.errors import Misconfigured, Unavailable
from storage.lake_listing import HourParts, LakeListing
from storage.lake_manifest import SWAP_TIME_S, LakeManifest, Swap
from storage.object_store import ObjectStore
from storage.retention import RetentionStore

HOURS_AT_ONCE = 1000
SET_ASIDE_S = 600.0
"""For an hour whose files could not be merged, and for looking for orphans while the object store is away."""
LONGEST_REST_S = 30.0

_log = logging.getLogger(__name__)


class Retention(NamedTuple):
    """What the keeper needs for it."""

    store: RetentionStore
    settings: Settings


class LakeKeeper:
    """`start` it, then ask for `failure` from time to time."""

    def __init__(
        self,
        *,
        manifest: LakeManifest,
        listing: LakeListing,
        objects: ObjectStore,
        settings: LakeSettings,
        folder: Path,
        retention: Retention | None = None,
        clock_s: Callable[[], float] = time.time,
        compute: Compute = in_thread,
        reached: CrashPoint = no_crash,
    ) -> None:
        """Without `settings.enabled` there is no lake to keep, only retention."""
        cold_storage_class = retention.settings.retention.cold_storage_class if retention else ""
        self._reached = reached
        self._manifest = manifest
        self._listing = listing
        self._settings = settings
        self._folder = folder
        self._clock_s = clock_s
        self._compute = compute
        self._counters = Counters()
        self._patience = Patience(self._counters)
        self._compaction = Compaction(
            manifest,
            listing,
            objects,
            self._counters,
            settings=settings,
            folder=folder,
            compute=compute,
            cold_storage_class=cold_storage_class,
            reached=reached,
        )
        self._ageing = Ageing(
            manifest,
            listing,
            objects,
            self._compaction,
            self._counters,
            settled_s=settings.compact_quiet_s,
            cold_storage_class=cold_storage_class,
            reached=reached,
        )
        self._retention = self._duty(retention) if retention and retention.settings.retention.enabled else None
        self._removal = Removal(listing, objects, self._counters, settings=settings, clock_s=clock_s, reached=reached)
        self._background = Background()
        self._started_s = clock_s()
        self._hours: list[HourParts] = []
        self._set_aside: dict[datetime, float] = {}
        """Until when."""
        self._orphans_due_s = self._started_s + min(settings.orphan_interval_s, settings.keeper_interval_s)
        self._last_run_s = 0.0
        self._last_merge_s = 0.0

    def _duty(self, retention: Retention) -> RetentionDuty:
        run = RetentionRun(
            retention.store,
            self._listing,
            retention.settings,
            ageing=self._ageing if self._settings.enabled else None,
            clock=lambda: datetime.fromtimestamp(self._clock_s(), UTC),
            reached=self._reached,
        )
        schedule = DailySchedule.read(retention.settings.retention.run_at)
        return RetentionDuty(run, retention.store, self._counters, schedule=schedule, clock_s=self._clock_s)

    def start(self) -> None:
        """Begin to work; needs a running event loop."""
        self._background.spawn(self._run())

    async def close(self) -> None:
        """End at once: whoever comes next finishes what was begun. The collaborators stay open."""
        await self._background.close()

    @property
    def failure(self) -> BaseException | None:
        """Why this keeper must be replaced by a new life of the same actor, if it must: see `Batcher.failure`."""
        return self._background.failure

    async def _run(self) -> None:
        if self._settings.enabled:
            for swap in await self._begun():
                await self._finish(swap)
        while True:
            started_s = time.monotonic()
            worked = await self.step()
            took_s = time.monotonic() - started_s
            await asyncio.sleep(min(took_s, LONGEST_REST_S) if worked else self._settings.keeper_interval_s)

    async def _begun(self) -> list[Swap]:
        return await self._patience.wait_for("manifest", self._manifest.open_swaps)

    async def _finish(self, swap: Swap) -> None:
        if swap.kind != "compact":
            await self._ageing.resume(swap)
            return
        _log.info("finishing a merge", extra={"action": "finish_plan", "plan": swap.plan_id})
        try:
            await self._compaction.finish(swap.plan_id, swap.file_ids)
        except Refused as error:
            _log.error("a merge that was begun is given up", exc_info=error, extra={"action": "merge_refused"})

    async def step(self) -> bool:
        """A bounded amount of work; whether there was any, so that there may be more."""
        aged = self._retention is not None and await self._retention.step()
        kept = self._settings.enabled and await self._keep_lake()
        self._last_run_s = self._clock_s()
        return aged or kept

    async def _keep_lake(self) -> bool:
        merged = await self._compact()
        removed = await self._remove_retired()
        looked = self._clock_s() >= self._orphans_due_s and await self._look_through()
        return merged or removed or looked

    async def _compact(self) -> bool:
        settings = self._settings
        self._hours = await self._patience.wait_for(
            "manifest",
            lambda: self._listing.hours_to_compact(
                small_bytes=settings.compact_below_bytes,
                quiet_s=settings.compact_quiet_s,
                max_parts=settings.compact_max_parts,
                limit=HOURS_AT_ONCE,
            ),
        )
        now_s = self._clock_s()
        self._set_aside = {hour: until_s for hour, until_s in self._set_aside.items() if until_s > now_s}
        if not self._set_aside:
            self._counters.clear_trouble("compaction")
        wanted = [each for each in self._hours if each.hour not in self._set_aside]
        return bool(wanted) and await self._merge(wanted[0])

    async def _merge(self, wanted: HourParts) -> bool:
        try:
            merged = await self._compaction.compact(wanted.hour, is_quiet=self._is_quiet(wanted))
        except Refused as error:
            self._counters.count("merges_refused")
            self._counters.trouble("compaction", f"files of {wanted.hour:%Y-%m-%dT%H}Z cannot be merged: {error}")
            _log.error("files cannot be merged", exc_info=error, extra={"action": "merge_refused"})
            merged = False
        finally:
            pa.default_memory_pool().release_unused()
        if not merged:
            self._set_aside[wanted.hour] = self._clock_s() + SET_ASIDE_S
            # There may be others.
            return True
        self._last_merge_s = self._clock_s()
        return True

    def _is_quiet(self, hour: HourParts) -> bool:
        since = datetime.fromtimestamp(self._clock_s() - self._settings.compact_quiet_s, UTC)
        return hour.files <= self._settings.compact_max_parts or hour.newest < since

    async def _remove_retired(self) -> bool:
        """Some of them; whether there were any that could be removed."""
        try:
            removed = await self._removal.remove_retired()
        except (Unavailable, Misconfigured) as error:
            self._counters.trouble("retired files", str(error))
            return False
        self._counters.clear_trouble("retired files")
        return removed

    async def _look_through(self) -> bool:
        """One page of the objects; whether any are left."""
        try:
            more = await self._removal.look_for_orphans()
        except (Unavailable, Misconfigured) as error:
            self._counters.trouble("objects", str(error))
            self._orphans_due_s = self._clock_s() + min(SET_ASIDE_S, self._settings.orphan_interval_s)
            return False
        self._counters.clear_trouble("objects")
        if not more:
            self._orphans_due_s = self._clock_s() + self._settings.orphan_interval_s
            await self._give_up_the_dead()
        return more

    async def _give_up_the_dead(self) -> None:
        """Merges that another keeper has begun and will not end, and what such a one has left on this disk."""
        oldest = datetime.fromtimestamp(self._clock_s() - SWAP_TIME_S, UTC)
        for swap in await self._begun():
            if swap.created_at < oldest:
                await self._patience.wait_for("manifest", partial(self._manifest.cancel_swap, swap.plan_id))
        await self._compute(remove_abandoned, self._folder)

    def observe(self) -> KeeperView:
        return KeeperView(
            pid=os.getpid(),
            started_ms=int(self._started_s * 1000),
            hours_to_compact=len(self._hours),
            hours_set_aside=len(self._set_aside),
            open_plan=self._compaction.open_plan,
            strangers=self._removal.strangers,
            last_run_ms=int(self._last_run_s * 1000),
            last_merge_ms=int(self._last_merge_s * 1000),
            last_retention_ms=self._retention.last_run_ms if self._retention else 0,
            counters=dict(self._counters.totals),
            trouble=self._counters.troubles,
        )
