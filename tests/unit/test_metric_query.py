"""Ranges, buckets in time zones, filters: the pure part of a metrics query."""

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import numpy as np
import pytest

from gateway.errors import ApiError
from gateway.metric_query import (
    Filter,
    Granularity,
    Plan,
    bucket_edges,
    default_granularity,
    read_filters,
    read_group_by,
    read_range,
    read_zone,
)
from storage.metric_definitions import MAX_VALUE_CHARS, MetricDefinition

NOW_S = datetime(2026, 11, 20, 12, 30, tzinfo=UTC).timestamp()
BERLIN = ZoneInfo("Europe/Berlin")
UTC_ZONE = ZoneInfo("UTC")


def at(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def edges(granularity: Granularity, zone: str, start: str, end: str) -> list[str]:
    found = bucket_edges(granularity, ZoneInfo(zone), at(start), at(end), max_buckets=1000)
    return [datetime.fromtimestamp(edge, UTC).strftime("%m-%dT%H:%M") for edge in found.tolist()]


def test_the_last_hour_by_default() -> None:
    assert read_range(None, None, UTC_ZONE, now_s=NOW_S) == (NOW_S - 3600, NOW_S)


@pytest.mark.parametrize(
    "text",
    [
        "2024-01-15T10:00:00Z",
        "2024-01-15T11:00:00+01:00",
        "2024-01-15T11:00:00 01:00",
        "2024-01-15T11:00:00",
        "1705312800",
        "1705312800000",
    ],
)
def test_forms_of_a_time(text: str) -> None:
    start, _ = read_range(text, "2024-01-16T00:00:00Z", BERLIN, now_s=NOW_S)
    assert start == at("2024-01-15T10:00:00+00:00")


def test_a_date_is_the_whole_day_of_the_zone() -> None:
    start, end = read_range("2024-01-01", "2024-01-31", BERLIN, now_s=NOW_S)
    assert (start, end) == (at("2024-01-01T00:00:00+01:00"), at("2024-02-01T00:00:00+01:00"))
    assert len(bucket_edges("day", BERLIN, start, end, max_buckets=100)) == 31 + 1


@pytest.mark.parametrize(
    ("start", "end"),
    [
        ("2024-01-15", "2024-01-14"),
        ("2024-01-15T10:00:00Z", "2024-01-15T10:00:00Z"),
        ("yesterday", None),
        ("1e400", None),
        ("9" * 40, None),
        ("0001-01-01", "0001-01-02"),
        ("2300-01-01", "2300-01-01"),
        ("2024-13-01", None),
    ],
)
def test_ranges_that_are_none(start: str, end: str | None) -> None:
    with pytest.raises(ApiError) as caught:
        read_range(start, end, UTC_ZONE, now_s=NOW_S)
    assert (caught.value.code, caught.value.pointer) == ("invalid_parameter", "/startTime")


@pytest.mark.parametrize(
    ("seconds", "granularity"),
    [(3600, "minute"), (6 * 3600, "5minutes"), (7 * 86400, "hour"), (31 * 86400, "day")],
)
def test_default_granularity(seconds: int, granularity: str) -> None:
    assert default_granularity(NOW_S - seconds, NOW_S) == granularity


def test_a_range_is_widened_to_whole_buckets() -> None:
    assert edges("5minutes", "UTC", "2024-01-01T10:03:30+00:00", "2024-01-01T10:10:01+00:00") == [
        "01-01T10:00",
        "01-01T10:05",
        "01-01T10:10",
        "01-01T10:15",
    ]
    assert edges("hour", "UTC", "2024-01-01T10:00:00+00:00", "2024-01-01T11:00:00+00:00") == [
        "01-01T10:00",
        "01-01T11:00",
    ]


@pytest.mark.parametrize(("day", "hours"), [("2024-03-31", 23), ("2024-10-27", 25), ("2024-06-01", 24)])
def test_days_have_the_length_that_clocks_give_them(day: str, hours: int) -> None:
    start, end = read_range(day, day, BERLIN, now_s=NOW_S)
    assert end - start == hours * 3600
    assert np.diff(bucket_edges("day", BERLIN, start, end, max_buckets=10)).tolist() == [hours * 3600]
    assert len(bucket_edges("hour", BERLIN, start, end, max_buckets=100)) == hours + 1


def test_a_day_that_has_no_midnight_begins_with_the_jump() -> None:
    found = edges("day", "America/Sao_Paulo", "2018-11-03T12:00:00+00:00", "2018-11-05T12:00:00+00:00")
    assert found == ["11-03T03:00", "11-04T03:00", "11-05T02:00", "11-06T02:00"]


def test_a_day_that_was_left_out_is_no_bucket() -> None:
    found = edges("day", "Pacific/Apia", "2011-12-29T12:00:00+00:00", "2011-12-31T12:00:00+00:00")
    assert found == ["12-29T10:00", "12-30T10:00", "12-31T10:00", "01-01T10:00"]


def test_hours_of_a_zone_that_is_half_an_hour_off() -> None:
    assert edges("hour", "Asia/Kolkata", "2024-01-01T10:00:00+00:00", "2024-01-01T11:00:00+00:00") == [
        "01-01T09:30",
        "01-01T10:30",
        "01-01T11:30",
    ]


def test_hours_around_a_change_of_half_an_hour() -> None:
    # Lord Howe: 02:00 +11:00 becomes 01:30 +10:30.
    found = edges("hour", "Australia/Lord_Howe", "2024-04-06T13:30:00+00:00", "2024-04-06T17:00:00+00:00")
    assert found == ["04-06T13:00", "04-06T14:00", "04-06T15:00", "04-06T15:30", "04-06T16:30", "04-06T17:30"]


@pytest.mark.parametrize("granularity", ["minute", "5minutes", "hour", "day"])
@pytest.mark.parametrize("zone", ["UTC", "Europe/Berlin", "Asia/Kathmandu", "America/St_Johns", "Australia/Lord_Howe"])
def test_buckets_cover_the_range_without_gap(granularity: Granularity, zone: str) -> None:
    for start in range(1_711_800_000, 1_711_900_000, 7_777):
        found = bucket_edges(granularity, ZoneInfo(zone), start, start + 50_000, max_buckets=1000)
        assert found[0] <= start < found[1]
        assert found[-2] < start + 50_000 <= found[-1]
        assert (np.diff(found) > 0).all()
        assert not (found % 60).any()


def test_too_many_points_are_refused_before_they_are_made() -> None:
    with pytest.raises(ApiError) as caught:
        bucket_edges("minute", UTC_ZONE, 0, 7e9, max_buckets=100_000)
    assert caught.value.pointer == "/granularity"


def sizes(granularity: Granularity, zone: str) -> tuple[str, ...]:
    found = bucket_edges(granularity, ZoneInfo(zone), 1_711_800_000, 1_711_950_000, max_buckets=10_000)
    definition = MetricDefinition("events")
    plan = Plan(
        project_id="p",
        metric="events",
        definition=definition,
        version=0,
        granularity=granularity,
        timezone=zone,
        edges=found,
    )
    return plan.sizes


def test_the_sizes_of_windows_that_serve() -> None:
    assert sizes("day", "UTC") == ("1d", "1h", "5m", "1m")
    assert sizes("day", "Europe/Berlin") == ("1h", "5m", "1m")
    assert sizes("hour", "UTC") == ("1h", "5m", "1m")
    assert sizes("day", "Asia/Kolkata") == ("5m", "1m")
    assert sizes("5minutes", "UTC") == ("5m", "1m")
    assert sizes("minute", "UTC") == ("1m",)


def test_long_values_of_a_filter_are_cut_as_those_of_dimensions_are() -> None:
    [long] = read_filters(["page:ne:" + "x" * 300])
    assert long.values == {"x" * MAX_VALUE_CHARS}


def test_filters() -> None:
    assert read_filters(["country:DE", "url:https://x", "device:ne:mobile", "plan:in:a,b", "x:eq:ne:y"]) == (
        Filter("country", frozenset({"DE"})),
        Filter("url", frozenset({"https://x"})),
        Filter("device", frozenset({"mobile"}), negated=True),
        Filter("plan", frozenset({"a", "b"})),
        Filter("x", frozenset({"ne:y"})),
    )
    assert Filter("x", frozenset("a"), negated=True).admits("b")


@pytest.mark.parametrize("text", ["", "country", ":DE"])
def test_filters_that_are_none(text: str) -> None:
    with pytest.raises(ApiError):
        read_filters([text])


def test_group_by() -> None:
    assert read_group_by("country,device,country") == ("country", "device")
    assert read_group_by(None) == ()


@pytest.mark.parametrize("name", ["", "Mars/Olympus", "../../etc/passwd", "/etc/passwd", "a\0b", "Europe"])
def test_zones_that_are_none(name: str) -> None:
    with pytest.raises(ApiError) as caught:
        read_zone(name)
    assert caught.value.pointer == "/timezone"
