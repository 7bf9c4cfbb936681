"""When requests of an open loop are sent, and what their latencies come to."""

import math
from collections.abc import Sequence

import numpy as np


def poisson_offsets_s(rate_per_s: float, seconds: float, *, random: np.random.Generator) -> list[float]:
    """Arrival times in seconds from the start, ascending, all below `seconds`: a Poisson process of that rate."""
    offsets: list[float] = []
    at_s = 0.0
    while True:
        gaps = random.exponential(1 / rate_per_s, max(16, math.ceil(rate_per_s * seconds)))
        arrivals = at_s + np.cumsum(gaps)
        offsets += arrivals[arrivals < seconds].tolist()
        if arrivals[-1] >= seconds:
            return offsets
        at_s = float(arrivals[-1])


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` (above 0, at most 1) of all values do not exceed. Not interpolated."""
    if not values:
        raise ValueError("there is no percentile of nothing")
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]
