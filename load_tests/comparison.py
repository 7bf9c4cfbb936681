"""The system against its floors: rounds next to each other, medians over the rounds, ratios round by round.

The speed of a machine drifts. What is compared runs in turns, and a ratio is the median of the ratios of
neighbours, not the ratio of medians.
"""

import asyncio
import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from config.metrics import ACKS, SHARD_COUNTERS
from load_tests.events import EventMaker
from load_tests.floors import FloorServer, ScratchDatabase, columns_of
from load_tests.process_costs import Cost
from load_tests.rounds import (
    BATCH_100,
    BATCH_1000,
    SINGLE,
    PlainServer,
    Round,
    Server,
    SystemServer,
    Workload,
    keep_rate,
    saturate,
    warm_up,
)
from load_tests.running_system import RunningSystem, SystemFailed

COPY_ROWS = 20_000
SMALL_COPY_ROWS = 1000
MAX_COPIED_BODIES = 400
"""400,000 rows: some three seconds of COPY."""

Report = Callable[[str], None]


class Plan(NamedTuple):
    """How long and how often. `seconds` of each round."""

    seconds: float
    rounds: int
    warm_up_s: float


@dataclass
class Results:
    """Named numbers, units in the names; `costs` by workload, server and role."""

    figures: dict[str, float] = field(default_factory=dict)
    ratios: dict[str, float] = field(default_factory=dict)
    costs: dict[str, dict[str, dict[str, dict[str, float]]]] = field(default_factory=lambda: defaultdict(dict))


class _Log(NamedTuple):
    """What was appended to the event log, by one snapshot of the shards, which may be seconds old."""

    bytes: int
    events: int


class Comparison:
    """Each measurement is a method; they share one running system and one scratch database."""

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
        self._runner = runner
        self._system = system
        self._server = SystemServer(system)
        self._plan = plan
        self._maker = EventMaker(seed=seed)
        self._random = np.random.default_rng(seed)
        self._report = report
        self._scratch = ScratchDatabase(system.connection.postgres_url)
        runner.run(self._scratch.create())

    def single(self) -> None:
        """One event a request, against the plain handler and the bare route."""
        with self._plain("executemany") as executemany, self._plain("bare") as bare:
            rounds = self._in_turns(SINGLE, [self._server, executemany, bare])
        self._keep(SINGLE, rounds)
        self.results.figures["bare_single_requests_per_s"] = _median(r.requests_per_s for r in rounds["bare"])
        self._keep_ratio("single_vs_executemany", rounds, "executemany")

    def batch100(self) -> None:
        """100 events a request, against the plain handler."""
        with self._plain("executemany") as executemany:
            rounds = self._in_turns(BATCH_100, [self._server, executemany])
        self._keep(BATCH_100, rounds)
        self._keep_ratio("batch100_vs_executemany", rounds, "executemany")

    def batch1000(self) -> None:
        """1,000 events a request, against COPY of the same rows and the plain handler."""
        copied: list[float] = []
        copied_small: list[float] = []

        def copy(bodies: Sequence[bytes]) -> None:
            copied.append(self._copy(bodies[:MAX_COPIED_BODIES], rows_per_batch=COPY_ROWS))
            copied_small.append(self._copy(bodies[: MAX_COPIED_BODIES // 4], rows_per_batch=SMALL_COPY_ROWS))

        with self._plain("executemany") as executemany:
            rounds = self._in_turns(BATCH_1000, [self._server, executemany], between=copy)
        self._keep(BATCH_1000, rounds)
        self.results.figures[f"copy_{COPY_ROWS}_rows_stored_events_per_s"] = _median(copied)
        self.results.figures[f"copy_{SMALL_COPY_ROWS}_rows_stored_events_per_s"] = _median(copied_small)
        pairs = zip(rounds["system"], copied, strict=True)
        self.results.ratios["batch1000_vs_copy"] = _median(
            system.stored_events_per_s / floor for system, floor in pairs
        )
        self._keep_ratio("batch1000_vs_executemany", rounds, "executemany")

    def latency(self) -> None:
        """Single events at half of what `single` has found, at times of their own."""
        figures = self.results.figures
        saturation = figures.get("system_single_accepted_events_per_s") or self.saturation(
            SINGLE, seconds=self._plan.warm_up_s
        )
        rate = saturation / 2
        found = []
        for _ in range(self._plan.rounds):
            bodies = self._maker.bodies(math.ceil(rate * self._plan.seconds * 1.5), events_per_request=1)
            latency = self._runner.run(
                keep_rate(
                    self._server, SINGLE, bodies, requests_per_s=rate, seconds=self._plan.seconds, random=self._random
                )
            )
            found.append(latency)
            self._report(
                f"half load: {latency.requests_per_s:,.0f} requests/s, p50 {latency.p50_ms:.1f} ms, "
                f"p99 {latency.p99_ms:.1f} ms, worst {latency.worst_ms:.1f} ms"
            )
        figures["half_load_requests_per_s"] = _median(latency.requests_per_s for latency in found)
        figures["half_load_p50_ms"] = _median(latency.p50_ms for latency in found)
        figures["half_load_p99_ms"] = _median(latency.p99_ms for latency in found)
        figures["half_load_worst_ms"] = max(latency.worst_ms for latency in found)

    def saturation(
        self, workload: Workload, *, seconds: float, within: AbstractContextManager[object] | None = None
    ) -> float:
        """Requests a second that the system answers at most, tried for so long; `within` is entered when it begins."""
        return self._warm_up(self._server, workload, seconds=seconds, within=within)

    def finish(self) -> None:
        """Count what was stored. Raises `SystemFailed` when rows and ledger differ."""
        counted = self._runner.run(self._system.counted_events())
        stored = self._runner.run(self._system.stored_events())
        if counted != stored:
            raise SystemFailed(f"events_log has {counted} rows, the ledger says {stored}")
        self.results.figures["system_counted_events"] = counted
        self.results.figures["system_spooled_requests"] = self._system.metric(ACKS, ack="spooled")

    @contextmanager
    def _plain(self, kind: str) -> Iterator[PlainServer]:
        with FloorServer(kind, postgres=self._scratch if kind == "executemany" else None) as server:
            yield PlainServer(kind, server, self._system)

    def _in_turns(
        self,
        workload: Workload,
        servers: Sequence[Server],
        *,
        between: Callable[[Sequence[bytes]], None] | None = None,
    ) -> dict[str, list[Round]]:
        """Rounds of every server by its name. `between` comes after the first server of each turn."""
        log = self._log()
        speeds = {server.name: self._warm_up(server, workload, seconds=self._plan.warm_up_s) for server in servers}
        rounds: dict[str, list[Round]] = {server.name: [] for server in servers}
        for _ in range(self._plan.rounds):
            counts = {name: max(1, math.ceil(speed * self._plan.seconds)) for name, speed in speeds.items()}
            bodies = self._maker.bodies(max(counts.values()), events_per_request=workload.events_per_request)
            for server in servers:
                found = self._round(server, workload, bodies[: counts[server.name]])
                rounds[server.name].append(found)
                speeds[server.name] = found.stored_events_per_s / workload.events_per_request
                if between is not None and server is servers[0]:
                    between(bodies)
            self._runner.run(self._scratch.empty())
        after = self._log()
        bytes_per_event = (after.bytes - log.bytes) / (after.events - log.events)
        self.results.figures[f"system_{workload.name}_log_bytes_per_million_events"] = bytes_per_event * 1e6
        return rounds

    def _log(self) -> _Log:
        bytes_appended, events_appended = SHARD_COUNTERS["bytes_appended"], SHARD_COUNTERS["events_appended"]
        return _Log(self._system.metric(bytes_appended), self._system.metric(events_appended))

    def _warm_up(
        self,
        server: Server,
        workload: Workload,
        *,
        seconds: float,
        within: AbstractContextManager[object] | None = None,
    ) -> float:
        requests = math.ceil(workload.expected_events_per_s * seconds / workload.events_per_request)
        bodies = self._maker.bodies(requests, events_per_request=workload.events_per_request)
        with within or nullcontext():
            requests_per_s: float = self._runner.run(warm_up(server, workload, bodies, seconds=seconds))
        return requests_per_s

    def _round(self, server: Server, workload: Workload, bodies: Sequence[bytes]) -> Round:
        found = self._runner.run(saturate(server, self._scratch, workload, bodies, seconds=self._plan.seconds))
        self._report(
            f"{workload.name} {server.name}: {found.requests_per_s:,.0f} requests/s, "
            f"{found.accepted_events_per_s:,.0f} events/s accepted, {found.stored_events_per_s:,.0f} stored"
        )
        return found

    def _copy(self, bodies: Sequence[bytes], *, rows_per_batch: int) -> float:
        """Rows a second."""
        batches = columns_of(bodies, rows_per_batch=rows_per_batch)
        self._runner.run(self._scratch.checkpoint())
        rows: int = sum(batch.num_rows for batch in batches)
        seconds: float = self._runner.run(self._scratch.copy_s(batches))
        rows_per_s = rows / seconds
        self._report(f"COPY, {rows_per_batch:,} rows a transaction: {rows_per_s:,.0f} rows/s")
        return rows_per_s

    def _keep(self, workload: Workload, rounds: Mapping[str, Sequence[Round]]) -> None:
        """Figures and costs of a workload, for every server that stores."""
        figures = self.results.figures
        for name, found in rounds.items():
            self.results.costs[workload.name][name] = _median_costs(found)
            if name == "bare":
                continue
            prefix = f"{name}_{workload.name}"
            figures[f"{prefix}_accepted_events_per_s"] = _median(r.accepted_events_per_s for r in found)
            figures[f"{prefix}_stored_events_per_s"] = _median(r.stored_events_per_s for r in found)
            figures[f"{prefix}_wal_bytes_per_million_events"] = _median(r.wal_bytes * 1e6 / r.events for r in found)

    def _keep_ratio(self, name: str, rounds: Mapping[str, Sequence[Round]], floor: str) -> None:
        pairs = zip(rounds["system"], rounds[floor], strict=True)
        self.results.ratios[name] = _median(ours.stored_events_per_s / its.stored_events_per_s for ours, its in pairs)


def _median(values: Iterable[float]) -> float:
    return statistics.median(values)


def _median_costs(rounds: Sequence[Round]) -> dict[str, dict[str, float]]:
    """By role, a million events; memory as its peak."""
    roles = sorted({role for found in rounds for role in found.costs})
    return {role: _median_cost(role, rounds) for role in roles}


def _median_cost(role: str, rounds: Sequence[Round]) -> dict[str, float]:
    costs = [(found.costs.get(role, Cost()), found.events) for found in rounds]
    return {
        "cpu_s_per_million_events": _median(cost.cpu_s * 1e6 / events for cost, events in costs),
        "written_bytes_per_million_events": _median(cost.written_bytes * 1e6 / events for cost, events in costs),
        "pss_peak_bytes": _median(cost.pss_bytes for cost, _ in costs),
    }
