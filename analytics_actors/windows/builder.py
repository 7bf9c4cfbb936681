"""New and changed definitions: their windows are made from stored events, while the partition pauses at its offset.

The order: the log is followed no further; the event store catches up with that offset; windows of the changed metrics
are counted from its rows below the offset and published, and those that nothing is counted in any more are taken away;
the same is done with roll-ups; at last the project is noted as built. A crash before that note does it all again, with
the same result.

Records of aggregate-only events know within which offsets their events are, and not of each: where a record has events
below the pause and above, which the event store has already, the whole partition is rebuilt instead.
"""

import asyncio
from collections.abc import Sequence

from analytics_actors.windows.aggregate_only import deltas_of
from analytics_actors.windows.definition_book import DefinitionBook, doubted, is_doubted
from analytics_actors.windows.in_place import publish_in_place
from analytics_actors.windows.leftovers import leftovers
from analytics_actors.windows.partition import WindowPartition, WindowState
from analytics_actors.windows.prepare import prepare
from analytics_actors.windows.roll_up import RollUp
from analytics_actors.windows.shared import WindowShard
from analytics_actors.windows.sources import StoredCheckpoints
from analytics_actors.windows.stepping import step_forever
from analytics_actors.windows.window_set import WindowSet
from storage.aggregate import Aggregate
from storage.errors import StorageError, Unavailable
from storage.event_columns import EventColumns
from storage.metric_definitions import MetricDefinition
from storage.window_key import Dimensions, Size, WindowKey, lateness_s
from storage.window_store import WindowStore

POLL_S = 2.0
STORED_POLL_S = 0.1
PATIENCE_S = 10.0
"""If the event store does not catch up within it, the partition goes on with the old definitions for a while."""

AHEAD_S = 2 * 86400
"""Events may be of the future: more than the gateway's `max_event_ahead_s` takes by default."""

WINDOWS_PER_CALL = 2000
_HOUR_S = 3600


class Builder:
    """Runs until cancelled: polls the definitions and builds what has changed."""

    def __init__(
        self,
        shard: WindowShard,
        store: WindowStore,
        events: EventColumns,
        stored: StoredCheckpoints,
        book: DefinitionBook,
        roll_up: RollUp,
    ) -> None:
        self._shard = shard
        self._store = store
        self._events = events
        self._stored = stored
        self._book = book
        self._roll_up = roll_up

    async def run(self) -> None:
        await step_forever(self.step, self._shard.counters, "definitions", pause_s=POLL_S)

    async def step(self) -> None:
        await self._book.refresh()
        for owner in self._shard.in_state(WindowState.LIVE, WindowState.BUILDING):
            projects = self._book.mismatched(owner.built)
            if projects or owner.state is WindowState.BUILDING:
                await self._build_all(owner, projects)

    async def _build_all(self, owner: WindowPartition, projects: Sequence[str]) -> None:
        async with self._shard.turn:
            if owner.state not in (WindowState.LIVE, WindowState.BUILDING):
                return
            # After a restart nobody knows the old definitions: then the partition waits until it is built.
            may_go_on = owner.state is WindowState.LIVE
            owner.state = WindowState.BUILDING
        try:
            await self._wait_until_stored(owner)
            for project_id in projects:
                if owner.state is WindowState.BUILDING:
                    await self._build(owner, project_id)
        except StorageError:
            if may_go_on and owner.state is WindowState.BUILDING:
                owner.state = WindowState.LIVE
            raise
        if owner.state is WindowState.BUILDING:
            owner.state = WindowState.LIVE

    async def _wait_until_stored(self, owner: WindowPartition) -> None:
        waited_s = 0.0
        while True:
            [checkpoint] = await self._stored([owner.partition])
            if checkpoint.next_offset >= owner.next_offset:
                return
            if waited_s >= PATIENCE_S:
                raise Unavailable(f"the event store is behind the windows of partition {owner.partition}")
            await asyncio.sleep(STORED_POLL_S)
            waited_s += STORED_POLL_S

    async def _build(self, owner: WindowPartition, project_id: str) -> None:
        wanted = self._book.wanted(project_id)
        changed = self._book.changed(project_id, since=owner.built[project_id])
        # What a deleted metric has counted stays.
        metrics = [metric for metric in changed.values() if metric is not None]
        epoch = owner.epoch
        for start, end in self._slices() if metrics else ():
            if not await self._build_slice(owner, epoch, project_id, metrics, start, end):
                return
        version = doubted(wanted.version) if is_doubted(owner.built[project_id]) else wanted.version
        async with self._shard.turn:
            if owner.epoch != epoch:
                return
            if await publish_in_place(self._shard, self._store, owner, [], {project_id: version}):
                self._book.apply(project_id, wanted)
                self._shard.counters.count("definitions_built", len(metrics))

    def _slices(self) -> list[tuple[int, int]]:
        """An hour at a time is in memory, of one project; little is of the future."""
        first, now = self._shard.frozen_below, int(self._shard.clock_s())
        hours = list(range(first, now + _HOUR_S, _HOUR_S))
        return [(start, start + _HOUR_S) for start in hours] + [(hours[-1] + _HOUR_S, hours[-1] + AHEAD_S)]

    async def _build_slice(
        self,
        owner: WindowPartition,
        epoch: int,
        project_id: str,
        metrics: Sequence[MetricDefinition],
        start: int,
        end: int,
    ) -> bool:
        """Whether the partition is still ours, and is what it was."""
        windows = await self._count(owner, project_id, metrics, start, end)
        if windows is None:
            await self._shard.leave(owner, WindowState.LOST)
            return False
        async with self._shard.turn:
            if owner.epoch != epoch:
                return False
            names = [metric.name for metric in metrics]
            hours = range(start, end, _HOUR_S)
            gone = await leftovers(self._store, project_id, names, hours, windows.__contains__)
            if not await self._publish(owner, windows, gone):
                return False
            # What is in memory of these metrics is not what was published now.
            self._shard.windows.drop_metrics({(project_id, name) for name in names})
            self._shard.closing.touched(windows, self._shard.clock_s())
        for hour in hours:
            if hour <= self._shard.clock_s() and not await self._roll_up.renew(project_id, metrics, hour):
                return False
        return True

    async def _count(
        self, owner: WindowPartition, project_id: str, metrics: Sequence[MetricDefinition], start: int, end: int
    ) -> dict[WindowKey, Aggregate] | None:
        """None when records cannot be told apart."""
        counted = WindowSet(_Nothing(), max_bytes=1 << 62, max_groups=self._shard.settings.max_groups)
        late_s = lateness_s(self._shard.settings)
        rows = self._events.rows([project_id], start_s=start, end_s=end, below_offset=owner.next_offset)
        async for chunk in rows:
            prepared = await self._shard.compute(
                prepare, [chunk], lambda _: metrics, lateness_s=late_s, frozen_below=start
            )
            await counted.merge(prepared.deltas)
        async for records in self._events.records([project_id], start_s=start, end_s=end):
            below = [(key, each) for key, each in records if each.first_offset < owner.next_offset and not key.late]
            deltas = await self._shard.compute(deltas_of, below, lambda _: metrics)
            if deltas and any(each.next_offset > owner.next_offset for _, each in below):
                return None
            await counted.merge(deltas)
        return dict(counted.unpublished)

    async def _publish(
        self, owner: WindowPartition, windows: dict[WindowKey, Aggregate], gone: Sequence[WindowKey]
    ) -> bool:
        items = list(windows.items())
        for first in range(0, max(len(items), len(gone)), WINDOWS_PER_CALL):
            some = slice(first, first + WINDOWS_PER_CALL)
            if not await publish_in_place(self._shard, self._store, owner, items[some], {}, gone=gone[some]):
                return False
        return True


class _Nothing:
    """Windows are counted from nothing here."""

    async def load(self, keys: Sequence[WindowKey]) -> list[Aggregate | None]:
        return [None for _ in keys]

    async def groups(self, project_id: str, metric: str, size: Size, starts: Sequence[int]) -> list[list[Dimensions]]:
        return [[] for _ in starts]
