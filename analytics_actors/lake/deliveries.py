"""All destinations of the lake, each served by a loop of its own; beside the keeper, in its process.

The law:
- A destination is served each `destinations.interval_s`, a new one and one with an open delivery at once. What one
  waits for delays no other.
- What is changed about a destination takes effect within `LOOK_S`; what was begun is finished as it was.
- `observe` is cheap and may be called from another thread.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from analytics_actors.background import Background
from analytics_actors.counters import Counters
from analytics_actors.lake.carrying import CrashPoint, no_crash
from analytics_actors.lake.delivery import MAX_PAUSE_S, Delivering
from analytics_actors.lake.places import backup_of, is_backup_id
from analytics_actors.lake.removal import remove_abandoned
from analytics_actors.messages import DeliveriesView
from analytics_actors.windows.sources import Compute, in_thread
from analytics_actors.windows.stepping import step_forever
from config.settings import DestinationSettings
from storage.destinations import Destination, Destinations, OpenPlace, place_of
from storage.errors import Conflict
from storage.lake_file import Compression
from storage.object_store import ObjectStore

LOOK_S = 10.0
POLL_S = 1.0
PAGE = 1000
MADE_AT_ONCE = 1
"""Files: each takes the memory of a merge."""

_BACKUP = "the settings' backup"


class _Served:
    """A destination, and the loop that serves it."""

    def __init__(self, destination: Destination, delivering: Delivering, *, due_s: float) -> None:
        self.destination = destination
        self.background = Background()
        self._delivering = delivering
        self._due_s = due_s

    def start(self, counters: Counters, *, clock_s: Callable[[], float], interval_s: float) -> None:
        async def step() -> None:
            now_s = clock_s()
            if now_s >= self._due_s:
                await self._delivering.step()
                self._due_s = now_s + interval_s

        name = self.destination.destination_id
        self.background.spawn(step_forever(step, counters, name, pause_s=POLL_S, max_pause_s=MAX_PAUSE_S))


class Deliveries:
    """`start` it, then ask for `failure` from time to time."""

    def __init__(
        self,
        destinations: Destinations,
        lake: ObjectStore,
        open_place: OpenPlace,
        *,
        policy: DestinationSettings,
        compression: Compression,
        folder: Path,
        clock_s: Callable[[], float] = time.time,
        compute: Compute = in_thread,
        reached: CrashPoint = no_crash,
    ) -> None:
        self._destinations = destinations
        self._policy = policy
        self._folder = folder
        self._clock_s = clock_s
        self._counters = Counters()
        slot = asyncio.Semaphore(MADE_AT_ONCE)
        self._delivering: Callable[[Destination], Delivering] = lambda destination: Delivering(
            destination,
            destinations,
            lake,
            open_place,
            self._counters,
            compression=compression,
            folder=folder,
            slot=slot,
            compute=compute,
            reached=reached,
        )
        self._background = Background()
        self._serving: dict[str, _Served] = {}
        self._has_backup = False

    def start(self) -> None:
        """Begin to work; needs a running event loop."""
        remove_abandoned(self._folder)
        self._background.spawn(step_forever(self._look, self._counters, "destinations", pause_s=LOOK_S))

    async def close(self) -> None:
        """End at once: whoever comes next goes on with what was begun. The collaborators stay open."""
        await self._background.close()
        for served in self._serving.values():
            await served.background.close()

    @property
    def failure(self) -> BaseException | None:
        """As that of the keeper."""
        # A copy: another thread may be asking.
        backgrounds = [self._background, *(served.background for served in list(self._serving.values()))]
        return next((each.failure for each in backgrounds if each.failure is not None), None)

    async def _look(self) -> None:
        """See which destinations there are, and let each be served."""
        if not self._has_backup:
            await self._settle_backup()
        wanted = {each.destination_id: each for each in await self._enabled()}
        for destination_id, served in list(self._serving.items()):
            if wanted.get(destination_id) != served.destination:
                await served.background.close()
                del self._serving[destination_id]
                self._counters.clear_trouble(destination_id)
        for destination_id in wanted.keys() - self._serving.keys():
            await self._serve(wanted[destination_id])

    async def _enabled(self) -> list[Destination]:
        return [each for each in await self._listed() if each.enabled]

    async def _listed(self) -> list[Destination]:
        found: list[Destination] = []
        while page := await self._destinations.listed(after=found[-1].destination_id if found else "", limit=PAGE):
            found += page
        return found

    async def _serve(self, destination: Destination) -> None:
        status = await self._destinations.status(destination.destination_id)
        due_s = 0.0
        if status.fresh_at is not None and not status.open_delivery:
            due_s = status.fresh_at.timestamp() + self._policy.interval_s
        served = _Served(destination, self._delivering(destination), due_s=due_s)
        self._serving[destination.destination_id] = served
        served.start(self._counters, clock_s=self._clock_s, interval_s=self._policy.interval_s)

    async def _settle_backup(self) -> None:
        """What the settings say is the backup, and no other."""
        backup = backup_of(self._policy)
        if backup is not None:
            try:
                await self._destinations.create(backup, since="beginning")
            except Conflict:
                backup = await self._renewed(backup)
        former = [each for each in await self._enabled() if is_backup_id(each.destination_id)]
        for each in former:
            if backup is None or each.destination_id != backup.destination_id:
                await self._destinations.change(replace(each, enabled=False))
        self._has_backup = backup is not None or not self._policy.backup_url
        if self._has_backup:
            self._counters.clear_trouble(_BACKUP)

    async def _renewed(self, backup: Destination) -> Destination | None:
        """The backup that was there already, as the settings say now; None while the place is another one's."""
        everything = await self._listed()
        there = [each for each in everything if each.destination_id == backup.destination_id]
        there += [each for each in everything if place_of(each) == place_of(backup)]
        if there and not is_backup_id(there[0].destination_id):
            # It may be disabled or without what was before it: only who made it can say whether it is a backup.
            self._counters.trouble(
                _BACKUP,
                f"the destination {there[0].destination_id} is at {backup.url} already; there is no backup until it is"
                " removed or destinations.backup_url is another place",
            )
            return None
        if there:
            backup = replace(backup, destination_id=there[0].destination_id)
        await self._destinations.change(backup)
        return backup

    def observe(self) -> DeliveriesView:
        return DeliveriesView(
            destinations=len(self._serving),
            failing=len(self._counters.in_trouble & self._serving.keys()),
            counters=dict(self._counters.totals),
            trouble=self._counters.troubles,
        )
