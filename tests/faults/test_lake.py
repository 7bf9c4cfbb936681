"""The lake under faults: afterwards it has each stored event once, whatever ended when."""

import asyncio
import contextlib
import os
import random
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest

from tests.lake_reading import check_lake, exporters, files_in, read_rows, wait_exported
from tests.object_servers import ObjectServer, start_moto
from tests.system import Client, RunningSystem

EXPORTER = "ray::Exporter"
CRASH_POINTS = ("planned", "one put", "put", "committed")

pytestmark = pytest.mark.timeout(240)


@pytest.fixture
def folder(system: RunningSystem) -> Path:
    return system.data / "lake"


async def check(client: Client, folder: Path) -> None:
    await asyncio.to_thread(client.system.wait_healthy)
    await client.check()
    await check_lake(client, folder)


async def test_an_exporter_killed_at_each_point_and_at_any(
    system: RunningSystem, client: Client, folder: Path, exporter_crash_file: Path
) -> None:
    await wait_exported(system)
    before = files_in(folder)
    rng = random.Random(4)
    async with client.loading():
        for point in CRASH_POINTS:
            exporter_crash_file.write_text(point)
            async with asyncio.timeout(60):
                while exporter_crash_file.exists():
                    await asyncio.sleep(0.05)
        for _ in range(3):
            await asyncio.sleep(rng.uniform(0.1, 1))
            await asyncio.to_thread(system.kill, EXPORTER)
    await check(client, folder)
    client.check_logged()
    known = {row["key"] for row in await system.sql("SELECT key FROM lake_files")}
    assert files_in(folder) - before <= known, "a plan is finished under its own names"


async def test_a_stopped_exporter_is_replaced_and_fenced(system: RunningSystem, client: Client, folder: Path) -> None:
    zombie = system.pid_of(EXPORTER)
    async with client.loading():
        os.kill(zombie, signal.SIGSTOP)
        try:
            await asyncio.to_thread(system.wait_for, EXPORTER, but=zombie)
            async with asyncio.timeout(60):
                while exporters(system)[0]["state"] != "open":
                    await asyncio.sleep(0.1)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(zombie, signal.SIGCONT)
    assert system.pid_of(EXPORTER) != zombie
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
            "ANALYTICS_GATEWAY_WORKERS": "1",
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
        await client.run(seconds=1, workers=2)
        moto.pause()
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
            moto.resume()
        await client.check()
        await wait_exported(system)
        assert set(client.statuses) == {202}
        client.check_logged()
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
