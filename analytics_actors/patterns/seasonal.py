"""The usual week of a metric: how its hours differ, from the hours of the weeks before.

Only ratios between hours are used: the level is always that of the recent windows. So a metric that has grown
since is not abnormal, and the curve of unique counts, whose hours are no sums of their minutes, serves as well.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from analytics_actors.patterns.scale import Measure, Values

HOUR_S = 3600
WEEK_S = 7 * 86400
HOURS = 168
LEAST_WEEKS = 2
MOST_WEEKS = 5
"""Of history that is looked at: more would be slow to follow a change of habits."""

# An hour in which next to nothing happens says nothing about ratios: it counts as this part of the mean hour.
_LEAST_HOUR = 0.05

Form = Literal["steps", "smooth"]
FORMS: Sequence[Form] = ("steps", "smooth")
"""Within an hour nothing is known: values may change at once at its beginning, as when shops open, or
all through it. What is judged is judged by both, and reported when it is unusual by both. (The price: a rise that
should have come at a sharp edge and did not may pass for a slow one that ends.)"""


class WeekProfile(NamedTuple):
    """`hours[i]`: the usual value of the hour that begins i hours after Thursday 0:00 UTC, as the Unix epoch does."""

    hours: Values

    def factors(self, form: Form, mids_s: Values, at_s: float) -> Values:
        """What values at the times `mids_s` are to be multiplied by to be as if they were at `at_s`."""
        return self._usual(form, np.array([at_s]))[0] / self._usual(form, mids_s)  # type: ignore[no-any-return]

    def _usual(self, form: Form, times_s: Values) -> Values:
        hours = (times_s % WEEK_S) / HOUR_S
        if form == "steps":
            return self.hours[hours.astype(np.intp)]
        return np.interp(hours, np.arange(HOURS) + 0.5, self.hours, period=HOURS)


def week_profile(
    starts: npt.NDArray[np.int64], values: Values, measure: Measure, *, now_s: float
) -> WeekProfile | None:
    """From hours (`starts`, Unix time, ascending) before `now_s`; None before there are two whole weeks of them.

    The median over the weeks, so that of three one may have been out of the ordinary.
    """
    end = int(now_s) // HOUR_S * HOUR_S
    recent = (starts >= end - MOST_WEEKS * WEEK_S) & (starts < end)
    starts, values = starts[recent], values[recent]
    if not len(starts):
        return None
    weeks = (end - int(starts[0])) // WEEK_S
    if weeks < LEAST_WEEKS:
        return None
    # Hours back from the end; those without a value are zero, or unknown for a level.
    table = np.full(weeks * HOURS, np.nan if measure == "level" else 0.0)
    back = (end - starts) // HOUR_S - 1
    kept = back < len(table)
    table[back[kept]] = values[kept]
    by_hour_back = _median_of_known(table.reshape(weeks, HOURS))
    mean = float(np.mean(by_hour_back))
    if not mean > 0 or float(np.min(by_hour_back)) < 0:
        return None
    hours = np.empty(HOURS)
    hours[((end // HOUR_S) - 1 - np.arange(HOURS)) % HOURS] = by_hour_back
    return WeekProfile(np.maximum(hours, _LEAST_HOUR * mean))


def _median_of_known(table: Values) -> Values:
    """By column; a column of unknown values gets the median of all, and nothing known at all is zero."""
    known = ~np.isnan(table)
    if not known.any():
        return np.zeros(table.shape[1])
    overall = float(np.median(table[known]))
    return np.array(
        [np.median(column[~np.isnan(column)]) if not np.isnan(column).all() else overall for column in table.T]
    )
