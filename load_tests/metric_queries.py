"""What a month of hours by groups takes from the metrics API, asked by one client over one connection.

The roll-ups are written beforehand. A question that differs from all before in its `limit`, which is above the number
of groups, has the same points but is not in the result cache.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from urllib.parse import urlencode

import asyncpg

from load_tests.generator import Target, closed_loop
from load_tests.metrics_api import MetricsApi
from load_tests.rollup_rows import DAY_S, GROUPED, fill
from load_tests.running_system import Project, RunningSystem, SystemFailed
from storage.postgres import Postgres
from storage.postgres_rollups import PostgresRollups

DAYS, GROUPS = 30, 50
POINTS = DAYS * 24 * GROUPS
MOST_GROUPS = 1000
"""The largest `limit`."""
WARM_UP = 3
FILL_DEADLINE_S = 60.0
QUERY_DEADLINE_S = 10.0
"""For each question on average."""

Parameters = Mapping[str, str | int]


@dataclass
class Answers:
    """Times in seconds, one an answer, to its last byte."""

    first_s: list[float] = field(default_factory=list)
    """Of a project that was never asked for: neither result cache nor plans."""
    rollups_s: list[float] = field(default_factory=list)
    """Each a question of its own, made from roll-ups."""
    repeated_s: list[float] = field(default_factory=list)
    """The same question again and again."""
    repeated_cached: bool = False
    """Whether the result cache had it. It does not keep answers that are too large for it."""
    total_s: list[float] = field(default_factory=list)
    """The same range without groups, again and again."""
    total_cached: bool = False


class Questions:
    """About one project with roll-ups of its own: make it by `prepare`."""

    def __init__(self, system: RunningSystem, project: Project, start: int) -> None:
        self._target = system.targets(batch=False)[0]
        self._project = project
        self._api = MetricsApi(system, project)
        self._start = start

    @classmethod
    async def prepare(cls, system: RunningSystem, project: Project) -> "Questions":
        """Define the metric and write its roll-ups, of days that live windows have no part in."""
        start = (int(time.time()) // DAY_S - 1 - DAYS) * DAY_S
        url = system.connection.postgres_url
        postgres = Postgres(url, owner="bench", pool_size=1, deadline_s=FILL_DEADLINE_S)
        try:
            rollups = PostgresRollups(postgres, partitions=system.settings.log.partitions)
            await fill(rollups, project.project_id, start=start, days=DAYS, groups=GROUPS)
        finally:
            await postgres.close()
        connection = await asyncpg.connect(url)
        try:
            # As autovacuum does within a minute.
            await connection.execute("ANALYZE metric_aggregates")
        finally:
            await connection.close()
        questions = cls(system, project, start)
        questions._api.define([GROUPED])
        return questions

    async def ask(self, queries: int) -> Answers:
        """`queries` of each kind. Raises `SystemFailed` for an answer that is not the expected one."""
        found = Answers()
        grouped: Parameters = {"groupBy": "country", "limit": GROUPS}
        found.first_s = await self._times([grouped])
        self._check(grouped, POINTS)
        limits = range(GROUPS + 1, min(GROUPS + 1 + WARM_UP + queries, MOST_GROUPS + 1))
        found.rollups_s = (await self._times([{**grouped, "limit": limit} for limit in limits]))[WARM_UP:]
        found.repeated_s = (await self._times([grouped] * (WARM_UP + queries)))[WARM_UP:]
        found.repeated_cached = self._check(grouped, POINTS)
        found.total_s = (await self._times([{}] * (WARM_UP + queries)))[WARM_UP:]
        found.total_cached = self._check({}, DAYS * 24)
        return found

    def _parameters(self, more: Parameters) -> Parameters:
        end = self._start + DAYS * DAY_S
        return {"startTime": self._start * 1000, "endTime": end * 1000, "granularity": "hour", **more}

    def _check(self, more: Parameters, points: int) -> bool:
        """Whether the answer came from the result cache."""
        found = self._api.ask(GROUPED.name, **self._parameters(more))
        if found.points != points or found.degraded or not found.total:
            raise SystemFailed(f"not the answer from {points} windows: {found}")
        return found.from_cache

    async def _times(self, questions: Sequence[Parameters]) -> list[float]:
        requests = [self._request(more) for more in questions]
        outcome = await closed_loop(self._target, requests, connections=1, deadline_s=QUERY_DEADLINE_S * len(requests))
        if set(outcome.statuses) != {200}:
            raise SystemFailed(f"not every answer was 200: {dict(outcome.statuses)}")
        return outcome.latencies_s

    def _request(self, more: Parameters) -> bytes:
        path = f"/v1/metrics/{GROUPED.name}?{urlencode(self._parameters(more))}"
        return get_request(self._target, path, self._project.read_key)


def get_request(target: Target, path: str, key: str) -> bytes:
    """To the target's server; path and key of its own."""
    return (f"GET {path} HTTP/1.1\r\nHost: {target.host}:{target.port}\r\nAuthorization: Bearer {key}\r\n\r\n").encode()
