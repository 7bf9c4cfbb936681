"""Merging windows into points: whatever the source and the split, the answer's bytes are the same."""

from decimal import Decimal
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analytics_actors.windows.definition_book import is_built
from gateway.exact_numbers import means, sum_texts
from gateway.metric_answers import Grid
from gateway.metric_query import Fill, Plan, bucket_edges
from gateway.metric_read import Interval
from gateway.rollup_reads import halves, runs_without
from storage.aggregate import Aggregate, Aggregation, decimal_text
from storage.metric_definitions import MetricDefinition
from storage.rollups import RollupSeries
from storage.window_key import WindowKey
from tests.unit.metric_data import Sent, windows_of

HOUR = 3600
DAY = 86400


def plan_of(aggregation: Aggregation, fill: Fill, *, groups: bool) -> Plan:
    return Plan(
        project_id="shop",
        metric="m",
        definition=MetricDefinition("m", aggregation, property="n", dimensions=["country"]),
        version=1,
        granularity="hour",
        timezone="UTC",
        edges=bucket_edges("hour", ZoneInfo("UTC"), 0, 3 * HOUR, max_buckets=10),
        group_by=("country",) if groups else (),
        fill=fill,
    )


def series_of(windows: list[tuple[WindowKey, Aggregate]]) -> list[RollupSeries]:
    """As roll-ups hand out the same windows."""
    groups = {key.dimensions: [w for w in windows if w[0].dimensions == key.dimensions] for key, _ in windows}
    return [
        RollupSeries(
            dimensions,
            np.array([key.start for key, _ in rows], np.int64),
            np.array([value.count for _, value in rows], np.int64),
            [decimal_text(value.total) for _, value in rows],
            np.array([np.nan if value.minimum is None else value.minimum for _, value in rows]),
            np.array([np.nan if value.maximum is None else value.maximum for _, value in rows]),
            None,
        )
        for dimensions, rows in groups.items()
    ]


def sent(at: int, number: Decimal, country: str) -> Sent:
    return Sent(at, properties={"n": str(number), "country": country})


events = st.lists(
    st.builds(
        sent,
        st.integers(0, 3 * HOUR - 1),
        st.decimals(-1000, 1000, places=3),
        st.sampled_from(["DE", "FR", 'a"b']),
    ),
    max_size=12,
)


@pytest.mark.parametrize("aggregation", ["count", "sum", "mean", "min", "max"])
@pytest.mark.parametrize("groups", [False, True])
@settings(max_examples=25)
@given(sent_events=events, cut=st.integers(0, 12), fill=st.sampled_from(["zero", "null", "none"]))
def test_sources_and_splits_make_no_difference(
    aggregation: Aggregation, groups: bool, sent_events: list[Sent], cut: int, fill: Fill
) -> None:
    plan = plan_of(aggregation, fill, groups=groups)

    def windows(some: list[Sent]) -> list[tuple[WindowKey, Aggregate]]:
        found = windows_of(some, ("1m",), [plan.definition]) if some else []
        return [(key, value) for key, value in found if key.metric == "m" and bool(key.dimensions) == groups]

    whole, split, rolled = Grid(plan), Grid(plan), Grid(plan)
    whole.add_windows(windows(sent_events))
    for part in (sent_events[cut:], sent_events[:cut]):
        split.add_windows(windows(part))
    for series in series_of(windows(sent_events)):
        rolled.add_series(series)
    assert whole.write() == split.write() == rolled.write()


numbers = st.decimals(-(10**28), 10**28, places=9) | st.decimals(-(10**9), 10**9, places=2)
sums = st.lists(st.tuples(numbers, st.booleans(), st.integers(0, 2**40)), min_size=1, max_size=20)


@given(sums)
def test_sums_and_means_are_those_of_aggregates(given_sums: list[tuple[Decimal, bool, int]]) -> None:
    """Whether a sum comes as text or as a number."""
    cells = [decimal_text(total) if is_text else total for total, is_text, _ in given_sums]
    counts = np.array([count for _, _, count in given_sums])
    aggregates = [Aggregate(count, total, 0.0, 0.0) for total, _, count in given_sums]
    assert sum_texts(cells) == [decimal_text(each.total) for each in aggregates]
    found = [None if np.isnan(mean) else mean for mean in means(cells, counts).tolist()]
    assert found == [each.value("mean") for each in aggregates]


def test_long_intervals_are_read_in_halves_that_meet_at_a_day() -> None:
    assert halves(Interval(HOUR, 30 * DAY), "1h") == [Interval(HOUR, 15 * DAY), Interval(15 * DAY, 30 * DAY)]
    assert halves(Interval(0, 8 * DAY), "1h") == [Interval(0, 8 * DAY)]
    assert halves(Interval(0, DAY), "1m") == [Interval(0, DAY)]
    assert halves(Interval(0, 300 * DAY), "1d") == [Interval(0, 150 * DAY), Interval(150 * DAY, 300 * DAY)]


def test_days_without_a_row_are_read_in_few_pieces() -> None:
    assert runs_without({DAY, 3 * DAY}, Interval(0, 5 * DAY + HOUR)) == [
        Interval(0, DAY),
        Interval(2 * DAY, 3 * DAY),
        Interval(4 * DAY, 5 * DAY + HOUR),
    ]
    assert runs_without({0}, Interval(0, DAY)) == []
    assert runs_without({day * DAY for day in range(0, 100, 2)}, Interval(0, 100 * DAY)) == [Interval(DAY, 100 * DAY)]


@pytest.mark.parametrize(
    ("built", "version", "expected"),
    [
        (None, 5, True),
        ("0a", 0, True),
        ("0a", 5, False),
        ("0a;m=5;n=6", 5, True),
        ("0a;m=4", 5, False),
        ("0a;m=4", 0, False),
        ("0a;am=5", 5, False),
    ],
)
def test_whether_a_metric_is_built(built: str | None, version: int, expected: bool) -> None:
    assert is_built(built, "m", version) is expected
