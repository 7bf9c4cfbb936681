"""What one window looks like beside the windows before it: pure functions over arrays.

Expected is where a robust line through the recent windows leads, on the scale on which their noise is even: so
a gentle slope, as that of a day, is expected to go on, and outliers in the history neither hide the next one nor make
it. The recent mean, which spikes and drops are measured by, leaves outliers out.
"""

from typing import Literal, NamedTuple

import numpy as np

from analytics_actors.patterns.line import fit, mann_kendall
from analytics_actors.patterns.scale import Measure, Values, scale_for
from storage.patterns import Direction, PatternSettings

LEAST_WINDOWS = 10
# Beyond sigma and half as much again a window is reported at once; below it the next has to be beyond sigma too.
# 3 sigma alone come about by chance four times a day, among minutes; these, once in months.
AT_ONCE = 1.5
# The line's own uncertainty at its end, and that of sigma, of n windows: the variance grows by this, divided by n.
_UNCERTAINTY = 10.0
_OUTLIER_SIGMAS = 3.0
_LEAST_ACTIVE = 2 / 3
# A series that never varied has no sigma to speak of.
_MOST_SIGMAS = 1000.0
# Of a straight line's change each half has half. A step leaves one half without.
_LEAST_HALF = 0.4

Deviation = Literal["none", "anomaly", "factor"]
"""`factor` is a spike or a drop."""


class History(NamedTuple):
    """Windows before the one judged, oldest first. `times` are in windows, 0 being the one judged."""

    times: Values
    values: Values
    events: Values
    seasonal: bool = False


class Judgement(NamedTuple):
    """`sigmas` has a sign; `deviation` says what it would be if it is beyond sigma."""

    value: float
    events: int
    mean: float
    expected: float
    sigmas: float
    deviation: Deviation
    windows: int
    seasonal: bool

    @property
    def direction(self) -> Direction:
        return "up" if self.sigmas > 0 else "down"


class Trend(NamedTuple):
    """`change` is relative to the mean, over all windows; `first` and `last` are the ends of the line."""

    change: float
    first: float
    last: float
    mean: float
    sigmas: float
    windows: int

    @property
    def direction(self) -> Direction:
        return "up" if self.change > 0 else "down"


def judge(history: History, value: float, events: int, measure: Measure, settings: PatternSettings) -> Judgement | None:
    """None when history or window are too small to tell."""
    if not _is_enough(history, measure, settings):
        return None
    usual_events = float(np.median(history.events))
    if max(usual_events, events) < settings.minimum_sample:
        return None
    scale = scale_for(history.values, history.events, measure)
    scaled = scale.there(history.values)
    line = fit(history.times, scaled)
    sigma = max(line.sigma, scale.floor(line.level))
    kept = np.abs(scaled - line.slope * history.times - line.level) <= _OUTLIER_SIGMAS * sigma
    mean = float(np.mean(history.values[kept]))
    sigma *= (1 + _UNCERTAINTY / len(history.values)) ** 0.5
    if measure == "level" and 0 < events < usual_events:
        sigma *= (usual_events / events) ** 0.5
    sigmas = (float(scale.there(np.array([value]))[0]) - line.level) / sigma
    sigmas = min(max(sigmas, -_MOST_SIGMAS), _MOST_SIGMAS)
    sample = events if measure == "level" else max(usual_events, events if sigmas > 0 else 0)
    if sample < settings.minimum_sample:
        return None
    # Of what may be negative, twice or half says nothing.
    factors_apply = mean > 0 and float(np.min(history.values)) >= 0
    deviation = _deviation(value / mean if factors_apply else None, sigmas, settings)
    return Judgement(
        value, events, mean, scale.back(line.level), sigmas, deviation, len(history.values), history.seasonal
    )


def _is_enough(history: History, measure: Measure, settings: PatternSettings) -> bool:
    """A metric that is there only now and then, or has just begun, has no usual value."""
    active = len(history.values) if measure == "level" else int(np.count_nonzero(history.events))
    return active >= max(settings.minimum_windows, LEAST_WINDOWS, _LEAST_ACTIVE * len(history.values))


def _deviation(factor: float | None, sigmas: float, settings: PatternSettings) -> Deviation:
    if abs(sigmas) <= settings.sigma:
        return "none"
    if factor is not None and sigmas > 0 and factor >= settings.spike_factor:
        return "factor"
    if factor is not None and sigmas < 0 and factor <= settings.drop_factor:
        return "factor"
    return "anomaly"


_RANKS: dict[Deviation, int] = {"none": 0, "anomaly": 1, "factor": 2}


def milder(one: Judgement, other: Judgement) -> Judgement:
    """What both agree on. Opposite deviations agree on none."""
    if one.sigmas * other.sigmas < 0:
        return one._replace(sigmas=0.0, deviation="none")
    return min(one, other, key=lambda judged: (_RANKS[judged.deviation], abs(judged.sigmas)))


def find_trend(history: History, measure: Measure, settings: PatternSettings) -> Trend | None:
    """A trend through all the windows of `history`, the last of which is the one judged."""
    values, times = history.values, history.times
    if len(values) < settings.trend_windows * 0.9 or not _is_enough(history, measure, settings):
        return None
    if float(np.median(history.events)) < settings.minimum_sample:
        return None
    sigmas = mann_kendall(values)
    line = fit(times, values)
    mean = float(np.mean(values[np.abs(values - line.slope * times - line.level) <= _OUTLIER_SIGMAS * line.sigma]))
    if abs(sigmas) <= settings.sigma or mean <= 0:
        return None
    first = line.level + line.slope * float(times[0])
    last = line.level + line.slope * float(times[-1])
    change = (last - first) / mean
    if abs(change) < settings.trend_change or change * sigmas < 0:
        return None
    half = len(values) // 2
    for part in (slice(None, half), slice(half, None)):
        part_change = fit(times[part], values[part]).slope * float(times[-1] - times[0]) / 2 / mean
        if part_change * np.sign(change) < _LEAST_HALF * abs(change) / 2:
            return None
    return Trend(change, first, last, mean, sigmas, len(values))


def milder_trend(one: Trend | None, other: Trend | None) -> Trend | None:
    if one is None or other is None or one.direction != other.direction:
        return None
    return min(one, other, key=lambda trend: abs(trend.change))
