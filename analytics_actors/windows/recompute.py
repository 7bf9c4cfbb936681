"""Days with events that no window counted: their roll-ups are counted again from all stored events (`recount.py`).

Only hours that do not change any more ("frozen", see `shared.py`); the others are answered from windows. The rows of a
range are replaced by absolute values, so doing it twice, or half and again, changes nothing.
Imports mark many days at once: runs of days are counted in one go as far as memory allows.

A mark is taken away when no late event can be left out: for some minutes an hour takes no more events and is still
answered from windows. A day with such late events keeps its mark until that hour is frozen.
"""

import asyncio
import logging
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from analytics_actors.windows.definition_book import DefinitionBook
from analytics_actors.windows.partition import WindowPartition, WindowState
from analytics_actors.windows.recount import Recount, Stretch
from analytics_actors.windows.shared import WindowShard
from analytics_actors.windows.sources import StoredCheckpoints
from analytics_actors.windows.stepping import step_forever
from storage.errors import Fenced
from storage.event_columns import StoredEvents
from storage.rollups import DAY_S, LateDay, RollupStore
from storage.window_key import late_mask, lateness_s

_log = logging.getLogger(__name__)

STEP_S = 1.0
DAYS_PER_STEP = 500
PROJECTS_PER_CHUNK = 20
DAYS_PER_CHUNK = 31
_HOUR_S = 3600


class Part(NamedTuple):
    """What is counted in one go, all of one partition."""

    owner: WindowPartition
    stretch: Stretch


class Recompute:
    """Runs until cancelled."""

    def __init__(
        self,
        shard: WindowShard,
        events: StoredEvents,
        rollups: RollupStore,
        stored: StoredCheckpoints,
        book: DefinitionBook,
    ) -> None:
        self._shard = shard
        self._events = events
        self._rollups = rollups
        self._stored = stored
        self._book = book
        self._lateness_s = lateness_s(shard.settings)
        self._recount = Recount(events, rollups, book, settings=shard.settings, compute=shard.compute)
        self._kept: dict[LateDay, int] = {}
        """Marks that wait for hours to be frozen, and what was frozen when they were looked at."""
        self.days_left = 0
        """That were due at the last look and are not done."""
        self.running = False

    async def run(self) -> None:
        await step_forever(self.step, self._shard.counters, "recomputation", pause_s=STEP_S)

    async def step(self) -> None:
        """Recompute what is due. Raises what the services raise."""
        settings = self._shard.settings
        live = [owner.partition for owner in self._shard.in_state(WindowState.LIVE)]
        if not live or not self._book.loaded:
            return
        marks = await self._rollups.late_days(
            live, quiet_s=settings.recompute_quiet_s, max_wait_s=settings.recompute_wait_s, limit=DAYS_PER_STEP
        )
        frozen_below = self._shard.frozen_below
        due = [mark for mark in marks if self._kept.get(mark) != frozen_below]
        self._kept = {mark: frozen for mark, frozen in self._kept.items() if mark in set(marks)}
        self.days_left = len(due)
        if not due:
            return
        self.running = True
        try:
            await self._recompute_all(due, live, frozen_below)
        finally:
            self.running = False

    async def _recompute_all(self, due: Sequence[LateDay], live: Sequence[int], frozen_below: int) -> None:
        # A backfill may have marked days for a metric that was defined a moment before.
        await self._book.refresh()
        # As far as it was counted when the marks had been read.
        behind = await self._behind({number: self._shard.partitions[number].counting_to for number in live})
        by_owner: defaultdict[WindowPartition, list[LateDay]] = defaultdict(list)
        for mark in due:
            owner = self._shard.owner_of(mark.project_id)
            # What windows left to this recomputation must be in the event store.
            if owner.state is WindowState.LIVE and owner.partition not in behind:
                by_owner[owner].append(mark)
        for owner, days in by_owner.items():
            await self._recompute(owner, days, frozen_below)

    async def _behind(self, counted: dict[int, int]) -> set[int]:
        """Partitions of which the event store does not have what was counted when the marks were read."""
        behind = dict(counted)
        for _ in range(20):
            checkpoints = await self._stored(list(behind))
            behind = {c.partition: behind[c.partition] for c in checkpoints if c.next_offset < behind[c.partition]}
            if not behind:
                break
            await asyncio.sleep(0.1)
        return set(behind)

    async def _recompute(self, owner: WindowPartition, marks: Sequence[LateDay], frozen_below: int) -> None:
        started_s = self._shard.clock_s()
        for part, part_marks in _parts(owner, marks):
            try:
                done = await self._recount.run(part.stretch._replace(end=min(part.stretch.end, frozen_below)))
            except Fenced as error:
                # Somebody else has recomputed it since: its marks are theirs.
                self._shard.counters.trouble("recomputation", str(error))
                continue
            kept = set()
            for mark in part_marks:
                if await self._late_events_above(mark, frozen_below):
                    self._kept[mark] = frozen_below
                    kept.add(mark)
            await self._rollups.clear_late_days([mark for mark in part_marks if mark not in kept])
            self.days_left -= len(part_marks)
            self._shard.counters.count("days_recomputed", len(part_marks))
            _log.info(
                "days with late events were counted again",
                extra={
                    "action": "recomputed",
                    "partition": owner.partition,
                    "projects": len(part.stretch.projects),
                    "first_day": part_marks[0].day.isoformat(),
                    "days": len(part_marks),
                    "kept": len(kept),
                    "events": done.events,
                    "rows_changed": done.changed,
                    "seconds": round(self._shard.clock_s() - started_s, 3),
                },
            )

    async def _late_events_above(self, mark: LateDay, frozen_below: int) -> bool:
        """Whether an hour of the day that is not frozen yet has events that are in no window."""
        edge = int((self._shard.clock_s() - self._lateness_s) // _HOUR_S + 1) * _HOUR_S
        start, end = max(mark.start, frozen_below), min(mark.start + DAY_S, edge)
        if start >= end:
            return False
        rows_of_day = self._events.rows([mark.project_id], start_s=start, end_s=end, columns=("received_at",))
        async for rows in rows_of_day:
            if late_mask(rows, self._lateness_s).any():
                return True
        async for records in self._events.records([mark.project_id], start_s=start, end_s=end):
            if any(key.late for key, _ in records):
                return True
        return False


def _parts(owner: WindowPartition, marks: Sequence[LateDay]) -> list[tuple[Part, list[LateDay]]]:
    """Runs of days that follow one another, and together the projects that have the same run."""
    by_project: defaultdict[str, list[LateDay]] = defaultdict(list)
    for mark in sorted(marks):
        by_project[mark.project_id].append(mark)
    runs: defaultdict[tuple[int, int], list[list[LateDay]]] = defaultdict(list)
    for days in by_project.values():
        for run in _runs(days):
            runs[run[0].start, run[-1].start + DAY_S].append(run)
    parts = []
    for (start, end), same in sorted(runs.items()):
        for first in range(0, len(same), PROJECTS_PER_CHUNK):
            chunk = same[first : first + PROJECTS_PER_CHUNK]
            projects = tuple(run[0].project_id for run in chunk)
            parts.append((Part(owner, Stretch(projects, start, end)), [mark for run in chunk for mark in run]))
    return parts


def _runs(days: Sequence[LateDay]) -> list[list[LateDay]]:
    runs: list[list[LateDay]] = []
    for mark in days:
        if runs and runs[-1][-1].start + DAY_S == mark.start and len(runs[-1]) < DAYS_PER_CHUNK:
            runs[-1].append(mark)
        else:
            runs.append([mark])
    return runs
