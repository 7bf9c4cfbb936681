"""The lake keeper under faults: queries see each event once, and the lake ends in few files, whatever was killed."""

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psutil
import pytest

from analytics_actors.keeper_actor import CRASH_FILE, NICE
from tests.lake_reading import check_lake, files_in, live_keys, read_rows, wait_exported
from tests.plain_http import AsyncWeb, web
from tests.query_onlooker import QueryOnlooker
from tests.system import Client, RunningSystem

KEEPER = "ray::Keeper"
CRASH_POINTS = ("planned", "merged", "put", "swapped")
RETENTION_POINTS = ("day due", "day dropped", "move planned", "move copied", "move committed", "objects removed")
DELIVERY_POINTS = ("delivery begun", "delivery put", "delivery recorded", "delivery finished")
IDLE_S = 3

HOURS_WITH_SEVERAL = """
    SELECT hour, count(*) FROM lake_files
    WHERE retired_at IS NULL AND bytes < 128 * 1024 * 1024
    GROUP BY hour HAVING count(*) > 1
"""

pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module")
def crash_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("crash") / "point"


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory, crash_file: Path) -> Iterator[RunningSystem]:
    """One of this module's own: its keeper is eager, and looks for points to end at."""
    folder = tmp_path_factory.mktemp("keeper")
    running = RunningSystem(
        folder / "data",
        arguments=("--port", "0"),
        environment={
            CRASH_FILE: str(crash_file),
            "ANALYTICS_ACTORS_DASHBOARD": "true",
            "ANALYTICS_GATEWAY_WORKERS": "1",
            "ANALYTICS_LAKE_PART_INTERVAL_S": "0.5",
            "ANALYTICS_LAKE_COMPACT_QUIET_S": "2",
            "ANALYTICS_LAKE_COMPACT_MAX_PARTS": "3",
            "ANALYTICS_LAKE_KEEPER_INTERVAL_S": "0.2",
            # The deadlines of queries, below, make it 15.
            "ANALYTICS_LAKE_RETIRED_GRACE_S": "1",
            "ANALYTICS_DESTINATIONS_FOLDER": str(folder / "clients"),
            "ANALYTICS_DESTINATIONS_INTERVAL_S": "1",
            "ANALYTICS_RETENTION_LAKE_HOT_DAYS": "20",
            "ANALYTICS_QUERY_DEADLINE_S": "8",
            "ANALYTICS_QUERY_QUEUE_WAIT_S": "2",
        },
    )
    try:
        running.start()
        yield running
    finally:
        running.close()


async def die_at(system: RunningSystem, crash_file: Path, points: Sequence[str]) -> None:
    """The keeper ends at one point after the other, each in a life of its own."""
    for point in points:
        crash_file.write_text(point)
        until = time.monotonic() + 60
        while crash_file.exists():
            assert time.monotonic() < until, f"the keeper did not come to {point!r}: {system.status()['lakeKeeper']}"
            await asyncio.sleep(0.05)


async def is_compact(system: RunningSystem) -> None:
    async with asyncio.timeout(60):
        while await system.sql(HOURS_WITH_SEVERAL):
            await asyncio.sleep(0.2)


async def test_a_keeper_killed_while_queries_and_exports_run(
    system: RunningSystem, client: Client, crash_file: Path
) -> None:
    folder = system.data / "lake"
    onlooker, done = QueryOnlooker(client), asyncio.Event()
    counting = asyncio.create_task(onlooker.run_until(done))
    rng = random.Random(6)
    async with client.loading():
        await die_at(system, crash_file, CRASH_POINTS)
        for _ in range(2):
            await asyncio.sleep(rng.uniform(0.2, 1))
            await asyncio.to_thread(system.kill, KEEPER)
    client.check_logged()
    await client.check()
    await wait_exported(system)
    await is_compact(system)
    done.set()
    await counting
    assert onlooker.steps > 5
    await onlooker.check_complete()
    await check_lake(client, folder)
    assert await system.sql("SELECT 1 FROM lake_files WHERE key LIKE '%/compact-%' AND retired_at IS NULL")
    async with asyncio.timeout(30):
        while await system.sql("SELECT FROM lake_plans WHERE state = 'open'"):
            await asyncio.sleep(0.2)


def thread_nice(pid: int) -> int:
    """The lowest priority among the threads of a process."""
    stats = [(task / "stat").read_text() for task in Path(f"/proc/{pid}/task").iterdir()]
    return max(int(stat.rsplit(")", 1)[1].split()[16]) for stat in stats)


def test_an_idle_keeper_costs_nothing_and_says_what_it_did(system: RunningSystem, client: Client) -> None:
    process = psutil.Process(system.wait_for(KEEPER))
    before = sum(process.cpu_times()[:2])
    time.sleep(IDLE_S)
    # It looks for work five times a second here, and once a minute by default.
    assert sum(process.cpu_times()[:2]) - before < IDLE_S / 5
    assert thread_nice(process.pid) == min(process.nice() + NICE, 19), "merging waits for everything else"
    metrics = web.get(f"{system.url}/metrics", timeout=10).text
    assert "analytics_lake_hours_to_compact 0.0" in metrics
    keeper = system.status()["lakeKeeper"]
    assert (keeper["state"], keeper["view"]["trouble"]) == ("open", "")
    assert "lake-keeper" in system.cli("status").stdout


async def post_old(client: Client, *, days: int) -> None:
    """Twenty events of one hour so long ago, all of them in one file."""
    old = (datetime.now(UTC) - timedelta(days=days)).isoformat()
    events = [{"eventId": f"old-{n}", "eventType": "load", "timestamp": old} for n in range(20)]
    client.sent |= {str(event["eventId"]) for event in events}
    async with AsyncWeb(base_url=client.system.url, timeout=30) as http:
        headers = {"Authorization": f"Bearer {client.write_key}"}
        taken = await http.post("/v1/events/batch", json=events, headers=headers)
        assert (taken.status_code, taken.json()["rejected"]) == (202, 0), taken.text
    await asyncio.to_thread(client.settle)
    await wait_exported(client.system)
    await is_compact(client.system)


async def test_old_hours_become_cold_while_queries_count(system: RunningSystem, client: Client) -> None:
    await post_old(client, days=25)
    async with AsyncWeb(base_url=system.url, timeout=30) as http:
        onlooker, done = QueryOnlooker(client), asyncio.Event()
        counting = asyncio.create_task(onlooker.run_until(done))
        limits = ("--set", "retention.lake_hot_days=20", "--set", "lake.compact_quiet_s=0.01")
        ran = await asyncio.to_thread(system.cli, "retention", "run", "--json", *limits)
        moved = [each for each in json.loads(ran.stdout)["removals"] if each["kind"] == "moved_files"]
        assert [each["rows"] for each in moved] == [20]
        cold = [key for key in await live_keys(system) if key.startswith("cold/")]
        assert len(cold) == 1
        done.set()
        await counting
        await onlooker.check_complete()
        url = f"/v1/query?projectId={client.project}"
        answer = await http.post(url, json={"sql": "SELECT count(*) FROM events"}, headers=client.admin())
        assert (answer.json()["rows"], answer.json()["coldFiles"]) == ([[20]], 1)
    await check_lake(client, system.data / "lake")


async def store_long_ago(client: Client, *, days: int) -> None:
    """The project's raw events were stored so long ago; and a day later one that the lake has not, of a
    project called held."""
    sql, day = client.system.sql, datetime.now(UTC).date() - timedelta(days=days)
    for each in (day, day + timedelta(days=1)):
        await sql("SELECT events_log_add_day($1)", each)
    noon = datetime.combine(day, datetime.min.time(), UTC) + timedelta(hours=12)
    await sql("UPDATE events_log SET created_at = $1 WHERE project_id = $2", noon, client.project)
    await sql(
        "INSERT INTO events_log (timestamp, received_at, created_at, log_offset, partition_id, project_id, event_id,"
        " event_type, properties) SELECT timestamp, received_at, $2, 1::bigint << 40, partition_id, 'held', event_id,"
        " event_type, properties FROM events_log WHERE project_id = $1 AND event_id = 'old-0'",
        client.project,
        noon + timedelta(days=1),
    )


async def test_a_keeper_killed_in_the_midst_of_retention(
    system: RunningSystem, client: Client, crash_file: Path
) -> None:
    # Not of an hour that has a cold file: the two would not be merged.
    await post_old(client, days=24)
    await store_long_ago(client, days=45)
    onlooker, done = QueryOnlooker(client), asyncio.Event()
    counting = asyncio.create_task(onlooker.run_until(done))
    # The next life of the keeper has missed a run, and so has each that follows until one has come to its end.
    await system.sql("UPDATE retention_runs SET finished_at = NULL")
    crash_file.write_text(RETENTION_POINTS[0])
    await asyncio.to_thread(system.kill, KEEPER)
    await die_at(system, crash_file, RETENTION_POINTS)
    async with asyncio.timeout(60):
        while not await system.sql("SELECT FROM retention_runs WHERE finished_at IS NOT NULL"):
            await asyncio.sleep(0.2)
        # Of what the tests before have replaced, too, nothing is left.
        while files_in(system.data / "lake") != set(await live_keys(system)):
            await asyncio.sleep(0.5)
    done.set()
    await counting
    await asyncio.to_thread(system.wait_healthy)
    [held] = await system.sql("DELETE FROM events_log WHERE project_id = 'held' RETURNING event_id")
    assert held["event_id"] == "old-0", "what is not in the lake stays"
    assert not await client.stored()
    paths = [str(system.data / "lake" / key) for key in await live_keys(system)]
    assert all("/cold/" in path for path in paths if read_rows([path], f"project_id = '{client.project}'"))
    found = read_rows(paths, f"project_id = '{client.project}'")
    assert Counter(row.event_id for row in found) == dict.fromkeys(client.sent, 1)
    assert (onlooker.count, onlooker.answers > 5) == (20, True)
    totals = client.ledger()["totals"]
    assert (totals["stored"], totals["expired"]) == (20, 20)
    async with AsyncWeb(base_url=system.url, timeout=30) as http:
        check = await http.get("/v1/ledger/check", params={"projectId": client.project}, headers=client.admin())
    assert check.json() == {"ok": True, "differences": []}


async def test_a_keeper_killed_while_it_delivers(system: RunningSystem, client: Client, crash_file: Path) -> None:
    folder = system.data.parent / "clients" / client.project
    async with AsyncWeb(base_url=system.url, timeout=30) as http:
        wanted = {"projectId": client.project, "url": folder.as_uri()}
        made = await http.post("/v1/exports/destinations", json=wanted, headers=client.admin())
        assert made.status_code == 201, made.text
    async with client.loading(workers=2, pause_s=0.05):
        crash_file.write_text(DELIVERY_POINTS[0])
        # Its next life looks at once which destinations there are.
        await asyncio.to_thread(system.kill, KEEPER)
        await die_at(system, crash_file, DELIVERY_POINTS)
    await client.check()
    await wait_exported(system)
    stored, delivered = await client.stored(), Counter[str]()
    async with asyncio.timeout(60):
        while delivered != stored:
            assert delivered <= stored, "an event is there twice"
            await asyncio.sleep(0.2)
            delivered = Counter(row.event_id for row in read_rows([str(path) for path in folder.rglob("*.parquet")]))
