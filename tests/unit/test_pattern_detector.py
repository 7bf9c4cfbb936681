"""What the detector finds in synthetic metrics, and how often it is wrong: false alarms are counted over long runs."""

import numpy as np
import pytest

from analytics_actors.patterns.seasonal import HOURS, WeekProfile
from storage.patterns import PatternSettings
from storage.window_key import SIZE_S
from tests.unit.pattern_series import BEGIN, DAY, Series, detect, minutes_of, poisson, sinus

WEEKEND_DAYS = (5, 6)


def flat(minutes: int, level: float = 100.0) -> Series:
    return np.full(minutes, level)


MORE_RATES = [pytest.param(rate, marks=pytest.mark.long) for rate in (5, 10, 50, 200)]


@pytest.mark.parametrize("rate", [1, 20, 5000, *MORE_RATES])
def test_noise_of_days_is_next_to_no_alarm(rate: float) -> None:
    found = detect(poisson(flat(3 * DAY, rate)))
    assert len(found) <= 1


def test_an_even_metric_is_no_alarm_and_neither_is_a_small_change() -> None:
    values = flat(DAY, 10_000)
    values[::7] += 200
    assert detect(values) == []


@pytest.mark.parametrize(("mean", "depth", "most"), [(30, 0.8, 0), (100, 0.8, 1), (1000, 0.8, 0), (10_000, 0.9, 0)])
def test_the_curve_of_a_day_is_neither_spike_nor_drop_nor_anomaly(mean: float, depth: float, most: int) -> None:
    found = [one for one in detect(poisson(sinus(2 * DAY, mean=mean, depth=depth))) if one.kind != "trend"]
    assert len(found) <= most


def test_sums_and_percentiles_of_skewed_values_rarely_alarm() -> None:
    rng = np.random.default_rng(3)
    counts = rng.poisson(300, DAY)
    prices = [rng.lognormal(3, 0.5, count) for count in counts]
    assert len(detect([one.sum() for one in prices], measure="summed", events=counts)) <= 1
    assert len(detect([one.mean() for one in prices], measure="level", events=counts)) <= 1
    assert len(detect([float(np.median(one)) for one in prices], measure="level", events=counts)) <= 1


def test_a_single_outlier_is_one_spike_and_does_not_hide_the_next() -> None:
    values = poisson(flat(400))
    values[100] = 1000
    values[150] = 400
    found = detect(values)
    assert minutes_of(found) == [("spike", "up", 100), ("spike", "up", 150)]
    assert found[1].mean == pytest.approx(100, rel=0.05)
    assert found[1].expected == pytest.approx(100, rel=0.1)
    assert found[1].value == 400


def test_an_outlier_does_not_make_normal_windows_a_drop() -> None:
    values = poisson(flat(400))
    values[100:110] = 100_000
    assert minutes_of(detect(values)) == [("spike", "up", 100)]


def test_a_step_up_is_one_spike_and_the_step_back_one_drop() -> None:
    values = poisson(np.concatenate([flat(200), flat(300, 300), flat(300)]))
    assert minutes_of(detect(values)) == [("spike", "up", 200), ("drop", "down", 500)]


def test_what_is_between_the_factors_and_beyond_sigma_is_an_anomaly() -> None:
    values = poisson(flat(400, 400))
    values[200] = 560
    values[300] = 240
    assert minutes_of(detect(values)) == [("anomaly", "up", 200), ("anomaly", "down", 300)]


def test_between_sigma_and_half_as_much_again_it_takes_two_windows() -> None:
    values = flat(400, 400)
    values[200] = 475
    assert detect(values) == []
    values[201] = 475
    assert minutes_of(detect(values)) == [("anomaly", "up", 201)]


def test_an_anomaly_that_becomes_a_spike_is_reported_as_one() -> None:
    values = flat(400, 400)
    values[200:203] = (560, 1200, 1200)
    assert minutes_of(detect(values)) == [("anomaly", "up", 200), ("spike", "up", 201)]


def test_what_goes_on_is_reported_once() -> None:
    values = poisson(flat(400))
    values[100:115:2] = 500
    values[101:115:2] = 450
    assert minutes_of(detect(values)) == [("spike", "up", 100)]


def test_two_normal_windows_do_not_end_it_but_three_do_and_the_cooldown_holds() -> None:
    values = flat(400)
    values[[100, 103]] = 500
    eager = PatternSettings(cooldown_s=0)
    assert minutes_of(detect(values, settings=eager)) == [("spike", "up", 100)]
    values[107] = 500
    assert minutes_of(detect(values, settings=eager)) == [("spike", "up", 100), ("spike", "up", 107)]
    assert minutes_of(detect(values)) == [("spike", "up", 100)]


def test_what_begins_within_the_cooldown_and_goes_on_is_reported_after_it() -> None:
    values = flat(400)
    values[100] = 500
    values[125:140] = 500
    assert minutes_of(detect(values)) == [("spike", "up", 100), ("spike", "up", 130)]


@pytest.mark.parametrize("rate", [12, 30, 100, 5000])
def test_a_metric_that_stops_is_one_drop_at_once(rate: float) -> None:
    found = detect(np.concatenate([poisson(flat(200, rate)), np.zeros(300)]))
    [(kind, direction, minute)] = minutes_of(found)
    assert (kind, direction) == ("drop", "down")
    assert 200 <= minute <= 201
    assert found[0].value == 0


def test_a_metric_that_has_just_begun_is_not_judged() -> None:
    values = flat(19)
    values[10:] = 1000
    assert detect(values) == []
    after_a_pause = np.concatenate([np.zeros(200), flat(10), flat(29, 1000)])
    assert detect(after_a_pause) == []


def test_a_metric_of_now_and_then_is_not_judged() -> None:
    values = np.zeros(600)
    values[::2] = 200
    values[300] = 2000
    assert detect(values) == []


def test_few_events_are_not_judged_however_even() -> None:
    values = flat(400, 4)
    values[200] = 0
    values[300] = 9
    assert detect(values) == []
    values[350] = 40
    assert minutes_of(detect(values)) == [("spike", "up", 350)]


def test_a_mean_of_few_events_is_not_judged() -> None:
    values = poisson(flat(400))
    values[200] = 900
    events = flat(400, 50)
    assert minutes_of(detect(values, measure="level", events=events)) == [("spike", "up", 200)]
    events[200] = 3
    assert detect(values, measure="level", events=events) == []


def test_a_sum_about_zero_has_anomalies_but_no_factors() -> None:
    values = np.random.default_rng(1).normal(0, 10, 400)
    values[200] = 200
    found = detect(values, measure="summed", events=flat(400, 50))
    assert minutes_of(found) == [("anomaly", "up", 200)]


@pytest.mark.parametrize(("start", "end", "direction"), [(40, 160, "up"), (160, 40, "down")])
def test_a_ramp_is_one_trend_and_neither_spike_nor_drop(start: float, end: float, direction: str) -> None:
    values = poisson(np.concatenate([flat(120, start), np.linspace(start, end, 240), flat(180, end)]))
    found = detect(values)
    # Where it begins it may be an anomaly.
    assert [(one.kind, one.direction) for one in found if one.kind != "anomaly"] == [("trend", direction)]
    trend = found[-1]
    assert 120 < (trend.start - BEGIN) // 60 < 370
    assert (trend.value > trend.expected) == (direction == "up")


def test_a_step_is_no_trend() -> None:
    values = poisson(np.concatenate([flat(200), flat(300, 160)]))
    assert [one.kind for one in detect(values)] == ["anomaly"]


def test_a_steep_slope_that_goes_on_is_a_trend_and_then_a_stop_is_a_drop() -> None:
    falling = np.concatenate([flat(60, 1000), np.linspace(1000, 300, 100), np.zeros(30)])
    found = minutes_of(detect(poisson(falling)))
    assert [one[:2] for one in found] == [("trend", "down"), ("drop", "down")]
    assert found[1][2] == 160


def business_week(minutes: int, rate: float = 100.0, *, begin: int = BEGIN) -> Series:
    """Sharp edges at 8:00 and 18:00, and a weekend."""
    times = begin + 60 * np.arange(minutes)
    hours, days = times % 86_400 // 3600, (times // 86_400 + 3) % 7
    is_open = (hours >= 8) & (hours < 18) & ~np.isin(days, WEEKEND_DAYS)
    return np.where(is_open, rate, rate / 4)


def profile_of(rates: Series, *, begin: int = BEGIN) -> WeekProfile:
    """From a week of minutes."""
    hours = np.empty(HOURS)
    numbers = (begin // 3600 + np.arange(HOURS)) % HOURS
    hours[numbers] = rates[: HOURS * 60].reshape(HOURS, 60).sum(axis=1)
    return WeekProfile(hours)


def test_the_edges_of_a_known_week_are_no_alarm_and_what_is_wrong_in_it_is() -> None:
    rates = business_week(7 * DAY)
    profile = profile_of(rates)
    usual = poisson(rates)
    unknown = [one for one in detect(usual[: 2 * DAY]) if one.kind in ("spike", "drop")]
    assert len(unknown) >= 3
    assert len(detect(usual, profile=lambda _: profile)) <= 1
    # On Tuesday the shop is closed from 11 to 13.
    tuesday = DAY + 11 * 60
    usual[tuesday : tuesday + 120] = poisson(flat(120, 25), seed=9)
    [found] = [one for one in detect(usual[: 2 * DAY], profile=lambda _: profile) if one.kind == "drop"]
    assert tuesday == (found.start - BEGIN) // 60
    assert found.seasonal


def test_the_curve_of_a_known_day_is_no_trend() -> None:
    rates = sinus(7 * DAY, mean=1000, depth=0.95)
    profile = profile_of(rates)
    values = poisson(rates[: 2 * DAY])
    assert any(one.kind == "trend" for one in detect(values))
    assert detect(values, profile=lambda _: profile) == []


def test_a_metric_that_has_grown_keeps_its_week() -> None:
    rates = business_week(7 * DAY)
    profile = profile_of(rates)
    assert len(detect(poisson(3 * rates[: 2 * DAY]), profile=lambda _: profile)) <= 1


def test_other_sizes_of_window() -> None:
    values = poisson(flat(400))
    values[300] = 400
    for settings in (PatternSettings(window="5m"), PatternSettings(window="1h")):
        [found] = detect(values, settings=settings)
        assert (found.kind, found.start) == ("spike", BEGIN + 300 * SIZE_S[settings.window])
