"""Unique counts: exact while few, independent of order and merging, and readable by DataSketches."""

import numpy as np
import pytest
from datasketches import hll_sketch, hll_union  # type: ignore[import-untyped]
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.errors import FormatError
from storage.unique_sketch import EXACT_LIMIT, RELATIVE_ERROR, Hashes, UniqueSketch

# A few pools of values, so that the sets overlap and lie on both sides of the limit.
POOL = np.random.default_rng(5).integers(0, 2**64, 6000, np.uint64)
ranges = st.tuples(st.integers(0, 5999), st.integers(0, 2500)).map(lambda r: POOL[r[0] : r[0] + r[1]])


def some(count: int, seed: int = 1) -> Hashes:
    return np.random.default_rng(seed).integers(0, 2**64, count, np.uint64)


def merged(*sketches: UniqueSketch) -> UniqueSketch:
    together = UniqueSketch()
    for sketch in sketches:
        together.merge(sketch)
    return together


@pytest.mark.parametrize("count", [0, 1, 2, 1000, EXACT_LIMIT])
def test_few_values_are_counted_exactly(count: int) -> None:
    hashes = some(count)
    sketch = UniqueSketch(np.concatenate((hashes, hashes[::-1])))
    assert sketch.exact
    assert sketch.estimate() == count


def test_one_more_than_the_limit_is_an_estimate_that_is_not_lower() -> None:
    for seed in range(30):
        sketch = UniqueSketch(some(EXACT_LIMIT + 1, seed))
        assert not sketch.exact
        assert sketch.estimate() > EXACT_LIMIT


@pytest.mark.parametrize("count", [1025, 2600, 3000, 10_000, 100_000, 300_000])
def test_estimates_are_within_three_standard_errors(count: int) -> None:
    for seed in range(3):
        assert UniqueSketch(some(count, seed)).estimate() == pytest.approx(count, rel=3 * RELATIVE_ERROR)


def test_estimates_have_no_bias_and_the_stated_error() -> None:
    errors = np.array([UniqueSketch(some(5000, seed)).estimate() / 5000 - 1 for seed in range(200)])
    assert abs(errors.mean()) < 4 * RELATIVE_ERROR / 200**0.5
    assert errors.std() == pytest.approx(RELATIVE_ERROR, rel=0.2)


def test_an_estimate_never_falls() -> None:
    hashes = some(6000, 3)
    sketch, last = UniqueSketch(), 0.0
    for start in range(0, 6000, 7):
        sketch.add_hashes(hashes[start : start + 7])
        assert sketch.estimate() >= last
        last = sketch.estimate()


@settings(deadline=None)
@given(ranges, ranges, ranges)
def test_merging_is_associative_and_commutative(a: Hashes, b: Hashes, c: Hashes) -> None:
    one, two, three = UniqueSketch(a), UniqueSketch(b), UniqueSketch(c)
    whole = UniqueSketch(np.concatenate((a, b, c))).to_bytes()
    assert merged(one, two, three).to_bytes() == whole
    assert merged(three, merged(two, one)).to_bytes() == whole
    assert merged(merged(one, three), two, one).to_bytes() == whole


@settings(deadline=None)
@given(ranges, ranges)
def test_merging_and_adding_leave_the_others_alone(a: Hashes, b: Hashes) -> None:
    one, two = UniqueSketch(a), UniqueSketch(b)
    before = two.to_bytes()
    copied = two.copy()
    one.merge(two)
    one.add_hashes(some(2000))
    copied.add_hashes(some(2000))
    assert two.to_bytes() == before


@settings(deadline=None)
@given(ranges)
def test_it_comes_back_from_its_bytes(hashes: Hashes) -> None:
    sketch = UniqueSketch(hashes)
    back = UniqueSketch.from_bytes(sketch.to_bytes())
    assert (back.to_bytes(), back.estimate(), back.exact) == (sketch.to_bytes(), sketch.estimate(), sketch.exact)


@settings(deadline=None)
@given(ranges)
def test_sorted_values_need_no_more_sorting(hashes: Hashes) -> None:
    assert UniqueSketch.of_distinct(np.unique(hashes)).to_bytes() == UniqueSketch(hashes).to_bytes()


def test_datasketches_reads_and_merges_the_registers() -> None:
    one, two = UniqueSketch(some(20_000, 1)), UniqueSketch(some(30_000, 2))
    union = hll_union(12)
    for sketch in (one, two):
        read = hll_sketch.deserialize(sketch.to_bytes()[2:])
        assert read.get_estimate() == pytest.approx(sketch.estimate(), rel=0.01)
        union.update(read)
    assert union.get_estimate() == pytest.approx(merged(one, two).estimate(), rel=0.01)


def test_memory_is_bounded() -> None:
    assert UniqueSketch(some(EXACT_LIMIT)).resident_bytes < 9000
    assert UniqueSketch(some(100_000)).resident_bytes < 5000
    assert UniqueSketch(some(2)).resident_bytes < 300


@pytest.mark.parametrize("count", [0, 3, 5000])
def test_shortened_bytes_are_refused(count: int) -> None:
    raw = UniqueSketch(some(count)).to_bytes()
    for length in range(0, len(raw), 1 if len(raw) < 100 else 97):
        if count and length >= 2 and length % 8 == 2 and count <= EXACT_LIMIT:
            continue  # fewer hashes are hashes too; the aggregate's check digits tell
        with pytest.raises(FormatError):
            UniqueSketch.from_bytes(raw[:length])


@given(st.binary(max_size=80))
def test_any_bytes_are_read_or_refused(raw: bytes) -> None:
    try:
        sketch = UniqueSketch.from_bytes(raw)
    except FormatError:
        return
    assert sketch.to_bytes() == raw


def test_unknown_forms_are_refused() -> None:
    raw = UniqueSketch(some(5000)).to_bytes()
    for damaged in (
        b"\x02" + raw[1:],
        b"\x01\x05" + raw[2:],
        raw[:50] + bytes((99,)) + raw[51:],
        raw[:10] + b"\x01" + raw[11:],
        raw + b"\x00",
    ):
        with pytest.raises(FormatError):
            UniqueSketch.from_bytes(damaged)
    with pytest.raises(FormatError, match="order"):
        UniqueSketch.from_bytes(b"\x01\x00" + bytes(16))
