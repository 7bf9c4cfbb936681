"""The lake under faults: afterwards it has each stored event once, whatever ended when."""

import asyncio
import contextlib
import os
import random
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import psutil
import pytest

from analytics_actors.exporter_actor import CRASH_FILE
from tests.faults.conftest import UnderLoad
from tests.lake_reading import check_lake, exporters, files_in, read_rows, wait_exported
from tests.object_servers import ObjectServer, start_moto
from tests.system import Client, RunningSystem

EXPORTER = "ray::Exporter"

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def crash_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("crash") / "point"


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory, crash_file: Path) -> Iterator[RunningSystem]:
    """One of this module's own: its exporters look for points to end at, and its log is small."""
    running = RunningSystem(
        tmp_path_factory.mktemp("lake") / "data",
        arguments=("--port", "0"),
        environment={CRASH_FILE: str(crash_file), "ANALYTICS_LOG_MAX_BYTES": "400000"},
    )
    try:
        running.start()
        yield running
    finally:
        running.close()


@pytest.fixture
def folder(system: RunningSystem) -> Path:
    return system.data / "lake"


async def check(client: Client, folder: Path) -> None:
    await asyncio.to_thread(client.system.wait_healthy)
    await client.check()
    await check_lake(client, folder)
    assert len(client.acknowledged) > 200


@pytest.mark.parametrize("point", ["planned", "one put", "put", "committed"])
async def test_an_exporter_killed_at_a_point(
    system: RunningSystem, client: Client, folder: Path, crash_file: Path, point: str, under_load: UnderLoad
) -> None:
    await wait_exported(system)
    before = files_in(folder)
    crash_file.write_text(point)
    async with under_load(seconds=3):
        async with asyncio.timeout(30):
            while crash_file.exists():
                await asyncio.sleep(0.05)
    await check(client, folder)
    assert set(client.acks) == {"logged"}, "ingest does not wait for an exporter"
    known = {row["key"] for row in await system.sql("SELECT key FROM lake_files")}
    assert files_in(folder) - before <= known, "a plan is finished under its own names"


async def test_an_exporter_killed_again_and_again(
    system: RunningSystem, client: Client, folder: Path, under_load: UnderLoad
) -> None:
    rng = random.Random(4)
    async with under_load(seconds=12):
        for _ in range(5):
            await asyncio.sleep(rng.uniform(0.2, 2))
            with contextlib.suppress(ProcessLookupError):
                os.kill(await asyncio.to_thread(system.wait_for, EXPORTER), signal.SIGKILL)
    await check(client, folder)


async def test_a_stopped_exporter_is_replaced_and_fenced(
    system: RunningSystem, client: Client, folder: Path, under_load: UnderLoad
) -> None:
    zombie = system.pid_of(EXPORTER)
    async with under_load(seconds=10):
        os.kill(zombie, signal.SIGSTOP)
        try:
            await asyncio.sleep(8)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(zombie, signal.SIGCONT)
    assert system.wait_for(EXPORTER) != zombie
    await check(client, folder)


async def test_postgres_killed(system: RunningSystem, client: Client, folder: Path, under_load: UnderLoad) -> None:
    async with under_load(seconds=8):
        for _ in range(2):
            os.kill(await asyncio.to_thread(system.wait_for, "postgres", "-D"), signal.SIGKILL)
            await asyncio.sleep(3)
    await check(client, folder)


async def test_the_log_is_trimmed_beyond_a_stopped_lake(
    system: RunningSystem, client: Client, folder: Path, under_load: UnderLoad
) -> None:
    """Half of its small bound is passed within a second or two: the exporter finds the rest in PostgreSQL."""
    await wait_exported(system)
    exporter = system.pid_of(EXPORTER)
    os.kill(exporter, signal.SIGSTOP)
    try:
        async with under_load(seconds=3):
            pass
        await asyncio.to_thread(client.settle)
        await asyncio.sleep(2)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(exporter, signal.SIGKILL)
    await check(client, folder)
    async with asyncio.timeout(20):
        while not (view := exporters(system)[0]["view"]) or not view["counters"].get("events_read_back"):
            await asyncio.sleep(0.2)
    assert set(client.acks) == {"logged"}, "the log's bound does not depend on the lake"


async def test_everything_killed_then_started_again(system: RunningSystem, client: Client, folder: Path) -> None:
    await client.run(seconds=2)
    processes = [psutil.Process(system.up_pid), *system.processes()]
    load = asyncio.create_task(client.run(seconds=8, workers=1, pause_s=0.05))
    await asyncio.sleep(0.7)
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    await asyncio.to_thread(system.wait_ended)
    await asyncio.to_thread(system.start)
    await load
    await check(client, folder)


# An object store of its own, which goes away and comes back.


@pytest.fixture(scope="module")
def moto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectServer]:
    server = start_moto(tmp_path_factory.mktemp("moto"))
    try:
        yield server
    finally:
        server.stop()


OverS3 = Callable[[str], AbstractAsyncContextManager[Client]]


@pytest.fixture
def over_s3(moto: ObjectServer, tmp_path: Path) -> OverS3:
    @asynccontextmanager
    async def started(bucket: str) -> AsyncIterator[Client]:
        lake = {
            "ANALYTICS_LAKE_URL": f"s3://{bucket}/some/prefix",
            "ANALYTICS_LAKE_ENDPOINT_URL": moto.endpoint_url,
            "ANALYTICS_LAKE_PATH_STYLE": "true",
            "ANALYTICS_LAKE_REQUEST_TIMEOUT_S": "1",
        }
        running = RunningSystem(tmp_path / "data", arguments=("--port", "0"), environment=lake | moto.environment())
        try:
            await asyncio.to_thread(running.start)
            client = Client(running)
            client.create_project()
            yield client
        finally:
            await asyncio.to_thread(running.close)

    return started


async def test_the_object_store_away_and_back(moto: ObjectServer, over_s3: OverS3, tmp_path: Path) -> None:
    bucket = moto.make_bucket()
    async with over_s3(bucket) as client:
        system = client.system
        await client.run(seconds=2, workers=2)
        moto.pause()
        try:
            await client.run(seconds=8, workers=2)
            await client.check()
            async with asyncio.timeout(30):
                while "object store" not in (view := exporters(system)[0]["view"])["trouble"]:
                    await asyncio.sleep(0.2)
            assert view["lag_records"] > 0
            # What a crash leaves behind must not matter either.
            os.kill(system.pid_of(EXPORTER), signal.SIGKILL)
            await client.run(seconds=1, workers=1)
        finally:
            moto.resume()
        await client.check()
        await wait_exported(system)
        assert set(client.statuses) == {202}
        assert set(client.acks) == {"logged"}
        copy = tmp_path / "copy"
        await asyncio.to_thread(_download, moto, bucket, copy)
        await check_lake(client, copy / "some/prefix")
        assert read_rows([f"{copy}/**/*.parquet"])


def _download(server: ObjectServer, bucket: str, folder: Path) -> None:
    s3 = server.client()
    for page in s3.get_paginator("list_objects_v2").paginate(Bucket=bucket):
        for found in page.get("Contents", []):
            target = folder / found["Key"]
            target.parent.mkdir(parents=True, exist_ok=True)
            s3.download_file(bucket, found["Key"], str(target))
