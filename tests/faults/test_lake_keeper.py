"""The lake keeper under faults: queries see each event once, and the lake ends in few files, whatever was killed."""

import asyncio
import json
import random
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import psutil
import pytest

from analytics_actors.keeper_actor import CRASH_FILE, NICE
from tests.lake_reading import check_lake, files_in, live_keys, wait_exported
from tests.query_onlooker import QueryOnlooker
from tests.system import Client, RunningSystem

KEEPER = "ray::Keeper"
CRASH_POINTS = ("planned", "merged", "put", "swapped")
IDLE_S = 3
GRACE_S = 15
"""The least that the deadlines of queries allow here."""

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
    running = RunningSystem(
        tmp_path_factory.mktemp("keeper") / "data",
        arguments=("--port", "0"),
        environment={
            CRASH_FILE: str(crash_file),
            "ANALYTICS_LAKE_PART_INTERVAL_S": "0.5",
            "ANALYTICS_LAKE_COMPACT_QUIET_S": "2",
            "ANALYTICS_LAKE_COMPACT_MAX_PARTS": "3",
            "ANALYTICS_LAKE_KEEPER_INTERVAL_S": "0.2",
            "ANALYTICS_LAKE_RETIRED_GRACE_S": "1",
            "ANALYTICS_QUERY_DEADLINE_S": "8",
            "ANALYTICS_QUERY_QUEUE_WAIT_S": "2",
        },
    )
    try:
        running.start()
        yield running
    finally:
        running.close()


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
        for point in CRASH_POINTS:
            crash_file.write_text(point)
            async with asyncio.timeout(60):
                while crash_file.exists():
                    await asyncio.sleep(0.05)
        for _ in range(2):
            await asyncio.sleep(rng.uniform(0.2, 1))
            await asyncio.to_thread(system.kill, KEEPER)
    assert set(client.acks) == {"logged"}, "ingest does not wait for a keeper"
    await client.check()
    await wait_exported(system)
    await is_compact(system)
    done.set()
    await counting
    assert onlooker.steps > 5
    await onlooker.check_complete()
    await check_lake(client, folder)
    assert await system.sql("SELECT 1 FROM lake_files WHERE key LIKE '%/compact-%' AND retired_at IS NULL")
    async with asyncio.timeout(GRACE_S + 30):
        while files_in(folder) != set(await live_keys(system)):
            await asyncio.sleep(0.5)
    assert not await system.sql("SELECT plan_id FROM lake_plans WHERE state = 'open'")
    await check_lake(client, folder)


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
    metrics = httpx.get(f"{system.url}/metrics", timeout=10).text
    assert "analytics_lake_hours_to_compact 0.0" in metrics
    keeper = system.status()["lakeKeeper"]
    assert (keeper["state"], keeper["view"]["trouble"]) == ("open", "")
    assert "lake-keeper" in system.cli("status").stdout


async def test_old_hours_become_cold_while_queries_count(system: RunningSystem, client: Client) -> None:
    old = (datetime.now(UTC) - timedelta(days=25)).isoformat()
    events = [{"eventId": f"old-{n}", "eventType": "load", "timestamp": old} for n in range(20)]
    client.sent |= {str(event["eventId"]) for event in events}
    async with httpx.AsyncClient(base_url=system.url, timeout=30) as http:
        headers = {"Authorization": f"Bearer {client.write_key}"}
        assert (await http.post("/v1/events/batch", json=events, headers=headers)).status_code == 202
        await asyncio.to_thread(client.settle)
        await wait_exported(system)
        await is_compact(system)
        onlooker, done = QueryOnlooker(client), asyncio.Event()
        counting = asyncio.create_task(onlooker.run_until(done))
        limits = ("--set", "retention.lake_hot_days=20", "--set", "lake.compact_quiet_s=0.01")
        ran = await asyncio.to_thread(system.cli, "retention", "run", "--json", *limits)
        moved = [each for each in json.loads(ran.stdout)["removals"] if each["kind"] == "moved_files"]
        assert [each["rows"] for each in moved] == [20]
        cold = [key for key in await live_keys(system) if key.startswith("cold/")]
        assert len(cold) == 1
        async with asyncio.timeout(GRACE_S + 30):
            while cold[0].removeprefix("cold/") in files_in(system.data / "lake"):
                await asyncio.sleep(0.5)
        done.set()
        await counting
        await onlooker.check_complete()
        url = f"/v1/query?projectId={client.project}"
        answer = await http.post(url, json={"sql": "SELECT count(*) FROM events"}, headers=client.admin())
        assert (answer.json()["rows"], answer.json()["coldFiles"]) == ([[20]], 1)
    await check_lake(client, system.data / "lake")
