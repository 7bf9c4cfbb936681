"""From windows to roll-ups: closed windows are upserted into PostgreSQL, and again when a late event changed one.

What is still to be rolled up is in memory only; no note of it must survive a crash. Instead a partition is **audited**
when it has a new owner, and each hour when it has closed: the counts of `events`, which every event changes, are
compared minute by minute between windows and roll-ups, and the hours that differ are rolled up whole. So that this
tells the truth, all that was changed of one project in one minute (or hour), a **cell**, is read at one moment and
written with the count of `events` last; and roll-ups of windows that are not there any more are removed, while the
store still says that the windows are this owner's: lost ones tell nothing. Roll-ups of hours that do not change any
more ("frozen", see `shared.py`) come from recomputation alone: there the day is marked.
"""

import asyncio
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

from analytics_actors.windows.day_rows import ROWS_PER_CALL, DayRows, rolled_counts
from analytics_actors.windows.definition_book import DefinitionBook, is_doubted, undoubted
from analytics_actors.windows.in_place import publish_in_place
from analytics_actors.windows.partition import WindowPartition, WindowState
from analytics_actors.windows.shared import WindowShard
from analytics_actors.windows.stepping import step_forever
from analytics_actors.windows.watching import PatternWatch
from storage.aggregate import Aggregate
from storage.errors import StorageError
from storage.metric_definitions import EVENTS, MetricDefinition
from storage.rollups import DAY_S, RollupStore, day_of
from storage.window_key import SIZE_S, Size, WindowKey
from storage.window_store import WindowStore

STEP_S = 1.0
CHANGED_INTERVAL_S = 5.0
"""Closed windows that late events changed are rolled up together, so often."""

MAX_WAITING = 100_000
"""Keys that wait for PostgreSQL: some 50 MB. Beyond it they are let go, and found again by an audit."""

AUDIT_AFTER_S = 30
"""An hour is audited so long after its last windows were closed."""

ABSENCE_S = 3600
"""Windows outlive their hour's freezing by somewhat more than this."""

_HOUR_S = 3600
_USABLE = (WindowState.LIVE, WindowState.BUILDING)


class Cell(NamedTuple):
    """Where a project's windows are compared with their roll-ups."""

    project_id: str
    size: Size
    start: int


class _Rows(NamedTuple):
    """Windows of one partition, read when its log was counted up to there."""

    epoch: int
    next_offset: int
    windows: list[tuple[WindowKey, Aggregate]]


class RollUp:
    """Runs until cancelled."""

    def __init__(
        self,
        shard: WindowShard,
        store: WindowStore,
        rollups: RollupStore,
        book: DefinitionBook,
        watch: PatternWatch,
    ) -> None:
        self._shard = shard
        self._store = store
        self._rollups = rollups
        self._book = book
        self._watch = watch
        self._waiting: defaultdict[Cell, set[WindowKey]] = defaultdict(set)
        self._changed_s = 0.0
        self._audited_hour = 0
        self._days = DayRows(rollups, max_groups=shard.settings.max_groups)
        self._writing = asyncio.Lock()
        """Held from the reading of windows until they are written, so that roll-ups come in the order of the windows:
        windows may change in place, at the same offset. Taken before the turn."""
        self._closed_until_s = 0.0

    @property
    def waiting_windows(self) -> int:
        return sum(map(len, self._waiting.values()))

    async def run(self) -> None:
        await step_forever(self.step, self._shard.counters, "roll-ups", pause_s=STEP_S)

    async def step(self) -> None:
        """Close what is due, roll up what has closed or changed, audit. Raises what the services raise."""
        now_s = self._shard.clock_s()
        # What is still on its way through the log belongs into windows before they are judged.
        self._closed_until_s = max(self._closed_until_s, now_s - self._shard.lag_s)
        due = self._shard.closing.due(self._closed_until_s)
        self._wait_for(due)
        if now_s - self._changed_s >= CHANGED_INTERVAL_S:
            self._changed_s = now_s
            self._wait_for(self._shard.closing.changed())
        await self._hand_over(due)
        await self._audit_all(now_s)
        await self._roll_waiting()
        if not self._shard.in_state(WindowState.OPENING, WindowState.LOST, WindowState.REBUILDING):
            await self._watch.tick(self._closed_until_s)

    def _wait_for(self, keys: Iterable[WindowKey]) -> None:
        for key in keys:
            if key.size != "5m":
                self._waiting[_cell(key)].add(key)
        if self.waiting_windows > MAX_WAITING:
            self._waiting.clear()
            for owner in self._shard.partitions.values():
                owner.audited, owner.doubtful = False, True

    async def _hand_over(self, due: Sequence[WindowKey]) -> None:
        for start in range(0, len(due), ROWS_PER_CALL):
            keys = due[start : start + ROWS_PER_CALL]
            async with self._shard.turn:
                values = await self._values(keys)
            for key, value in values:
                self._shard.counters.count("windows_closed")
                definition = self._book.definition(key.project_id, key.metric)
                if definition is None:
                    continue
                await self._watch.closed(key.project_id, definition, key, value)

    async def _values(self, keys: Sequence[WindowKey]) -> list[tuple[WindowKey, Aggregate]]:
        """Copies of the windows as they are published, of partitions that are live; needs the turn."""
        ours = [key for key in keys if self._shard.owner_of(key.project_id).state in _USABLE]
        values = await self._shard.windows.get(ours)
        return [(key, value.copy()) for key, value in zip(ours, values, strict=True) if value is not None]

    async def _roll_waiting(self) -> None:
        while cells := self._next_cells():
            await self._roll_cells(cells)

    def _next_cells(self) -> list[Cell]:
        """Some that may be rolled up; before its audit nobody knows what else there is in a cell."""
        cells: list[Cell] = []
        size = 0
        for cell, keys in self._waiting.items():
            if size >= ROWS_PER_CALL:
                break
            owner = self._shard.owner_of(cell.project_id)
            if owner.audited or owner.state not in _USABLE:
                cells.append(cell)
                size += len(keys)
        return cells

    async def _roll_cells(self, cells: Sequence[Cell]) -> None:
        async with self._writing:
            await self._roll_cells_now(cells)

    async def _roll_cells_now(self, cells: Sequence[Cell]) -> None:
        async with self._shard.turn:
            wanted = set(cells)
            changed = self._shard.closing.take_changed(lambda key: _cell(key) in wanted)
            self._wait_for(changed)
            keys = [key for cell in cells for key in self._waiting.pop(cell, ())]
            try:
                rows = await self._rows(keys)
            except StorageError:
                self._wait_for(keys)
                raise
        try:
            await self._write(rows, keys)
        except StorageError:
            self._wait_for(keys)
            raise

    async def renew(self, project_id: str, metrics: Sequence[MetricDefinition], hour: int) -> bool:
        """Roll-ups of these metrics in an hour become what its windows are: those that have closed are written, and
        what has no window goes. False when the windows may not be read."""
        async with self._writing:
            owner = self._shard.owner_of(project_id)
            now_s = self._shard.clock_s()
            async with self._shard.turn:
                epoch = owner.epoch
                there = await self._values(await self._keys_of(project_id, metrics, hour, ("1m", "1h")))
                rows = _Rows(epoch, owner.next_offset, there)
                if not await self._are_whole(owner, epoch):
                    return False
            if hour >= self._shard.frozen_below:
                await self._remove_others(rows, project_id, metrics, range(hour, hour + _HOUR_S))
                closed = [(key, value) for key, value in there if self._shard.closing.is_closed(key, now_s)]
                await self._write([rows._replace(windows=closed)], [])
            if hour < self._shard.frozen_below:
                await self._rollups.mark_days(project_id, [day_of(hour)])
        return True

    async def _are_whole(self, owner: WindowPartition, epoch: int) -> bool:
        """Whether windows that were read since the owner had this epoch are all that there are."""
        [checkpoint] = await self._store.checkpoints([owner.partition])
        is_ours = checkpoint is not None and checkpoint.epoch == epoch and checkpoint.state == "live"
        return is_ours and owner.epoch == epoch and owner.state in _USABLE

    async def _remove_others(
        self, rows: _Rows, project_id: str, metrics: Sequence[MetricDefinition], hours: range
    ) -> None:
        names = [metric.name for metric in metrics]
        at = {"epoch": rows.epoch, "next_offset": rows.next_offset}
        keys = [key for key, _ in rows.windows]
        removed = await self._rollups.remove_others(project_id, names, hours.start, hours.stop, keys, **at)
        self._shard.counters.count("rollups_removed", removed)

    async def _rows(self, keys: Sequence[WindowKey]) -> list[_Rows]:
        """What is to be written of windows that may still change; needs the turn."""
        frozen_below = self._shard.frozen_below
        found: defaultdict[WindowPartition, list[tuple[WindowKey, Aggregate]]] = defaultdict(list)
        for key, value in await self._values([key for key in keys if key.start >= frozen_below]):
            found[self._shard.owner_of(key.project_id)].append((key, value))
        return [_Rows(owner.epoch, owner.next_offset, windows) for owner, windows in found.items()]

    async def _write(self, rows: Sequence[_Rows], keys: Iterable[WindowKey]) -> None:
        for epoch, next_offset, windows in rows:
            windows.sort(key=lambda row: row[0].metric == EVENTS.name and not row[0].dimensions)
            for start in range(0, len(windows), ROWS_PER_CALL):
                chunk = windows[start : start + ROWS_PER_CALL]
                await self._rollups.upsert(chunk, epoch=epoch, next_offset=next_offset)
                self._shard.counters.count("windows_rolled_up", len(chunk))
        frozen_below = self._shard.frozen_below
        for project_id, day in {(key.project_id, day_of(key.start)) for key in keys if key.start < frozen_below}:
            await self._rollups.mark_days(project_id, [day])

    async def _audit_all(self, now_s: float) -> None:
        for owner in self._shard.in_state(WindowState.LIVE):
            if not owner.audited:
                await self._audit_opened(owner, now_s)
        # The last hour whose windows have all been closed for a while.
        closed = now_s - self._shard.settings.close_after_s - AUDIT_AFTER_S
        hour = int(closed // _HOUR_S) * _HOUR_S - _HOUR_S
        if hour <= self._audited_hour:
            return
        for owner in self._shard.in_state(WindowState.LIVE):
            for project_id in list(owner.built):
                await self._audit(project_id, range(hour, hour + _HOUR_S, _HOUR_S), now_s, doubt=False)
                await self._roll_day(owner, project_id)
        self._audited_hour = hour

    async def _audit_opened(self, owner: WindowPartition, now_s: float) -> None:
        epoch = owner.epoch
        await self._mark_after_absence(owner, now_s)
        this_hour = int(now_s // _HOUR_S) * _HOUR_S
        # Windows are in Redis for a while after their hour was frozen.
        first = (int(now_s - self._shard.settings.ttl_s) // _HOUR_S + 1) * _HOUR_S
        for project_id, version in list(owner.built.items()):
            doubt = owner.doubtful or is_doubted(version)
            await self._audit(project_id, range(first, this_hour + _HOUR_S, _HOUR_S), now_s, doubt=doubt)
            await self._reopen(project_id, now_s)
            await self._roll_day(owner, project_id)
            if is_doubted(version):
                async with self._shard.turn:
                    # Unless it was taken over, or built anew meanwhile: then it is audited once more.
                    if (owner.epoch, owner.built.get(project_id)) == (epoch, version):
                        await publish_in_place(self._shard, self._store, owner, [], {project_id: undoubted(version)})
        settled = not any(map(is_doubted, owner.built.values()))
        if owner.state is WindowState.LIVE and owner.epoch == epoch and settled:
            owner.audited, owner.doubtful = True, False

    async def _mark_after_absence(self, owner: WindowPartition, now_s: float) -> None:
        """Windows of the last owner may be gone already, and it may not have rolled up the last of them."""
        last_s = owner.watermark_ms // 1000
        if not last_s or last_s + ABSENCE_S > now_s:
            return
        from_s = last_s - self._shard.settings.ttl_s
        days = [day_of(second) for second in range(from_s // DAY_S * DAY_S, last_s + 1, DAY_S)]
        for project_id in owner.built:
            await self._rollups.mark_days(project_id, days)

    async def _audit(self, project_id: str, hours: range, now_s: float, *, doubt: bool) -> None:
        """Renew the hours that differ from their roll-ups; with `doubt` all."""
        metrics = self._book.applied(project_id).metrics
        async with self._writing:
            owner = self._shard.owner_of(project_id)
            epoch = owner.epoch
            differing = await self._hours_that_differ(project_id, hours, now_s, doubt=doubt)
            quiet = [hour for hour in hours if hour >= self._shard.frozen_below and hour not in differing]
            if doubt and await self._are_whole(owner, epoch):
                for run in _runs(quiet):
                    await self._remove_others(_Rows(epoch, owner.next_offset, []), project_id, metrics, run)
        for hour in differing:
            self._shard.counters.count("hours_audited")
            await self.renew(project_id, metrics, hour)

    async def _hours_that_differ(self, project_id: str, hours: range, now_s: float, *, doubt: bool) -> list[int]:
        """With `doubt` all that may have windows."""
        frozen_below = self._shard.frozen_below
        found: set[int] = set()
        sizes: tuple[Literal["1m", "1h"], ...] = ("1m", "1h")
        for size in sizes:
            starts = range(hours.start, hours.stop, SIZE_S[size])
            keys = [WindowKey(project_id, EVENTS.name, size, start, ()) for start in starts]
            keys = [key for key in keys if self._shard.closing.is_closed(key, now_s)]
            async with self._shard.turn:
                windows = {key.start: value.count for key, value in await self._values(keys)}
            rolled = await rolled_counts(self._rollups, project_id, size, hours.start, hours.stop)
            for start in (key.start for key in keys):
                hour = start // _HOUR_S * _HOUR_S
                count, known = windows.get(start, 0), rolled.get(start, 0)
                # A frozen hour's roll-up may hold what came too late for the window.
                differs = count > known if hour < frozen_below else count != known
                if differs or (doubt and count and hour >= frozen_below):
                    found.add(hour)
        return sorted(found)

    async def _keys_of(
        self, project_id: str, metrics: Sequence[MetricDefinition], hour: int, sizes: Sequence[Size]
    ) -> list[WindowKey]:
        """All windows that an hour may have."""
        keys = []
        for metric in metrics:
            for size in sizes:
                starts = range(hour, hour + _HOUR_S, SIZE_S[size])
                groups = await self._store.groups(project_id, metric.name, size, starts) if metric.dimensions else ()
                keys += [WindowKey(project_id, metric.name, size, start, ()) for start in starts]
                for start, known in zip(starts, groups, strict=False):
                    keys += [WindowKey(project_id, metric.name, size, start, dimensions) for dimensions in known]
        return keys

    async def _roll_day(self, owner: WindowPartition, project_id: str) -> None:
        """The last day that lies wholly below the frozen hours."""
        day = self._shard.frozen_below // DAY_S * DAY_S - DAY_S
        metrics = self._book.applied(project_id).metrics
        await self._days.roll(project_id, metrics, day, epoch=owner.epoch, next_offset=owner.next_offset)

    async def _reopen(self, project_id: str, now_s: float) -> None:
        """The windows that the last owner had open are to be closed by this one, those of the future too."""
        this_hour = int(now_s // _HOUR_S) * _HOUR_S
        hours = range(this_hour - _HOUR_S, int(now_s + self._shard.max_ahead_s) + _HOUR_S, _HOUR_S)
        totals = [WindowKey(project_id, EVENTS.name, "1h", hour, ()) for hour in hours]
        async with self._shard.turn:
            for total, _ in await self._values(totals):
                metrics = self._book.applied(project_id).metrics
                keys = await self._keys_of(project_id, metrics, total.start, ("1m", "5m", "1h"))
                keys = [key for key in keys if not self._shard.closing.is_closed(key, now_s)]
                self._shard.closing.touched((key for key, _ in await self._values(keys)), now_s)


def _runs(hours: Sequence[int]) -> list[range]:
    """Hours that follow one another, together."""
    runs: list[range] = []
    for hour in hours:
        if runs and runs[-1].stop == hour:
            runs[-1] = range(runs[-1].start, hour + _HOUR_S)
        else:
            runs.append(range(hour, hour + _HOUR_S))
    return runs


def _cell(key: WindowKey) -> Cell:
    return Cell(key.project_id, key.size, key.start)
