"""kill -9 of every kind of process under load: nothing acknowledged is lost, nothing is stored twice."""

import asyncio
import os
import signal

import pytest

from tests.faults.conftest import UnderLoad
from tests.system import Client, RunningSystem

pytestmark = pytest.mark.timeout(240)

PROCESSES = {
    "batcher": ("ray::BatcherActor",),
    "gateway worker": ("gateway.worker",),
    "valkey": ("valkey-server",),
    "postgres": ("bin/postgres", "-D"),
    "controller": ("ray::ControllerActor",),
    "gateway supervisor": ("-m gateway ",),
}


@pytest.mark.parametrize("process", PROCESSES)
async def test_kill_9_under_load(process: str, system: RunningSystem, client: Client, under_load: UnderLoad) -> None:
    async with under_load(seconds=8):
        os.kill(system.pid_of(*PROCESSES[process]), signal.SIGKILL)
    await asyncio.to_thread(system.wait_healthy)
    assert len(client.acknowledged) > 500
    await client.check()


@pytest.mark.parametrize("process", ["raylet/raylet", "gcs_server"])
async def test_kill_9_of_ray_itself_under_load(
    process: str, system: RunningSystem, client: Client, under_load: UnderLoad
) -> None:
    worker = system.pid_of("gateway.worker")
    async with under_load(seconds=12):
        os.kill(system.pid_of(process), signal.SIGKILL)
    assert client.acks["spooled"] > 0
    await asyncio.to_thread(system.wait_healthy)
    assert system.pid_of("gateway.worker") != worker, "a driver of the old cluster would spin"
    await client.check()


async def test_a_batcher_killed_again_and_again(system: RunningSystem, client: Client, under_load: UnderLoad) -> None:
    async with under_load(seconds=14):
        for _ in range(4):
            os.kill(await asyncio.to_thread(system.wait_for, "ray::BatcherActor"), signal.SIGKILL)
            await asyncio.sleep(2)
    await asyncio.to_thread(system.wait_healthy)
    await client.check()


async def test_a_stopped_batcher_is_replaced_and_fenced(
    system: RunningSystem, client: Client, under_load: UnderLoad
) -> None:
    async with under_load(seconds=14):
        zombie = system.pid_of("ray::BatcherActor")
        os.kill(zombie, signal.SIGSTOP)
        try:
            # Longer than the controller's patience: another one has the partitions when it comes back.
            await asyncio.sleep(9)
        finally:
            os.kill(zombie, signal.SIGCONT)
    assert client.acks["spooled"] > 0
    await asyncio.to_thread(system.wait_healthy)
    assert system.pid_of("ray::BatcherActor") != zombie
    await client.check()


async def test_a_batcher_that_only_paused_goes_on(system: RunningSystem, client: Client, under_load: UnderLoad) -> None:
    async with under_load(seconds=8):
        paused = system.pid_of("ray::BatcherActor")
        os.kill(paused, signal.SIGSTOP)
        await asyncio.sleep(2)
        os.kill(paused, signal.SIGCONT)
    await asyncio.to_thread(system.wait_healthy)
    await client.check()
