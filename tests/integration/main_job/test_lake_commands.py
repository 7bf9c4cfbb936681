"""`analytics-actors lake` and `/v1/exports` on a whole system with the data sets in it, in a good lake and in a damaged
one."""

import asyncio
import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

import duckdb
import httpx
import pytest

from tests.data_sets import DataSet
from tests.integration.main_job.conftest import SETS
from tests.lake_reading import check_lake, live_keys, wait_exported
from tests.plain_http import web
from tests.query_onlooker import QueryOnlooker
from tests.system import Client, RunningSystem

pytestmark = pytest.mark.timeout(400)

COUNT = "SELECT count(*) FROM events"


@pytest.fixture(scope="module")
def lake(loaded: RunningSystem) -> RunningSystem:
    """The system with everything that is stored in files."""
    loaded.wait_healthy()
    asyncio.run(wait_exported(loaded))
    return loaded


@pytest.fixture(scope="module")
def destination(lake: RunningSystem) -> dict[str, Any]:
    """Of a client's folder, with one project's whole past: served some seconds later."""
    project, place = SETS[0].projects[0], lake.data.parent / "clients" / "acme"
    lake.cli("projects", "set-client", project, "acme")
    words = ("create", place.as_uri(), "--project", project, "--since", "beginning")
    return command(lake, "destinations", *words)


def get(system: RunningSystem, path: str, **parameters: Any) -> dict[str, Any]:
    answer = web.get(f"{system.url}{path}", params=parameters, headers=Client(system).admin(), timeout=30)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def command(system: RunningSystem, *words: str, fails: bool = False) -> dict[str, Any]:
    """The JSON that a command of `analytics-actors lake` prints."""
    done = system.cli("lake", *words, "--json", check=False)
    assert (done.returncode != 0) == fails, (words, done.stdout[-2000:], done.stderr)
    printed: dict[str, Any] = json.loads(done.stdout)
    return printed


def query(system: RunningSystem, project: str, *, strict: bool = False) -> httpx.Response:
    return web.post(
        f"{system.url}/v1/query",
        params={"projectId": project},
        json={"sql": COUNT, "strict": strict},
        headers=Client(system).admin(),
        timeout=60,
    )


def per_hour(answers: dict[str, Any]) -> Counter[str]:
    """Events by hour, as the set's answers have them by type."""
    return Counter({hour: sum(kinds.values()) for hour, kinds in answers["eventsPerTypePerHour"].items()})


@pytest.mark.parametrize("data", SETS, ids=lambda data: data.name)
def test_exports_have_every_event_of_a_project_by_hour(lake: RunningSystem, data: DataSet) -> None:
    for project, answers in data.answers["largestProjects"].items():
        files: list[dict[str, Any]] = []
        cursor: dict[str, str] = {}
        while True:
            page = get(lake, "/v1/exports", projectId=project, limit=40, **cursor)
            files += page["files"]
            if "nextCursor" not in page:
                break
            cursor = {"cursor": page["nextCursor"]}
        rows: Counter[str] = Counter()
        for file in files:
            rows[file["hour"]] += file["rows"]
            assert (lake.data / "lake" / file["path"]).is_file()
        assert rows == per_hour(answers)
        assert page["pending"] == {"events": 0, "complete": True, "records": 0}
        assert (page["totals"]["files"], page["totals"]["rows"]) == (len(files), answers["events"])
        assert page["totals"]["bytes"] == sum(file["bytes"] for file in files)
        assert page["totals"]["firstHour"] == min(rows)
    if data is SETS[0]:
        assert command(lake, "files", "--project", project)["files"] == files


def test_a_place_that_is_not_allowed_is_refused(lake: RunningSystem, destination: dict[str, Any]) -> None:
    assert (destination["projectId"], destination["files"]) == (SETS[0].projects[0], 0)
    for place in (lake.data / "lake", lake.data.parent / "elsewhere"):
        done = lake.cli("lake", "destinations", "create", place.as_uri(), "--all", check=False)
        assert done.returncode != 0 and "destinations.folder" in done.stderr


@pytest.mark.parametrize("data", SETS, ids=lambda data: data.name)
def test_volumes_of_a_project_by_day(lake: RunningSystem, data: DataSet) -> None:
    for project, answers in data.answers["largestProjects"].items():
        exported = get(lake, "/v1/exports/volumes", projectId=project)
        assert exported["totals"]["rows"] == answers["events"]
        assert sum(volume["rows"] for volume in exported["volumes"]) == answers["events"]
        assert {volume["projectId"] for volume in exported["volumes"]} == {project}
        held = get(lake, "/v1/exports/volumes", projectId=project, of="held")
        days: Counter[str] = Counter()
        for hour, events in per_hour(answers).items():
            days[hour[:10]] += events
        assert {volume["day"]: volume["rows"] for volume in held["volumes"]} == days
        assert held["totals"]["bytes"] == exported["totals"]["bytes"]
    if data is SETS[0]:
        assert command(lake, "volumes", "--held", "--project", project) == held


async def test_status_has_the_manifests_numbers(lake: RunningSystem) -> None:
    found = await asyncio.to_thread(command, lake, "status")
    [live] = await lake.sql("SELECT count(*), sum(rows) AS rows FROM lake_files WHERE retired_at IS NULL")
    [stored] = await lake.sql("SELECT count(*) FROM events_log")
    assert (found["files"], found["rows"]) == (live["count"], live["rows"])
    assert found["rows"] == stored["count"]
    assert [shard["pending_records"] for shard in found["shards"]] == [0]
    assert found["open_plans"] == 0
    assert f"{live['count']:,} files" in lake.cli("lake", "status").stdout


async def test_a_good_lake_is_verified_to_the_last_row(lake: RunningSystem) -> None:
    found = await asyncio.to_thread(command, lake, "verify", "--deep")
    assert found["problems"] == []
    assert found["foreign"] == []
    [stored] = await lake.sql("SELECT count(*) FROM events_log")
    assert (found["files"], found["rows"]) == (len(await live_keys(lake)), stored["count"])


def test_a_destination_has_every_event_of_its_project(lake: RunningSystem, destination: dict[str, Any]) -> None:
    project, events = destination["projectId"], SETS[0].answers["eventsPerProject"][destination["projectId"]]
    until_s = time.monotonic() + 60
    while (found := command(lake, "destinations", "show", destination["destinationId"]))["rows"] < events:
        assert time.monotonic() < until_s, found
        time.sleep(0.5)
    assert (found["state"], found["rows"], found["lastError"]) == ("ok", events, "")
    place = lake.data.parent / "clients" / "acme" / "events"
    counted = duckdb.sql(
        f"SELECT count(*), count(DISTINCT event_id), min(project_id), max(project_id)"
        f" FROM read_parquet('{place}/**/*.parquet', hive_partitioning = true)"
    ).fetchone()
    assert counted == (events, events, project, project)
    delivered = command(lake, "volumes", "--client", "acme", "--delivered")
    assert delivered["totals"] == {"rows": events, "bytes": found["bytes"]}


def test_a_damaged_file_is_named_by_verify_and_by_queries(lake: RunningSystem) -> None:
    project, events = SETS[-1].projects[0], SETS[-1].answers["eventsPerProject"][SETS[-1].projects[0]]
    damaged, *_ = get(lake, "/v1/exports", projectId=project)["files"]
    path: Path = lake.data / "lake" / damaged["path"]
    raw = path.read_bytes()
    path.write_bytes(raw[:-100])
    try:
        [problem] = command(lake, "verify", fails=True)["problems"]
        answer = query(lake, project).json()
        refused = query(lake, project, strict=True)
    finally:
        path.write_bytes(raw)
    assert problem.startswith(f"{damaged['path']}: it has {len(raw) - 100:,} bytes")
    assert answer["degraded"]
    assert answer["missing"] == [{"file": damaged["path"], "reason": "damaged"}]
    assert answer["rows"] == [[events - damaged["rows"]]]
    assert (refused.status_code, refused.json()["code"]) == (503, "unavailable")
    assert damaged["path"] in refused.text
    assert command(lake, "verify")["problems"] == []
    assert query(lake, project, strict=True).json()["rows"] == [[events]]


async def test_the_manifest_made_anew_has_the_same_and_goes_on(lake: RunningSystem, client: Client) -> None:
    """Also beside exporters that have nothing to do: they are shut out, and begin again from the new checkpoints."""

    def totals() -> tuple[Any, Any, Any]:
        exports = get(lake, "/v1/exports", limit=1)
        return exports["totals"], get(lake, "/v1/exports/volumes"), get(lake, "/v1/exports/volumes", of="held")

    await client.run(seconds=1, workers=2)
    await asyncio.to_thread(client.settle)
    await wait_exported(lake)
    before, keys = totals(), set(await live_keys(lake))
    refused = lake.cli("lake", "rebuild", check=False)
    assert refused.returncode != 0
    assert "the manifest is not empty" in refused.stderr
    rebuilt = await asyncio.to_thread(command, lake, "rebuild", "--force")
    assert rebuilt["superseded"] == rebuilt["foreign"] == rebuilt["missing"] == rebuilt["dropped_plans"] == []
    assert rebuilt["unreadable"] == {}
    assert (rebuilt["files"], rebuilt["rows"]) == (before[0]["files"], before[0]["rows"])
    assert totals() == before
    assert set(await live_keys(lake)) == keys
    async with client.loading(workers=2):
        pass
    await client.check()
    await check_lake(client, lake.data / "lake")
    await QueryOnlooker(client).check_complete()
    found = await asyncio.to_thread(command, lake, "verify", "--deep")
    assert found["problems"] == []
