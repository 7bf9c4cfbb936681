"""The daily job under faults: whatever of it ends when, the roll-ups are those that an undisturbed run makes."""

import asyncio
import json
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest

from tests.lake_reading import wait_exported
from tests.plain_http import AsyncWeb
from tests.system import Client, RunningSystem

TASK = "ray::count_pieces"
CONTROLLER = "ray::Controller"
DAYS_AGO = (20, 22, 24, 26)
"""Days that do not follow one another are pieces of their own."""
ROLL_UPS = """
    SELECT metric_name, time_granularity, timestamp, dimensions_hash, count, sum, value, minimum, maximum, dimensions,
        sketches
    FROM metric_aggregates WHERE project_id = $1 ORDER BY 1, 2, 3, 4
"""
WAITING = """
    SELECT 1 FROM pg_locks JOIN pg_stat_activity USING (pid)
    WHERE NOT granted AND relation = 'metric_aggregates'::regclass AND application_name LIKE '%batch-%'
"""

pytestmark = pytest.mark.timeout(240)


async def post(client: Client) -> None:
    """Events of some days long ago, all of them counted and in the lake."""
    now = datetime.now(UTC)
    events = [
        {"eventType": "view", "userId": f"u{n % 3}", "timestamp": (now - timedelta(days=days, hours=n)).isoformat()}
        for days in DAYS_AGO
        for n in range(10)
    ]
    async with AsyncWeb(base_url=client.system.url, timeout=30) as http:
        headers = {"Authorization": f"Bearer {client.write_key}"}
        assert (await http.post("/v1/events/batch", json=events, headers=headers)).status_code == 202
    await asyncio.to_thread(client.settle)
    await wait_exported(client.system)
    async with asyncio.timeout(60):
        while await client.system.sql("SELECT FROM late_days WHERE project_id = $1", client.project):
            await asyncio.sleep(0.2)


async def run(client: Client) -> dict[str, Any]:
    done = await asyncio.to_thread(client.system.cli, "batch", "run", "--project", client.project, "--json")
    job: dict[str, Any] = json.loads(done.stdout)
    return job


@asynccontextmanager
async def held_back(system: RunningSystem) -> AsyncIterator[None]:
    """Within the block a task of a job is in the midst of a piece, and can write nothing."""
    connection = await asyncpg.connect(system.connection["postgres_url"])
    try:
        async with connection.transaction():
            await connection.execute("LOCK TABLE metric_aggregates IN SHARE ROW EXCLUSIVE MODE")
            until = time.monotonic() + 60
            # Not by this connection: within a transaction it sees the same activity again and again.
            while not await system.sql(WAITING):
                assert time.monotonic() < until, "no task has come so far"
                await asyncio.sleep(0.05)
            yield
    finally:
        await connection.close()


async def test_a_job_whose_task_and_driver_are_killed_counts_what_an_undisturbed_one_does(
    system: RunningSystem, client: Client
) -> None:
    await post(client)
    first = await run(client)
    assert first["state"] == "done" and first["progress"]["days"] >= len(DAYS_AGO)
    undisturbed = [tuple(row) for row in await system.sql(ROLL_UPS, client.project)]
    assert undisturbed
    await system.sql("UPDATE metric_aggregates SET count = count + 7 WHERE project_id = $1", client.project)

    running = asyncio.create_task(run(client))
    async with held_back(system):
        task = system.pid_of(TASK)
        os.kill(task, signal.SIGKILL)
    # Another task goes on with what that one had under way; while it does, the driver goes.
    async with held_back(system):
        assert task not in system.pids_of(TASK)
        await asyncio.to_thread(system.kill, CONTROLLER)
    job = await running
    assert (job["state"], job["progress"]["daysLeft"]) == ("done", 0)
    assert [tuple(row) for row in await system.sql(ROLL_UPS, client.project)] == undisturbed
    await asyncio.to_thread(system.wait_healthy)
