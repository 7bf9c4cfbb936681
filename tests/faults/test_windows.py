"""Metrics under faults: every answer while it lasts, and every number afterwards.

All on one system of this module, which is killed as a whole at last.
"""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import psutil
import pytest
import redis.asyncio

from tests.metric_client import SPENT, MetricClient, Onlooker
from tests.system import RunningSystem

pytestmark = pytest.mark.timeout(300)

AGGREGATOR = "ray::AggregatorActor"
AWAY_S = 5.0

Watched = Callable[..., AbstractAsyncContextManager[list[Onlooker]]]


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningSystem]:
    running = RunningSystem(tmp_path_factory.mktemp("windows") / "data", arguments=("--port", "0"))
    try:
        running.start()
        yield running
    finally:
        running.close()


@pytest.fixture
def client(system: RunningSystem) -> MetricClient:
    system.wait_healthy()
    system.wait_windows()
    made = MetricClient(system)
    made.create_project()
    made.define(SPENT)
    return made


@pytest.fixture
def watched(client: MetricClient) -> Watched:
    """`async with watched(seconds=…) as onlookers`: two clients ask for a count while a load runs; the block's fault
    falls into it."""

    @asynccontextmanager
    async def run(*, seconds: float, warm_up_s: float = 1.0) -> AsyncIterator[list[Onlooker]]:
        onlookers = [
            Onlooker(client, keeps_connection=False),
            Onlooker(client, "load", {"granularity": "minute"}),
        ]
        asking = [asyncio.create_task(onlooker.run()) for onlooker in onlookers]
        load = asyncio.create_task(client.run(seconds=seconds, workers=2, pause_s=0.02))
        await asyncio.sleep(warm_up_s)
        try:
            yield onlookers
        finally:
            await load
            for task in asking:
                task.cancel()
            for result in await asyncio.gather(*asking, return_exceptions=True):
                assert isinstance(result, asyncio.CancelledError), result

    return run


async def check(client: MetricClient) -> None:
    """Nothing acknowledged is missing, and the metrics say what PostgreSQL says."""
    await asyncio.to_thread(client.system.wait_healthy)
    await client.check()
    assert len(client.acknowledged) > 500
    print(f"equal after {await client.settle_metrics():.1f} s")


async def test_an_aggregator_killed_again_and_again(
    system: RunningSystem, client: MetricClient, watched: Watched
) -> None:
    async with watched(seconds=7) as onlookers:
        for _ in range(3):
            os.kill(await asyncio.to_thread(system.wait_for, AGGREGATOR), signal.SIGKILL)
            await asyncio.sleep(1.5)
    await check(client)
    for onlooker in onlookers:
        assert onlooker.answers > 20
        assert not onlooker.falls
        assert not onlooker.failures


async def test_a_stopped_aggregator_is_replaced_and_fenced(
    system: RunningSystem, client: MetricClient, watched: Watched
) -> None:
    zombie = system.pid_of(AGGREGATOR)
    async with watched(seconds=10) as onlookers:
        os.kill(zombie, signal.SIGSTOP)
        try:
            # Longer than the controller's patience: another one has the partitions when it comes back.
            await asyncio.sleep(8)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(zombie, signal.SIGCONT)
    assert system.wait_for(AGGREGATOR) != zombie
    await check(client)
    assert [onlooker.falls for onlooker in onlookers] == [[], []]
    assert client.acks.keys() == {"logged"}, "ingest does not wait for an aggregator"


async def test_valkey_killed(system: RunningSystem, client: MetricClient, watched: Watched) -> None:
    async with watched(seconds=5) as onlookers:
        os.kill(system.pid_of("valkey-server"), signal.SIGKILL)
    await check(client)
    assert [onlooker.falls for onlooker in onlookers] == [[], []]


async def test_flushall_rebuilds_windows_from_the_event_store(
    system: RunningSystem, client: MetricClient, watched: Watched
) -> None:
    async with watched(seconds=6) as onlookers:
        flusher = redis.asyncio.Redis.from_url(system.connection["redis_url"])
        for _ in range(2):
            await flusher.flushall()
            await asyncio.sleep(2)
        await flusher.aclose()
    await check(client)
    assert sum(sum(onlooker.degraded.values()) for onlooker in onlookers) > 0
    assert [onlooker.falls for onlooker in onlookers] == [[], []]


async def test_redis_away(system: RunningSystem, client: MetricClient, watched: Watched) -> None:
    """Metrics are answered without windows, and say so; ingest goes on."""
    async with watched(seconds=AWAY_S + 2) as onlookers:
        valkey = system.pid_of("valkey-server")
        # Stopped, not killed: its port takes connections, and nothing ever answers.
        os.kill(valkey, signal.SIGSTOP)
        try:
            await asyncio.sleep(AWAY_S - 2)
            before = await asyncio.to_thread(client.metric, "events")
            await asyncio.sleep(2)
        finally:
            os.kill(valkey, signal.SIGCONT)
    assert before["degraded"]
    assert {source["source"] for source in before["sources"]} <= {"rollups", "events"}
    assert sum(point["value"] for point in before["points"]) > 0
    assert client.acks["spooled"] > 0
    assert set(client.statuses) == {202}
    await check(client)
    for onlooker in onlookers:
        assert onlooker.degraded["Redis does not answer"] > 0
        assert not onlooker.falls


async def test_everything_killed_then_started_again(system: RunningSystem, client: MetricClient) -> None:
    await client.run(seconds=2)
    processes = [psutil.Process(system.up_pid), *system.processes()]
    load = asyncio.create_task(client.run(seconds=8, workers=1, pause_s=0.05))
    await asyncio.sleep(0.5)
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    await asyncio.to_thread(system.wait_ended)
    began = time.monotonic()
    await asyncio.to_thread(system.start)
    print(f"started again within {time.monotonic() - began:.1f} s")
    await load
    await check(client)
