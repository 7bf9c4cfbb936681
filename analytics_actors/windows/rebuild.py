"""Windows from the event store, where Redis has lost them or the log what they need.

One snapshot of the event store gives the partition's checkpoint and all its events of the hours that windows answer
for; what came after that is in the log. Windows that are still there from before are overwritten or taken away; and as
counts are not to go down, once nobody else can publish any more, the event store first catches up with the log.
Windows that memory has no room for are published before their turn and loaded again, which is safe because a partition
that is rebuilding is not read by anybody.
"""

import asyncio
from collections.abc import Sequence

import pyarrow as pa

from analytics_actors.windows.aggregate_only import deltas_of
from analytics_actors.windows.definition_book import DefinitionBook, Definitions, doubted
from analytics_actors.windows.leftovers import leftovers
from analytics_actors.windows.opening import go_on, take_epoch
from analytics_actors.windows.partition import WindowPartition, WindowState
from analytics_actors.windows.prepare import Prepared, newest_ms, prepare
from analytics_actors.windows.shared import WindowShard
from analytics_actors.windows.sources import LogStates, StoredCheckpoints
from analytics_actors.windows.stepping import step_forever
from analytics_actors.windows.window_set import WindowSet
from storage.aggregate import Aggregate
from storage.aggregated import AggregatedRecord, RecordKey
from storage.errors import Fenced, LogLost, Unavailable
from storage.event_columns import EventColumns
from storage.metric_definitions import MetricDefinition
from storage.rollups import RollupStore, day_of
from storage.window_key import Dimensions, Size, WindowKey, lateness_s
from storage.window_store import Publication, WindowsCheckpoint, WindowStore

_HOUR_S = 3600
FROZEN_S = 2 * _HOUR_S
"""Hours below the live ones that are looked through as well: if this owner's predecessor had not rolled them up when
Redis lost them, nobody has; their days are marked for recomputation."""

WINDOWS_PER_CALL = 2000
STORED_POLL_S = 0.1
STORED_POLLS = 50

STEP_S = 0.25


class Rebuilder:
    """Runs until cancelled: one lost partition after the other."""

    def __init__(
        self,
        shard: WindowShard,
        store: WindowStore,
        events: EventColumns,
        rollups: RollupStore,
        book: DefinitionBook,
        *,
        stored: StoredCheckpoints,
        log_states: LogStates,
    ) -> None:
        self._shard = shard
        self._store = store
        self._events = events
        self._rollups = rollups
        self._book = book
        self._stored = stored
        self._log_states = log_states

    async def run(self) -> None:
        await step_forever(self.step, self._shard.counters, "rebuild", pause_s=STEP_S)

    async def step(self) -> None:
        """Rebuild what was lost. Raises what the services raise."""
        for owner in self._shard.in_state(WindowState.LOST, WindowState.REBUILDING):
            await self._rebuild(owner)

    async def _rebuild(self, owner: WindowPartition) -> None:
        [known] = await self._store.checkpoints([owner.partition])
        if known and known.epoch > max(owner.claimed_epoch, owner.epoch):
            owner.state = WindowState.FENCED
            return
        if known and known.state == "live" and known.epoch != owner.epoch:
            # Somebody has rebuilt it since this owner saw that it was lost.
            owner.state = WindowState.OPENING
            return
        take_epoch(owner, known, self._shard.clock_s())
        owner.state = WindowState.REBUILDING
        try:
            await self._store.begin_rebuild(owner.partition, epoch=owner.claimed_epoch)
            owner.epoch = owner.claimed_epoch
            await self._wait_until_stored(owner)
            await _Rebuild(self._shard, owner, known, self._store, self._events, self._rollups, self._book).run()
        except Fenced:
            owner.state = WindowState.FENCED
            return
        except LogLost:
            # Flushed once more: from the beginning.
            owner.state = WindowState.LOST
            return
        self._shard.counters.count("rebuilds")
        go_on(owner, self._book)

    async def _wait_until_stored(self, owner: WindowPartition) -> None:
        """Whatever an earlier owner has counted was in the log; what was trimmed from it is stored."""
        [state] = await self._log_states([owner.partition])
        if state is None or state.first_offset == state.next_offset:
            return
        for _ in range(STORED_POLLS):
            [checkpoint] = await self._stored([owner.partition])
            if checkpoint.next_offset >= state.next_offset:
                return
            await asyncio.sleep(STORED_POLL_S)
        raise Unavailable(f"the event store is behind the log of partition {owner.partition}")


class _Published:
    """What this rebuild has published. What was there before it does not count, except for which groups are known."""

    def __init__(self, store: WindowStore) -> None:
        self._store = store
        self.keys: set[int] = set()

    async def load(self, keys: Sequence[WindowKey]) -> list[Aggregate | None]:
        mine = [key for key in keys if hash(key) in self.keys]
        found = dict(zip(mine, await self._store.load(mine), strict=True)) if mine else {}
        return [found.get(key) for key in keys]

    async def groups(self, project_id: str, metric: str, size: Size, starts: Sequence[int]) -> list[list[Dimensions]]:
        return await self._store.groups(project_id, metric, size, starts)


class _Rebuild:
    def __init__(
        self,
        shard: WindowShard,
        owner: WindowPartition,
        known: WindowsCheckpoint | None,
        store: WindowStore,
        events: EventColumns,
        rollups: RollupStore,
        book: DefinitionBook,
    ) -> None:
        """`known` is the checkpoint from before."""
        self._shard = shard
        self._owner = owner
        self._known = known
        self._store = store
        self._events = events
        self._rollups = rollups
        self._book = book
        self._published = _Published(store)
        windows = shard.settings
        self._windows = WindowSet(self._published, max_bytes=windows.max_resident_bytes, max_groups=windows.max_groups)
        self._used: dict[str, Definitions] = {}
        self._watermark_ms = 0
        self._frozen_below = shard.frozen_below
        self._lateness_s = lateness_s(windows)

    async def run(self) -> None:
        since_s = self._frozen_below - FROZEN_S
        async with self._events.snapshot(self._owner.partition, since_s=since_s) as snapshot:
            async for rows in snapshot.batches:
                await self._add(rows)
            async for records in snapshot.records:
                await self._add_records(records)
        await self._publish()
        await self._take_leftovers_away()
        # Which roll-ups there are of it nobody knows.
        built = {project_id: doubted(used.version) for project_id, used in self._used.items()}
        await self._store.reset(
            self._owner.partition, epoch=self._owner.epoch, next_offset=snapshot.checkpoint.next_offset, built=built
        )
        for project_id, used in self._used.items():
            self._book.apply(project_id, used)
        self._owner.rebuild_done(snapshot.checkpoint.next_offset, self._watermark_ms, built)

    async def _take_leftovers_away(self) -> None:
        """Of an earlier definition, of a record that was set aside. Without a checkpoint there were no windows."""
        until = int(self._shard.clock_s() + self._shard.max_ahead_s) + _HOUR_S
        hours = range(self._frozen_below, until, _HOUR_S)
        for project_id in self._known.built if self._known else ():
            # Which keeps the project among those that are built: there may be roll-ups of it to remove.
            names = [metric.name for metric in self._definitions_of(project_id)]
            gone = await leftovers(self._store, project_id, names, hours, self._is_published)
            for first in range(0, len(gone), WINDOWS_PER_CALL):
                await self._publish_some([], gone[first : first + WINDOWS_PER_CALL])

    def _is_published(self, key: WindowKey) -> bool:
        return hash(key) in self._published.keys

    def _definitions_of(self, project_id: str) -> Sequence[MetricDefinition]:
        # The same ones to the end, whatever is changed meanwhile.
        return self._used.setdefault(project_id, self._book.wanted(project_id)).metrics

    async def _add(self, rows: pa.RecordBatch) -> None:
        if not rows.num_rows:
            return
        self._watermark_ms = max(self._watermark_ms, *newest_ms([rows]))
        prepared = await self._shard.compute(self._prepare, rows)
        for project_id, start in sorted(prepared.frozen_days):
            await self._rollups.mark_days(project_id, [day_of(start)])
        await self._windows.merge(prepared.deltas)
        self._shard.counters.count("events_rebuilt", prepared.events)
        if self._windows.is_full:
            await self._publish()

    async def _add_records(self, records: Sequence[tuple[RecordKey, AggregatedRecord]]) -> None:
        in_time = [(key, record) for key, record in records if not key.late]
        counted = [(key, record) for key, record in in_time if key.minute >= self._frozen_below]
        for _, record in records:
            self._watermark_ms = max(self._watermark_ms, record.received_ms)
        frozen = {(key.project_id, day_of(key.minute)) for key, _ in in_time if key.minute < self._frozen_below}
        for project_id, day in sorted(frozen):
            await self._rollups.mark_days(project_id, [day])
        await self._windows.merge(await self._shard.compute(deltas_of, counted, self._definitions_of))
        self._shard.counters.count("events_rebuilt", sum(record.events for _, record in counted))
        if self._windows.is_full:
            await self._publish()

    def _prepare(self, rows: pa.RecordBatch) -> Prepared:
        return prepare([rows], self._definitions_of, lateness_s=self._lateness_s, frozen_below=self._frozen_below)

    async def _publish(self) -> None:
        windows = list(self._windows.unpublished.items())
        for start in range(0, max(1, len(windows)), WINDOWS_PER_CALL):
            await self._publish_some(windows[start : start + WINDOWS_PER_CALL])
        self._published.keys.update(hash(key) for key, _ in windows)
        self._windows.published()

    async def _publish_some(
        self, windows: Sequence[tuple[WindowKey, Aggregate]], gone: Sequence[WindowKey] = ()
    ) -> None:
        owner = self._owner
        # Offsets do not count while the partition is rebuilding.
        publication = Publication(owner.partition, owner.epoch, 0, 0, self._watermark_ms, windows, {}, gone)
        [outcome] = await self._store.publish([publication])
        if outcome == "lost":
            raise LogLost(f"the windows of partition {owner.partition} were lost while they were rebuilt")
        if outcome == "fenced":
            raise Fenced(f"partition {owner.partition} has another owner")
