"""The measurements of the lake: all sinks at once, SQL over ten million events, an object store that is slow.

Each starts a system of its own, with the lake on; in the systems of all other measurements it is off.
"""

import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

from config.metrics import LAKE_COUNTERS
from load_tests.comparison import Comparison
from load_tests.figures import Results, cpu_us_per_event, median, stored_events_per_s
from load_tests.lake import LogWatch, lake_use, wait_exported
from load_tests.lake_day import fill_day
from load_tests.lake_queries import DayCounts
from load_tests.metrics_api import MetricsApi
from load_tests.rounds import BATCH_100, Latency, SystemServer
from load_tests.running_system import RunningSystem, SystemFailed
from load_tests.slow_store import SlowStore
from load_tests.window_measurements import define_load_metrics

PART_INTERVAL_S = 1.0
"""A round ends when its last part is in the lake; by default that would be up to a minute of waiting."""
KEEPER_INTERVAL_S = 5.0
"""The next server's turn begins when what is to be merged is; by default that, too, would be a minute of waiting."""
NO_COMPACTION = "lake.compact_max_parts=1000000"
QUERIED_EVENTS = 10_000_000
QUERIES_PER_S = 1.0
"""For each second of all rounds: some 45 in a full run."""
SLOW = 10.0
"""Times that the object store is slower."""
SLOW_LAKE_LOG_BYTES = 64 << 20
"""The bound of the log: small, so that a lake that holds it back is seen within a round."""

_BESIDE_ALL_SINKS = "executemany_all_sinks"


class LakeMeasurements:
    """Each measurement is a method."""

    def __init__(self, comparison: Comparison, *, projects: int, settings: Sequence[str]) -> None:
        """`projects` and `settings` (NAME=VALUE) are for the systems that are started."""
        self._comparison = comparison
        self._projects = projects
        self._settings = [*settings, "windows.enabled=true", "lake.enabled=true"]

    def all_sinks(self) -> None:
        """100 events a request into PostgreSQL, windows of ten metrics beside the built-in ones, and the lake, against
        the plain handler. A round ends when the last event is in all three."""
        comparison = self._comparison
        intervals = [f"lake.part_interval_s={PART_INTERVAL_S}", f"lake.keeper_interval_s={KEEPER_INTERVAL_S}"]
        with (
            RunningSystem(projects=self._projects, settings=[*self._settings, *intervals]) as system,
            comparison.plain("executemany", name=_BESIDE_ALL_SINKS) as executemany,
        ):
            define_load_metrics(system)

            async def checkpoint() -> None:
                await system.checkpoint()
                await comparison.system.checkpoint()

            all_sinks = SystemServer(system, name="all_sinks", until="exported")
            with LogWatch(system) as log:
                rounds = comparison.in_turns(BATCH_100, [all_sinks, executemany], checkpoint=checkpoint)
            self._keep(comparison.results, system, log)
        floor = stored_events_per_s(rounds[_BESIDE_ALL_SINKS])
        comparison.results.keep_ratio("batch100_all_sinks_vs_executemany", rounds["all_sinks"], floor)

    def _keep(self, results: Results, system: RunningSystem, log: LogWatch) -> None:
        """Raises `SystemFailed` when the sinks do not hold the same number of events."""
        stored = self._comparison.runner.run(system.check_counts())
        counted = sum(MetricsApi(system, project).events() for project in system.projects)
        use = self._comparison.runner.run(lake_use(system))
        if not stored == counted == use.rows:
            raise SystemFailed(f"PostgreSQL has {stored} events, the windows {counted}, the lake {use.rows}")
        costs, figures = results.costs[BATCH_100.name]["all_sinks"], results.figures
        for role in ("gateway", "batcher", "aggregator", "exporter", "keeper", "postgres", "valkey"):
            figures[f"all_sinks_{role}_cpu_us_per_event"] = cpu_us_per_event(costs, [role])
        figures["all_sinks_cpu_us_per_event"] = cpu_us_per_event(costs)
        figures["all_sinks_parquet_bytes_per_event"] = use.bytes / use.rows
        figures["all_sinks_parquet_files"] = use.files
        figures["all_sinks_log_peak_bytes"] = log.peak_bytes
        figures["all_sinks_log_end_bytes"] = log.end_bytes

    def lake_query(self) -> None:
        """A day of ten million events of one project counted by type, against DuckDB alone on the same files."""
        comparison = self._comparison
        plan, figures = comparison.plan, comparison.results.figures
        with RunningSystem(projects=1, settings=self._settings) as system:
            [project] = system.projects
            started_s = time.monotonic()
            day = comparison.runner.run(fill_day(system, project, QUERIED_EVENTS))
            events = sum(day.events_by_type.values())
            comparison.report(
                f"{events:,} events in {len(day.paths)} files, {day.bytes / 1e6:,.0f} MB, "
                f"after {time.monotonic() - started_s:.0f} s"
            )
            turns = DayCounts(system, project, day).ask(max(5, round(plan.rounds * plan.seconds * QUERIES_PER_S)))
        comparison.results.keep_times("lake_query", turns.system_s)
        comparison.results.keep_times("lake_query_duckdb_alone", turns.duckdb_s)
        figures["lake_query_first_ms"] = turns.first_s * 1000
        figures["lake_query_events"] = events
        figures["lake_query_file_bytes"] = day.bytes
        comparison.results.ratios["lake_query_vs_duckdb"] = turns.ratio

    def slow_lake(self) -> None:
        """Half load at 100 a request, with the lake in an S3 server that is as slow as a real one, and one `SLOW` times
        slower than that, in turns."""
        comparison = self._comparison
        more = [f"log.max_bytes={SLOW_LAKE_LOG_BYTES}", f"lake.part_interval_s={PART_INTERVAL_S}", NO_COMPACTION]
        with (
            SlowStore() as store,
            RunningSystem(
                projects=self._projects,
                settings=[*self._settings, *store.settings, *more],
                environment=store.environment,
            ) as system,
        ):
            rate = comparison.saturation(BATCH_100, SystemServer(system, name="s3_lake")).requests_per_s / 2
            comparison.runner.run(wait_exported(system, clock=time.perf_counter))
            found: dict[str, list[_AtRate]] = defaultdict(list)
            for _ in range(comparison.plan.rounds):
                for name, factor in (("s3_lake", 1.0), ("slow_lake", SLOW)):
                    store.slow_down(factor)
                    found[name].append(self._at_rate(system, name, rate))
            self._check_lake(system)
        figures = comparison.results.figures
        for name, rounds in found.items():
            comparison.results.keep_latency(f"{name}_half_load", [each.latency for each in rounds])
            figures[f"{name}_log_peak_bytes"] = max(each.log_peak_bytes for each in rounds)
            figures[f"{name}_part_s"] = median(each.part_s for each in rounds)
            figures[f"{name}_behind_s"] = median(each.behind_s for each in rounds)
            figures[f"{name}_events_read_back"] = sum(each.read_back for each in rounds)
        figures["slow_lake_log_bound_bytes"] = SLOW_LAKE_LOG_BYTES

    def _at_rate(self, system: RunningSystem, name: str, requests_per_s: float) -> "_AtRate":
        comparison = self._comparison
        before = _Exports.of(system)
        with LogWatch(system) as log:
            latency = comparison.at_rate(SystemServer(system, name=name), requests_per_s, BATCH_100)
            started_s = time.perf_counter()
            behind_s = comparison.runner.run(wait_exported(system, clock=time.perf_counter)) - started_s
        exports = _Exports.of(system)
        found = _AtRate(
            latency,
            log_peak_bytes=log.peak_bytes,
            behind_s=behind_s,
            part_s=(exports.seconds - before.seconds) / max(1, exports.parts - before.parts),
            read_back=exports.read_back - before.read_back,
        )
        comparison.report(
            f"{name}: a part takes {found.part_s:.2f} s, the last event is there {behind_s:.1f} s after it is stored, "
            f"log at most {log.peak_bytes / 1e6:.1f} MB, {found.read_back:,.0f} events read from PostgreSQL"
        )
        return found

    def _check_lake(self, system: RunningSystem) -> None:
        """Raises `SystemFailed` when it has not every event once."""
        stored = self._comparison.runner.run(system.check_counts())
        use = self._comparison.runner.run(lake_use(system))
        if stored != use.rows:
            raise SystemFailed(f"PostgreSQL has {stored} events, the lake {use.rows}")


class _Exports(NamedTuple):
    """Of all exporters since the start, by snapshots that may be seconds old."""

    parts: float
    seconds: float
    read_back: float

    @classmethod
    def of(cls, system: RunningSystem) -> Self:
        parts, seconds, read_back = (
            system.metric(LAKE_COUNTERS[name]) for name in ("plans_committed", "export_seconds", "events_read_back")
        )
        return cls(parts, seconds, read_back)


@dataclass(frozen=True)
class _AtRate:
    """Of one round at a steady rate."""

    latency: Latency
    log_peak_bytes: int
    behind_s: float
    """From the last event's being stored to its being in the lake."""
    part_s: float
    """That an export takes, files and their puts."""
    read_back: float
    """Events that the exporter took from PostgreSQL, as the log had them no more."""
