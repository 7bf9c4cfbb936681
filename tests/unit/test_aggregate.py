"""Aggregates: merging in any order, exact sums, both written forms."""

from decimal import Decimal
from functools import reduce

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.aggregate import (
    AGGREGATIONS,
    Aggregate,
    decimal_text,
    decode_aggregate,
    encode_aggregate,
    read_window_json,
    window_json,
)
from storage.errors import FormatError
from storage.quantile_sketch import QuantileSketch
from storage.unique_sketch import UniqueSketch

POOL = np.random.default_rng(3).integers(0, 2**64, 3000, np.uint64)


def uniques(count: int) -> UniqueSketch:
    return UniqueSketch(POOL[:count])


def quantiles(values: list[float]) -> QuantileSketch:
    sketch = QuantileSketch()
    sketch.add(np.array(values, np.float64))
    return sketch


def of_numbers(texts: list[str], *, sketched: bool) -> Aggregate:
    """As grouping makes them."""
    decimals = [Decimal(text) for text in texts]
    floats = [float(text) for text in texts]
    return Aggregate(
        len(texts),
        sum(decimals, Decimal(0)),
        min(floats, default=None),
        max(floats, default=None),
        quantiles=quantiles(floats) if sketched else None,
    )


decimals = st.decimals(-(10**12), 10**12, places=9).map(str)
number_aggregates = st.builds(of_numbers, st.lists(decimals, max_size=20), sketched=st.booleans())
unique_aggregates = st.integers(0, 2000).map(lambda count: Aggregate(count, unique=uniques(count)))
aggregates = st.one_of(st.builds(Aggregate, st.integers(0, 1 << 50)), number_aggregates, unique_aggregates)


def merged(*parts: Aggregate) -> Aggregate:
    together = Aggregate()
    for part in parts:
        together.merge(part)
    return together


def answers(aggregate: Aggregate) -> list[object]:
    return [aggregate.value(each) for each in AGGREGATIONS]


@settings(deadline=None)
@given(st.lists(aggregates, min_size=3, max_size=3))
def test_merging_is_associative_and_commutative(parts: list[Aggregate]) -> None:
    a, b, c = parts
    expected = answers(merged(a, b, c))
    for other in (merged(c, b, a), merged(a, merged(b, c)), merged(merged(c, a), b)):
        assert answers(other) == expected  # so few numbers that percentiles are exact
        assert decimal_text(other.total) == decimal_text(merged(a, b, c).total)


@settings(deadline=None)
@given(aggregates, aggregates)
def test_merging_leaves_the_other_alone(one: Aggregate, other: Aggregate) -> None:
    answers(other)  # sorts the quantiles, which changes their bytes
    before = encode_aggregate(other)
    target = merged(other)  # a first merge must not hand over the other's sketches
    target.merge(one)
    target.merge(one)
    copied = other.copy()
    copied.merge(one)
    assert encode_aggregate(other) == before


def test_sums_are_exact_decimals() -> None:
    parts = [Aggregate(1, Decimal(text), 0.0, 0.0) for text in ["0.1", "0.2", "12.90", "9007199254740993", "1e28"]]
    assert decimal_text(merged(*parts).total) == "10000000000009007199254741006.2"
    many = reduce(merged, [parts[0]] * 1000)
    assert many.value("sum") == 100


def test_questions_that_cannot_be_answered() -> None:
    assert answers(Aggregate()) == [0] + [None] * 9
    assert answers(Aggregate(5)) == [5] + [None] * 9
    assert Aggregate(2, unique=uniques(7)).value("sum") is None


def test_answers() -> None:
    aggregate = of_numbers([*map(str, range(1, 100)), "100.5"], sketched=True)
    aggregate.unique = uniques(7)
    assert answers(aggregate) == [100, Decimal("5050.5"), 50.505, 1.0, 100.5, 7, 50.0, 90.0, 95.0, 99.0]
    assert isinstance(aggregate.value("unique"), int)


@settings(deadline=None)
@given(aggregates)
def test_both_forms_come_back(aggregate: Aggregate) -> None:
    for back in (decode_aggregate(encode_aggregate(aggregate)), read_window_json(window_json(aggregate))):
        assert answers(back) == answers(aggregate)
        assert (back.unique is None, back.quantiles is None) == (aggregate.unique is None, aggregate.quantiles is None)
        if aggregate.quantiles is None:  # DataSketches writes other bytes once it has been asked
            assert encode_aggregate(back) == encode_aggregate(aggregate)


def test_a_window_reads_well() -> None:
    assert window_json(Aggregate(3)) == b'{"count":3}'
    assert (
        window_json(of_numbers(["12.90", "0.10"], sketched=False))
        == b'{"count":2,"sum":13,"min":0.1,"max":12.9,"mean":6.5}'
    )
    shown = msgspec.json.decode(window_json(of_numbers(["2", "3.5"], sketched=True)))
    assert {"p50": 2.0, "p90": 3.5, "p95": 3.5, "p99": 3.5}.items() <= shown.items()
    assert set(shown) == {"count", "sum", "min", "max", "mean", "p50", "p90", "p95", "p99", "state"}
    shown = msgspec.json.decode(window_json(Aggregate(9, unique=uniques(4))))
    assert (shown["count"], shown["unique"], set(shown)) == (9, 4, {"count", "unique", "state"})


def test_the_same_sum_is_the_same_text() -> None:
    texts = ["0", "-0", "0.00", "1E+3", "1000.000", "1e-9", "-12.90"]
    assert [decimal_text(Decimal(text)) for text in texts] == ["0", "0", "0", "1000", "1000", "0.000000001", "-12.9"]


def test_a_sum_keeps_every_digit_in_json() -> None:
    raw = window_json(Aggregate(2, Decimal("123456789012345678901234567890.123456789"), 0.0, 1.0))
    assert b'"sum":123456789012345678901234567890.123456789,' in raw
    assert read_window_json(raw).total == Decimal("123456789012345678901234567890.123456789")


def test_damaged_bytes_are_refused() -> None:
    raw = encode_aggregate(Aggregate(7, Decimal("1.5"), 0.5, 1.0, uniques(9), quantiles([0.5, 1.0])))
    for length in range(len(raw)):
        with pytest.raises(FormatError):
            decode_aggregate(raw[:length])
    for position in range(len(raw)):
        with pytest.raises(FormatError):
            decode_aggregate(raw[:position] + bytes((raw[position] ^ 4,)) + raw[position + 1 :])


def test_an_unknown_version_is_refused_by_name() -> None:
    _, digest, body = msgspec.msgpack.decode(encode_aggregate(Aggregate(1)))
    with pytest.raises(FormatError, match="aggregate has version 2"):
        decode_aggregate(msgspec.msgpack.encode([2, digest, body]))


@pytest.mark.parametrize(
    "raw",
    [b"", b"{}", b"[]", b'{"count":1.5}', b'{"count":1,"sum":"x"}', b'{"count":1,"state":"?"}',
     b'{"count":1,"state":"AAAA"}', b'{"count":1,"state":1}', b'{"count":1', b"\xff"],
)  # fmt: skip
def test_what_is_no_window_is_refused(raw: bytes) -> None:
    with pytest.raises(FormatError):
        read_window_json(raw)


@given(st.binary(max_size=60))
def test_any_bytes_are_read_or_refused(raw: bytes) -> None:
    for read in (decode_aggregate, read_window_json):
        with pytest.raises(FormatError):
            read(raw)


def test_memory_is_counted() -> None:
    plain = Aggregate(1).resident_bytes
    assert plain < Aggregate(1, unique=uniques(10)).resident_bytes < Aggregate(1, unique=uniques(1000)).resident_bytes
    assert plain < Aggregate(1, quantiles=quantiles([1.0])).resident_bytes
