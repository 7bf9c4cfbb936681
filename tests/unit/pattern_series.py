"""Synthetic metrics for the detector's tests: seeded, by the minute, with the time that a window begins at."""

from collections.abc import Callable, Iterable

import numpy as np
import numpy.typing as npt

from analytics_actors.patterns.detector import Detector, DetectorState, Finding, Window
from analytics_actors.patterns.scale import Measure
from analytics_actors.patterns.seasonal import WeekProfile
from storage.patterns import PatternSettings
from storage.window_key import SIZE_S

# Monday, 2026-11-16 00:00 UTC
BEGIN = 1_795_996_800 - 1_795_996_800 % 604_800 + 4 * 86_400
DAY = 1440

Series = npt.NDArray[np.float64]


def poisson(rates: Series, *, seed: int = 1) -> Series:
    return np.random.default_rng(seed).poisson(rates).astype(np.float64)


def sinus(minutes: int, *, mean: float, depth: float, begin: int = BEGIN) -> Series:
    """A day's curve; the lowest at midnight."""
    times = (begin + 60 * np.arange(minutes)) % 86_400
    return mean * (1 - depth * np.cos(2 * np.pi * times / 86_400))


def detect(
    values: Iterable[float],
    *,
    settings: PatternSettings | None = None,
    measure: Measure = "counted",
    events: Iterable[float] | None = None,
    profile: Callable[[int], WeekProfile | None] = lambda _: None,
    begin: int = BEGIN,
) -> list[Finding]:
    """All that is found in a metric that has `values` from its beginning on; by default each event counts 1."""
    settings = settings or PatternSettings()
    size_s = SIZE_S[settings.window]
    detector = Detector(measure, settings, DetectorState(begin))
    found: list[Finding] = []
    values = list(values)
    counts = values if events is None else list(events)
    for index, (value, count) in enumerate(zip(values, counts, strict=True)):
        start = begin + index * size_s
        found += detector.push(Window(start, value, int(count)), profile(start))
    return found


def minutes_of(found: Iterable[Finding], *, begin: int = BEGIN) -> list[tuple[str, str, int]]:
    return [(finding.kind, finding.direction, (finding.start - begin) // 60) for finding in found]
