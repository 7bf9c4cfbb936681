"""SIGTERM under load, kill -9 of `up` itself, each with another number of shards afterwards; small bounds that are
reached: a full spool, a log that does not wait for the lake any more; and an object store that goes away and comes
back. All on one system of this module, whose lake is in S3.
"""

import asyncio
import contextlib
import os
import signal
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.lake_reading import check_lake, exporters, read_rows, wait_exported
from tests.object_servers import ObjectServer
from tests.system import Client, RunningSystem

pytestmark = pytest.mark.timeout(240)

EXPORTER = "ray::Exporter"
PREFIX = "some/prefix"
LOG_BYTES = 400_000
SMALL = {
    "ANALYTICS_LOG_MAX_BYTES": str(LOG_BYTES),
    "ANALYTICS_SPOOL_MAX_BYTES": "60000",
    "ANALYTICS_GATEWAY_WORKERS": "1",
    # An exporter that is stopped here is to stay in its place.
    "ANALYTICS_ACTORS_UNRESPONSIVE_AFTER_S": "100",
    "ANALYTICS_LAKE_PATH_STYLE": "true",
    "ANALYTICS_LAKE_REQUEST_TIMEOUT_S": "1",
}


@pytest.fixture(scope="module")
def bucket(moto_server: ObjectServer) -> str:
    return moto_server.make_bucket()


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory, moto_server: ObjectServer, bucket: str) -> Iterator[RunningSystem]:
    folder: Path = tmp_path_factory.mktemp("small") / "data"
    lake = {"ANALYTICS_LAKE_URL": f"s3://{bucket}/{PREFIX}", "ANALYTICS_LAKE_ENDPOINT_URL": moto_server.endpoint_url}
    running = RunningSystem(folder, arguments=("--port", "0"), environment=SMALL | lake | moto_server.environment())
    try:
        running.start("--shards", "1")
        yield running
    finally:
        running.close()


def test_without_a_dashboard_nothing_of_it_runs(system: RunningSystem) -> None:
    assert system.pids_of("gcs_server")
    assert not system.pids_of("dashboard.py") + system.pids_of("ray-dashboard")


CheckBucket = Callable[[Client], Awaitable[None]]


@pytest.fixture
def check_bucket(moto_server: ObjectServer, bucket: str, tmp_path: Path) -> CheckBucket:
    """`check_lake` of what is in the bucket."""

    async def check(client: Client) -> None:
        await wait_exported(client.system)
        await asyncio.to_thread(moto_server.download, bucket, tmp_path)
        await check_lake(client, tmp_path / PREFIX)
        assert read_rows([f"{tmp_path}/**/*.parquet"])

    return check


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


async def test_the_log_is_trimmed_beyond_a_stopped_lake(
    system: RunningSystem, client: Client, check_bucket: CheckBucket
) -> None:
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
    await check_bucket(client)
    async with asyncio.timeout(30):
        while not (view := exporters(system)[0]["view"]) or not view["counters"].get("events_read_back"):
            await asyncio.sleep(0.2)


async def test_the_object_store_away_and_back(
    system: RunningSystem, client: Client, moto_server: ObjectServer, check_bucket: CheckBucket
) -> None:
    moto_server.pause()
    try:
        async with client.posting(workers=2):
            async with asyncio.timeout(60):
                while not (view := exporters(system)[0]["view"]) or "object store" not in view["trouble"]:
                    await asyncio.sleep(0.1)
        assert view["lag_records"] > 0
        await client.check()
        # What a crash leaves behind must not matter either.
        await asyncio.to_thread(system.kill, EXPORTER)
        await client.run(seconds=1, workers=1)
    finally:
        moto_server.resume()
    await client.check()
    assert set(client.statuses) == {202}
    client.check_logged()
    await check_bucket(client)


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
