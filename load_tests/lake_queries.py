"""A day's events counted by type: through POST /v1/query, and by DuckDB alone on the same files.

They take turns, each alone: between two of them the system has time to start the process that waits for its next
query. DuckDB has as many threads, and a database of its own each time, so that neither has anything in memory but what
the kernel has of the files.
"""

import datetime as dt
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import duckdb
import httpx

from load_tests.figures import median
from load_tests.generator import Clock
from load_tests.lake_day import LakeDay
from load_tests.running_system import Project, RunningSystem, SystemFailed

DEADLINE_S = 60.0
SETTLE_S = 0.7
"""A process of the sandbox is ready after 0.3 s of two idle cores."""
_COUNT = """
    SELECT event_type, count(*) FROM {table}
    WHERE {project}timestamp >= TIMESTAMPTZ '{start}' AND timestamp < TIMESTAMPTZ '{end}' GROUP BY event_type
"""


@dataclass
class Turns:
    """Times in seconds, one a query, to the last row."""

    first_s: float = 0.0
    """Of the system's first query: nothing was started or opened before."""
    system_s: list[float] = field(default_factory=list)
    duckdb_s: list[float] = field(default_factory=list)

    @property
    def ratio(self) -> float:
        """The system's time in DuckDB's, the median over neighbours."""
        pairs = zip(self.system_s, self.duckdb_s, strict=True)
        return median(system_s / duckdb_s for system_s, duckdb_s in pairs)


class DayCounts:
    """The same question to both. An answer that is not the expected one is `SystemFailed`."""

    def __init__(
        self, system: RunningSystem, project: Project, day: LakeDay, *, clock: Clock = time.perf_counter
    ) -> None:
        self._url = system.connection.gateway_url
        self._project = project
        self._day = day
        self._threads = system.settings.query.threads
        self._clock = clock

    def ask(self, turns: int) -> Turns:
        found = Turns()
        headers = {"Authorization": f"Bearer {self._project.read_key}"}
        # One connection: all questions go to the same worker.
        limits = httpx.Limits(max_connections=1, keepalive_expiry=DEADLINE_S)
        with httpx.Client(base_url=self._url, headers=headers, timeout=DEADLINE_S, limits=limits) as client:
            client.get("/healthz")
            found.first_s = self._system_s(client)
            self._duckdb_s()
            for _ in range(turns):
                time.sleep(SETTLE_S)
                found.system_s.append(self._system_s(client))
                time.sleep(SETTLE_S)
                found.duckdb_s.append(self._duckdb_s())
        return found

    def _system_s(self, client: httpx.Client) -> float:
        question = {"sql": count_by_type(self._day.start)}
        started_s = self._clock()
        answer = client.post("/v1/query", json=question)
        seconds = self._clock() - started_s
        if answer.status_code != 200:
            raise SystemFailed(f"/v1/query: {answer.status_code} {answer.text[:500]}")
        self._check({str(name): int(events) for name, events in answer.json()["rows"]})
        return seconds

    def _duckdb_s(self) -> float:
        sql = count_by_type(
            self._day.start, table="read_parquet($1, hive_partitioning = false)", project_id=self._project.project_id
        )
        with duckdb.connect(config={"threads": self._threads}) as connection:
            started_s = self._clock()
            rows = connection.execute(sql, [self._day.paths]).fetchall()
            seconds = self._clock() - started_s
        self._check(dict(rows))
        return seconds

    def _check(self, found: Mapping[str, int]) -> None:
        if found != self._day.events_by_type:
            raise SystemFailed(f"counted {found} instead of {self._day.events_by_type}")


def count_by_type(start: dt.datetime, *, table: str = "events", project_id: str = "") -> str:
    """SQL for the day from `start` on; the system knows whose events are asked for."""
    project = f"project_id = '{project_id}' AND " if project_id else ""
    end = start + dt.timedelta(days=1)
    return _COUNT.format(table=table, project=project, start=start.isoformat(), end=end.isoformat())
