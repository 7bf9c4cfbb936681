"""PostgreSQL or Valkey away for a while: events are taken all the same, and arrive afterwards."""

import asyncio
import os
import signal

import httpx
import pytest
import redis.asyncio

from tests.faults.conftest import UnderLoad
from tests.system import Client, RunningSystem

pytestmark = pytest.mark.timeout(300)

AWAY_S = float(os.environ.get("FAULT_SECONDS", "8"))
"""`make faults` sets a minute."""


async def test_postgres_away(system: RunningSystem, client: Client, under_load: UnderLoad) -> None:
    async with under_load(seconds=AWAY_S + 3):
        postgres = system.pid_of("bin/postgres", "-D")
        # Stopped, not killed: its port takes connections, and nothing ever answers.
        os.kill(postgres, signal.SIGSTOP)
        try:
            await asyncio.sleep(AWAY_S)
            assert client.acks["logged"] > 0
        finally:
            os.kill(postgres, signal.SIGCONT)
    assert set(client.statuses) == {202}
    await asyncio.to_thread(system.wait_healthy)
    await client.check()


async def test_valkey_away(system: RunningSystem, client: Client, under_load: UnderLoad) -> None:
    async with under_load(seconds=AWAY_S + 3):
        valkey = system.pid_of("valkey-server")
        os.kill(valkey, signal.SIGSTOP)
        try:
            await asyncio.sleep(AWAY_S)
        finally:
            os.kill(valkey, signal.SIGCONT)
    assert client.acks["spooled"] > 0
    assert set(client.statuses) == {202}
    await asyncio.to_thread(system.wait_healthy)
    await client.check()


async def test_flushall_of_valkey_under_load(system: RunningSystem, client: Client, under_load: UnderLoad) -> None:
    """The log's memory is gone at once. The owner still has what was not yet stored, so nothing is lost;
    offsets go on in a fresh block, and the window is there: what was stored is still a duplicate."""
    async with under_load(seconds=6):
        flusher = redis.asyncio.Redis.from_url(system.connection["redis_url"])
        for _ in range(3):
            await flusher.flushall()
            await asyncio.sleep(1)
        await flusher.aclose()
    await asyncio.to_thread(system.wait_healthy)
    await client.check()
    await all_are_duplicates(client)


async def test_flushall_then_a_new_owner_rebuilds_the_window_from_the_event_store(
    system: RunningSystem, client: Client, under_load: UnderLoad
) -> None:
    async with under_load(seconds=3):
        pass
    await client.check()
    flusher = redis.asyncio.Redis.from_url(system.connection["redis_url"])
    await flusher.flushall()
    await flusher.aclose()
    os.kill(system.pid_of("ray::BatcherActor"), signal.SIGKILL)
    await asyncio.to_thread(system.wait_healthy)
    await all_are_duplicates(client)
    await client.check()


async def all_are_duplicates(client: Client) -> None:
    """A retry by the client of anything is a duplicate, never a second row."""
    ids = sorted(client.acknowledged)
    async with httpx.AsyncClient(timeout=15) as http:
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
