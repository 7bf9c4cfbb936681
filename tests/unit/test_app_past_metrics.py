"""Metrics of days that roll-ups do not tell: counted from stored events, or named as missing."""

from datetime import UTC, datetime
from typing import Any

import pytest
from msgspec.structs import replace

from analytics_actors.windows.day_rows import DayRows
from config.settings import WindowSettings
from storage.errors import FileUnavailable, Unavailable
from storage.metric_definitions import DEFAULT_METRICS, Filter, MetricDefinition
from storage.metric_definitions import EVENTS as EVENTS_METRIC
from storage.window_key import lateness_s, live_from
from tests.unit.fake_services import NOW, System
from tests.unit.metric_data import Sent, roll_up, rows_of
from tests.unit.test_app_metrics import ask, iso, values

DAY = 86400
DEFINED = live_from(NOW.timestamp(), WindowSettings()) // DAY * DAY - 6 * DAY
"""Midnight. Hours from here on were live when the metric was defined."""
FIRST = DEFINED - 3 * DAY
STILL_LIVE_S = lateness_s(WindowSettings()) + 600
USERS = MetricDefinition("visitors", "unique", property="userId", dimensions=["page"])
EVENTS = [Sent(FIRST + hour * 3600, user=f"u{hour % 9}", properties={"page": "ab"[hour % 2]}) for hour in range(5 * 24)]


async def system_with(definition: MetricDefinition = USERS) -> System:
    """All events are in the lake; roll-ups know the metric since it was defined."""
    system = System()
    system.statistics.registry.now = datetime.fromtimestamp(DEFINED + STILL_LIVE_S, UTC)
    stored = await system.statistics.registry.create("shop", definition)
    assert live_from(stored.changed_at.timestamp(), WindowSettings()) == DEFINED
    system.statistics.stored.batches = [rows_of(EVENTS)]
    system.statistics.stored.place = "lake"
    await roll_up(system.statistics, EVENTS, ("1m", "1h", "1d"))
    await roll_up(system.statistics, [each for each in EVENTS if each.at >= DEFINED], ("1m", "1h", "1d"), [definition])
    return system


async def days(system: System, **parameters: Any) -> Any:
    wanted = {"startTime": iso(FIRST), "endTime": iso(FIRST + 5 * DAY), "granularity": "day"} | parameters
    return await ask(system, "visitors", **wanted)


async def test_days_before_the_definition_are_counted_from_the_lake() -> None:
    system = await system_with()
    answer = await days(system)
    assert values(answer) == [9] * 5
    assert [(each["source"], each["from"], each["to"]) for each in answer["sources"]] == [
        ("rollups", iso(DEFINED), iso(FIRST + 5 * DAY)),
        ("lake", iso(FIRST), iso(DEFINED)),
    ]
    assert system.statistics.stored.asked == [(FIRST, DEFINED)]
    assert "missing" not in answer
    whole = await days(system, groupBy="page")
    assert sorted(point["value"] for point in whole["points"]) == [9] * 10


async def test_the_default_metrics_are_told_by_roll_ups() -> None:
    system = await system_with()
    answer = await ask(system, "unique_users", startTime=iso(FIRST), endTime=iso(DEFINED), granularity="day")
    assert values(answer) == [9] * 3
    assert system.statistics.stored.asked == []


async def test_days_before_the_definition_leave_out_what_is_aggregate_only_for_others() -> None:
    system = await system_with()
    pings = MetricDefinition("pings", event_types=["ping"], aggregate_only=True)
    await system.statistics.registry.create("shop", pings)
    sent = [Sent(at, event_type="ping", user=f"p{at}", properties={"page": "a"}) for at in range(FIRST, DEFINED, 3600)]
    system.statistics.stored.batches.append(rows_of(sent))
    assert values(await days(system)) == [9] * 5
    assert values(await ask(system, "pings", startTime=iso(FIRST), endTime=iso(DEFINED), granularity="day")) == [24] * 3
    async with system.client("read") as client:
        [shown] = [
            each["definition"]
            for each in (await client.get("/v1/metrics-definitions")).json()["definitions"]
            if each["definition"]["name"] == "visitors"
        ]
    assert shown["filters"] == []


async def test_other_patterns_change_no_number() -> None:
    system = System()
    await system.statistics.registry.create("shop", USERS)
    await roll_up(system.statistics, EVENTS, ("1m", "1h", "1d"), [USERS])
    system.statistics.registry.now = datetime.fromtimestamp(system.statistics.now_s, UTC)
    await system.statistics.registry.replace("shop", replace(USERS, patterns={"spikeFactor": 4}))
    assert values(await days(system)) == [9] * 5
    assert system.statistics.stored.asked == []


async def test_a_built_in_metric_is_not_told_by_what_was_in_its_place() -> None:
    system = System()
    statistics = system.statistics
    statistics.registry.now = datetime.fromtimestamp(DEFINED + STILL_LIVE_S, UTC)
    await statistics.registry.create("shop", MetricDefinition("unique_users", event_types=["none"]))
    await statistics.registry.delete("shop", "unique_users")
    statistics.stored.batches = [rows_of(EVENTS)]
    await roll_up(statistics, EVENTS, ("1m", "1h", "1d"))
    rolled = statistics.rollups.rows
    for key in [key for key in rolled if key.metric == "unique_users" and key.start < DEFINED]:
        del statistics.rollups._rows[key]

    async def asked() -> Any:
        return await ask(system, "unique_users", startTime=iso(FIRST), endTime=iso(FIRST + 5 * DAY), granularity="day")

    assert values(await asked()) == [9] * 5
    assert statistics.stored.asked == [(FIRST, DEFINED)]
    # Days that were counted again since are told, those of before are not.
    for day, built in ((FIRST, "x"), (FIRST + DAY, "x;unique_users=1")):
        ticket = await statistics.rollups.begin_recount(["shop"], day, day + DAY)
        await statistics.rollups.end_recount(day, day + DAY, {"shop": built}, ticket=ticket)
    statistics.stored.asked.clear()
    statistics.answers.version = "2"
    assert values(await asked()) == [0, 9, 9, 9, 9]
    assert statistics.stored.asked == [(FIRST + DAY, DEFINED)]
    async with system.client("read") as client:
        shown = (await client.get("/v1/metrics-definitions/unique_users")).json()
    assert (shown["builtIn"], shown["version"], shown["definition"]["aggregation"]) == (True, None, "unique")


async def test_events_with_other_patterns_are_told_by_roll_ups() -> None:
    system = await system_with()
    await system.statistics.registry.create("shop", replace(EVENTS_METRIC, patterns={"spikeFactor": 4}))
    answer = await ask(system, "events", startTime=iso(FIRST), endTime=iso(DEFINED), granularity="day")
    assert values(answer) == [24] * 3
    assert system.statistics.stored.asked == []


async def test_days_that_were_counted_again_are_told_by_roll_ups() -> None:
    system = await system_with()
    rollups = system.statistics.rollups
    start = FIRST + DAY
    ticket = await rollups.begin_recount(["shop"], start, start + DAY)
    await roll_up(system.statistics, EVENTS[24:48], ("1m", "1h", "1d"), [USERS])
    await rollups.end_recount(start, start + DAY, {"shop": "x;visitors=1"}, ticket=ticket)
    assert values(await days(system)) == [9] * 5
    assert system.statistics.stored.asked == [(DEFINED - DAY, DEFINED), (FIRST, FIRST + DAY)]
    ticket = await rollups.begin_recount(["shop"], start, start + DAY)
    await rollups.end_recount(start, start + DAY, {"shop": "x;visitors=7"}, ticket=ticket)
    system.statistics.stored.asked.clear()
    system.statistics.answers.version = "2"
    assert values(await days(system)) == [9] * 5, "that was another definition"
    assert system.statistics.stored.asked == [(FIRST, DEFINED)]


async def test_a_day_whose_rows_were_written_in_part_is_written_again(monkeypatch: pytest.MonkeyPatch) -> None:
    system = System()
    rollups = system.statistics.rollups
    await roll_up(system.statistics, [Sent(FIRST + n, event_type=f"t{n % 1000:04}") for n in range(1400)], ("1m", "1h"))
    monkeypatch.setattr("analytics_actors.windows.day_rows.ROWS_PER_CALL", 250)
    write, left = rollups.upsert, 2

    async def upsert(*args: Any, **kwargs: Any) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise Unavailable("made to be away")
        await write(*args, **kwargs)

    monkeypatch.setattr(rollups, "upsert", upsert)
    with pytest.raises(Unavailable):
        await DayRows(rollups, max_groups=1000).roll("shop", DEFAULT_METRICS, FIRST, epoch=1, next_offset=1)
    left = 100
    await DayRows(rollups, max_groups=1000).roll("shop", DEFAULT_METRICS, FIRST, epoch=2, next_offset=1)
    asked: dict[str, Any] = {
        "startTime": iso(FIRST),
        "endTime": iso(FIRST + DAY),
        "groupBy": "eventType",
        "limit": "1000",
    }
    answer = await ask(system, "events", granularity="day", fill="none", **asked)
    assert sum(values(answer)) == 1400
    assert len(answer["points"]) == 1000


async def test_a_part_of_a_day_is_counted_and_the_rest_is_rolled_up() -> None:
    system = await system_with()
    system.statistics.registry.now = datetime.fromtimestamp(DEFINED + STILL_LIVE_S - 5 * 3600, UTC)
    await system.statistics.registry.replace("shop", replace(USERS, filters=[Filter("userId", "exists")]))
    edge = DEFINED - 5 * 3600
    await roll_up(system.statistics, [each for each in EVENTS if each.at >= edge], ("1h",), [USERS])
    answer = await ask(system, "visitors", startTime=iso(edge - 3600), endTime=iso(edge + 3600), granularity="hour")
    assert [(point["value"], point["count"]) for point in answer["points"]] == [(1, 1), (1, 1)]
    assert [each["source"] for each in answer["sources"]] == ["rollups", "lake"]
    whole = await days(system)
    assert [point["count"] for point in whole["points"]] == [24] * 5


async def test_what_is_too_much_is_missing_from_the_oldest_on(monkeypatch: pytest.MonkeyPatch) -> None:
    system = await system_with()
    rollups = system.statistics.rollups
    start = FIRST + DAY
    ticket = await rollups.begin_recount(["shop"], start, start + DAY)
    await roll_up(system.statistics, EVENTS[24:48], ("1m", "1h", "1d"), [USERS])
    await rollups.end_recount(start, start + DAY, {"shop": "x;visitors=1"}, ticket=ticket)
    monkeypatch.setattr("gateway.event_counts.MAX_COUNTED_EVENTS", 30)
    answer = await days(system, fill="null")
    assert values(answer) == [None, 9, 9, 9, 9]
    [missing] = answer["missing"]
    assert (missing["from"], missing["to"]) == (iso(FIRST), iso(FIRST + DAY))
    assert "too many" in missing["because"] and "visitors/backfill" in missing["hint"]
    assert "cache" not in answer


async def test_a_lake_that_is_away_is_named() -> None:
    system = await system_with()
    system.statistics.stored.error = Unavailable("the object store is away")
    answer = await days(system)
    assert values(answer) == [0, 0, 0, 9, 9]
    [missing] = answer["missing"]
    assert "cannot be had" in missing["because"]
    assert "lake" not in [each["source"] for each in answer["sources"]]
    system.statistics.stored.error = None
    assert values(await days(system)) == [9] * 5, "and the answer was not kept"


async def test_a_file_that_cannot_be_had_is_named() -> None:
    system = await system_with()
    system.statistics.stored.error = FileUnavailable("events/part-1.parquet of the lake: damaged")
    answer = await days(system)
    assert values(answer) == [0, 0, 0, 9, 9]
    [missing] = answer["missing"]
    assert "events/part-1.parquet of the lake: damaged" in missing["because"]


async def test_what_is_older_than_roll_ups_are_kept_is_said_to_be_missing() -> None:
    system = System()
    old = int(NOW.timestamp()) // DAY * DAY - 2000 * DAY
    asked: dict[str, Any] = {"startTime": iso(old), "endTime": iso(old + DAY), "granularity": "day"}
    assert "missing" not in await ask(system, "events", **asked), "nothing was ever removed"
    system.statistics.rollups.expired.add("shop")
    system.statistics.answers.kept.clear()
    answer = await ask(system, "events", **asked)
    [missing] = answer["missing"]
    assert (missing["from"], missing["to"]) == (iso(old), iso(old + DAY))
    assert "kept" in missing["because"]
    await roll_up(system.statistics, [Sent(old)], ("1h",))
    assert "missing" not in await ask(system, "events", **asked), "what is there is told"
    recent = await ask(system, "events", startTime=iso(DEFINED), endTime=iso(DEFINED + DAY), granularity="day")
    assert "missing" not in recent
