"""The judge of one metric's windows: its history, and what is being reported already.

It is given every window in time order and says what is to be reported. A deviation is reported once: after
that nothing of its direction is, unless an anomaly becomes a spike or drop, until `recover_windows` windows have been
within sigma; and one kind at most every `cooldown_s`. What still goes on when that time has passed is reported then.
"""

from collections import deque
from typing import Literal, NamedTuple

import msgspec
import numpy as np

from analytics_actors.patterns.judge import (
    AT_ONCE,
    History,
    Judgement,
    Trend,
    find_trend,
    judge,
    milder,
    milder_trend,
)
from analytics_actors.patterns.scale import Measure, Values
from analytics_actors.patterns.seasonal import FORMS, Form, WeekProfile
from storage.patterns import Direction, Kind, PatternSettings
from storage.window_key import SIZE_S

# A trend through 60 windows is looked for at every fifth.
_TREND_STEPS = 12

Rank = Literal[0, 1, 2]
"""What was reported of a deviation: nothing, an anomaly, a spike or drop."""


class Window(NamedTuple):
    """`value` is None when the window says nothing, as the mean of no events."""

    start: int
    value: float | None
    events: int


class Finding(NamedTuple):
    """`expected` and `value` of a trend are the ends of its line."""

    kind: Kind
    direction: Direction
    start: int
    value: float
    mean: float
    expected: float
    sigmas: float
    events: int
    windows: int
    seasonal: bool


class Episode(msgspec.Struct):
    """A deviation in one direction, from its report on until the metric is normal again."""

    rank: Rank = 0
    normal_windows: int = 0


class DetectorState(msgspec.Struct):
    """What must outlive the process; the history comes from the roll-ups."""

    next_start: int
    """The first window that was not judged."""
    last_sigmas: float = 0.0
    up: Episode = msgspec.field(default_factory=Episode)
    down: Episode = msgspec.field(default_factory=Episode)
    trend: Direction | None = None
    trend_start: int = 0
    """Direction of the last trend, and the last window in which there was one."""
    reported: dict[Kind, int] = {}
    """Start of the last window that each kind was reported of."""


class Detector:
    """Of one metric and one size of windows."""

    def __init__(self, measure: Measure, settings: PatternSettings, state: DetectorState) -> None:
        self._measure = measure
        self._settings = settings
        self._size_s = SIZE_S[settings.window]
        self._history: deque[Window] = deque(maxlen=max(settings.history_windows, settings.trend_windows))
        self.state = state

    @property
    def is_idle(self) -> bool:
        """Nothing has happened through all of the history: what begins now begins anew."""
        return not any(window.events for window in self._history)

    @property
    def expects_events(self) -> bool:
        """Whether a window without any would be judged."""
        events = sorted(window.events for window in self._history)
        return len(events) > 0 and events[len(events) // 2] >= self._settings.minimum_sample

    def remember(self, window: Window) -> None:
        """Take a window into the history without judging it."""
        self._history.append(window)

    def push(self, window: Window, profile: WeekProfile | None) -> list[Finding]:
        """Judge the next window. `window.start` must be the state's `next_start`."""
        assert window.start == self.state.next_start, "windows come one after the other"
        findings = [*self._deviations(window, profile)]
        self._history.append(window)
        findings += self._trends(window, profile)
        self.state.next_start += self._size_s
        return findings

    def _deviations(self, window: Window, profile: WeekProfile | None) -> list[Finding]:
        judged = self._judge(window, profile)
        state = self.state
        if judged is None:
            state.last_sigmas = 0.0
            state.up, state.down = Episode(), Episode()
            return []
        found = []
        for episode, direction in ((state.up, "up"), (state.down, "down")):
            if not _is_beyond(judged, direction, self._settings.sigma):
                episode.normal_windows += 1
                if episode.normal_windows >= self._settings.recover_windows:
                    episode.rank = 0
                continue
            episode.normal_windows = 0
            rank: Rank = 2 if judged.deviation == "factor" else 1
            kind = _kind(judged)
            if rank > episode.rank and self._is_confirmed(judged) and self._is_due(kind, window.start):
                episode.rank = rank
                state.reported[kind] = window.start
                found.append(_of_judgement(kind, window, judged))
        state.last_sigmas = judged.sigmas
        return found

    def _judge(self, window: Window, profile: WeekProfile | None) -> Judgement | None:
        if window.value is None:
            return None
        judged = [
            judge(history, window.value, window.events, self._measure, self._settings)
            for history in self._histories(self._settings.history_windows, window.start, profile)
        ]
        result = judged[0]
        for other in judged[1:]:
            result = None if result is None or other is None else milder(result, other)
        return result

    def _is_confirmed(self, judged: Judgement) -> bool:
        sigma = self._settings.sigma
        at_once = abs(judged.sigmas) > sigma * AT_ONCE
        before = self.state.last_sigmas
        return at_once or (abs(before) > sigma and before * judged.sigmas > 0)

    def _is_due(self, kind: Kind, start: int) -> bool:
        last = self.state.reported.get(kind)
        return last is None or start - last >= self._settings.cooldown_s

    def _trends(self, window: Window, profile: WeekProfile | None) -> list[Finding]:
        settings = self._settings
        if window.start // self._size_s % max(settings.trend_windows // _TREND_STEPS, 1):
            return []
        histories = self._histories(settings.trend_windows, window.start, profile)
        found = [find_trend(history, self._measure, settings) for history in histories]
        trend = found[0] if len(found) == 1 else milder_trend(*found)
        if trend is None:
            return []
        state = self.state
        # A trend is over when a whole stretch of windows had none.
        is_over = window.start - state.trend_start >= settings.trend_windows * self._size_s
        state.trend_start = window.start
        if (trend.direction == state.trend and not is_over) or not self._is_due("trend", window.start):
            return []
        state.trend = trend.direction
        state.reported["trend"] = window.start
        return [_of_trend(window, trend, seasonal=profile is not None)]

    def _histories(self, windows: int, start: int, profile: WeekProfile | None) -> list[History]:
        """The last so many windows as they would be now, by each form that the week may have."""
        known = [window for window in self._history if window.value is not None][-windows:]
        starts = np.array([window.start for window in known], dtype=np.float64)
        values = np.array([window.value for window in known], dtype=np.float64)
        events = np.array([window.events for window in known], dtype=np.float64)
        times = (starts - start) / self._size_s
        in_reach = times > -windows - 1
        times, starts, values, events = times[in_reach], starts[in_reach], values[in_reach], events[in_reach]
        if profile is None:
            return [History(times, values, events)]
        return [self._seasonal(form, profile, start, starts, History(times, values, events)) for form in FORMS]

    def _seasonal(self, form: Form, profile: WeekProfile, start: int, starts: Values, history: History) -> History:
        half = self._size_s / 2
        factors = profile.factors(form, starts + half, start + half)
        events = history.events if self._measure == "level" else history.events * factors
        return History(history.times, history.values * factors, events, seasonal=True)


def _is_beyond(judged: Judgement, direction: str, sigma: float) -> bool:
    return abs(judged.sigmas) > sigma and judged.direction == direction


def _kind(judged: Judgement) -> Kind:
    if judged.deviation == "factor":
        return "spike" if judged.direction == "up" else "drop"
    return "anomaly"


def _of_judgement(kind: Kind, window: Window, judged: Judgement) -> Finding:
    return Finding(
        kind,
        judged.direction,
        window.start,
        judged.value,
        judged.mean,
        judged.expected,
        judged.sigmas,
        judged.events,
        judged.windows,
        judged.seasonal,
    )


def _of_trend(window: Window, trend: Trend, *, seasonal: bool) -> Finding:
    return Finding(
        "trend",
        trend.direction,
        window.start,
        trend.last,
        trend.mean,
        trend.first,
        trend.sigmas,
        window.events,
        trend.windows,
        seasonal,
    )
