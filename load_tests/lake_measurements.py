"""The measurements of the lake: all sinks at once, SQL over ten million events, an object store that is slow.

Each starts a system of its own, with the lake on; in the systems of all other measurements it is off.
"""

from collections.abc import Sequence

from load_tests.comparison import Comparison
from load_tests.figures import Results, cpu_us_per_event, stored_events_per_s
from load_tests.lake import LogWatch, lake_use
from load_tests.metrics_api import MetricsApi
from load_tests.rounds import BATCH_100, SystemServer
from load_tests.running_system import RunningSystem, SystemFailed
from load_tests.window_measurements import define_load_metrics

PART_INTERVAL_S = 1.0
"""A round ends when its last part is in the lake; by default that would be up to a minute of waiting."""

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
        settings = [*self._settings, f"lake.part_interval_s={PART_INTERVAL_S}"]
        with (
            RunningSystem(projects=self._projects, settings=settings) as system,
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
        for role in ("gateway", "batcher", "aggregator", "exporter", "postgres", "valkey"):
            figures[f"all_sinks_{role}_cpu_us_per_event"] = cpu_us_per_event(costs, [role])
        figures["all_sinks_cpu_us_per_event"] = cpu_us_per_event(costs)
        figures["all_sinks_parquet_bytes_per_event"] = use.bytes / use.rows
        figures["all_sinks_parquet_files"] = use.files
        figures["all_sinks_log_peak_bytes"] = log.peak_bytes
        figures["all_sinks_log_end_bytes"] = log.end_bytes
