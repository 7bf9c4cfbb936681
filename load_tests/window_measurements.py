"""The measurements of windows: what they cost, how soon they show an event, how fast roll-ups answer."""

from collections.abc import Sequence
from contextlib import ExitStack

from load_tests.comparison import Comparison
from load_tests.figures import Results, cpu_us_per_event, median, stored_events_per_s
from load_tests.freshness import Prober, Probes, client_of
from load_tests.load_metrics import BESIDE_BUILT_IN, LOAD_METRICS
from load_tests.metric_queries import Answers, Questions
from load_tests.metrics_api import MetricsApi
from load_tests.rounds import BATCH_100, SystemServer
from load_tests.running_system import RunningSystem, SystemFailed
from load_tests.schedule import percentile
from load_tests.windows import windows_in_redis
from storage.metric_definitions import MetricDefinition

QUERIES_PER_S = 6
"""Questions of each kind, for each second that a round is to take: some 90 in a full one."""


class WindowMeasurements:
    """Each measurement is a method. `windows` starts two systems of its own; the others use the comparison's."""

    def __init__(self, comparison: Comparison, *, projects: int, settings: Sequence[str]) -> None:
        """`projects` and `settings` (NAME=VALUE) are for the systems of `windows`."""
        self._comparison = comparison
        self._projects = projects
        self._settings = settings

    def windows(self) -> None:
        """100 events a request with windows of ten metrics, the built-in ones among them, against none at all.

        Two fresh systems side by side, so that both write into tables of the same size; the one whose turn it is not
        is idle. With windows a round ends when the last event is both stored and counted.
        """
        comparison = self._comparison
        with ExitStack() as stack:
            on, off = (
                stack.enter_context(
                    RunningSystem(projects=self._projects, settings=[*self._settings, f"windows.enabled={enabled}"])
                )
                for enabled in ("true", "false")
            )
            define_load_metrics(on, BESIDE_BUILT_IN)

            async def checkpoint() -> None:
                await on.checkpoint()
                await off.checkpoint()

            servers = [
                SystemServer(on, name="windows_on", until="counted"),
                SystemServer(off, name="windows_off"),
            ]
            rounds = comparison.in_turns(BATCH_100, servers, checkpoint=checkpoint)
            self._keep_costs(comparison.results, on)
            stored = comparison.runner.run(on.check_counts())
            comparison.runner.run(off.check_counts())
            counted = sum(MetricsApi(on, project).events() for project in on.projects)
        if counted != stored:
            raise SystemFailed(f"the windows have {counted} events, PostgreSQL {stored}")
        floor = stored_events_per_s(rounds["windows_off"])
        comparison.results.keep_ratio("batch100_windows_on_vs_off", rounds["windows_on"], floor)

    def _keep_costs(self, results: Results, on: RunningSystem) -> None:
        costs = results.costs[BATCH_100.name]
        with_windows, without = costs["windows_on"], costs["windows_off"]
        figures = results.figures
        figures["windows_aggregator_cpu_us_per_event"] = cpu_us_per_event(with_windows, ["aggregator"])
        figures["windows_on_cpu_us_per_event"] = cpu_us_per_event(with_windows)
        figures["windows_off_cpu_us_per_event"] = cpu_us_per_event(without)
        use = self._comparison.runner.run(windows_in_redis(on.connection.redis_url))
        figures["windows_redis_keys"] = use.keys
        figures["windows_redis_bytes"] = use.bytes

    def freshness(self) -> None:
        """From 202 to the first answer of the metrics API that shows the event, under half load."""
        comparison = self._comparison
        system = comparison.system
        found: list[Probes] = []
        for number in range(comparison.plan.rounds):

            async def probe(seconds: float, number: int = number) -> Probes:
                async with client_of(system) as client:
                    return await Prober(client, system.projects[0], f"probe_{number}").run(seconds=seconds)

            latency, probes = comparison.at_half_load(probe)
            found.append(probes)
            comparison.report(
                f"freshness at {latency.requests_per_s:,.0f} requests/s: p50 {percentile(probes.waits_s, 0.5):.3f} s, "
                f"p99 {percentile(probes.waits_s, 0.99):.3f} s of {len(probes.waits_s)} probes"
            )
        waits_s = [wait_s for probes in found for wait_s in probes.waits_s]
        results = comparison.results
        results.keep_times("freshness", waits_s)
        results.figures["freshness_probes"] = len(waits_s)
        degraded = sum(probes.degraded_answers for probes in found) / sum(probes.answers for probes in found)
        results.figures["freshness_degraded_answers_percent"] = degraded * 100

    def metric_query(self) -> None:
        """A month of hours by 50 groups: 36,000 points."""
        comparison = self._comparison
        queries = max(10, round(comparison.plan.seconds * QUERIES_PER_S))
        found: list[Answers] = []
        for number in range(comparison.plan.rounds):
            project = comparison.system.create_project(f"rolled-{number}")
            questions = comparison.runner.run(Questions.prepare(comparison.system, project))
            answers = comparison.runner.run(questions.ask(queries))
            found.append(answers)
            comparison.report(
                f"metric query: first {answers.first_s[0] * 1000:.1f} ms, "
                f"from roll-ups {percentile(answers.rollups_s, 0.5) * 1000:.1f} ms, "
                f"repeated {percentile(answers.repeated_s, 0.5) * 1000:.1f} ms"
                f"{'' if answers.repeated_cached else ' (too large for the result cache)'}"
            )
        results = comparison.results
        results.figures["metric_query_first_ms"] = median(answers.first_s[0] * 1000 for answers in found)
        results.keep_times("metric_query_rollups", [s for answers in found for s in answers.rollups_s])
        results.keep_times("metric_query_repeated", [s for answers in found for s in answers.repeated_s])
        results.figures["metric_query_repeated_is_cached"] = float(all(answers.repeated_cached for answers in found))
        results.keep_times("metric_query_total_repeated", [s for answers in found for s in answers.total_s])
        results.figures["metric_query_total_repeated_is_cached"] = float(all(answers.total_cached for answers in found))


def define_load_metrics(system: RunningSystem, metrics: Sequence[MetricDefinition] = LOAD_METRICS) -> None:
    """The metrics, in every project of the load; returns when they are counted."""
    apis = [MetricsApi(system, project) for project in system.projects]
    for api in apis:
        api.define(metrics)
    for api in apis:
        api.wait_followed(metrics)
