"""Percentiles: exact while few, within the rank error beyond, whatever the order of merging."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.errors import FormatError
from storage.quantile_sketch import EXACT_LIMIT, RANK_ERROR, QuantileSketch

RANKS = (0.0, 0.01, 0.5, 0.9, 0.95, 0.99, 1.0)
numbers = st.lists(st.floats(-1e12, 1e12), max_size=60)


def sketch_of(values: Sequence[float]) -> QuantileSketch:
    sketch = QuantileSketch()
    sketch.add(np.array(values, np.float64))
    return sketch


def merged(*sketches: QuantileSketch) -> QuantileSketch:
    together = QuantileSketch()
    for sketch in sketches:
        together.merge(sketch)
    return together


def nearest_rank(values: Sequence[float], q: float) -> float:
    """The smallest number that at least the share q does not exceed."""
    ordered = sorted(values)
    return next(each for count, each in enumerate(ordered, 1) if count >= q * len(ordered))


def test_nothing_has_no_percentile() -> None:
    assert QuantileSketch().quantile(0.5) is None
    assert QuantileSketch().n == 0
    assert merged(QuantileSketch(), QuantileSketch()).quantile(0.5) is None


@given(numbers, numbers, numbers)
def test_few_numbers_give_exact_percentiles_in_any_order_of_merging(
    a: list[float], b: list[float], c: list[float]
) -> None:
    values = [*a, *b, *c]
    assert len(values) <= EXACT_LIMIT
    one, two, three = sketch_of(a), sketch_of(b), sketch_of(c)
    for sketch in (merged(one, two, three), merged(three, merged(two, one)), sketch_of(values)):
        assert sketch.n == len(values)
        for q in RANKS if values else ():
            assert sketch.quantile(q) == nearest_rank(values, q)


@pytest.mark.parametrize("seed", range(5))
def test_many_numbers_are_within_the_rank_error(seed: int) -> None:
    values = np.random.default_rng(seed).lognormal(3, 2, 30_000)
    parts = [sketch_of(part.tolist()) for part in np.array_split(values, 40)]
    for sketch in (merged(*parts), merged(*reversed(parts)), merged(merged(*parts[:7]), merged(*parts[7:]))):
        assert sketch.n == 30_000
        for q in RANKS:
            found = sketch.quantile(q)
            assert found is not None
            # The bound holds in 99 of 100; twice of it always, as far as a test will ever see.
            assert abs((values <= found).mean() - q) <= 2 * RANK_ERROR


def test_merging_and_copying_leave_the_others_alone() -> None:
    one, two = sketch_of([1.0, 2.0]), sketch_of([3.0])
    copied = two.copy()
    one.merge(two)
    copied.add(np.array([9.0]))
    assert (one.n, two.n, copied.n) == (3, 1, 2)
    assert two.quantile(1.0) == 3.0


@settings(deadline=None)
@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=400))
def test_it_comes_back_from_its_bytes(values: list[float]) -> None:
    sketch = sketch_of(values)
    back = QuantileSketch.from_bytes(sketch.to_bytes())
    assert back.n == len(values)
    assert [back.quantile(q) for q in RANKS] == [sketch.quantile(q) for q in RANKS]


def test_memory_is_bounded() -> None:
    assert sketch_of(np.random.default_rng(1).random(100_000).tolist()).resident_bytes < 8000


def test_damaged_bytes_never_reach_the_library() -> None:
    raw = sketch_of(np.arange(1000.0).tolist()).to_bytes()
    for length in range(0, len(raw), 13):
        with pytest.raises(FormatError):
            QuantileSketch.from_bytes(raw[:length])
    for position in range(0, len(raw), 7):
        with pytest.raises(FormatError):
            QuantileSketch.from_bytes(raw[:position] + bytes((raw[position] ^ 1,)) + raw[position + 1 :])
    with pytest.raises(FormatError, match="version 9"):
        QuantileSketch.from_bytes(b"\x09" + raw[1:])


@given(st.binary(max_size=60))
def test_any_bytes_are_refused(raw: bytes) -> None:
    with pytest.raises(FormatError):
        QuantileSketch.from_bytes(raw)
