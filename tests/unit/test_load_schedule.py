"""Arrival times and percentiles."""

import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from load_tests.schedule import percentile, poisson_offsets_s


@given(rate=st.floats(1, 2000), seconds=st.floats(0.1, 5), seed=st.integers(0, 1000))
def test_arrivals_ascend_within_the_time(rate: float, seconds: float, seed: int) -> None:
    offsets = poisson_offsets_s(rate, seconds, random=np.random.default_rng(seed))
    assert offsets == sorted(offsets)
    assert all(0 <= offset < seconds for offset in offsets)


def test_arrivals_are_a_poisson_process_of_the_rate() -> None:
    offsets = poisson_offsets_s(1000, 100, random=np.random.default_rng(1))
    assert len(offsets) == pytest.approx(100_000, rel=0.02)
    gaps = np.diff(offsets)
    # Of exponential gaps mean and deviation are equal; of even gaps the deviation would be 0.
    assert statistics.stdev(gaps) == pytest.approx(statistics.mean(gaps), rel=0.02)


def test_arrivals_fill_the_time_when_the_first_draw_falls_short() -> None:
    for seed in range(50):
        offsets = poisson_offsets_s(1000, 1, random=np.random.default_rng(seed))
        assert max(offsets) > 0.98


@pytest.mark.parametrize(("share", "expected"), [(0.5, 50), (0.99, 99), (0.991, 100), (1.0, 100), (0.001, 1)])
def test_percentile_of_one_to_hundred(share: float, expected: int) -> None:
    assert percentile(list(range(100, 0, -1)), share) == expected


@given(st.lists(st.floats(0, 1e6), min_size=1), st.floats(0.01, 1))
def test_percentile_covers_its_share_and_no_smaller_value_does(values: list[float], share: float) -> None:
    found = percentile(values, share)
    assert sum(value <= found for value in values) >= share * len(values) - 1e-9
    assert all(sum(value <= smaller for value in values) < share * len(values) for smaller in values if smaller < found)


def test_there_is_no_percentile_of_nothing() -> None:
    with pytest.raises(ValueError, match="nothing"):
        percentile([], 0.5)
