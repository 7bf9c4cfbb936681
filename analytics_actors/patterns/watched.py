"""One metric that is watched: its detector, the windows that wait for it, and what is still to be stored."""

from hashlib import blake2b

import msgspec

from analytics_actors.patterns.detector import Detector, DetectorState, Finding, Window
from analytics_actors.patterns.past import empty_window, windows_between
from analytics_actors.patterns.scale import measure_of
from analytics_actors.patterns.seasonal import WeekProfile
from storage.metric_definitions import MetricDefinition
from storage.pattern_store import Found, SavedState
from storage.patterns import Detection, PatternSettings
from storage.rollups import RollupStore
from storage.window_key import SIZE_S

MAX_WAITING = 240
"""Closed windows that wait while the store is away: of minutes, four hours. What is beyond that is read from the
roll-ups afterwards, as after a restart."""


class _Written(msgspec.Struct):
    """`SavedState.state`, as JSON. A state of another `definition` or size is of another metric."""

    definition: str
    size: str
    detector: DetectorState


_decoder = msgspec.json.Decoder(_Written)


class Watched:
    """Loaded from the store first (`load`); before that windows only wait."""

    def __init__(self, project_id: str, definition: MetricDefinition, settings: PatternSettings) -> None:
        self.metric = (project_id, definition.name)
        self.definition = definition
        self.settings = settings
        self.measure = measure_of(definition.aggregation)
        self.size_s = SIZE_S[settings.window]
        self.profile: WeekProfile | None = None
        self.profile_s = 0.0
        """When the profile was last read; 0 for never."""
        self.detector: Detector | None = None
        self.found: list[Found] = []
        self.is_dirty = False
        self._waiting: dict[int, Window] = {}

    @property
    def is_idle(self) -> bool:
        """Nothing has happened for so long that what begins now begins anew, and all of this is stored."""
        if self.detector is None or self._waiting or self.is_dirty:
            return False
        return self.detector.is_idle

    def wait(self, window: Window) -> None:
        """The window has closed. One that was judged already is not judged again."""
        if self.detector is not None and window.start < self.detector.state.next_start:
            return
        self._waiting.setdefault(window.start, window)
        if len(self._waiting) > MAX_WAITING:
            del self._waiting[min(self._waiting)]

    async def load(self, saved: SavedState | None, rollups: RollupStore, closed_s: int) -> None:
        """Go on after the last window that was judged, with the history from the roll-ups. `closed_s`: windows before
        it have closed.

        Of the time between, in which nobody watched, what was rolled up is judged; a window that is missing there
        may not have been rolled up, and is neither judged nor taken for zero.
        """
        state = self._state_of(saved)
        next_start = state.next_start if state else min(self._waiting, default=closed_s)
        history_s = self._history_windows() * self.size_s
        if next_start < closed_s - history_s:
            # So long away that there is nothing to compare the windows of then with now.
            next_start = closed_s
        if state is None:
            state = DetectorState(next_start)
        state.next_start = next_start
        is_another = saved is not None and not _is_of(self, saved)
        detector = Detector(self.measure, self.settings, state)
        end = max(closed_s, next_start)
        past = await windows_between(
            rollups,
            self.metric,
            self.definition.aggregation,
            self.measure,
            self.settings.window,
            next_start if is_another else next_start - history_s,
            end,
        )
        begun = min(past, default=next_start)
        for start in range(max(begun, next_start - history_s), next_start, self.size_s):
            detector.remember(past.get(start, empty_window(start, self.measure)))
        for start in range(next_start, end, self.size_s):
            self._waiting.setdefault(start, past.get(start, Window(start, None, 0)))
        self._waiting = {start: window for start, window in self._waiting.items() if start >= next_start}
        self.detector = detector
        self.is_dirty = True

    def _state_of(self, saved: SavedState | None) -> DetectorState | None:
        return _decoder.decode(saved.state).detector if saved is not None and _is_of(self, saved) else None

    def _history_windows(self) -> int:
        return max(self.settings.history_windows, self.settings.trend_windows)

    def absent(self, closed_s: int) -> list[int]:
        """Starts of the windows before `closed_s` that have not closed with events and are still to be judged."""
        assert self.detector is not None
        return [
            start
            for start in range(self.detector.state.next_start, closed_s, self.size_s)
            if start not in self._waiting
        ]

    def judge(self, closed_s: int, now_s: float) -> None:
        """Judge all windows that begin before `closed_s`, absent ones as empty."""
        assert self.detector is not None
        state = self.detector.state
        if closed_s - state.next_start > 2 * self._history_windows() * self.size_s:
            # Nothing but the last windows would be left of it in the end.
            state.next_start = closed_s - self._history_windows() * self.size_s
        while state.next_start < closed_s:
            start = state.next_start
            window = self._waiting.pop(start, None) or empty_window(start, self.measure)
            for finding in self.detector.push(window, self.profile):
                self.found.append(Found(self._detection(finding, now_s), self.settings.webhook_url))
            self.is_dirty = True
        self._waiting = {start: window for start, window in self._waiting.items() if start >= state.next_start}

    def _detection(self, finding: Finding, now_s: float) -> Detection:
        project_id, metric = self.metric
        return Detection(
            project_id=project_id, metric=metric, size=self.settings.window, detected_at=now_s, **finding._asdict()
        )

    def saved(self) -> SavedState:
        assert self.detector is not None
        state = self.detector.state
        written = _Written(_fingerprint(self.definition), self.settings.window, state)
        return SavedState(*self.metric, state.next_start, msgspec.json.encode(written))


def _is_of(watched: Watched, saved: SavedState) -> bool:
    try:
        written = _decoder.decode(saved.state)
    except msgspec.MsgspecError:
        # Of a later release, or damaged: the metric begins anew.
        return False
    return (written.definition, written.size) == (_fingerprint(watched.definition), watched.settings.window)


def _fingerprint(definition: MetricDefinition) -> str:
    """Changes when other events are counted, or otherwise: then what was usual is so no more."""
    counted = (definition.aggregation, definition.event_types, definition.property, definition.fallbacks)
    return blake2b(msgspec.json.encode((*counted, definition.filters)), digest_size=8).hexdigest()
