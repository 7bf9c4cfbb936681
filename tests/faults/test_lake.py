"""The lake under faults: afterwards it has each stored event once, whatever ended when."""

import asyncio
import contextlib
import os
import random
import signal
from pathlib import Path

import pytest

from tests.lake_reading import check_lake, exporters, files_in, wait_exported
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
