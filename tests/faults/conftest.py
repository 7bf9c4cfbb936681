"""Faults happen to the session's system, and must leave it usable for the next test."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest

from tests.system import Client

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
