"""Reading metrics: sources and their seam, groups and filters, fill, exact sums, the cache, degradation, streams."""

import asyncio
import threading
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import httpx
import msgspec
import pytest

from analytics_actors.windows.aggregate_only import shape_of
from config.settings import GatewaySettings, WindowSettings
from gateway.errors import ApiError
from gateway.metric_answers import Written
from gateway.metric_query import Plan
from gateway.metric_read import Read
from gateway.metric_reader import MetricReader
from gateway.middleware import Edge
from gateway.routes import read_metrics
from gateway.services import LARGE_AT_ONCE
from storage.aggregate import AGGREGATIONS, Aggregate
from storage.aggregated import AggregatedRecord, RecordKey
from storage.errors import Unavailable
from storage.metric_definitions import MetricDefinition
from storage.window_key import live_from
from tests.unit.fake_services import NOW, System, bearer
from tests.unit.metric_data import PARTITION, Sent, begin_windows, publish, roll_up, rows_of

NOW_S = NOW.timestamp()
LIVE = live_from(NOW_S, WindowSettings())
HOUR = 3600
DAY = 86400


def iso(second: float) -> str:
    return datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


async def ask(system: System, metric: str, *, key: str = "read", status: int = 200, **parameters: Any) -> Any:
    async with system.client(key) as client:
        answer = await client.get(f"/v1/metrics/{metric}", params=parameters)
    assert answer.status_code == status, answer.text
    return answer.json()


def values(answer: Any) -> list[Any]:
    return [point["value"] for point in answer["points"]]


async def test_the_last_hour_by_minutes_from_windows() -> None:
    system = System()
    await begin_windows(system.statistics)
    events = [Sent(NOW_S - 90), Sent(NOW_S - 80), Sent(NOW_S - 30)]
    await publish(system.statistics, events)
    answer = await ask(system, "events")
    assert (answer["granularity"], answer["aggregation"], answer["exact"]) == ("minute", "count", True)
    assert len(answer["points"]) == 60
    assert values(answer)[-2:] == [2, 1]
    assert sum(values(answer)) == 3
    assert answer["points"][-1] == {"timestamp": iso(NOW_S - 60), "value": 1}
    assert answer["sources"] == [{"source": "windows", "from": iso(NOW_S - HOUR), "to": iso(NOW_S)}]
    assert answer["freshAt"] == iso(NOW_S - 30)
    assert "degraded" not in answer
    assert "cache" not in answer


async def test_no_granularity_is_told_those_that_are() -> None:
    answer = await ask(System(), "events", status=400, granularity="1h")
    assert answer["message"] == "Invalid enum value '1h': 5minutes, day, hour, minute are possible."


async def test_a_range_over_the_seam_has_no_gap_and_no_double_count() -> None:
    """Roll-ups know live hours, and windows know hours before them; each hour is answered by one of them."""
    system = System()
    await begin_windows(system.statistics)
    events = [Sent(LIVE + offset) for offset in (-2 * HOUR, -HOUR, -1, 0, 1, HOUR)]
    await publish(system.statistics, events)
    await roll_up(system.statistics, events)
    answer = await ask(
        system, "events", startTime=iso(LIVE - 2 * HOUR), endTime=iso(LIVE + 2 * HOUR), granularity="hour"
    )
    assert values(answer) == [1, 2, 2, 1]
    assert [source["source"] for source in answer["sources"]] == ["rollups", "windows"]
    assert answer["sources"][0]["to"] == answer["sources"][1]["from"] == iso(LIVE)


async def test_a_day_over_the_seam_is_one_point() -> None:
    system = System()
    await begin_windows(system.statistics)
    events = [Sent(LIVE - 1, user="a"), Sent(LIVE + 1, user="a"), Sent(LIVE + 1, user="b")]
    await publish(system.statistics, events)
    await roll_up(system.statistics, events, ("1m", "1h"))
    day = iso(LIVE)[:10]
    for zone in ("UTC", "Europe/Berlin", "Asia/Kolkata"):
        users = await ask(system, "unique_users", startTime=day, endTime=day, granularity="day", timezone=zone)
        assert [(point["value"], point["count"]) for point in users["points"]] == [(2, 3)], zone


async def test_unique_counts_are_merged_never_summed() -> None:
    system = System()
    await roll_up(system.statistics, [Sent(hour * HOUR, user=f"u{hour % 5}") for hour in range(48)], ("1m", "1h"))
    hourly = await ask(system, "unique_users", startTime=0, endTime="1970-01-02", granularity="hour")
    daily = await ask(system, "daily_active_users", startTime=0, endTime="1970-01-02", granularity="day")
    assert values(hourly) == [1] * 48
    assert values(daily) == [5, 5]
    assert daily["exact"] is True


async def test_estimates_say_their_error() -> None:
    system = System()
    await roll_up(system.statistics, [Sent(0, user=f"u{number}") for number in range(3000)])
    answer = await ask(system, "unique_users", startTime=0, endTime=iso(HOUR), granularity="hour")
    assert answer["exact"] is False
    assert answer["error"] == {"relative": 0.01625}
    assert abs(values(answer)[0] - 3000) < 3 * 0.01625 * 3000


async def test_percentiles_are_merged() -> None:
    system = System()
    definition = MetricDefinition("latency", "p50", property="ms")
    await system.statistics.registry.create("shop", definition)
    events = [Sent(minute * 60, properties={"ms": minute}) for minute in range(99)]
    await roll_up(system.statistics, events, ("1m", "1h"), [definition])
    answer = await ask(system, "latency", startTime=0, endTime=iso(3 * HOUR), granularity="day")
    assert [(point["value"], point["count"]) for point in answer["points"]] == [(49.0, 99)]
    assert answer["exact"] is True
    gaps = await ask(system, "latency", startTime=0, endTime=iso(3 * HOUR), granularity="hour")
    assert values(gaps)[-1] is None


async def test_sums_are_exact_decimals() -> None:
    system = System()
    await begin_windows(system.statistics)
    amounts = ["0.1", "0.2", 0.3, 1e15, "0.00000001"]
    events = [Sent(LIVE - 10, "purchase", properties={"amount": amount}) for amount in amounts]
    events += [Sent(LIVE + 10, "purchase", properties={"amount": "0.005"})]
    await roll_up(system.statistics, events)
    await publish(system.statistics, events)
    async with system.client("read") as client:
        query = f"startTime={iso(LIVE - HOUR)}&endTime={iso(LIVE + HOUR)}"
        hours = await client.get(f"/v1/metrics/revenue?granularity=hour&{query}")
        unwanted = await client.get(f"/v1/metrics/revenue?granularity=hour&fill=none&startTime=0&endTime={iso(HOUR)}")
    assert b'"value":1000000000000000.60000001,"count":5}' in hours.content
    assert b'"value":0.005,"count":1}' in hours.content
    assert unwanted.json()["points"] == []


async def test_mean_min_and_max() -> None:
    system = System()
    events = [Sent(0, properties={"ms": ms}) for ms in (1, 2, 6)] + [Sent(HOUR, properties={"ms": 0})]
    definitions = [MetricDefinition(name, name, property="ms") for name in AGGREGATIONS[2:5]]
    for definition in definitions:
        await system.statistics.registry.create("shop", definition)
    await roll_up(system.statistics, events, ("1h",), definitions)
    found = {
        name: values(await ask(system, name, startTime=0, endTime=iso(3 * HOUR), granularity="hour"))
        for name in ("mean", "min", "max")
    }
    assert found == {"mean": [3.0, 0.0, None], "min": [1.0, 0.0, None], "max": [6.0, 0.0, None]}


async def test_an_event_type_is_a_metric() -> None:
    system = System()
    await begin_windows(system.statistics)
    await publish(system.statistics, [Sent(NOW_S - 5, "sign/up"), Sent(NOW_S - 5, "view"), Sent(NOW_S - 5, "view")])
    assert sum(values(await ask(system, "view"))) == 2
    assert sum(values(await ask(system, "sign%2Fup"))) == 1
    assert sum(values(await ask(system, "nothing"))) == 0


DEFINITION = MetricDefinition("buys", "sum", property="amount", dimensions=["country", "device"])


async def with_groups() -> System:
    system = System()
    await system.statistics.registry.create("shop", DEFINITION)
    bought = [("DE", "phone", 1), ("DE", "desk", 2), ("FR", "phone", 4), ("US", "desk", 8)]
    events = [
        Sent(at, properties={"country": country, "device": device, "amount": amount})
        for country, device, amount in bought
        for at in (LIVE - 1, LIVE + 1)
    ]
    await begin_windows(system.statistics)
    await publish(system.statistics, events, definitions=[DEFINITION], built="0;buys=1")
    await roll_up(system.statistics, events, ("1m", "1h"), [DEFINITION])
    return system


SEAM: dict[str, Any] = {"startTime": iso(LIVE - HOUR), "endTime": iso(LIVE + HOUR), "granularity": "hour"}


async def test_groups_of_all_and_of_some_dimensions() -> None:
    system = await with_groups()
    total = await ask(system, "buys", **SEAM)
    assert values(total) == [15, 15]
    countries = await ask(system, "buys", **SEAM, groupBy="country")
    first = [(p["dimensions"]["country"], p["value"], p["count"]) for p in countries["points"][:3]]
    assert first == [("US", 8, 1), ("FR", 4, 1), ("DE", 3, 2)]
    assert [point["timestamp"] for point in countries["points"]] == [iso(LIVE - HOUR)] * 3 + [iso(LIVE)] * 3
    both = await ask(system, "buys", **SEAM, groupBy="device,country")
    assert len(both["points"]) == 8
    assert both["points"][0]["dimensions"] == {"device": "desk", "country": "US"}


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        (["country:DE"], 3),
        (["country:DE", "device:phone"], 1),
        (["country:ne:DE"], 12),
        (["country:in:FR,US"], 12),
        (["country:XX"], 0),
    ],
)
async def test_filters(filters: list[str], expected: int) -> None:
    system = await with_groups()
    assert values(await ask(system, "buys", **SEAM, filter=filters)) == [expected, expected]


async def test_groups_beyond_the_limit_are_told() -> None:
    answer = await ask(await with_groups(), "buys", **SEAM, groupBy="country", limit=1)
    assert [point["dimensions"] for point in answer["points"]] == [{"country": "US"}] * 2, "the largest sum"
    assert answer["omittedGroups"] == 2


async def test_large_answers_are_made_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    system = await with_groups()
    reader = system.statistics.reader
    running: list[int] = []
    most = 0

    async def read(plan: Plan) -> Read:
        nonlocal most
        running.append(plan.buckets)
        most = max(most, running.count(120))
        await asyncio.sleep(0.01)
        running.remove(plan.buckets)
        return await MetricReader.read(reader, plan)

    monkeypatch.setattr(reader, "read", read)
    async with system.client("read") as client:

        async def points(hours: int) -> int:
            where = {"startTime": iso(LIVE - hours * HOUR), "endTime": iso(LIVE), "granularity": "hour"}
            answer = await client.get("/v1/metrics/buys", params={**where, "groupBy": "country"})
            return len(answer.json()["points"])

        large = [asyncio.create_task(points(120)) for _ in range(5)]
        await asyncio.sleep(0)
        assert await points(2) == 6
        assert not all(task.done() for task in large), "a small one does not wait for them"
        assert await asyncio.gather(*large) == [360] * 5
    assert most == LARGE_AT_ONCE


async def test_few_windows_of_many_groups_are_put_together_in_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    system = System()
    await begin_windows(system.statistics)
    await roll_up(system.statistics, [Sent(LIVE - 5, f"type-{number}") for number in range(10)])
    threads: list[bool] = []

    def write(plan: Plan, read: Read, max_points: int) -> Written:
        threads.append(threading.current_thread() is not threading.main_thread())
        return read_metrics_write(plan, read, max_points)

    read_metrics_write = read_metrics._write
    monkeypatch.setattr(read_metrics, "_write", write)
    where: dict[str, Any] = {"endTime": iso(LIVE), "granularity": "hour", "groupBy": "eventType"}
    assert len((await ask(system, "events", startTime=iso(LIVE - 30 * DAY), **where))["points"]) == 10 * 720
    assert len((await ask(system, "events", startTime=iso(LIVE - DAY), **where))["points"]) == 10 * 24
    assert threads == [True, False]


async def test_overflowing_groups_are_told() -> None:
    system = System()
    await begin_windows(system.statistics)
    await publish(system.statistics, [Sent(NOW_S - 5, "__other__"), Sent(NOW_S - 5, "view")])
    assert (await ask(system, "events", groupBy="eventType"))["overflow"] == 1
    assert (await ask(system, "view"))["overflow"] == 1
    assert "overflow" not in await ask(system, "events")


async def test_fill() -> None:
    system = System()
    await roll_up(system.statistics, [Sent(HOUR, "purchase", properties={"amount": 2})])
    where: dict[str, Any] = {"startTime": 0, "endTime": iso(3 * HOUR), "granularity": "hour"}
    assert values(await ask(system, "events", **where)) == [0, 1, 0]
    assert values(await ask(system, "events", **where, fill="null")) == [None, 1, None]
    none = await ask(system, "revenue", **where, fill="none")
    assert none["points"] == [{"timestamp": iso(HOUR), "value": 2, "count": 1}]
    assert values(await ask(system, "unique_users", **where, fill="zero")) == [0, 1, 0]


@pytest.mark.parametrize(
    ("query", "pointer"),
    [
        ({"startTime": "yesterday"}, "/startTime"),
        ({"startTime": "2026-01-01", "endTime": "2025-01-01"}, "/startTime"),
        ({"granularity": "week"}, "/granularity"),
        ({"startTime": "2000-01-01", "granularity": "minute"}, "/granularity"),
        ({"timezone": "Mars"}, "/timezone"),
        ({"groupBy": "country"}, "/groupBy"),
        ({"filter": "country:DE"}, "/filter"),
        ({"filter": "nonsense"}, "/filter"),
        ({"filter": "eventType:gt:5"}, "/filter"),
        ({"fill": "ten"}, "/fill"),
        ({"limit": 0}, "/limit"),
        ({"interval": "1h"}, None),
    ],
)
async def test_bad_parameters_are_named(query: dict[str, Any], pointer: str | None) -> None:
    answer = await ask(System(), "events", status=400, **query)
    assert (answer["code"], answer.get("pointer")) == ("invalid_parameter", pointer)


async def test_points_are_bounded() -> None:
    system = System()
    system.statistics.settings = WindowSettings(max_points=100)
    await roll_up(system.statistics, [Sent(0, f"type{number}") for number in range(10)])
    where: dict[str, Any] = {"startTime": 0, "endTime": iso(24 * HOUR), "granularity": "hour"}
    answer = await ask(system, "events", **where, groupBy="eventType", status=400)
    assert answer["pointer"] == "/limit"
    assert len((await ask(system, "events", **where, groupBy="eventType", limit=4))["points"]) == 96


async def test_windows_of_an_answer_are_bounded_and_those_of_other_groups_are_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("gateway.window_reads.MAX_WINDOWS", 15)
    monkeypatch.setattr("gateway.window_reads.STARTS_PER_READ", 4)
    system = System()
    await begin_windows(system.statistics)
    types = ["__other__", *(f"type{number}" for number in range(8))]
    await publish(system.statistics, [Sent(NOW_S - 60 * minute, each) for minute in (1, 9) for each in types])
    where: dict[str, Any] = {"startTime": iso(NOW_S - 600), "endTime": iso(NOW_S), "granularity": "minute"}
    answer = await ask(system, "events", **where, groupBy="eventType", status=400)
    assert "shorter range" in answer["hint"]
    answer = await ask(system, "type3", **where)
    assert (sum(values(answer)), answer["overflow"]) == (2, 2)
    answer = await ask(system, "events", **where, groupBy="eventType", filter="eventType:in:type1,type2")
    assert sum(values(answer)) == 4


async def test_a_month_of_hours_is_whole_however_it_is_read() -> None:
    system = System()
    await roll_up(system.statistics, [Sent(hour * HOUR, f"type{hour % 3}") for hour in range(30 * 24)])
    where: dict[str, Any] = {"startTime": 0, "endTime": iso(30 * 24 * HOUR), "granularity": "hour"}
    answer = await ask(system, "events", **where, groupBy="eventType", fill="none")
    assert [point["value"] for point in answer["points"]] == [1] * 30 * 24
    assert answer["points"][-1]["dimensions"] == {"eventType": "type2"}


@pytest.mark.parametrize("bound", ["MAX_ROWS", "MAX_SKETCHES"])
async def test_roll_ups_of_an_answer_are_bounded(monkeypatch: pytest.MonkeyPatch, bound: str) -> None:
    monkeypatch.setattr(f"gateway.rollup_reads.{bound}", 3)
    system = System()
    await roll_up(system.statistics, [Sent(hour * HOUR, f"type{hour % 2}") for hour in range(4)])
    metric = "events" if bound == "MAX_ROWS" else "unique_users"
    where: dict[str, Any] = {"startTime": 0, "granularity": "hour"}
    answer = await ask(system, metric, **where, endTime=iso(4 * HOUR), status=400)
    assert (answer["code"], "shorter range" in answer["hint"]) == ("invalid_parameter", True)
    assert values(await ask(system, metric, **where, endTime=iso(3 * HOUR))) == [1, 1, 1]


async def test_who_may_read() -> None:
    system = System()
    await begin_windows(system.statistics)
    for key in ("write", "import"):
        await ask(system, "events", key=key, status=403)
    await ask(system, "events", projectId="other", status=403)
    await ask(system, "events", key="system", status=400)
    await ask(system, "events", key="system", projectId="shop")


# Days


async def test_days_come_from_their_rows_and_else_from_hours() -> None:
    """A day's own row may not be there yet, and never is for a day that reaches into the live hours."""
    system = System()
    await begin_windows(system.statistics)
    today = LIVE // DAY * DAY
    events = [Sent(today - 2 * DAY), Sent(today - DAY), Sent(today - DAY + HOUR), Sent(LIVE - 1), Sent(LIVE)]
    await publish(system.statistics, events)
    await roll_up(system.statistics, events, ("1h",))
    await roll_up(system.statistics, events[:1], ("1d",))
    answer = await ask(
        system, "events", startTime=iso(today - 3 * DAY)[:10], endTime=iso(today)[:10], granularity="day"
    )
    assert values(answer) == [0, 1, 2, 2]


# The cache


CLOSED: dict[str, Any] = {"startTime": "2026-01-01", "endTime": "2026-01-02", "granularity": "hour"}


async def test_closed_ranges_are_answered_from_the_cache() -> None:
    system = System()
    at = datetime(2026, 1, 1, 5, tzinfo=UTC).timestamp()
    await roll_up(system.statistics, [Sent(at)])
    first = await ask(system, "events", **CLOSED)
    while not system.statistics.answers.kept:
        await asyncio.sleep(0)
    await system.statistics.rollups.upsert([], epoch=1, next_offset=1)
    second = await ask(system, "events", **CLOSED)
    assert (first["cache"], second["cache"]) == ("miss", "hit")
    assert second["points"] == first["points"]
    assert [source["source"] for source in second["sources"]] == ["cache"]
    other = await ask(system, "events", **CLOSED, fill="none")
    assert other["cache"] == "miss"


async def test_a_recomputed_day_is_not_answered_from_the_cache() -> None:
    system = System()
    at = datetime(2026, 1, 1, 5, tzinfo=UTC).timestamp()
    await roll_up(system.statistics, [Sent(at)])
    assert sum(values(await ask(system, "events", **CLOSED))) == 1
    await roll_up(system.statistics, [Sent(at), Sent(at + 1)])
    system.statistics.answers.version = "2"
    again = await ask(system, "events", **CLOSED)
    assert (sum(values(again)), again["cache"]) == (2, "miss")


async def test_a_range_with_late_days_is_not_kept() -> None:
    system = System()
    system.statistics.answers.version = None
    for _ in range(2):
        assert "cache" not in await ask(system, "events", **CLOSED)
    assert not system.statistics.answers.kept


async def test_without_the_cache_answers_are_made() -> None:
    system = System()
    system.statistics.answers.error = Unavailable("Redis: no answer")
    answer = await ask(system, "events", **CLOSED)
    assert "degraded" not in answer


async def test_live_ranges_are_not_kept() -> None:
    system = System()
    await begin_windows(system.statistics)
    await ask(system, "events")
    assert not system.statistics.answers.kept


# Without windows


def stored(system: System, events: list[Sent], *, offset: int = 1) -> None:
    system.statistics.stored.batches = [rows_of(events)]
    system.statistics.stored.next_offset = offset


async def test_without_redis_live_hours_come_from_stored_events() -> None:
    system = System()
    events = [Sent(LIVE - 1), Sent(LIVE + 1), Sent(NOW_S - 60)]
    await roll_up(system.statistics, events)
    stored(system, events)
    system.statistics.windows.available = False
    answer = await ask(system, "events", startTime=iso(LIVE - HOUR), endTime=iso(NOW_S), granularity="hour")
    assert answer["degraded"] is True
    assert answer["degradedBecause"] == "Redis does not answer"
    assert [source["source"] for source in answer["sources"]] == ["rollups", "events"]
    assert sum(values(answer)) == 3
    assert values(answer)[:2] == [1, 1]


async def test_without_redis_records_of_aggregate_only_events_count_too(monkeypatch: pytest.MonkeyPatch) -> None:
    system = System()
    definition = MetricDefinition("slow", "max", ["response_time"], "ms", aggregate_only=True)
    await system.statistics.registry.create("shop", definition)
    stored(system, [Sent(NOW_S - 5)])
    minute, shape = int(NOW_S) // 60 * 60 - 120, shape_of(definition)
    for late in (False, True):
        value = Aggregate(2, Decimal(7), 3.0, 9.0 if late else 4.0)
        key = RecordKey("shop", minute, "slow", "response_time", shape, late, ())
        system.statistics.stored.kept_records.append((key, AggregatedRecord(PARTITION, 3, value, 0, 1, 0)))
    system.statistics.windows.available = False
    assert sum(values(await ask(system, "events"))) == 4
    assert [value for value in values(await ask(system, "slow")) if value is not None] == [4.0]
    # A record takes as long to count as an event.
    monkeypatch.setattr("gateway.event_counts.MAX_COUNTED_EVENTS", 2)
    await ask(system, "events", status=503)


@pytest.mark.parametrize("state", ["lost", "rebuilding"])
async def test_lost_windows_are_not_asked(state: str) -> None:
    system = System()
    stored(system, [Sent(NOW_S - 5)])
    if state == "rebuilding":
        await system.statistics.windows.begin_rebuild(PARTITION, epoch=1)
    answer = await ask(system, "events")
    assert (sum(values(answer)), answer["degraded"]) == (1, True)


async def test_too_late_events_are_left_out_as_windows_do() -> None:
    """They are counted when their day is recomputed; until then the answer must not depend on who gave it."""
    system = System()
    late = Sent(LIVE + 1, received=LIVE + 1 + 23 * HOUR)
    stored(system, [Sent(LIVE + 1), late])
    answer = await ask(system, "events", startTime=iso(LIVE), endTime=iso(NOW_S), granularity="hour")
    assert sum(values(answer)) == 1


async def test_groups_from_stored_events() -> None:
    system = await with_groups()
    bought = [("DE", 1), ("DE", 2), ("FR", 4)]
    stored(system, [Sent(LIVE + 1, properties={"country": c, "device": "d", "amount": a}) for c, a in bought])
    system.statistics.windows.available = False
    answer = await ask(system, "buys", **SEAM, groupBy="country", filter="country:DE")
    assert [point["value"] for point in answer["points"]] == [3, 3]


async def test_a_new_metric_is_counted_from_stored_events_until_it_is_built() -> None:
    system = System()
    await begin_windows(system.statistics)
    await publish(system.statistics, [Sent(NOW_S - 5)], built="0")
    stored(system, [Sent(NOW_S - 5, properties={"amount": 7})])
    await system.statistics.registry.create("shop", MetricDefinition("amount", "sum", property="amount"))
    answer = await ask(system, "amount")
    assert (values(answer)[-1], answer["degraded"]) == (7, True)
    assert "being built" in answer["degradedBecause"]
    assert "degraded" not in await ask(system, "events")


async def test_too_many_stored_events_are_refused_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.event_counts.MAX_COUNTED_EVENTS", 2)
    system = System()
    stored(system, [Sent(NOW_S - 5)] * 3)
    answer = await ask(system, "events", status=503)
    assert answer["code"] == "unavailable"
    assert "shorter range" in answer["hint"]
    # Closed hours are then taken from roll-ups, and only the rest is counted.
    events = [Sent(NOW_S - 3 * HOUR)] * 3 + [Sent(NOW_S - 5)]
    await roll_up(system.statistics, events[:3])
    stored(system, events)
    answer = await ask(system, "events", startTime=iso(NOW_S - 4 * HOUR), granularity="hour")
    assert values(answer) == [0, 3, 0, 1]
    assert [source["source"] for source in answer["sources"]] == ["rollups", "events"]


async def test_without_aggregators_everything_is_counted_from_stored_events() -> None:
    system = System()
    system.statistics.settings = WindowSettings(enabled=False)
    system.statistics.__post_init__()
    stored(system, [Sent(0, received=NOW_S)])
    answer = await ask(system, "events", startTime=0, endTime=iso(HOUR), granularity="hour")
    assert values(answer) == [1]
    assert "degraded" not in answer


# Counts never go down


async def count(system: System) -> int:
    return int(sum(values(await ask(system, "events"))))


async def test_counts_do_not_go_down_when_windows_are_lost_and_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """The windows are ahead of the event store when they are lost, and behind it when they come back."""
    system, at = System(), NOW_S - 5
    await begin_windows(system.statistics)
    for events in (1, 2, 3):
        await publish(system.statistics, [Sent(at)] * events)
    assert await count(system) == 3  # at offset 3
    stored(system, [Sent(at)] * 2, offset=2)
    system.statistics.windows.flush_all()
    asked = asyncio.create_task(count(system))
    await asyncio.sleep(0.12)
    assert not asked.done()  # waits for the event store
    stored(system, [Sent(at)] * 4, offset=4)
    assert await asked == 4
    await begin_windows(system.statistics, epoch=2, offset=2)
    await publish(system.statistics, [Sent(at)] * 3)  # at offset 3, where 4 was told already
    assert await count(system) == 4
    await publish(system.statistics, [Sent(at)] * 4)
    answer = await ask(system, "events")
    assert sum(values(answer)) == 4
    assert "degraded" not in answer


async def test_the_wait_for_the_event_store_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.event_counts.CATCH_UP_S", 0.1)
    system = System()
    await begin_windows(system.statistics, offset=8)
    await publish(system.statistics, [Sent(NOW_S - 5)] * 2)
    assert await count(system) == 2
    stored(system, [Sent(NOW_S - 5)], offset=3)
    system.statistics.windows.flush_all()
    answer = await ask(system, "events")
    assert answer["degraded"] is True


async def test_windows_that_are_lost_while_they_are_read_are_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    system = System()
    await begin_windows(system.statistics)
    await publish(system.statistics, [Sent(NOW_S - 5)] * 2)
    stored(system, [Sent(NOW_S - 5)] * 2)
    windows = system.statistics.windows
    load = windows.load

    async def lost(keys: Any) -> Any:
        windows.flush_all()
        return await load(keys)

    monkeypatch.setattr(windows, "load", lost)
    assert await count(system) == 2


async def test_windows_that_change_hands_are_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    system = System()
    await begin_windows(system.statistics)
    await publish(system.statistics, [Sent(NOW_S - 5)] * 2)
    windows = system.statistics.windows
    load, epochs = windows.load, iter([7])

    async def claimed(keys: Any) -> Any:
        for epoch in epochs:
            await windows.claim(PARTITION, epoch=epoch)
        return await load(keys)

    monkeypatch.setattr(windows, "load", claimed)
    answer = await ask(system, "events")
    assert sum(values(answer)) == 2
    assert "degraded" not in answer


# Overload


async def test_a_burst_waits_for_a_moment_and_what_is_more_is_shed(monkeypatch: pytest.MonkeyPatch) -> None:
    system = System(settings=GatewaySettings(max_concurrent_queries=3))
    await begin_windows(system.statistics)
    load = system.statistics.windows.load

    async def slowly(keys: Any) -> Any:
        await asyncio.sleep(0.05)
        return await load(keys)

    monkeypatch.setattr(system.statistics.windows, "load", slowly)
    async with system.client("read") as client:
        answers = await asyncio.gather(*(client.get("/v1/metrics/events") for _ in range(11)))
        assert sorted(answer.status_code for answer in answers) == [200] * 8 + [503] * 3
        refused = next(answer for answer in answers if answer.status_code == 503)
        assert "retry-after" in refused.headers
        assert (await client.get("/v1/metrics/events")).status_code == 200


# Streams


class Browser:
    """A client of a stream, as the server's ASGI callables see it."""

    def __init__(self, system: System, query: str, *, method: str = "GET") -> None:
        transport = system.client()._transport
        assert isinstance(transport, httpx.ASGITransport)
        assert isinstance(transport.app, Edge)
        self._app = transport.app
        self._scope = {
            "type": "http",
            "method": method,
            "path": "/v1/metrics/stream",
            "raw_path": b"/v1/metrics/stream",
            "query_string": query.encode(),
            "headers": [(b"authorization", bearer("read")["Authorization"].encode())],
            "root_path": "",
        }
        self._gone = asyncio.Event()
        self._read_body = False
        self.status = 0
        self.headers: dict[bytes, bytes] = {}
        self.text = b""
        self.task = asyncio.create_task(self._app(self._scope, self._receive, self._send))

    async def _receive(self) -> dict[str, Any]:
        if not self._read_body:
            self._read_body = True
            return {"type": "http.request", "body": b"", "more_body": False}
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, event: Any) -> None:
        if event["type"] == "http.response.start":
            self.status, self.headers = event["status"], dict(event["headers"])
        else:
            self.text += event["body"]

    def leave(self) -> None:
        self._gone.set()

    def points(self) -> list[Any]:
        lines = [line for line in self.text.decode().split("\n") if line.startswith("data: ")]
        return [msgspec.json.decode(line.removeprefix("data: ")) for line in lines]

    async def until(self, text: bytes) -> None:
        async with asyncio.timeout(5):
            while text not in self.text:
                await asyncio.sleep(0.005)


async def test_a_stream_tells_windows_as_they_change() -> None:
    system = System()
    await begin_windows(system.statistics)
    await publish(system.statistics, [Sent(NOW_S - 30)])
    browser = Browser(system, "metrics=events,revenue")
    await browser.until(b'"metric":"revenue"')
    assert browser.status == 200
    assert browser.headers[b"content-type"] == b"text/event-stream"
    assert browser.text.startswith(b"retry: 2000\n\n")
    assert browser.points()[0] == {
        "metric": "events",
        "granularity": "minute",
        "timestamp": iso(NOW_S - 60),
        "value": 1,
    }
    seen = len(browser.points())
    await publish(system.statistics, [Sent(NOW_S - 30)] * 2)
    await browser.until(b'"value":2')
    assert len(browser.points()) == seen + 1  # what has not changed is not told again
    await browser.until(b": nothing new")
    browser.leave()
    await browser.task
    assert system.statistics.streams.open == 0


async def test_streams_share_a_poller_and_end_at_shutdown(monkeypatch: pytest.MonkeyPatch) -> None:
    system = System()
    await begin_windows(system.statistics)
    browsers = [Browser(system, "metrics=events") for _ in range(3)]
    for browser in browsers:
        await browser.until(b"event: point")
    assert len(system.statistics.streams._feeds) == 1
    system.statistics.streams.close()
    async with asyncio.timeout(5):
        await asyncio.gather(*(browser.task for browser in browsers))
    late = Browser(system, "metrics=events")
    await late.task
    assert late.status == 503


async def test_streams_are_bounded() -> None:
    system = System()
    await begin_windows(system.statistics)
    system.statistics.streams._max_streams = 1
    first = Browser(system, "metrics=events")
    await first.until(b"event: point")
    second = Browser(system, "metrics=events")
    await second.task
    assert second.status == 503
    first.leave()
    await first.task
    third = Browser(system, "metrics=events")
    await third.until(b"event: point")
    third.leave()
    await third.task


async def test_a_stream_ends_when_its_key_is_revoked() -> None:
    system = System()
    await begin_windows(system.statistics)
    browser = Browser(system, "metrics=events")
    await browser.until(b"event: point")
    system.keys.error = ApiError("invalid_key")
    async with asyncio.timeout(5):
        await browser.task


async def test_a_stream_lives_through_an_outage() -> None:
    system = System()
    await begin_windows(system.statistics)
    browser = Browser(system, "metrics=events")
    await browser.until(b'"value":0')
    system.statistics.windows.available = False
    system.statistics.rollups.available = False
    await browser.until(b": nothing new")
    system.statistics.windows.available = True
    system.statistics.rollups.available = True
    await publish(system.statistics, [Sent(NOW_S - 30)])
    await browser.until(b'"value":1')
    browser.leave()
    await browser.task


async def test_the_head_of_a_stream_has_no_end_to_wait_for() -> None:
    browser = Browser(System(), "metrics=events", method="HEAD")
    async with asyncio.timeout(5):
        await browser.task
    assert (browser.status, browser.text) == (200, b"")


@pytest.mark.parametrize("query", ["metrics=", "metrics=" + ",".join(map(str, range(11))), "metrics=a&timezone=x", ""])
async def test_streams_that_cannot_be(query: str) -> None:
    browser = Browser(System(), query)
    await browser.task
    assert browser.status == 400
