"""What answers of the metrics API take, from roll-ups in PostgreSQL and from the cache.

    python -m load_tests.measure_metrics_query [--groups 50] [--days 30] [--rounds 30]

An embedded PostgreSQL and Valkey hold the hours of `--days` days of a metric with `--groups` groups, and as much of
other metrics. Told is the median and the slowest of the rounds, in ms, from the plan to the JSON; HTTP is not in it;
`python -m load_tests.bench --only metric_query` measures it with all that.
"""

import argparse
import asyncio
import gc
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import msgspec

from config.settings import Settings
from gateway.answer_cache import AnswerCache
from gateway.metric_definitions import Known
from gateway.metric_query import Plan
from gateway.routes.read_metrics import MetricQuery, answer, make_plan
from gateway.services import Statistics
from gateway.statistics import open_statistics
from load_tests.rollup_rows import DAY_S, GROUPED, LATENCY, ROLLED_METRICS, SUM, UNIQUE, fill
from storage.aggregate import Aggregation
from storage.answer_cache import RedisAnswers
from storage.embedded.postgres import EmbeddedPostgres
from storage.embedded.valkey import EmbeddedValkey
from storage.metric_reads import MetricReads
from storage.migrate import migrate
from storage.postgres import Postgres

PROJECT = "shop.example"
START = 1_704_067_200
"""2024-01-01"""

NUMBERS: Sequence[Aggregation] = ("count", "sum", "mean", "min", "max")

METRICS = {each.name: Known(each, each, 1) for each in ROLLED_METRICS}


def plan_of(made: Statistics, metric: str, *, days: int, **parameters: str) -> Plan:
    end = START + days * DAY_S
    given = {"startTime": str(START * 1000), "endTime": str(end * 1000), "granularity": "hour", **parameters}
    return make_plan(made, msgspec.convert(given, MetricQuery), PROJECT, metric, METRICS, ())


async def measure(name: str, call: Callable[[], Awaitable[bytes]], rounds: int) -> None:
    taken = []
    for _ in range(rounds + 3):
        started = time.perf_counter()
        body = await call()
        taken.append((time.perf_counter() - started) * 1000)
    points = len(msgspec.json.decode(body)["points"])
    warm = taken[3:]
    print(f"{name:44} {points:7,} {len(body) / 1e6:6.2f} {statistics.median(warm):8.1f} {max(warm):8.1f}")


async def run(settings: Settings, *, days: int, groups: int, rounds: int) -> None:
    async with AsyncExitStack() as stack:
        store = settings.store
        postgres = Postgres(store.postgres_url, owner="measure", pool_size=4, deadline_s=60)
        stack.push_async_callback(postgres.close)
        made = open_statistics(settings, postgres, stack, worker=0)
        await fill(made.rollups, PROJECT, start=START, days=days, groups=groups)
        async with postgres.session() as connection:
            await connection.execute("ANALYZE metric_aggregates")
        kept = RedisAnswers(settings.log.redis_url, timeout_s=1.0)
        stack.push_async_callback(kept.close)
        uncached = replace(made, answers=AnswerCache(_KeepsNothing(kept), MetricReads(postgres), ttl_s=60))
        gc.freeze()
        print(f"{'':44} {'points':>7} {'MB':>6} {'median':>8} {'slowest':>8}")
        summed = plan_of(made, SUM.name, days=days, groupBy="country")
        plans = {
            f"{days} days of hours by {groups} groups, {aggregation}": replace(
                summed, definition=msgspec.structs.replace(SUM, aggregation=aggregation)
            )
            for aggregation in NUMBERS
        } | {
            f"{days} days of hours, count": plan_of(made, GROUPED.name, days=days),
            f"{days} days of hours, unique": plan_of(made, UNIQUE.name, days=days),
            f"{days} days of hours, p95": plan_of(made, LATENCY.name, days=days),
            f"{days} days, unique of hours merged": plan_of(made, UNIQUE.name, days=days, granularity="day"),
        }
        for name, plan in plans.items():

            async def from_rollups(plan: Plan = plan) -> bytes:
                return await answer(uncached, plan)

            async def from_cache(plan: Plan = plan) -> bytes:
                return await answer(made, plan)

            await measure(name, from_rollups, rounds)
            await measure("  from the cache", from_cache, rounds)


class _KeepsNothing:
    """The cache as it is when it never has the answer, without the cost of keeping it."""

    def __init__(self, store: RedisAnswers) -> None:
        self._store = store

    async def get(self, question: str) -> bytes | None:
        return await self._store.get(question + "never kept")

    async def put(self, question: str, answer: bytes, *, ttl_s: int) -> None:
        """Nothing."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--groups", type=int, default=50)
    parser.add_argument("--days", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=30)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        postgres = EmbeddedPostgres(Path(folder) / "postgres")
        valkey = EmbeddedValkey(Path(folder) / "valkey", max_memory_bytes=1 << 30)
        try:
            postgres.start()
            valkey.start()
            asyncio.run(migrate(postgres.url))
            settings = Settings()
            (Path(folder) / "gateway").mkdir()
            settings = msgspec.structs.replace(
                settings,
                data=folder,
                store=msgspec.structs.replace(settings.store, postgres_url=postgres.url),
                log=msgspec.structs.replace(settings.log, redis_url=valkey.url),
            )
            asyncio.run(run(settings, days=arguments.days, groups=arguments.groups, rounds=arguments.rounds))
        finally:
            valkey.stop()
            postgres.stop()


if __name__ == "__main__":
    main()
