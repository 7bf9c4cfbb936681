"""The system against its floors: rounds next to each other, medians over the rounds, ratios round by round.

The speed of a machine drifts. What is compared runs in turns, and a ratio is the median of the ratios of
neighbours, not the ratio of medians. Every server is measured at the number of connections that suits it best,
out of the same ones: found by attempts whose results are kept apart (`attempts`) and are in no figure.
The floors' table is emptied after each turn and the system's is not, which favours the floors if anybody.
"""

import asyncio
import math
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import NamedTuple, TypeVar

import numpy as np

from config.metrics import ACKS, SHARD_COUNTERS
from load_tests.events import EventMaker
from load_tests.figures import Results, median, stored_events_per_s
from load_tests.floors import FloorServer, ScratchDatabase, columns_of
from load_tests.rounds import (
    BATCH_100,
    BATCH_1000,
    SINGLE,
    Latency,
    PlainServer,
    Round,
    Server,
    Speed,
    SystemServer,
    Workload,
    attempt,
    keep_rate,
    saturate,
)
from load_tests.running_system import RunningSystem
from load_tests.schedule import poisson_offsets_s

COPY_ROWS = 20_000
SMALL_COPY_ROWS = 1000
WARM_UP_S = 2.0
MAX_COPIED_BODIES = 400
"""400,000 rows: some three seconds of COPY."""

Report = Callable[[str], None]
Found = TypeVar("Found")


class Plan(NamedTuple):
    """How long and how often: `seconds` of a round, `attempt_s` of each attempt to find the best number of
    connections, of which `skip` are left out before every one that is tried. `requests_per_s` is the half load, when
    it is not to be half of what was measured."""

    seconds: float
    rounds: int
    attempt_s: float
    skip: int
    requests_per_s: float | None = None


class _Log(NamedTuple):
    """What was appended to the event log, by one snapshot of the shards, which may be seconds old."""

    bytes: float
    events: float


class Comparison:
    """Each measurement is a method; they share one running system and one scratch database. Those of the windows are
    in `load_tests.window_measurements`, those of the lake in `load_tests.lake_measurements`."""

    def __init__(
        self,
        runner: asyncio.Runner,
        system: RunningSystem,
        plan: Plan,
        *,
        seed: int,
        report: Report,
    ) -> None:
        self.results = Results()
        self.runner = runner
        self.system = system
        self._server = SystemServer(system)
        self.plan = plan
        self._maker = EventMaker(seed=seed)
        self._random = np.random.default_rng(seed)
        self.report = report
        self._tried: dict[str, Speed] = {}
        self._scratch = ScratchDatabase(system.connection.postgres_url)
        runner.run(self._scratch.create())

    def single(self) -> None:
        """One event a request, against the plain handler and the bare route."""
        with self.plain("executemany") as executemany, self.plain("bare") as bare:
            rounds = self._beside_floors(SINGLE, [executemany, bare])
        self.results.keep_ratio("single_vs_executemany", rounds["system"], stored_events_per_s(rounds["executemany"]))

    def batch100(self) -> None:
        """100 events a request, against the plain handler."""
        with self.plain("executemany") as executemany:
            rounds = self._beside_floors(BATCH_100, [executemany])
        self.results.keep_ratio("batch100_vs_executemany", rounds["system"], stored_events_per_s(rounds["executemany"]))

    def batch1000(self) -> None:
        """1,000 events a request, against COPY of the same rows and the plain handler."""
        copied: list[float] = []
        copied_small: list[float] = []

        def copy(bodies: Sequence[bytes]) -> None:
            copied.append(self._copy(bodies[:MAX_COPIED_BODIES], rows_per_batch=COPY_ROWS))
            copied_small.append(self._copy(bodies[: MAX_COPIED_BODIES // 4], rows_per_batch=SMALL_COPY_ROWS))

        with self.plain("executemany") as executemany:
            rounds = self._beside_floors(BATCH_1000, [executemany], between=copy)
        results = self.results
        results.figures[f"copy_{COPY_ROWS}_rows_stored_events_per_s"] = median(copied)
        results.figures[f"copy_{SMALL_COPY_ROWS}_rows_stored_events_per_s"] = median(copied_small)
        results.keep_ratio("batch1000_vs_copy", rounds["system"], copied)
        results.keep_ratio("batch1000_vs_executemany", rounds["system"], stored_events_per_s(rounds["executemany"]))

    def latency(self) -> None:
        """Single events at half of what `single` has found. The bare route at the same rate shows what of
        that is the generator and HTTP, the durable one what of it is the disk."""
        rate = self.half_load()
        with self.plain("bare") as bare, self.plain("durable") as durable:
            servers: dict[str, Server] = {
                "half_load": self._server,
                "bare_half_load": bare,
                "durable_half_load": durable,
            }
            found: dict[str, list[Latency]] = {prefix: [] for prefix in servers}
            for _ in range(self.plan.rounds):
                for prefix, server in servers.items():
                    found[prefix].append(self.at_rate(server, rate))
        for prefix, latencies in found.items():
            self.results.keep_latency(prefix, latencies)

    def half_load(self, workload: Workload = SINGLE) -> float:
        """The plan's, or half of what was found in requests a second, or of what attempts find."""
        if self.plan.requests_per_s:
            return self.plan.requests_per_s
        measured = self.results.figures.get(f"system_{workload.name}_requests_per_s")
        if measured is None:
            if workload.name not in self._tried:
                self._tried[workload.name] = self.saturation(workload)
            measured = self._tried[workload.name].requests_per_s
        return measured / 2

    def at_half_load(self, beside: Callable[[float], Awaitable[Found]]) -> tuple[Latency, Found]:
        """Single events at half load, and `beside` it what is given so many seconds, once the load is steady."""
        rate, seconds = self.half_load(), self.plan.seconds
        self.runner.run(self._steady(self._server, rate, WARM_UP_S))

        async def both() -> tuple[Latency, Found]:
            return await asyncio.gather(self._steady(self._server, rate, seconds), beside(seconds))

        return self.runner.run(both())

    def _steady(
        self, server: Server, requests_per_s: float, seconds: float, workload: Workload = SINGLE
    ) -> Coroutine[None, None, Latency]:
        offsets_s = poisson_offsets_s(requests_per_s, seconds, random=self._random)
        bodies = self._maker.bodies(len(offsets_s), events_per_request=workload.events_per_request)
        return keep_rate(server, workload, bodies, offsets_s)

    def at_rate(self, server: Server, requests_per_s: float, workload: Workload = SINGLE) -> Latency:
        """Steady load: what the saturating rounds before have left behind is written to disk, and worked off in a while
        of the same load."""
        self.runner.run(self._scratch.checkpoint())
        for seconds in (WARM_UP_S, self.plan.seconds):
            latency: Latency = self.runner.run(self._steady(server, requests_per_s, seconds, workload))
        self.report(
            f"half load {server.name}: {latency.requests_per_s:,.0f} requests/s, p50 {latency.p50_ms:.1f} ms, "
            f"p99 {latency.p99_ms:.1f} ms, worst {latency.worst_ms:.1f} ms"
        )
        return latency

    def saturation(self, workload: Workload, server: Server | None = None) -> Speed:
        """What the server answers at most, or the system."""
        return self._best(server or self._server, workload)

    def attempt(
        self, workload: Workload, *, connections: int, seconds: float, within: AbstractContextManager[object]
    ) -> Speed:
        """What the system answers with so many connections; `within` is entered when the sending begins."""
        bodies = self._bodies_for(workload, seconds)
        with within:
            return self._attempt(self._server, workload, connections, bodies, seconds)

    def finish(self) -> None:
        """Count what was stored. Raises `SystemFailed` when rows and ledger differ."""
        self.results.figures["system_counted_events"] = self.runner.run(self.system.check_counts())
        self.results.figures["system_spooled_requests"] = self.system.metric(ACKS, ack="spooled")

    @contextmanager
    def plain(self, kind: str, *, name: str = "") -> Iterator[PlainServer]:
        """A floor; its figures go by `name`, or by its kind."""
        with FloorServer(kind, postgres=self._scratch if kind == "executemany" else None) as server:
            yield PlainServer(name or kind, server, self.system)

    def _beside_floors(
        self,
        workload: Workload,
        floors: Sequence[Server],
        *,
        between: Callable[[Sequence[bytes]], None] | None = None,
    ) -> dict[str, list[Round]]:
        """Rounds of the system and of the floors."""
        log = self._log()
        rounds = self.in_turns(workload, [self._server, *floors], checkpoint=self._scratch.checkpoint, between=between)
        after = self._log()
        bytes_per_event = (after.bytes - log.bytes) / (after.events - log.events)
        self.results.figures[f"system_{workload.name}_log_bytes_per_million_events"] = bytes_per_event * 1e6
        return rounds

    def in_turns(
        self,
        workload: Workload,
        servers: Sequence[Server],
        *,
        checkpoint: Callable[[], Awaitable[None]],
        between: Callable[[Sequence[bytes]], None] | None = None,
    ) -> dict[str, list[Round]]:
        """Rounds of every server by its name, kept in the results. `checkpoint` is called before each round: of all
        databases that are used. `between` comes after the first server of each turn."""
        speeds = {server.name: self._best(server, workload) for server in servers}
        rounds: dict[str, list[Round]] = {server.name: [] for server in servers}
        for _ in range(self.plan.rounds):
            counts = {name: self._requests_of_a_round(speed) for name, speed in speeds.items()}
            bodies = self._maker.bodies(max(counts.values()), events_per_request=workload.events_per_request)
            for server in servers:
                speed = speeds[server.name]
                found = self._round(server, checkpoint, workload, bodies[: counts[server.name]], speed.connections)
                rounds[server.name].append(found)
                stored_requests_per_s = found.stored_events_per_s / workload.events_per_request
                speeds[server.name] = speed._replace(requests_per_s=stored_requests_per_s)
                if between is not None and server is servers[0]:
                    between(bodies)
            self.runner.run(self._scratch.empty())
        self.results.keep_rounds(workload, rounds)
        return rounds

    def _log(self) -> _Log:
        bytes_appended, events_appended = SHARD_COUNTERS["bytes_appended"], SHARD_COUNTERS["events_appended"]
        return _Log(self.system.metric(bytes_appended), self.system.metric(events_appended))

    def _best(self, server: Server, workload: Workload) -> Speed:
        """The best number of connections for a server. Each is tried on the way up and on the way down, and its better
        attempt counts: the disk stands still for longer than half of an attempt now and then, and the first is cold."""
        seconds = self.plan.attempt_s
        numbers = workload.connections[self.plan.skip :: self.plan.skip + 1]
        attempts = [
            self._attempt(server, workload, connections, self._bodies_for(workload, seconds), seconds)
            for connections in (*numbers, *reversed(numbers))
        ]
        pairs = zip(attempts, reversed(attempts), strict=True)
        tried = [max(pair, key=lambda speed: speed.requests_per_s) for pair in pairs][: len(numbers)]
        self.results.keep_attempts(workload, server.name, tried)
        best = max(tried, key=lambda speed: speed.requests_per_s)
        self.report(f"{workload.name} {server.name}: {best.connections} connections suit it best")
        return best

    def _attempt(
        self, server: Server, workload: Workload, connections: int, bodies: Sequence[bytes], seconds: float
    ) -> Speed:
        speed: Speed = self.runner.run(attempt(server, workload, bodies, connections=connections, seconds=seconds))
        return speed

    def _bodies_for(self, workload: Workload, seconds: float) -> list[bytes]:
        """More than can be sent in that time."""
        requests = math.ceil(workload.expected_events_per_s * seconds / workload.events_per_request)
        return self._maker.bodies(requests, events_per_request=workload.events_per_request)

    def _requests_of_a_round(self, speed: Speed) -> int:
        return max(1, math.ceil(speed.requests_per_s * self.plan.seconds))

    def _round(
        self,
        server: Server,
        checkpoint: Callable[[], Awaitable[None]],
        workload: Workload,
        bodies: Sequence[bytes],
        connections: int,
    ) -> Round:
        found: Round = self.runner.run(
            saturate(server, checkpoint, workload, bodies, connections=connections, seconds=self.plan.seconds)
        )
        self.report(
            f"{workload.name} {server.name}: {found.requests_per_s:,.0f} requests/s, "
            f"{found.accepted_events_per_s:,.0f} events/s accepted, {found.stored_events_per_s:,.0f} stored"
        )
        return found

    def _copy(self, bodies: Sequence[bytes], *, rows_per_batch: int) -> float:
        """Rows a second."""
        batches = columns_of(bodies, rows_per_batch=rows_per_batch)
        self.runner.run(self._scratch.checkpoint())
        rows: int = sum(batch.num_rows for batch in batches)
        seconds: float = self.runner.run(self._scratch.copy_s(batches))
        rows_per_s = rows / seconds
        self.report(f"COPY, {rows_per_batch:,} rows a transaction: {rows_per_s:,.0f} rows/s")
        return rows_per_s
