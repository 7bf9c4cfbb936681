"""What roll-ups know of a metric's past, as the detector's windows and as hours of the week."""

import logging
from collections.abc import Iterator

import numpy as np

from analytics_actors.patterns.detector import Window
from analytics_actors.patterns.scale import Measure
from analytics_actors.patterns.seasonal import HOUR_S, MOST_WEEKS, WEEK_S, WeekProfile, week_profile
from storage.aggregate import Aggregate, Aggregation
from storage.errors import FormatError
from storage.patterns import JudgedSize
from storage.rollups import RollupColumns, RollupStore
from storage.window_key import SIZE_S

_log = logging.getLogger(__name__)


def window_of(start: int, aggregate: Aggregate, aggregation: Aggregation, measure: Measure) -> Window:
    """A total of what nothing was added to is zero; any other metric says nothing then."""
    value = aggregate.value(aggregation)
    if value is None:
        return empty_window(start, measure)
    return Window(start, float(value), aggregate.count)


def empty_window(start: int, measure: Measure) -> Window:
    """A window that no event fell into."""
    return Window(start, None if measure == "level" else 0.0, 0)


async def windows_between(
    rollups: RollupStore,
    metric: tuple[str, str],
    aggregation: Aggregation,
    measure: Measure,
    size: JudgedSize,
    start: int,
    end: int,
) -> dict[int, Window]:
    """Totals of the windows in [start, end) that have any, by start. Five minutes are merged from minutes."""
    if start >= end:
        return {}
    merged: dict[int, Aggregate] = {}
    for at, aggregate in await _totals(rollups, metric, size, start, end):
        window_start = at - at % SIZE_S[size]
        if window_start in merged:
            merged[window_start].merge(aggregate)
        else:
            merged[window_start] = aggregate
    return {at: window_of(at, aggregate, aggregation, measure) for at, aggregate in merged.items()}


async def usual_week(
    rollups: RollupStore, metric: tuple[str, str], aggregation: Aggregation, measure: Measure, *, now_s: float
) -> WeekProfile | None:
    """None while there are less than two weeks of hours."""
    end = int(now_s) // HOUR_S * HOUR_S
    hours = await _totals(rollups, metric, "1h", end - MOST_WEEKS * WEEK_S, end)
    windows = (window_of(at, aggregate, aggregation, measure) for at, aggregate in hours)
    known = [(window.start, window.value) for window in windows if window.value is not None]
    starts = np.array([start for start, _ in known], dtype=np.int64)
    values = np.array([value for _, value in known], dtype=np.float64)
    return week_profile(starts, values, measure, now_s=now_s)


async def _totals(
    rollups: RollupStore, metric: tuple[str, str], size: JudgedSize, start: int, end: int
) -> Iterator[tuple[int, Aggregate]]:
    columns = await rollups.read(*metric, "1h" if size == "1h" else "1m", start, end, grouped=False)
    return _readable(columns)


def _readable(columns: RollupColumns) -> Iterator[tuple[int, Aggregate]]:
    for series in columns.series:
        for row, start in enumerate(series.starts):
            try:
                yield int(start), series.aggregate(row)
            except FormatError as error:
                # One damaged row must not end the watch; whoever answers queries shows the error.
                _log.warning("a roll-up is skipped", extra={"action": "rollup_skipped", "error": str(error)})
