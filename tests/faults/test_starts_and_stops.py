"""SIGTERM under load, kill -9 of `up` itself, a spool whose disk is full, a changed number of shards."""

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.system import Client, RunningSystem

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def own_system(tmp_path: Path) -> Iterator[RunningSystem]:
    running = RunningSystem(tmp_path / "data", arguments=("--port", "0"))
    try:
        running.start()
        yield running
    finally:
        running.close()


def runs(pid: int) -> bool:
    """A zombie that nobody has reaped yet does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


async def test_sigterm_under_load_is_clean_and_the_next_start_has_everything(own_system: RunningSystem) -> None:
    client = Client(own_system)
    client.create_project()
    started = [process.pid for process in own_system.processes()]
    # Clients give up on a server that is gone; what counts is what it acknowledged before.
    load = asyncio.create_task(client.run(seconds=4))
    await asyncio.sleep(3)
    own_system.signal_up(signal.SIGTERM)
    assert await asyncio.to_thread(own_system.wait_ended) == 0
    load.cancel()
    await asyncio.gather(load, return_exceptions=True)
    assert not [pid for pid in started if runs(pid)]
    assert len(client.acknowledged) > 100
    await asyncio.to_thread(own_system.start)
    await client.check()


async def test_kill_9_of_up_itself_then_start_again(own_system: RunningSystem) -> None:
    client = Client(own_system)
    client.create_project()
    left = {process.pid: process.create_time() for process in own_system.processes()}
    load = asyncio.create_task(client.run(seconds=25))
    await asyncio.sleep(2)
    os.kill(own_system.up_pid, signal.SIGKILL)
    await asyncio.to_thread(own_system.wait_ended)
    await asyncio.sleep(1)
    await asyncio.to_thread(own_system.start)
    await load
    await asyncio.to_thread(own_system.wait_healthy)
    await client.check()
    for pid, created in left.items():
        assert not psutil.pid_exists(pid) or psutil.Process(pid).create_time() != created, "a process was left over"


async def test_a_full_spool_refuses_and_recovers(tmp_path: Path) -> None:
    """With the log away and the spool at its bound, clients are told to wait; what was acknowledged arrives."""
    system = RunningSystem(
        tmp_path / "data", arguments=("--port", "0"), environment={"ANALYTICS_SPOOL_MAX_BYTES": "60000"}
    )
    try:
        system.start()
        client = Client(system)
        client.create_project()
        load = asyncio.create_task(client.run(seconds=9))
        await asyncio.sleep(1)
        valkey = system.pid_of("valkey-server")
        os.kill(valkey, signal.SIGSTOP)
        try:
            await asyncio.sleep(5)
        finally:
            os.kill(valkey, signal.SIGCONT)
        await load
        assert client.acks["spooled"] > 0
        assert client.statuses[503] > 0
        assert set(client.statuses) == {202, 503}
        await asyncio.to_thread(system.wait_healthy)
        await client.check()
    finally:
        system.close()


async def test_another_number_of_shards_moves_partitions_and_loses_nothing(tmp_path: Path) -> None:
    clients: list[Client] = []
    for shards in (1, 3, 2):
        system = RunningSystem(tmp_path / "data", arguments=("--port", "0", "--shards", str(shards)))
        try:
            system.start()
            clients.append(Client(system))
            clients[-1].create_project()
            for client in clients:
                client.system = system
            await asyncio.gather(*(client.run(seconds=2, workers=1) for client in clients))
            if shards == 2:
                for client in clients:
                    await client.check()
            system.signal_up(signal.SIGTERM)
            assert await asyncio.to_thread(system.wait_ended) == 0
        finally:
            system.close()
