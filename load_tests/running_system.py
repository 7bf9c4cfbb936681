"""The system under load: started by its own command line on a temporary data folder, stopped by it as well."""

import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import asyncpg
import httpx
from prometheus_client.parser import text_string_to_metric_families

from analytics_actors.up.connection import Connection
from analytics_actors.up.folder import DataFolder
from config.metrics import Metric
from config.settings import Settings
from load_tests.generator import Clock, Target
from load_tests.process_costs import Processes, processes_under

START_DEADLINE_S = 180.0
STOP_DEADLINE_S = 240.0
STORED_DEADLINE_S = 120.0
POLL_INTERVAL_S = 0.01
_PATHS = {False: "/v1/events", True: "/v1/events/batch"}


class SystemFailed(Exception):
    """The system did not do what a measurement needs; the message says what."""


class Project(NamedTuple):
    """A project of a running system, and keys to it."""

    project_id: str
    write_key: str
    read_key: str


class RunningSystem:
    """A context manager: runs within the block, is stopped and its data removed at the end, also after a failure."""

    def __init__(
        self, *, projects: int, settings: Sequence[str] = (), environment: Mapping[str, str] | None = None
    ) -> None:
        """`settings`: NAME=VALUE for `up --set`; `environment` is added to our own."""
        self._projects = projects
        self._environment = os.environ | (environment or {})
        self._words = [word for setting in settings for word in ("--set", setting)]
        self.projects: list[Project] = []
        """That the load goes to."""
        self.data: Path
        self.connection: Connection

    def __enter__(self) -> "RunningSystem":
        self.data = Path(tempfile.mkdtemp(prefix="analytics-bench-"))
        try:
            self._command("up", "--detach", "--port", "0", *self._words, deadline_s=START_DEADLINE_S)
            connection = Connection.load(self.data / "connection.json")
            if connection is None:
                raise SystemFailed("`up` returned and left no connection.json")
            self.connection = connection
            self.projects = [self.create_project(f"bench-{number}") for number in range(self._projects)]
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def _stop(self) -> None:
        self._command("down", deadline_s=STOP_DEADLINE_S)
        shutil.rmtree(self.data)

    def _command(self, name: str, *arguments: str, deadline_s: float) -> None:
        command = [sys.executable, "-m", "analytics_actors.cli", name, "--data", str(self.data), *arguments]
        # A session of its own: a Ctrl-C at the terminal is for us, and then `down` is run.
        done = subprocess.run(
            command,
            check=False,
            capture_output=True,
            text=True,
            timeout=deadline_s,
            start_new_session=True,
            env=self._environment,
        )
        if done.returncode != 0:
            raise SystemFailed(f"`{name}` ended with {done.returncode}:\n{done.stdout[-1000:]}{done.stderr[-2000:]}")

    @cached_property
    def settings(self) -> Settings:
        """Those that all of its processes run on."""
        return Settings.from_json(DataFolder(self.data).settings_file.read_bytes())

    def create_project(self, project_id: str) -> Project:
        made = httpx.post(
            f"{self.connection.gateway_url}/v1/projects",
            headers={"Authorization": f"Bearer {self.connection.admin_key}"},
            json={"projectId": project_id, "keys": ["write", "read"]},
            timeout=10,
        )
        if made.status_code != 201:
            raise SystemFailed(f"project {project_id} was not made: {made.status_code} {made.text}")
        write, read = made.json()["keys"]
        return Project(project_id, write["key"], read["key"])

    def targets(self, *, batch: bool) -> list[Target]:
        """Where to post: one for each project."""
        url = urlsplit(self.connection.gateway_url)
        assert url.hostname is not None
        assert url.port is not None
        return [Target(url.hostname, url.port, _PATHS[batch], key) for _, key, _ in self.projects]

    def processes(self) -> Processes:
        return processes_under(self.connection.pid)

    async def stored_events(self) -> int:
        """Events that PostgreSQL has, by the ledger: it is written in the transaction that stores them."""
        return await self._ask("SELECT coalesce(sum(stored), 0)::bigint FROM ledger")

    async def counted_events(self) -> int:
        """The same by counting the rows."""
        return await self._ask("SELECT count(*) FROM events_log")

    async def check_counts(self) -> int:
        """Events that are stored. Raises `SystemFailed` when rows and ledger differ."""
        counted, stored = await self.counted_events(), await self.stored_events()
        if counted != stored:
            raise SystemFailed(f"events_log has {counted} rows, the ledger says {stored}")
        return counted

    async def checkpoint(self) -> None:
        """Of the whole PostgreSQL server: what is written next begins with no dirty pages and no WAL."""
        connection = await asyncpg.connect(self.connection.postgres_url)
        try:
            await connection.execute("CHECKPOINT")
        finally:
            await connection.close()

    async def _ask(self, query: str) -> int:
        connection = await asyncpg.connect(self.connection.postgres_url)
        try:
            return int(await connection.fetchval(query))
        finally:
            await connection.close()

    async def wait_stored(self, events: int, *, clock: Clock) -> float:
        """When that many events in all were seen in PostgreSQL. Raises `SystemFailed` when they do not come."""
        connection = await asyncpg.connect(self.connection.postgres_url)
        query = await connection.prepare("SELECT coalesce(sum(stored), 0)::bigint FROM ledger")
        until_s = clock() + STORED_DEADLINE_S
        try:
            while (stored := int(await query.fetchval())) < events:
                if clock() > until_s:
                    raise SystemFailed(f"{stored} of {events} accepted events are stored after {STORED_DEADLINE_S} s")
                await asyncio.sleep(POLL_INTERVAL_S)
            return clock()
        finally:
            await connection.close()

    async def wal_bytes(self) -> int:
        """Where the server's WAL ends: the difference of two is what was written between them."""
        return await self._ask("SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::bigint")

    def metric(self, metric: Metric, **labels: str) -> float:
        """The sum of a metric's samples that have the labels, from the gateway's /metrics."""
        answer = httpx.get(f"{self.connection.gateway_url}/metrics", timeout=10).raise_for_status()
        name = f"{metric.name}_total" if metric.kind == "counter" else metric.name
        return sum(
            sample.value
            for family in text_string_to_metric_families(answer.text)
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )
