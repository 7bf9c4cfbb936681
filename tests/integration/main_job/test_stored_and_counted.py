"""The main job, and its metrics, on real input: five data sets, thousands of projects, rows out of order, repeated,
years old (`loaded`).
"""

import asyncio
import json
import time
from collections import Counter
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from storage.aggregate import Aggregate, decode_aggregate
from storage.unique_sketch import EXACT_LIMIT, RELATIVE_ERROR
from tests.data_sets import DataSet
from tests.integration.main_job.conftest import (
    DEFINED_BEFORE,
    SETS,
    Project,
    define,
    load,
    projects_of,
    write_shuffled,
)
from tests.metric_client import cells_of, seconds
from tests.plain_http import AsyncWeb, web
from tests.system import Client, RunningSystem

pytestmark = pytest.mark.timeout(400)

RECOMPUTED_WITHIN_S = 120.0

Cells = dict[tuple[str, str], Any]
"""By hour and event type."""


@pytest.fixture(scope="module")
def counted(loaded: RunningSystem) -> RunningSystem:
    """All days were counted, those of the backfills too."""
    for project, definitions in projects_of(loaded, lambda data: data.name not in DEFINED_BEFORE):
        define(project, definitions)
        project.backfill(definitions[0]["name"])
    began = time.monotonic()
    while left := asyncio.run(loaded.sql("SELECT count(*) AS days FROM late_days"))[0]["days"]:
        assert time.monotonic() < began + RECOMPUTED_WITHIN_S, f"{left} days are left: {loaded.aggregators()}"
        time.sleep(0.5)
    print(f"counted after {time.monotonic() - began:.1f} s")
    return loaded


async def test_every_event_is_stored_once(loaded: RunningSystem) -> None:
    projects: Counter[str] = Counter()
    types: Counter[str] = Counter()
    for data in SETS:
        projects.update(data.answers["eventsPerProject"])
        types.update(data.answers["eventsPerType"])
    rows = await loaded.sql(
        "SELECT project_id, event_type, count(*) AS events FROM events_log"
        " WHERE project_id = ANY($1) GROUP BY project_id, event_type",
        list(projects),
    )
    stored_projects: Counter[str] = Counter()
    stored_types: Counter[str] = Counter()
    for row in rows:
        stored_projects[row["project_id"]] += row["events"]
        stored_types[row["event_type"]] += row["events"]
    assert stored_projects == projects
    assert stored_types == types
    check = await asyncio.to_thread(
        lambda: web.get(f"{loaded.url}/v1/ledger/check", headers=Client(loaded).admin(), timeout=60)
    )
    assert check.json() == {"ok": True, "differences": []}


async def test_all_rows_shuffled_once_more_change_nothing(loaded: RunningSystem, tmp_path: Path) -> None:
    done = await asyncio.to_thread(load, loaded, [write_shuffled(tmp_path, every=1)])
    assert json.loads(done)["accepted"] == json.loads(done)["rejected"] == 0
    await asyncio.to_thread(loaded.cli, "drain")
    await test_every_event_is_stored_once(loaded)


@pytest.mark.parametrize("data", SETS, ids=lambda data: data.name)
async def test_counts_and_sums_of_all_projects(data: DataSet, counted: RunningSystem) -> None:
    """In the roll-ups: of thousands of projects nobody asks one by one."""
    answers = data.answers["all"]
    hours = answers["eventsPerTypePerHour"]
    found = await rolled_up(counted, data, "events")
    assert {key: count for key, (count, _) in found.items()} == per_type(hours)
    if data.defined != data.projects:
        return
    for metric, summed in data.sums.items():
        assert await rolled_up(counted, data, metric) == per_type(answers["sumPerHourPerType"][summed], sum_of)


async def rolled_up(system: RunningSystem, data: DataSet, metric: str) -> Cells:
    rows = await system.sql(
        'SELECT to_char("timestamp" AT TIME ZONE \'UTC\', \'YYYY-MM-DD"T"HH24:MI:SS"Z"\') AS hour,'
        " dimensions->>'eventType' AS type, sum(count)::bigint AS count, sum(sum) AS sum FROM metric_aggregates"
        " WHERE project_id = ANY($1) AND metric_name = $2 AND time_granularity = 'hour' AND dimensions_hash <> 0"
        " GROUP BY 1, 2",
        data.projects,
        metric,
    )
    return {(row["hour"], row["type"]): (row["count"], row["sum"]) for row in rows if row["count"]}


def per_type(hours: dict[str, dict[str, Any]], read: Callable[[Any], Any] = lambda cell: cell) -> Cells:
    return {(hour, kind): read(cell) for hour, cells in hours.items() for kind, cell in cells.items()}


def sum_of(cell: dict[str, Any]) -> tuple[int, Decimal]:
    return cell["n"], Decimal(cell["sum"])


@pytest.mark.parametrize("data", SETS, ids=lambda data: data.name)
def test_counts_and_sums_of_the_largest_projects(data: DataSet, counted: RunningSystem) -> None:
    """As the API answers them."""
    for name, answers in data.answers["largestProjects"].items():
        project, hours = Project(counted, name), answers["eventsPerTypePerHour"]
        events = project.per_hour_and_type("events", hours)
        assert not events["degraded"]
        assert [source["source"] for source in events["sources"]] == ["rollups"]
        assert cells_of(events, ("eventType",)) == in_seconds(per_type(hours)), name
        for metric, summed in data.sums.items():
            answer = project.per_hour_and_type(metric, hours)
            cells = {
                (seconds(point["timestamp"]), (point["dimensions"]["eventType"],)): (point["count"], point["value"])
                for point in answer["points"]
            }
            assert cells == in_seconds(per_type(answers["sumPerHourPerType"][summed], sum_of)), (name, metric)


def in_seconds(cells: Cells) -> dict[tuple[int, tuple[str, ...]], Any]:
    return {(seconds(hour), (kind,)): value for (hour, kind), value in cells.items()}


@pytest.mark.parametrize("data", SETS, ids=lambda data: data.name)
async def test_unique_users_and_sessions_of_all_projects(data: DataSet, counted: RunningSystem) -> None:
    """The roll-ups' sketches merged, over projects and from hours to days."""
    answers = data.answers["all"]
    hours = await merged(counted, data, "unique_users", "hour")
    days = await merged(counted, data, "unique_users", "day")
    check_unique({hour[:13] + ":00:00Z": value for hour, value in hours.items()}, answers["uniqueUsersPerHour"])
    check_unique({day[:10]: value for day, value in days.items()}, answers["uniqueUsersPerDay"])
    sessions = await merged(counted, data, "sessions", "day")
    if "uniqueSessionsPerDay" in answers:
        check_unique({day[:10]: value for day, value in sessions.items()}, answers["uniqueSessionsPerDay"])
    from_hours: dict[str, Aggregate] = {}
    for hour, value in hours.items():
        from_hours.setdefault(hour[:10], Aggregate()).merge(value)
    for day, value in days.items():
        assert from_hours[day[:10]].value("unique") == value.value("unique"), day


async def merged(system: RunningSystem, data: DataSet, metric: str, granularity: str) -> dict[str, Aggregate]:
    rows = await system.sql(
        'SELECT "timestamp", sketches FROM metric_aggregates WHERE project_id = ANY($1) AND metric_name = $2'
        " AND time_granularity = $3 AND dimensions_hash = 0",
        data.projects,
        metric,
        granularity,
    )
    together: dict[str, Aggregate] = {}
    for row in rows:
        together.setdefault(row["timestamp"].isoformat(), Aggregate()).merge(decode_aggregate(row["sketches"]))
    return {start: value for start, value in together.items() if value.value("unique")}


def check_unique(found: dict[str, Aggregate], wanted: dict[str, int]) -> None:
    assert found.keys() == wanted.keys()
    for start, value in found.items():
        assert value.unique is not None
        assert value.unique.exact == (wanted[start] <= EXACT_LIMIT)
        assert_unique(value.value("unique"), wanted[start])


def assert_unique(found: Any, wanted: int) -> None:
    """Exact while there are few, within three standard deviations beyond."""
    if wanted <= EXACT_LIMIT:
        assert found == wanted
    else:
        assert found == pytest.approx(wanted, rel=3 * RELATIVE_ERROR)


@pytest.mark.parametrize("data", SETS, ids=lambda data: data.name)
def test_unique_users_and_sessions_of_the_largest_projects(data: DataSet, counted: RunningSystem) -> None:
    for name, answers in data.answers["largestProjects"].items():
        project = Project(counted, name)
        questions = (
            ("unique_users", "hour", answers["uniqueUsersPerHour"]),
            ("unique_users", "day", answers["uniqueUsersPerDay"]),
            ("sessions", "day", answers.get("uniqueSessionsPerDay", {})),
        )
        for metric, granularity, wanted in questions:
            if not wanted:
                continue
            begins = sorted(seconds(start + ("T00:00:00Z" if len(start) == 10 else "")) for start in wanted)
            answer = project.metric(
                metric, startTime=begins[0], endTime=begins[-1] + 1, granularity=granularity, fill="none"
            )
            found = {point["timestamp"][: len(min(wanted))].removesuffix("Z"): point for point in answer["points"]}
            assert found.keys() == {start.removesuffix("Z") for start in wanted}, name
            for start, count in wanted.items():
                assert_unique(found[start.removesuffix("Z")]["value"], count)
            assert answer["exact"] == (max(wanted.values()) <= EXACT_LIMIT)
            assert answer["exact"] or answer["error"]["relative"] == pytest.approx(
                Decimal(RELATIVE_ERROR), abs=Decimal("0.0001")
            )


def test_revenue_of_the_shop(counted: RunningSystem) -> None:
    """Built in: the sum of purchases' amounts, here under `price`."""
    for data in SETS:
        for name, answers in data.answers["largestProjects"].items():
            cells = answers["sumPerHourPerType"].get("price", {})
            wanted = {hour: Decimal(kinds["purchase"]["sum"]) for hour, kinds in cells.items() if "purchase" in kinds}
            if wanted:
                begins = sorted(map(seconds, wanted))
                answer = Project(counted, name).metric(
                    "revenue", startTime=begins[0], endTime=begins[-1] + 3600, granularity="hour", fill="none"
                )
                found = {start: value for (start, _), value in cells_of(answer).items()}
                assert found == {seconds(hour): value for hour, value in wanted.items()}


async def test_old_events_are_taken_by_explicit_choice_only(system: RunningSystem, client: Client) -> None:
    old = {"eventId": "old", "eventType": "t", "timestamp": "2015-01-01T00:00:00Z"}
    url, write = f"{system.url}/v1/events", {"Authorization": f"Bearer {client.write_key}"}
    async with AsyncWeb(timeout=10) as http:
        refused = await http.post(url, json=old, headers=write)
        assert (refused.status_code, refused.json()["code"]) == (422, "timestamp_out_of_range")
        not_allowed = await http.post(url, json=old, headers=write, params={"import": "true"})
        assert (not_allowed.status_code, not_allowed.json()["code"]) == (403, "key_kind_not_allowed")
        made = await http.post(
            f"{system.url}/v1/keys", json={"projectId": client.project, "kind": "import"}, headers=client.admin()
        )
        importing = {"Authorization": f"Bearer {made.json()['key']}"}
        taken = await http.post(url, json=old, headers=importing, params={"import": "true"})
        assert taken.status_code == 202, taken.text
