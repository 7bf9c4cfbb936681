"""What the parts of one aggregator share: its partitions, their windows in memory, the time."""

import asyncio
from collections.abc import Callable, Iterable
from functools import lru_cache

from analytics_actors.counters import Counters
from analytics_actors.windows.closing import Closing
from analytics_actors.windows.partition import WindowPartition, WindowState
from analytics_actors.windows.sources import Compute
from analytics_actors.windows.window_set import WindowSet
from config.settings import Settings
from storage.fingerprint import partition_of
from storage.window_key import live_from
from storage.window_store import WindowStore

FREEZE_S = 60
"""An hour does not change any more in the last minute in which it is answered from windows, so that its roll-up is
complete when it takes over: a count that was seen never goes down at the seam."""


class WindowShard:
    """The state of one aggregator. Whoever merges, publishes or drops windows holds `turn`."""

    def __init__(
        self,
        partitions: Iterable[int],
        store: WindowStore,
        settings: Settings,
        *,
        clock_s: Callable[[], float],
        compute: Compute,
    ) -> None:
        windows = settings.windows
        self.settings = windows
        self.max_ahead_s = settings.gateway.max_event_ahead_s
        self.clock_s = clock_s
        self.compute = compute
        self.counters = Counters()
        self.partitions = {number: WindowPartition(number) for number in partitions}
        self.windows = WindowSet(store, max_bytes=windows.max_resident_bytes, max_groups=windows.max_groups)
        self.closing = Closing(close_after_s=windows.close_after_s)
        self.turn = asyncio.Lock()
        self.lag_s = 0.0
        """How long after its receipt the newest counted event was counted; 0 when nothing is left to count."""
        count = settings.log.partitions
        self.partition_of = lru_cache(maxsize=100_000)(lambda project_id: partition_of(project_id, count))

    def owner_of(self, project_id: str) -> WindowPartition:
        return self.partitions[self.partition_of(project_id)]

    def in_state(self, *states: WindowState) -> list[WindowPartition]:
        return [owner for owner in self.partitions.values() if owner.state in states]

    @property
    def now_ms(self) -> int:
        return int(self.clock_s() * 1000)

    @property
    def frozen_below(self) -> int:
        """Hours that begin before it have final windows: what changes them is counted by a recomputation of the day."""
        return live_from(self.clock_s() + FREEZE_S, self.settings)

    def forget(self, owner: WindowPartition) -> None:
        """Drop what is in memory of the partition; what was published is loaded again when it is needed."""

        def belongs(project_id: str) -> bool:
            return self.partition_of(project_id) == owner.partition

        self.windows.drop(belongs)
        self.closing.drop(belongs)

    async def leave(self, owner: WindowPartition, state: WindowState) -> None:
        """The partition is not live any more."""
        async with self.turn:
            owner.state = state
            self.forget(owner)
