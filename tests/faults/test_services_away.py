"""PostgreSQL or Valkey away for a while: events are taken all the same, and arrive afterwards."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager

import httpx
import psutil
import pytest
import redis.asyncio

from tests.faults.conftest import Watched, check_whole
from tests.metric_client import MetricClient
from tests.plain_http import AsyncWeb
from tests.system import Client, RunningSystem

pytestmark = pytest.mark.timeout(300)

AWAY_S = float(os.environ.get("FAULT_SECONDS", "0"))
"""The least. By itself a service is away until that has shown everywhere; `make faults` sets a minute."""


NO_WINDOWS = "Redis does not answer"


@asynccontextmanager
async def away() -> AsyncIterator[None]:
    """The block waits for what is to show."""
    began_s = time.monotonic()
    yield
    await asyncio.sleep(max(0.0, began_s + AWAY_S - time.monotonic()))


def wait_for(holds: Callable[[], bool]) -> None:
    until = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < until, "nobody has noticed"
        time.sleep(0.1)


def parts(system: RunningSystem) -> Collection[str]:
    found = system.readiness()
    return found["parts"].values() if isinstance(found, dict) else ()


async def test_postgres_away(system: RunningSystem, client: Client) -> None:
    """Stopped, not killed: its port takes connections and open ones stay open, and nothing ever answers."""
    async with client.loading():
        main = psutil.Process(system.pid_of("bin/postgres", "-D"))
        main.suspend()
        # It starts no more of them now.
        servers = main.children(recursive=True)
        try:
            for server in servers:
                server.suspend()
            async with away():
                await asyncio.to_thread(wait_for, lambda: "unavailable" in parts(system))
                await client.wait_for_acks("logged", 50)
        finally:
            for server in (*servers, main):
                server.resume()
    assert set(client.statuses) == {202}
    await client.check()


async def test_valkey_away(system: RunningSystem, metric_client: MetricClient, watched: Watched) -> None:
    """Metrics are answered without windows, and say so; ingest goes on."""
    async with watched() as onlookers:
        valkey = system.pid_of("valkey-server")
        os.kill(valkey, signal.SIGSTOP)
        try:
            async with away():
                await metric_client.wait_for_acks("spooled", 1)
                await asyncio.to_thread(wait_for, lambda: all(each.degraded[NO_WINDOWS] for each in onlookers))
            answer = await asyncio.to_thread(metric_client.metric, "events")
        finally:
            os.kill(valkey, signal.SIGCONT)
    assert answer["degraded"]
    assert {source["source"] for source in answer["sources"]} <= {"rollups", "events"}
    assert sum(point["value"] for point in answer["points"]) > 0
    assert metric_client.acks["spooled"] > 0
    assert set(metric_client.statuses) == {202}
    await check_whole(metric_client)
    for onlooker in onlookers:
        assert not onlooker.falls


async def test_flushall_of_valkey_under_load(
    system: RunningSystem, metric_client: MetricClient, watched: Watched
) -> None:
    """The log's memory is gone at once. The owner still has what was not yet stored, so nothing is lost; offsets go on
    in a fresh block, and the dedupe window is there: what was stored is still a duplicate. The metrics' windows are
    counted again from the event store."""
    async with watched() as onlookers:
        flushes = 0
        while flushes < 3 or not any(onlooker.degraded for onlooker in onlookers):
            assert flushes < 20, "nobody has noticed"
            await flush(system)
            flushes += 1
            await metric_client.wait_for_acks("logged", 50)
    await check_whole(metric_client)
    assert [onlooker.falls for onlooker in onlookers] == [[], []]
    await all_are_duplicates(metric_client)


async def test_flushall_then_a_new_owner_rebuilds_the_window_from_the_event_store(
    system: RunningSystem, client: Client
) -> None:
    async with client.loading():
        pass
    await client.check()
    await flush(system)
    await asyncio.to_thread(system.kill, "ray::BatcherActor")
    await asyncio.to_thread(system.wait_healthy)
    await all_are_duplicates(client)
    await client.check()


async def flush(system: RunningSystem) -> None:
    flusher = redis.asyncio.Redis.from_url(system.connection["redis_url"])
    await flusher.flushall()
    await flusher.aclose()


async def all_are_duplicates(client: Client) -> None:
    """A retry by the client of anything is a duplicate, never a second row."""
    ids = sorted(client.acknowledged)
    async with AsyncWeb(timeout=15) as http:
        for start in range(0, len(ids), 500):
            part = ids[start : start + 500]
            assert await duplicates_among(http, client, part) == len(part)
    await client.check()
    assert await client.stored() == dict.fromkeys(ids, 1)


async def duplicates_among(http: httpx.AsyncClient, client: Client, event_ids: list[str]) -> int:
    """How many of the events the log calls duplicates; asked again while the spool answers, which cannot know."""
    body = [{"eventId": event_id, "eventType": "load"} for event_id in event_ids]
    headers = {"Authorization": f"Bearer {client.write_key}"}
    for _ in range(100):
        answer = await http.post(f"{client.system.url}/v1/events/batch", json=body, headers=headers)
        assert answer.status_code == 202, answer.text
        if answer.json()["ack"] == "logged":
            return int(answer.json()["duplicate"])
        await asyncio.sleep(0.2)
    raise AssertionError("the log does not come back")
