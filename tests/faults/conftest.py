"""Faults happen to a system under load, and must leave it usable for the next test.

Most happen to the session's system; afterwards nothing acknowledged is missing and nothing is there twice, and where a
test asks `whole`, windows, roll-ups and lake say what PostgreSQL says.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest

from tests.lake_reading import check_lake
from tests.metric_client import SPENT, MetricClient, Onlooker

Watched = Callable[[], AbstractAsyncContextManager[list[Onlooker]]]


@pytest.fixture
def metric_client(metric_client: MetricClient) -> MetricClient:
    """With a metric that has dimensions."""
    metric_client.define(SPENT)
    return metric_client


@pytest.fixture
def watched(metric_client: MetricClient) -> Watched:
    """`async with watched() as onlookers`: two clients ask for a count while a load runs; the block's fault falls into
    it."""

    @asynccontextmanager
    async def run() -> AsyncIterator[list[Onlooker]]:
        onlookers = [
            Onlooker(metric_client, keeps_connection=False),
            Onlooker(metric_client, "load", {"granularity": "minute"}),
        ]
        asking = [asyncio.create_task(onlooker.run()) for onlooker in onlookers]
        try:
            async with metric_client.loading(workers=2, pause_s=0.04):
                yield onlookers
        finally:
            for task in asking:
                task.cancel()
            for result in await asyncio.gather(*asking, return_exceptions=True):
                assert isinstance(result, asyncio.CancelledError), result

    return run


async def check_whole(client: MetricClient) -> None:
    """Nothing acknowledged is missing in PostgreSQL, and metrics and lake have what PostgreSQL has."""
    await asyncio.to_thread(client.system.wait_healthy)
    await client.check()
    await check_lake(client, client.system.data / "lake")
    await client.settle_metrics()
