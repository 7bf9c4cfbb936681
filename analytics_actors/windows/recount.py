"""Whole hours of some projects counted again from their stored events, in the place of the roll-ups that are there.

The rows of a range are replaced by absolute values, and only those that differ are written: done twice, or half and
again, it changes nothing (of percentiles the count, the sum and the extremes tell; their sketches are random). Whoever
begins later wins (`RollupStore.begin_recount`). What memory has no room for is halved, by projects, days, then hours.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from analytics_actors.windows.aggregate_only import deltas_of
from analytics_actors.windows.definition_book import Definitions
from analytics_actors.windows.grouping import coarser
from analytics_actors.windows.needed_columns import columns_of
from analytics_actors.windows.prepare import prepare
from analytics_actors.windows.sources import Compute
from analytics_actors.windows.window_set import KEY_BYTES
from config.settings import WindowSettings
from storage.aggregate import Aggregate
from storage.event_columns import StoredEvents
from storage.metric_definitions import MetricDefinition
from storage.rollups import DAY_S, RollupStore
from storage.window_key import Dimensions, WindowKey, other

_HOUR_S = 3600


class Stretch(NamedTuple):
    """A range of whole hours of some projects."""

    projects: tuple[str, ...]
    start: int
    end: int

    @property
    def can_be_halved(self) -> bool:
        return len(self.projects) > 1 or self.end - self.start > _HOUR_S

    @property
    def is_one_day(self) -> bool:
        return len(self.projects) == 1 and self.end - self.start == DAY_S


class Recounted(NamedTuple):
    events: int
    rows: int
    """Roll-ups that the stretch has now."""
    changed: int
    """Those that were not there, were otherwise, or are no more."""


class Wanted(Protocol):
    """The part of `DefinitionBook` that is needed here."""

    def wanted(self, project_id: str) -> Definitions: ...


class _TooMuch(Exception):
    """More windows than there is memory for."""


class Recount:
    """Its collaborators stay open."""

    def __init__(
        self, events: StoredEvents, rollups: RollupStore, book: Wanted, *, settings: WindowSettings, compute: Compute
    ) -> None:
        self._events = events
        self._rollups = rollups
        self._book = book
        self._settings = settings
        self._compute = compute

    async def run(self, stretch: Stretch, *, audit: bool = False, dry_run: bool = False) -> Recounted:
        """Raises `Fenced` when somebody has begun to count a day of it later, else what the services raise. With
        `dry_run` nothing is written. `audit`: it is the daily job's."""
        if stretch.start >= stretch.end:
            return Recounted(0, 0, 0)
        used = {project_id: self._book.wanted(project_id) for project_id in stretch.projects}
        ticket = None
        if not dry_run:
            ticket = await self._rollups.begin_recount(stretch.projects, stretch.start, stretch.end)
        total = Recounted(0, 0, 0)
        todo = [stretch]
        while todo:
            piece = todo.pop(0)
            try:
                done = await self._piece(piece, used, ticket)
            except _TooMuch:
                todo[:0] = _halves(piece)
                if not piece.is_one_day:
                    continue
                # Its row needs all of the day, for which there is no room with the minutes.
                done = await self._day(piece, used, ticket)
            total = Recounted(*(before + more for before, more in zip(total, done, strict=True)))
        if ticket is not None:
            built = {project_id: definitions.version for project_id, definitions in used.items()}
            await self._rollups.end_recount(stretch.start, stretch.end, built, ticket=ticket, audited=audit)
        return total

    async def _piece(self, piece: Stretch, used: Mapping[str, Definitions], ticket: int | None) -> Recounted:
        windows, events = await self._count(piece, used, minutes=True)
        rows = list(windows.items())
        changed = await self._rollups.replace(piece.projects, piece.start, piece.end, rows, ticket=ticket)
        return Recounted(events, len(rows), changed)

    async def _day(self, piece: Stretch, used: Mapping[str, Definitions], ticket: int | None) -> Recounted:
        windows, _ = await self._count(piece, used, minutes=False)
        rows = [(key, value) for key, value in windows.items() if key.size == "1d"]
        changed = await self._rollups.replace(
            piece.projects, piece.start, piece.end, rows, ticket=ticket, sizes=("1d",)
        )
        return Recounted(0, len(rows), changed)

    async def _count(
        self, piece: Stretch, used: Mapping[str, Definitions], *, minutes: bool
    ) -> tuple[dict[WindowKey, Aggregate], int]:
        """Windows of the piece, days too where they are whole, and its events. Raises `_TooMuch`, unless there is
        nothing to halve."""
        counted = _Windows(self._settings.max_groups, minutes=minutes)
        room = self._settings.max_resident_bytes // 2 if minutes and piece.can_be_halved else None
        columns = columns_of(metric for project_id in piece.projects for metric in used[project_id].metrics)

        def definitions_of(project_id: str) -> Sequence[MetricDefinition]:
            return used[project_id].metrics

        events = 0
        rows = self._events.rows(piece.projects, start_s=piece.start, end_s=piece.end, columns=columns)
        async for chunk in rows:
            # Every stored event counts here, however late it came.
            prepared = await self._compute(prepare, [chunk], definitions_of, lateness_s=None, frozen_below=piece.start)
            events += prepared.events
            counted.add(prepared.deltas)
            if room is not None and counted.resident_bytes > room:
                raise _TooMuch
        async for records in self._events.records(piece.projects, start_s=piece.start, end_s=piece.end):
            events += sum(record.events for _, record in records)
            counted.add(await self._compute(deltas_of, records, definitions_of))
            if room is not None and counted.resident_bytes > room:
                raise _TooMuch
        return counted.with_days(piece.start, piece.end), events


class _Windows:
    """Minutes and hours of a piece, in memory, with the same bound on groups as the live windows."""

    def __init__(self, max_groups: int, *, minutes: bool) -> None:
        self._max_groups = max_groups
        self._minutes = minutes
        self._windows: dict[WindowKey, Aggregate] = {}
        self._groups: defaultdict[WindowKey, set[Dimensions]] = defaultdict(set)

    @property
    def resident_bytes(self) -> int:
        return sum(value.resident_bytes + KEY_BYTES for value in self._windows.values())

    def add(self, deltas: Mapping[WindowKey, Aggregate]) -> None:
        for key, delta in deltas.items():
            hour = self._admit(coarser(key, "1h"))
            self._merge(hour, delta)
            if self._minutes:
                self._merge(key._replace(dimensions=hour.dimensions), delta)

    def with_days(self, start: int, end: int) -> dict[WindowKey, Aggregate]:
        for key, value in list(self._windows.items()):
            day = coarser(key, "1d")
            if key.size == "1h" and start <= day.start and day.start + DAY_S <= end:
                self._merge(self._admit(day), value)
        return self._windows

    def _admit(self, key: WindowKey) -> WindowKey:
        rest = key._replace(dimensions=other(key.dimensions))
        # Records of aggregate-only events come with a group of others of their own.
        if key == rest:
            return key
        groups = self._groups[key._replace(dimensions=())]
        if key.dimensions not in groups:
            if len(groups) >= self._max_groups:
                return rest
            groups.add(key.dimensions)
        return key

    def _merge(self, key: WindowKey, delta: Aggregate) -> None:
        known = self._windows.get(key)
        if known is None:
            self._windows[key] = delta.copy()
        else:
            known.merge(delta)


def _halves(piece: Stretch) -> list[Stretch]:
    if len(piece.projects) > 1:
        middle = len(piece.projects) // 2
        return [piece._replace(projects=piece.projects[:middle]), piece._replace(projects=piece.projects[middle:])]
    unit = DAY_S if piece.end - piece.start > DAY_S else _HOUR_S
    at = piece.start + max(1, (piece.end - piece.start) // unit // 2) * unit
    return [piece._replace(end=at), piece._replace(start=at)]
