"""The scale on which a metric's noise is even, so that one sigma holds for large and small values.

Counts, and sums of what is counted, vary by their root: Anscombe's transform, on which the noise of a Poisson count
is 1, whatever the rate. Means, extremes and percentiles vary in proportion, and upwards further than downwards: the
logarithm. Series with negative values, or zero for most of the time, are judged as they are.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

Values: TypeAlias = npt.NDArray[np.float64]
Measure = Literal["counted", "summed", "level"]
"""Counts and unique counts; sums; and what does not grow with the number of events: means, extremes, percentiles.
A window without events is zero for the first two and says nothing of a level."""

# Below this part of the expectation nobody cares, however even the values are.
LEAST_CHANGE = 0.03
_COUNTED = frozenset(("count", "unique"))


def measure_of(aggregation: str) -> Measure:
    if aggregation in _COUNTED:
        return "counted"
    return "summed" if aggregation == "sum" else "level"


class Scale(NamedTuple):
    """`floor(expected)`: the least sigma, on the scale, of what is expected there. A series that happens to be even is
    not taken for one that cannot vary."""

    there: Callable[[Values], Values]
    back: Callable[[float], float]
    floor: Callable[[float], float]


def scale_for(values: Values, events: Values, measure: Measure) -> Scale:
    """The scale for a history of `values`, each of so many `events`."""
    if measure == "counted":
        return _roots(1.0)
    positive = float(np.min(values)) >= 0 and float(np.median(values)) > 0
    if measure == "summed":
        # A sum varies at least as much as the number of what is summed.
        if positive:
            return _roots(float(np.median(values)) / max(float(np.median(events)), 1.0))
        typical = float(np.median(np.abs(values)))
        return _differences(max(typical / max(float(np.median(events)), 1.0) ** 0.5, LEAST_CHANGE * typical))
    if positive:
        return _proportions(float(np.median(values)) / 1000)
    return _differences(LEAST_CHANGE * float(np.median(np.abs(values))))


def _roots(one: float) -> Scale:
    """For counts, and for sums of what is `one` on average."""
    return Scale(
        there=lambda values: 2 * np.sqrt(np.maximum(values / one, 0) + 0.375),
        back=lambda x: max((max(x, 0.0) / 2) ** 2 - 0.375, 0.0) * one,
        floor=lambda expected: max(1.0, LEAST_CHANGE * expected / 2),
    )


def _proportions(least: float) -> Scale:
    """What is below `least`, zero too, counts as `least`."""
    return Scale(
        there=lambda values: np.log(np.maximum(values, least)),
        back=lambda x: float(np.exp(x)),
        floor=lambda _expected: LEAST_CHANGE,
    )


def _differences(least_sigma: float) -> Scale:
    return Scale(there=lambda values: values, back=lambda x: x, floor=lambda _expected: max(least_sigma, 1e-9))
