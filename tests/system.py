"""The whole system as a user starts it, and a client that keeps a record of every answer.

`RunningSystem` is one `analytics-actors up` on a data folder of its own; `Client` posts events under load and
remembers what was sent and what was acknowledged; `check` compares that record with PostgreSQL and the
ledger: nothing acknowledged is missing (NL-1), nothing is there twice (ND-1), nothing appears that
was never sent, and the ledger balances (LG-1).
"""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import psutil

from tests.plain_http import AsyncWeb, web

COMMAND = str(Path(sys.executable).with_name("analytics-actors"))
BATCH_EVENTS = 20
START_DEADLINE_S = 90.0
STOP_DEADLINE_S = 60.0

_NOT_NOW = f"{datetime.now(UTC) + timedelta(hours=12):%H:%M}"

FAST = {
    "ANALYTICS_GATEWAY_WORKERS": "2",
    "ANALYTICS_STORE_BATCH_INTERVAL_MS": "100",
    "ANALYTICS_GATEWAY_APPEND_DEADLINE_S": "1.0",
    "ANALYTICS_ACTORS_OBSERVE_INTERVAL_S": "0.5",
    "ANALYTICS_ACTORS_UNRESPONSIVE_AFTER_S": "4.0",
    "ANALYTICS_ACTORS_DASHBOARD": "false",
    "ANALYTICS_WINDOWS_CLOSE_AFTER_S": "3",
    "ANALYTICS_WINDOWS_RECOMPUTE_QUIET_S": "1",
    "ANALYTICS_WINDOWS_RECOMPUTE_WAIT_S": "10",
    "ANALYTICS_WINDOWS_WEBHOOK_HOSTS": "localhost",
    "ANALYTICS_LAKE_PART_INTERVAL_S": "1",
    "ANALYTICS_LAKE_COMPACT_QUIET_S": "100000",
    "ANALYTICS_LAKE_COMPACT_MAX_PARTS": "100000",
    "ANALYTICS_BATCH_RUN_AT": _NOT_NOW,
    "ANALYTICS_RETENTION_RUN_AT": _NOT_NOW,
}
"""Settings that make faults show, and heal, within seconds; windows close, late days are counted and files are written
soon, and stay as they were written; what is done once a day is done by command only, whatever the time. Two gateway
workers, so that what they tell one another is needed. The dashboard costs seconds of CPU with every start of Ray: one
module's system has it, as users do, and the tests of the node."""

PAUSE_S = 0.06
"""Between a worker's requests: some sixty a second in all, so that what was killed does not start beside a machine
that has no time."""


class RunningSystem:
    """Started by `start`, ended by `close` whatever happened to it meanwhile."""

    def __init__(
        self, data: Path, *, arguments: tuple[str, ...] = (), environment: dict[str, str] | None = None
    ) -> None:
        self.data = data
        self._arguments = arguments
        self._environment = os.environ | FAST | (environment or {})
        self._up: subprocess.Popen[bytes] | None = None
        self.connection: dict[str, Any] = {}

    def start(self, *arguments: str) -> None:
        """Return when everything is ready. The arguments are this start's alone."""
        self.data.mkdir(parents=True, exist_ok=True)
        log_path = self.data / "up.out"
        with log_path.open("ab") as log:
            self._up = subprocess.Popen(
                [COMMAND, "up", "--data", str(self.data), *self._arguments, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._environment,
                start_new_session=True,
            )
        until = time.monotonic() + START_DEADLINE_S
        while not self._is_ready():
            if self._up.poll() is not None or time.monotonic() > until:
                raise AssertionError(f"the system did not start:\n{log_path.read_text()[-4000:]}")
            time.sleep(0.1)

    def _is_ready(self) -> bool:
        try:
            self.connection = json.loads((self.data / "connection.json").read_text())
            if self._up is not None and self.connection["pid"] != self._up.pid:
                return False
            answer = web.get(f"{self.url}/readyz", timeout=2)
        except (OSError, ValueError, KeyError, httpx.HTTPError):
            return False
        return answer.status_code == 200 and set(answer.json()["parts"].values()) == {"ok"}

    def wait_healthy(self, *, deadline_s: float = 90.0) -> None:
        """Return when every part is well again."""
        until = time.monotonic() + deadline_s
        while not self._is_ready():
            if time.monotonic() > until:
                raise AssertionError(f"the system did not recover: {self.readiness()}")
            time.sleep(0.2)

    def readiness(self) -> Any:
        try:
            return web.get(f"{self.url}/readyz", timeout=5).json()
        except (httpx.HTTPError, ValueError) as error:
            return repr(error)

    def complaints(self, *, lines: int = 40) -> str:
        """The last warnings and errors of gateway, actors and `up`."""
        found = []
        for path in sorted((self.data / "logs").glob("*.log")):
            text = path.read_text(errors="replace").splitlines()
            warned = [line[:2000] for line in text if line.startswith("{") and '"level": "info"' not in line]
            found += [f"-- {path.name}", *warned[-lines:]] if warned else []
        return "\n".join(found)

    @property
    def url(self) -> str:
        return str(self.connection["gateway_url"])

    @property
    def up_pid(self) -> int:
        assert self._up is not None
        return self._up.pid

    def processes(self) -> Iterator[psutil.Process]:
        assert self._up is not None
        yield from psutil.Process(self._up.pid).children(recursive=True)

    def pids_of(self, *words: str) -> list[int]:
        """The processes of the system whose command lines have all the words, the oldest first."""
        found = []
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                line = " ".join(process.cmdline())
                if all(word in line for word in words):
                    found.append((process.create_time(), process.pid))
        return [pid for _, pid in sorted(found)]

    def pid_of(self, *words: str) -> int:
        """The one of them, or the oldest."""
        found = self.pids_of(*words)
        assert found, f"no process with {words} among {[p.name() for p in self.processes()]}"
        return found[0]

    def kill(self, *words: str, deadline_s: float = 60.0) -> None:
        """SIGKILL to `pid_of`; return when another process has its place."""
        # It may be on its way back from the time before.
        self.wait_for(*words, deadline_s=deadline_s)
        until = time.monotonic() + deadline_s
        before = self.pids_of(*words)
        os.kill(before[0], signal.SIGKILL)
        while before[0] in (after := self.pids_of(*words)) or len(after) < len(before):
            assert time.monotonic() < until, f"nothing comes in the place of {words}: {self.readiness()}"
            time.sleep(0.1)

    def wait_for(self, *words: str, but: int = 0, deadline_s: float = 90.0) -> int:
        """`pid_of` a process that is on its way, or comes in the place of that one: after a minute, where the
        controller has not seen that one open yet."""
        until = time.monotonic() + deadline_s
        while not (found := [each for each in self.pids_of(*words) if each != but]):
            assert time.monotonic() < until, f"there is no {words}: {self.readiness()}"
            time.sleep(0.1)
        return found[0]

    def signal_up(self, number: signal.Signals) -> None:
        assert self._up is not None
        self._up.send_signal(number)

    def wait_ended(self, *, deadline_s: float = STOP_DEADLINE_S) -> int:
        assert self._up is not None
        return self._up.wait(deadline_s)

    def cli(self, *arguments: str, check: bool = True, timeout_s: float = 120.0) -> "subprocess.CompletedProcess[str]":
        """Run a command of the command line against this system."""
        command = [COMMAND, *arguments, "--data", str(self.data)]
        done = subprocess.run(
            command, check=False, capture_output=True, text=True, timeout=timeout_s, env=self._environment
        )
        assert not check or done.returncode == 0, f"{arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    async def sql(self, query: str, *arguments: Any) -> list[asyncpg.Record]:
        """What PostgreSQL itself says."""
        connection = await asyncpg.connect(self.connection["postgres_url"])
        try:
            rows: list[asyncpg.Record] = await connection.fetch(query, *arguments)
        finally:
            await connection.close()
        return rows

    def aggregators(self) -> list[dict[str, Any]]:
        """By shard, what the controller knows of its aggregator; `view` is None while it does not answer. Shards
        whose aggregator was not looked at yet are left out."""
        return [shard["aggregator"] for shard in self.status()["shards"] if shard["aggregator"]]

    def status(self) -> dict[str, Any]:
        headers = {"Authorization": f"Bearer {self.connection['admin_key']}"}
        answer: dict[str, Any] = web.get(f"{self.url}/v1/status", headers=headers, timeout=10).json()
        return answer

    def wait_windows(self, *, deadline_s: float = 60.0) -> None:
        """Return when the windows of every partition are live."""
        until = time.monotonic() + deadline_s
        while True:
            found = self.aggregators()
            views = [each["view"] for each in found if each["view"]]
            if found and len(views) == len(found) and all(v["live_partitions"] == len(v["partitions"]) for v in views):
                return
            assert time.monotonic() < until, f"the windows do not come back: {found}"
            time.sleep(0.2)

    def close(self) -> None:
        """End everything that this system started; `down` also knows what a killed `up` has left."""
        if self._up is None:
            return
        if self._up.poll() is None:
            self._up.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._up.wait(STOP_DEADLINE_S)
        self.cli("down", check=False)
        if self._up.poll() is None:
            self._up.kill()
            self._up.wait()


@dataclass
class Client:
    """Posts events of one project and keeps the record: what was sent, what was acknowledged, how."""

    system: RunningSystem
    project: str = ""
    write_key: str = ""
    sent: set[str] = field(default_factory=set)
    acknowledged: set[str] = field(default_factory=set)
    statuses: Counter[int] = field(default_factory=Counter)
    acks: Counter[str] = field(default_factory=Counter)
    slowest_s: float = 0.0
    failures: Counter[str] = field(default_factory=Counter)

    def admin(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.system.connection['admin_key']}"}

    def create_project(self) -> None:
        self.project = f"faults-{uuid.uuid4().hex[:8]}"
        made = web.post(
            f"{self.system.url}/v1/projects",
            headers=self.admin(),
            json={"projectId": self.project, "keys": ["write"]},
            timeout=10,
        )
        assert made.status_code == 201, made.text
        self.write_key = made.json()["keys"][0]["key"]

    async def run(self, *, seconds: float, workers: int = 4, pause_s: float = PAUSE_S) -> None:
        """Post for so long."""
        over = asyncio.Event()
        asyncio.get_running_loop().call_later(seconds, over.set)
        await self.run_until(over, workers=workers, pause_s=pause_s)

    async def run_until(self, over: asyncio.Event, *, workers: int = 4, pause_s: float = PAUSE_S) -> None:
        """Post batches from several connections; each is retried until it is answered."""
        async with AsyncWeb(timeout=15, limits=httpx.Limits(max_connections=workers)) as http:
            await asyncio.gather(*(self._post_until(http, over, pause_s) for _ in range(workers)))

    async def _post_until(self, http: httpx.AsyncClient, over: asyncio.Event, pause_s: float) -> None:
        while not over.is_set():
            await self.post(http, [uuid.uuid4().hex for _ in range(BATCH_EVENTS)])
            await asyncio.sleep(pause_s)

    @contextlib.asynccontextmanager
    async def posting(self, *, workers: int = 4, pause_s: float = PAUSE_S) -> AsyncIterator[None]:
        """Events are posted while the block lasts."""
        over = asyncio.Event()
        load = asyncio.create_task(self.run_until(over, workers=workers, pause_s=pause_s))
        try:
            yield
        finally:
            over.set()
            await load

    @contextlib.asynccontextmanager
    async def loading(self, *, workers: int = 4, pause_s: float = PAUSE_S) -> AsyncIterator[None]:
        """`posting`, which begins before the block and ends when the system is well after it and has taken some more
        into the log. A fault in the block must have shown when the block ends."""
        async with self.posting(workers=workers, pause_s=pause_s):
            await self.wait_for_acks("logged", 20)
            yield
            await asyncio.to_thread(self.system.wait_healthy)
            await self.wait_for_acks("logged", 20)

    async def wait_for_acks(self, kind: str, more: int, *, deadline_s: float = 60.0) -> None:
        """While a load runs: until so many more requests were acknowledged in that way."""
        wanted = self.acks[kind] + more
        until = time.monotonic() + deadline_s
        while self.acks[kind] < wanted:
            assert time.monotonic() < until, f"{self.acks} {self.statuses} {self.failures} {self.system.readiness()}"
            await asyncio.sleep(0.02)

    def check_logged(self) -> None:
        """What is away has kept nothing from the log. On a busy machine some appends may miss their deadline all the
        same, which is a second here: those went to the spool."""
        assert self.acks["logged"] > 9 * (self.acks.total() - self.acks["logged"]), self.acks

    def event(self, event_id: str, n: int) -> dict[str, Any]:
        """The n-th event of a batch."""
        return {"eventId": event_id, "eventType": "load", "properties": {"n": n}}

    async def post(self, http: httpx.AsyncClient, event_ids: list[str], *, tries: int = 40) -> bool:
        """One batch; sent again, ids and all, while the answer is 503 or none. Whether it was acknowledged."""
        body = [self.event(event_id, n) for n, event_id in enumerate(event_ids)]
        self.sent |= set(event_ids)
        for _ in range(tries):
            started = time.monotonic()
            try:
                answer = await http.post(
                    f"{self.system.url}/v1/events/batch",
                    json=body,
                    headers={"Authorization": f"Bearer {self.write_key}"},
                )
            except httpx.HTTPError as error:
                self.failures[type(error).__name__] += 1
                await asyncio.sleep(0.2)
                continue
            self.slowest_s = max(self.slowest_s, time.monotonic() - started)
            self.statuses[answer.status_code] += 1
            if answer.status_code == 202:
                results = answer.json()
                assert results["rejected"] == 0, results
                self.acks[results["ack"]] += 1
                self.acknowledged |= set(event_ids)
                return True
            assert answer.status_code == 503, answer.text
            assert int(answer.headers["Retry-After"]) >= 1
            await asyncio.sleep(0.2)
        return False

    def ledger(self) -> dict[str, Any]:
        answer = web.get(
            f"{self.system.url}/v1/ledger", params={"projectId": self.project}, headers=self.admin(), timeout=10
        )
        assert answer.status_code == 200, answer.text
        result: dict[str, Any] = answer.json()
        return result

    def settle(self, *, deadline_s: float = 90.0) -> dict[str, Any]:
        """Wait until nothing is pending; the ledger then."""
        until = time.monotonic() + deadline_s
        while True:
            ledger = self.ledger()
            if ledger["pendingComplete"] and ledger["totals"]["pending"] == 0:
                # What is stored is read before what is pending: events that moved on in between are in neither.
                return self.ledger()
            assert time.monotonic() < until, f"still pending: {ledger['totals']} {self.system.readiness()}"
            time.sleep(0.2)

    async def stored(self) -> Counter[str]:
        """How often each event id of the project stands in PostgreSQL."""
        connection = await asyncpg.connect(self.system.connection["postgres_url"])
        try:
            rows = await connection.fetch("SELECT event_id FROM events_log WHERE project_id = $1", self.project)
        finally:
            await connection.close()
        return Counter(row["event_id"] for row in rows)

    async def check(self, *, lost: int = 0) -> dict[str, Any]:
        """Compare the record with PostgreSQL and the ledger. `lost`: events that the ledger must name as lost."""
        ledger = await asyncio.to_thread(self.settle)
        stored = await self.stored()
        missing = self.acknowledged - stored.keys()
        assert len(missing) == lost, f"{len(missing)} acknowledged events are missing"
        assert not [event_id for event_id, times in stored.items() if times > 1], "events are stored twice"
        assert not stored.keys() - self.sent, "events are stored that were never sent"
        totals = ledger["totals"]
        assert ledger["balanced"], ledger
        assert totals["stored"] == len(stored), (totals, len(stored))
        assert totals["lost"] == lost
        answer = await asyncio.to_thread(
            lambda: web.get(f"{self.system.url}/v1/ledger/check", headers=self.admin(), timeout=30)
        )
        assert answer.status_code == 200, answer.text
        assert answer.json()["differences"] == [], answer.text
        return ledger
