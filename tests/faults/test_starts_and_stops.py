"""SIGTERM under load, kill -9 of `up` itself, each with another number of shards afterwards; and small bounds that are
reached: a full spool, a log that does not wait for the lake any more. All on one system of this module.
"""

import asyncio
import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.lake_reading import check_lake, exporters, wait_exported
from tests.system import Client, RunningSystem

pytestmark = pytest.mark.timeout(240)

EXPORTER = "ray::Exporter"
LOG_BYTES = 400_000
SMALL = {
    "ANALYTICS_LOG_MAX_BYTES": str(LOG_BYTES),
    "ANALYTICS_SPOOL_MAX_BYTES": "60000",
    "ANALYTICS_GATEWAY_WORKERS": "1",
    # An exporter that is stopped here is to stay in its place.
    "ANALYTICS_ACTORS_UNRESPONSIVE_AFTER_S": "100",
}


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningSystem]:
    folder: Path = tmp_path_factory.mktemp("small") / "data"
    running = RunningSystem(folder, arguments=("--port", "0"), environment=SMALL)
    try:
        running.start("--shards", "1")
        yield running
    finally:
        running.close()


async def test_a_full_spool_refuses_and_recovers(system: RunningSystem, client: Client) -> None:
    """With the log away and the spool at its bound, clients are told to wait; what was acknowledged arrives."""
    async with client.loading():
        valkey = system.pid_of("valkey-server")
        os.kill(valkey, signal.SIGSTOP)
        try:
            async with asyncio.timeout(60):
                while not client.statuses[503]:
                    await asyncio.sleep(0.05)
        finally:
            os.kill(valkey, signal.SIGCONT)
    assert client.acks["spooled"] > 0
    assert set(client.statuses) == {202, 503}
    await client.check()


async def test_the_log_is_trimmed_beyond_a_stopped_lake(system: RunningSystem, client: Client) -> None:
    """At half of its bound it does not wait: the exporter finds the rest in PostgreSQL."""
    await wait_exported(system)
    exporter = system.pid_of(EXPORTER)
    os.kill(exporter, signal.SIGSTOP)
    try:
        async with client.posting(pause_s=0):
            async with asyncio.timeout(60):
                while len(client.acknowledged) < 12_000:
                    await asyncio.sleep(0.05)
        await asyncio.to_thread(client.settle)
        async with asyncio.timeout(30):
            while not all(each["view"] and each["view"]["log_bytes"] <= LOG_BYTES / 2 for each in shards(system)):
                await asyncio.sleep(0.2)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(exporter, signal.SIGKILL)
    client.check_logged()
    await client.check()
    await check_lake(client, system.data / "lake")
    async with asyncio.timeout(30):
        while not (view := exporters(system)[0]["view"]) or not view["counters"].get("events_read_back"):
            await asyncio.sleep(0.2)


def shards(system: RunningSystem) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = system.status()["shards"]
    return found


async def test_sigterm_under_load_is_clean_and_a_start_with_more_shards_has_everything(
    system: RunningSystem, client: Client
) -> None:
    started = [process.pid for process in system.processes()]
    load = asyncio.create_task(client.run_until(asyncio.Event()))
    await client.wait_for_acks("logged", 50)
    system.signal_up(signal.SIGTERM)
    assert await asyncio.to_thread(system.wait_ended) == 0
    # Clients give up on a server that is gone; what counts is what it acknowledged before.
    load.cancel()
    await asyncio.gather(load, return_exceptions=True)
    assert not [pid for pid in started if runs(pid)]
    await asyncio.to_thread(system.start, "--shards", "3")
    async with client.loading(workers=2):
        pass
    await client.check()


def runs(pid: int) -> bool:
    """A zombie that nobody has reaped yet does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


async def test_kill_9_of_up_itself_then_a_start_with_fewer_shards(system: RunningSystem, client: Client) -> None:
    left = {process.pid: process.create_time() for process in system.processes()}
    async with client.loading():
        os.kill(system.up_pid, signal.SIGKILL)
        await asyncio.to_thread(system.wait_ended)
        await asyncio.to_thread(system.start, "--shards", "2")
    await client.check()
    for pid, created in left.items():
        assert not psutil.pid_exists(pid) or psutil.Process(pid).create_time() != created, "a process was left over"
