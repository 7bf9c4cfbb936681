"""Names of windows, and the times that windows go by."""

from datetime import UTC, datetime, timedelta
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from config.settings import WindowSettings
from storage.event_batch import COLUMNS
from storage.window_key import (
    SIZE_S,
    WindowKey,
    groups_key,
    late_mask,
    lateness_s,
    live_from,
    redis_key,
    time_text,
)

START = 1705314600  # 2024-01-15T10:30:00Z
NOW = datetime(2026, 5, 1, 12, 30, tzinfo=UTC)
names = st.text(st.characters(blacklist_categories=["Cs"]), max_size=8)
keys = st.builds(
    WindowKey,
    names,
    names,
    st.sampled_from(["1m", "5m", "1h"]),
    st.sampled_from([0, START]),
    st.lists(st.tuples(names, names), max_size=2).map(tuple),
)


def test_the_documented_form() -> None:
    assert redis_key(WindowKey("shop", "revenue", "1m", START, ())) == "metric:shop:revenue:1m:2024-01-15T10:30:00Z"
    dimensions = (("country", "DE"), ("device", "mobile"))
    assert (
        redis_key(WindowKey("shop", "revenue", "5m", START, dimensions))
        == "metric:shop:revenue:5m:2024-01-15T10:30:00Z:country:DE:device:mobile"
    )
    assert groups_key("shop", "revenue", "1h", START) == "metric:shop:revenue:1h:2024-01-15T10:30:00Z:groups"


def test_what_would_break_the_form_is_escaped() -> None:
    key = WindowKey("a:b", "100%", "1m", START, (("x\n", "ü:\x7f"),))
    assert redis_key(key) == "metric:a%3Ab:100%25:1m:2024-01-15T10:30:00Z:x%0A:ü%3A%7F"


@given(keys, keys)
def test_different_windows_have_different_names(one: WindowKey, other: WindowKey) -> None:
    assert (redis_key(one) == redis_key(other)) == (one == other)
    assert redis_key(one) != groups_key(other.project_id, other.metric, other.size, other.start)


def test_times_as_text() -> None:
    assert [time_text(at) for at in (0, START, -1, -62135596800, 253402300740)] == [
        "1970-01-01T00:00:00Z", "2024-01-15T10:30:00Z", "1969-12-31T23:59:59Z", "0001-01-01T00:00:00Z",
        "9999-12-31T23:59:00Z",
    ]  # fmt: skip


def test_sizes_divide_each_other() -> None:
    sizes = list(SIZE_S.values())
    assert sizes == [60, 300, 3600, 86400]
    assert all(larger % smaller == 0 for smaller, larger in pairwise(sizes))


def test_the_seam_between_windows_and_roll_ups() -> None:
    windows = WindowSettings()
    assert lateness_s(windows) == 22 * 3600
    now = START + 1800.5
    assert live_from(now, windows) == (START - 22 * 3600) // 3600 * 3600
    assert live_from(now, windows) % 3600 == 0


@given(st.floats(1e9, 2e9), st.integers(3 * 3600, 7 * 86400))
def test_whatever_is_not_too_late_now_is_answered_from_windows(now_s: float, ttl_s: int) -> None:
    """And the windows of every hour that is live are still in Redis."""
    windows = WindowSettings(ttl_s=ttl_s)
    assert live_from(now_s, windows) <= now_s - lateness_s(windows) - 300
    assert live_from(now_s, windows) > now_s - ttl_s + 600


def rows(*ages: timedelta, received_at: datetime = NOW) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist(
        [
            {
                "project_id": "p",
                "event_id": "e",
                "event_type": "t",
                "timestamp": received_at - age,
                "received_at": received_at,
            }
            for age in ages
        ],
        schema=COLUMNS,
    )


def test_too_late_is_what_is_of_an_hour_whose_time_is_over() -> None:
    hour, tick = timedelta(hours=1), timedelta(microseconds=1)
    at_nine = datetime(2024, 1, 15, 9, tzinfo=UTC)
    table = rows(-hour, timedelta(), hour, hour + tick, 400 * 24 * hour, received_at=at_nine)
    assert late_mask(table, 3600.0).tolist() == [False, False, False, True, True]
    assert late_mask(pa.Table.from_batches([table, table]), 3600.0).sum() == 4
    # The whole hour before it was in time until then.
    before = rows(hour, 2 * hour - tick, 2 * hour, received_at=at_nine - tick)
    assert late_mask(before, 3600.0).tolist() == [False, False, True]


@given(st.floats(1e9, 2e9), st.integers(0, 50 * 3600))
def test_no_event_is_too_late_for_an_hour_that_windows_answer_but_for_five_minutes(now_s: float, age_s: int) -> None:
    windows = WindowSettings()
    received_at = datetime.fromtimestamp(now_s, UTC)
    [is_late] = late_mask(rows(timedelta(seconds=age_s), received_at=received_at), lateness_s(windows)).tolist()
    is_live = received_at.timestamp() - age_s >= live_from(received_at.timestamp(), windows)
    hours_time_is_over_s = (received_at.timestamp() - lateness_s(windows)) % 3600
    assert is_late != is_live or (is_late and hours_time_is_over_s < 300)


@pytest.mark.parametrize("table", [rows(), pa.Table.from_batches([], schema=COLUMNS)])
def test_no_rows_are_not_late(table: pa.RecordBatch | pa.Table) -> None:
    mask = late_mask(table, 1.0)
    assert mask.dtype == np.bool_
    assert len(mask) == 0
