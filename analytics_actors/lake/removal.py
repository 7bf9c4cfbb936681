"""What the object store need not keep: files that were replaced, and objects that never became live.

The law:
- Only keys that `storage.lake_file` gives are ever deleted: nothing else under the lake's prefix, nothing outside.
- A retired file is deleted when no reader can still have its name, and its row goes after its object.
- An object without a row is deleted when its plan has ended without it, and long ago. One whose plan this manifest does
  not know, or that was there before its plan, is somebody else's, or of a time after the manifest's backup: it stays,
  and is counted.
"""

import logging
import shutil
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

from analytics_actors.counters import Counters
from analytics_actors.lake.carrying import CrashPoint, Patience, no_crash
from analytics_actors.lake.objects import name_of
from config.settings import LakeSettings
from storage.lake_file import PREFIX, cold_key
from storage.lake_listing import LakeListing
from storage.lake_manifest import SWAP_TIME_S
from storage.object_store import ObjectInfo, ObjectStore

REMOVED_AT_ONCE = 500
LOOKED_AT_ONCE = 1000
"""A page of S3's listing."""
CLOCKS_APART_S = 300.0
"""Between the object store's server and PostgreSQL's."""

_log = logging.getLogger(__name__)


class Removal:
    """A step at a time; each is bounded."""

    def __init__(
        self,
        listing: LakeListing,
        objects: ObjectStore,
        counters: Counters,
        *,
        settings: LakeSettings,
        clock_s: Callable[[], float],
        reached: CrashPoint = no_crash,
    ) -> None:
        self._reached = reached
        self._listing = listing
        self._objects = objects
        self._counters = counters
        self._patience = Patience(counters)
        self._settings = settings
        self._clock_s = clock_s
        self._looking: AsyncIterator[ObjectInfo] | None = None
        self.strangers = 0
        """Old objects under names of the lake that are of no ended plan, as far as this look through has come."""

    async def remove_retired(self) -> bool:
        """Some of those whose grace period is over; whether there were any. Raises `Unavailable` and `Misconfigured` of
        the object store; nothing is forgotten then."""
        grace_s = self._settings.retired_grace_s
        old = await self._patience.wait_for(
            "manifest", lambda: self._listing.expired(grace_s=grace_s, limit=REMOVED_AT_ONCE)
        )
        if not old:
            return False
        keys = [entry.key for entry in old if name_of(entry.key) is not None]
        await self._objects.delete(keys)
        self._reached("objects removed")
        await self._patience.wait_for("manifest", lambda: self._listing.forget([entry.file_id for entry in old]))
        self._counters.count("files_removed", len(old))
        self._counters.count("bytes_removed", sum(entry.bytes for entry in old))
        return True

    async def look_for_orphans(self) -> bool:
        """Go through some more of the objects, from the first one after the last; whether any are left. Raises
        `Unavailable` and `Misconfigured`; the next call begins anew then."""
        looking = self._looking
        if looking is None:
            looking, self.strangers = self._all(), 0
        self._looking = None
        page: list[ObjectInfo] = []
        async for info in looking:
            page.append(info)
            if len(page) == LOOKED_AT_ONCE:
                break
        await self._remove_orphans(page)
        if len(page) == LOOKED_AT_ONCE:
            self._looking = looking
        return self._looking is not None

    async def _all(self) -> AsyncIterator[ObjectInfo]:
        for prefix in (PREFIX, cold_key(PREFIX)):
            async for info in self._objects.list(prefix):
                yield info

    async def _remove_orphans(self, page: Sequence[ObjectInfo]) -> None:
        before_s = self._clock_s() - self._settings.orphan_grace_s
        plan_of = {info.key: name.plan_id for info in page if (name := name_of(info.key)) is not None}
        old = [info for info in page if info.key in plan_of and info.modified_s < before_s]
        if not old:
            return
        plans = sorted({plan_of[info.key] for info in old})
        # The plans first: a key that is not known after its plan had ended will never be.
        ended = await self._patience.wait_for("manifest", lambda: self._listing.ended(plans))
        known = await self._patience.wait_for("manifest", lambda: self._listing.known([each.key for each in old]))
        unknown = [each for each in old if each.key not in known]
        orphans = [
            each
            for each in unknown
            if (end := ended.get(plan_of[each.key])) and end.timestamp() <= each.modified_s + CLOCKS_APART_S
        ]
        if orphans:
            keys = [each.key for each in orphans]
            await self._objects.delete(keys)
            self._counters.count("orphans_removed", len(orphans))
            self._counters.count("bytes_removed", sum(each.size for each in orphans))
            fields = {"action": "orphans_removed", "count": len(orphans), "first": keys[0]}
            _log.info("objects that no plan finished are removed", extra=fields)
        self.strangers += len(unknown) - len(orphans)


def remove_abandoned(folder: Path) -> None:
    """What killed keepers have left of their merges in the folder."""
    before_s = time.time() - SWAP_TIME_S
    for each in folder.glob("*-*") if folder.is_dir() else ():
        if each.stat().st_mtime < before_s:
            shutil.rmtree(each, ignore_errors=True)
