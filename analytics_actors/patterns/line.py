"""Robust lines through a series: Theil and Sen's slope, and Mann and Kendall's test whether it rises or falls at all.

Both look at all pairs of windows, so that up to a quarter of outliers changes little.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from analytics_actors.patterns.scale import Values

# A normal distribution's standard deviation, in median absolute deviations.
MAD_TO_SIGMA = 1.4826


class Line(NamedTuple):
    """`level` is the line's value at time 0; `sigma` is the noise about it."""

    slope: float
    level: float
    sigma: float


def fit(times: Values, values: Values) -> Line:
    """Through three or more points; `times` ascend."""
    later, earlier = _pairs(len(times))
    slope = float(np.median((values[later] - values[earlier]) / (times[later] - times[earlier])))
    flat = values - slope * times
    level = float(np.median(flat))
    # Either may be far too small by chance, both hardly ever.
    by_distance = float(np.median(np.abs(flat - level)))
    by_change = float(np.median(np.abs(np.diff(flat)))) / 2**0.5
    return Line(slope, level, MAD_TO_SIGMA * max(by_distance, by_change))


def mann_kendall(values: Values) -> float:
    """The test's score: how many standard deviations the order of the values is off that of chance; + is rising."""
    n = len(values)
    later, earlier = _pairs(n)
    score = float(np.sign(values[later] - values[earlier]).sum())
    _, ties = np.unique(values, return_counts=True)
    variance = (n * (n - 1) * (2 * n + 5) - (ties * (ties - 1) * (2 * ties + 5)).sum()) / 18
    if variance <= 0:
        return 0.0
    return float((score - np.sign(score)) / np.sqrt(variance))


@lru_cache(maxsize=64)
def _pairs(n: int) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    earlier, later = np.triu_indices(n, 1)
    return later, earlier
