"""Roll-ups of an answer, and which days of its range they do not tell.

A metric that was defined, or changed, is counted by windows from the hours on that were live then. Days before are told
by roll-ups only where they were counted again since: by a backfill, the daily job, or after late events. Days that hold
events and were not are **untold**: what roll-ups say of them is another definition's, or nothing.
"""

import asyncio
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from analytics_actors.windows.definition_book import is_built
from gateway.errors import ApiError
from gateway.metric_query import DAY_S, HOUR_S, Plan
from gateway.metric_read import Interval, Read
from storage.aggregate import is_sketched
from storage.metric_definitions import EVENTS
from storage.rollups import RolledSize, RollupColumns, RollupSeries, RollupStore, TooManyRows
from storage.window_key import SIZE_S

MAX_RUNS = 8
"""Reads of roll-ups that days without a row of their own are spread over."""

HALVED_FROM = 200
"""Times of groups from which on they are read over two connections: two processes of the server pack their columns."""

MAX_ROWS = 2_000_000
"""Roll-ups that one answer is made of: some seconds, and 200 MB when they have sums."""
MAX_SKETCHES = 50_000
"""As many when they have sketches, of up to 8 KB each."""


class PastDays(Protocol):
    """`storage.metric_reads.MetricReads`."""

    async def has_expired(self, project_id: str) -> bool:
        """Whether anything that is old was removed of the project."""

    async def counted_days(self, project_id: str, start: int, end: int) -> dict[int, str]:
        """With which metrics days that [start, end) touches were counted again, by the day's start."""


class RollupReads:
    def __init__(self, rollups: RollupStore, past: PastDays) -> None:
        self._rollups = rollups
        self._past = past

    async def untold(self, plan: Plan, interval: Interval) -> list[tuple[Interval, int]]:
        """Runs of days that hold events and do not tell of the metric, and how many events each holds."""
        end = min(interval.end, plan.counted_from)
        if interval.start >= end:
            return []
        built = await self._past.counted_days(plan.project_id, interval.start, end)
        told = {day for day, text in built.items() if is_built(text, plan.definition.name, plan.version)}
        runs: list[tuple[Interval, int]] = []
        for day, events in sorted((await self._events_by_day(plan.project_id, Interval(interval.start, end))).items()):
            if day in told:
                continue
            part = Interval(max(day, interval.start), min(day + DAY_S, end))
            if runs and runs[-1][0].end == part.start:
                runs[-1] = Interval(runs[-1][0].start, part.end), runs[-1][1] + events
            else:
                runs.append((part, events))
        return runs

    async def _events_by_day(self, project_id: str, interval: Interval) -> dict[int, int]:
        begin = interval.start // HOUR_S * HOUR_S
        columns = await self._rollups.read(
            project_id, EVENTS.name, "1h", begin, interval.end, grouped=False, wanted="count"
        )
        found: dict[int, int] = {}
        for series in columns.series:
            for start, count in zip((series.starts // DAY_S * DAY_S).tolist(), series.counts.tolist(), strict=True):
                found[start] = found.get(start, 0) + count
        return found

    async def lost(self, plan: Plan, interval: Interval) -> bool:
        """Whether roll-ups of the interval may have been removed, and none is left."""
        return await self._past.has_expired(plan.project_id) and not await self.events_about(plan, interval)

    async def events_about(self, plan: Plan, interval: Interval) -> int:
        """How many events, as far as the roll-ups of closed hours know."""
        return sum((await self._events_by_day(plan.project_id, interval)).values())

    async def read(self, plan: Plan, read: Read, interval: Interval, *, apart: Sequence[Interval] = ()) -> None:
        """Without what lies in `apart`."""
        if "1d" in plan.sizes:
            await self._read_days(plan, read, interval, apart)
        else:
            size: RolledSize = "1h" if "1h" in plan.sizes else "1m"
            self._add(plan, read, _without(await self._rolled(plan, read, size, interval), size, apart))
        for part in between(interval, apart):
            read.name("rollups", part)

    async def _read_days(self, plan: Plan, read: Read, interval: Interval, apart: Sequence[Interval]) -> None:
        """Whole days by their own rows where there are some, everything else by hours."""
        days = Interval(interval.start, interval.end // DAY_S * DAY_S)
        columns = _without(await self._rolled(plan, read, "1d", days), "1d", apart)
        self._add(plan, read, columns)
        there = {start for series in columns for start in series.starts.tolist()}
        for run in runs_without(there, interval):
            hours = _without(await self._rolled(plan, read, "1h", run), "1h", apart)
            self._add(plan, read, [_without_days(series, there) for series in hours] if there else hours)

    async def _rolled(self, plan: Plan, read: Read, size: RolledSize, interval: Interval) -> Sequence[RollupSeries]:
        """A group may have a series for each half."""
        most = MAX_SKETCHES if is_sketched(plan.definition.aggregation) else MAX_ROWS
        room = max(0, most - read.size)
        parts = halves(interval, size) if plan.grouped else [interval]
        try:
            found = await asyncio.gather(*(self._part(plan, size, part, max_rows=room) for part in parts))
            series = [each for columns in found for each in columns.series]
            if sum(len(each.starts) for each in series) > room:
                raise TooManyRows
            return series
        except TooManyRows:
            message = f"This answer would be made of more than {most} roll-ups."
            hint = "Ask for a shorter range, or for a coarser granularity."
            raise ApiError("invalid_parameter", message, hint=hint) from None

    async def _part(self, plan: Plan, size: RolledSize, interval: Interval, *, max_rows: int) -> RollupColumns:
        return await self._rollups.read(
            plan.project_id,
            plan.definition.name,
            size,
            interval.start,
            interval.end,
            grouped=plan.grouped,
            wanted=plan.definition.aggregation,
            max_rows=max_rows,
        )

    @staticmethod
    def _add(plan: Plan, read: Read, found: Sequence[RollupSeries]) -> None:
        read.series += [series for series in found if plan.wants(series.dimensions)]


def halves(interval: Interval, size: RolledSize) -> list[Interval]:
    """The parts of a long interval that are read at the same time. They meet where a day begins, since days are what is
    counted again as a whole: each is as it was, or as it is."""
    middle = (interval.start + interval.end) // 2 // DAY_S * DAY_S
    if (interval.end - interval.start) // SIZE_S[size] < HALVED_FROM or middle <= interval.start:
        return [interval]
    return [Interval(interval.start, middle), Interval(middle, interval.end)]


def runs_without(days: set[int], interval: Interval) -> list[Interval]:
    """What of the interval lies in none of these days, in at most `MAX_RUNS` pieces (which may then touch some)."""
    first = interval.start // DAY_S * DAY_S
    absent = [start for start in range(first, interval.end, DAY_S) if start not in days]
    runs: list[Interval] = []
    for start in absent:
        piece = Interval(max(start, interval.start), min(start + DAY_S, interval.end))
        if runs and runs[-1].end == piece.start:
            runs[-1] = Interval(runs[-1].start, piece.end)
        else:
            runs.append(piece)
    if len(runs) > MAX_RUNS:
        return [Interval(runs[0].start, runs[-1].end)]
    return runs


def between(interval: Interval, apart: Sequence[Interval]) -> list[Interval]:
    """What of the interval lies in none of these, which are in order and apart."""
    edges = [interval.start, *(edge for each in apart for edge in each), interval.end]
    return [Interval(*pair) for pair in zip(edges[::2], edges[1::2], strict=True) if pair[0] < pair[1]]


def _without(found: Sequence[RollupSeries], size: RolledSize, apart: Sequence[Interval]) -> Sequence[RollupSeries]:
    """Rows that touch none of these."""
    if not apart:
        return found
    kept = []
    for series in found:
        touches = np.zeros(len(series.starts), np.bool_)
        for start, end in apart:
            touches |= (series.starts < end) & (series.starts + SIZE_S[size] > start)
        kept.append(_of_rows(series, ~touches))
    return kept


def _without_days(series: RollupSeries, days: set[int]) -> RollupSeries:
    return _of_rows(series, ~np.isin(series.starts // DAY_S * DAY_S, np.fromiter(days, np.int64, len(days))))


def _of_rows(series: RollupSeries, kept: np.ndarray) -> RollupSeries:
    if kept.all():
        return series
    at = np.flatnonzero(kept).tolist()
    return RollupSeries(
        series.dimensions,
        series.starts[kept],
        series.counts[kept],
        [series.sums[row] for row in at],
        series.minima[kept],
        series.maxima[kept],
        None if series.sketches is None else [series.sketches[row] for row in at],
    )
