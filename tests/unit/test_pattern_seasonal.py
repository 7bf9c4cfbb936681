"""The usual week, from hours."""

import numpy as np
import pytest

from analytics_actors.patterns.seasonal import HOUR_S, HOURS, MOST_WEEKS, WEEK_S, week_profile
from tests.unit.pattern_series import BEGIN

NOW = BEGIN + 6 * WEEK_S + 5 * HOUR_S + 600


def hours(weeks: int) -> tuple[np.ndarray, np.ndarray]:
    """Hour i after the epoch's Thursday has i + 1, in every week."""
    starts = np.arange(NOW // HOUR_S * HOUR_S - weeks * WEEK_S, NOW - HOUR_S, HOUR_S, dtype=np.int64)
    return starts, (starts // HOUR_S % HOURS + 1.0)


def test_two_whole_weeks_are_needed() -> None:
    starts, values = hours(2)
    assert week_profile(starts, values, "counted", now_s=NOW) is not None
    assert week_profile(starts[1:], values[1:], "counted", now_s=NOW) is None
    assert week_profile(starts[:0], values[:0], "counted", now_s=NOW) is None


def test_hours_are_where_they_belong_and_an_odd_week_does_not_count() -> None:
    starts, values = hours(3)
    values[HOURS : 2 * HOURS] *= 50
    profile = week_profile(starts, values, "counted", now_s=NOW)
    assert profile is not None
    expected = np.maximum(np.arange(HOURS) + 1.0, 0.05 * (HOURS + 1) / 2)
    assert np.allclose(profile.hours, expected)


def test_only_the_last_weeks_count() -> None:
    starts, values = hours(MOST_WEEKS + 3)
    values[: 3 * HOURS] = 1e9
    profile = week_profile(starts, values, "counted", now_s=NOW)
    assert profile is not None
    assert profile.hours.max() == HOURS


def test_absent_hours_are_zero_for_counts_and_unknown_for_levels() -> None:
    starts, values = hours(2)
    kept = starts // HOUR_S % HOURS != 100
    counted = week_profile(starts[kept], values[kept], "counted", now_s=NOW)
    level = week_profile(starts[kept], values[kept], "level", now_s=NOW)
    assert counted is not None
    assert level is not None
    assert counted.hours[100] < 10
    assert level.hours[100] == pytest.approx(np.median(values[kept]))


def test_what_may_be_negative_has_no_ratios() -> None:
    starts, values = hours(2)
    assert week_profile(starts, values - 20, "summed", now_s=NOW) is None
    assert week_profile(starts, values * 0, "counted", now_s=NOW) is None


def test_factors_bring_a_value_to_another_hour() -> None:
    starts, values = hours(2)
    profile = week_profile(starts, values, "counted", now_s=NOW)
    assert profile is not None
    at = WEEK_S + 80 * HOUR_S
    mids = np.array([at - 40 * HOUR_S, at + 1800.0, at + 2 * HOUR_S - 60])
    assert np.allclose(profile.factors("steps", mids, at + 1800.0), [81 / 41, 1, 81 / 82])
    smooth = profile.factors("smooth", mids, at + 1800.0)
    assert np.allclose(smooth, [81 / 40.5, 1, 81 / (82 + 29 / 60)])
