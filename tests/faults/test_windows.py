"""Metrics under faults: every answer while it lasts, and every number afterwards."""

import asyncio
import contextlib
import os
import signal

import pytest

from tests.faults.conftest import Watched, check_whole
from tests.metric_client import MetricClient
from tests.system import RunningSystem

pytestmark = pytest.mark.timeout(240)

AGGREGATOR = "ray::AggregatorActor"


async def test_an_aggregator_killed_again_and_again(
    system: RunningSystem, metric_client: MetricClient, watched: Watched
) -> None:
    async with watched() as onlookers:
        for _ in range(3):
            before = [onlooker.answers for onlooker in onlookers]
            await asyncio.to_thread(system.kill, AGGREGATOR)
            await asyncio.to_thread(system.wait_windows)
            assert all(onlooker.answers > count for onlooker, count in zip(onlookers, before, strict=True))
    await check_whole(metric_client)
    for onlooker in onlookers:
        assert not onlooker.falls
        assert not onlooker.failures


async def test_a_stopped_aggregator_is_replaced_and_fenced(
    system: RunningSystem, metric_client: MetricClient, watched: Watched
) -> None:
    zombie = system.pid_of(AGGREGATOR)
    async with watched() as onlookers:
        os.kill(zombie, signal.SIGSTOP)
        try:
            await asyncio.to_thread(system.wait_for, AGGREGATOR, but=zombie)
            # Another one has the partitions when it comes back.
            await asyncio.to_thread(system.wait_windows)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(zombie, signal.SIGCONT)
    assert system.pid_of(AGGREGATOR) != zombie
    await check_whole(metric_client)
    assert [onlooker.falls for onlooker in onlookers] == [[], []]
    metric_client.check_logged()
