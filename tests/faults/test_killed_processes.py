"""kill -9 of every kind of process under load: nothing acknowledged is lost, nothing is stored twice."""

import asyncio
import contextlib
import os
import signal

import psutil
import pytest

from tests.faults.conftest import Watched, check_whole
from tests.metric_client import MetricClient
from tests.system import Client, RunningSystem

pytestmark = pytest.mark.timeout(240)

BATCHER = "ray::BatcherActor"
PROCESSES = {
    "batcher": (BATCHER,),
    "gateway worker": ("gateway.worker",),
    "controller": ("ray::ControllerActor",),
    "gateway supervisor": ("-m gateway ",),
}
SERVERS = {"valkey": ("valkey-server",), "postgres": ("bin/postgres", "-D")}


@pytest.mark.parametrize("process", PROCESSES)
async def test_kill_9_under_load(process: str, system: RunningSystem, client: Client) -> None:
    async with client.loading():
        await asyncio.to_thread(system.kill, *PROCESSES[process])
    await asyncio.to_thread(system.wait_healthy)
    await client.check()


@pytest.mark.parametrize("server", SERVERS)
async def test_kill_9_of_a_server_under_load(
    server: str, system: RunningSystem, metric_client: MetricClient, watched: Watched
) -> None:
    async with watched() as onlookers:
        for _ in range(2):
            await asyncio.to_thread(system.kill, *SERVERS[server])
            await asyncio.to_thread(system.wait_healthy)
    await check_whole(metric_client)
    assert [onlooker.falls for onlooker in onlookers] == [[], []]


@pytest.mark.parametrize("process", ["raylet/raylet", "gcs_server"])
async def test_kill_9_of_ray_itself_under_load(process: str, system: RunningSystem, client: Client) -> None:
    workers = set(system.pids_of("gateway.worker"))
    async with client.loading():
        await asyncio.to_thread(system.kill, process)
    assert client.acks["spooled"] > 0
    # Drivers of the old cluster would spin.
    async with asyncio.timeout(30):
        while workers & set(system.pids_of("gateway.worker")):
            await asyncio.sleep(0.1)
    await client.check()


async def test_a_batcher_killed_again_and_again(system: RunningSystem, client: Client) -> None:
    async with client.loading():
        for _ in range(4):
            # The next one may still be opening its partitions.
            await asyncio.to_thread(system.kill, BATCHER)
    await client.check()


async def test_a_stopped_batcher_is_replaced_and_fenced(system: RunningSystem, client: Client) -> None:
    async with client.loading():
        zombie = system.pid_of(BATCHER)
        os.kill(zombie, signal.SIGSTOP)
        try:
            await asyncio.to_thread(system.wait_for, BATCHER, but=zombie)
            # Another one has the partitions when it comes back.
            await client.wait_for_acks("logged", 20)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(zombie, signal.SIGCONT)
    assert client.acks["spooled"] > 0
    assert system.pid_of(BATCHER) != zombie
    await client.check()


async def test_a_batcher_that_only_paused_goes_on(system: RunningSystem, client: Client) -> None:
    async with client.loading():
        paused = system.pid_of(BATCHER)
        os.kill(paused, signal.SIGSTOP)
        try:
            await client.wait_for_acks("spooled", 1)
        finally:
            os.kill(paused, signal.SIGCONT)
    assert system.pid_of(BATCHER) == paused
    await client.check()


async def test_everything_killed_then_started_again(system: RunningSystem, metric_client: MetricClient) -> None:
    async with metric_client.posting(workers=1, pause_s=0.05):
        await metric_client.wait_for_acks("logged", 20)
        for process in [psutil.Process(system.up_pid), *system.processes()]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        await asyncio.to_thread(system.wait_ended)
        await asyncio.to_thread(system.start)
        await metric_client.wait_for_acks("logged", 20)
    await check_whole(metric_client)
