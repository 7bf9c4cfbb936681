"""One system for the tests of this folder: starting one takes ten seconds, and a fault must leave it usable."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest

from tests.system import Client, RunningSystem


@pytest.fixture(scope="session")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningSystem]:
    running = RunningSystem(tmp_path_factory.mktemp("system") / "data", arguments=("--port", "0"))
    try:
        running.start()
        yield running
    finally:
        running.close()


@pytest.fixture
def client(system: RunningSystem) -> Client:
    """A project of its own on a healthy system."""
    system.wait_healthy()
    made = Client(system)
    made.create_project()
    return made


UnderLoad = Callable[..., AbstractAsyncContextManager[None]]


@pytest.fixture
def under_load(client: Client) -> UnderLoad:
    """`async with under_load(seconds=…)`: the load runs for so long; the block's fault falls into it."""

    @asynccontextmanager
    async def run(*, seconds: float, warm_up_s: float = 1.0) -> AsyncIterator[None]:
        load = asyncio.create_task(client.run(seconds=seconds))
        await asyncio.sleep(warm_up_s)
        try:
            yield
        finally:
            await load

    return run
