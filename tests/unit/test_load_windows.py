"""The load's metrics, the prober of freshness, and what is made of their numbers."""

import asyncio
import json
from collections.abc import Callable

import httpx
import numpy as np
import pytest

from analytics_actors.windows.grouping import aggregate
from config.settings import WindowSettings
from load_tests.events import EventMaker
from load_tests.figures import Results, cpu_us_per_event
from load_tests.floors import columns_of
from load_tests.freshness import INTERVAL_S, Prober, Probes
from load_tests.generator import Target
from load_tests.load_metrics import BESIDE_BUILT_IN, LOAD_METRICS
from load_tests.metric_queries import get_request
from load_tests.report import wanted
from load_tests.rollup_rows import DAY_S, GROUPED, ROLLED_METRICS, fill
from load_tests.running_system import Project, SystemFailed
from storage.memory_rollups import MemoryRollups
from storage.metric_definitions import default_metrics, validate
from tests.unit import virtual_time


def test_ten_metrics_of_which_four_have_two_dimensions_and_none_is_built_in() -> None:
    for definition in LOAD_METRICS:
        validate(definition)
    names = {definition.name for definition in LOAD_METRICS}
    assert len(names) == 10
    assert not names & {definition.name for definition in default_metrics(WindowSettings())}
    assert [len(definition.dimensions) for definition in LOAD_METRICS].count(2) == 4


def test_ten_metrics_with_the_built_in_ones_of_which_four_have_two_dimensions() -> None:
    together = (*default_metrics(WindowSettings()), *BESIDE_BUILT_IN)
    assert len({definition.name for definition in together}) == 10
    assert [len(definition.dimensions) for definition in together].count(2) == 4


def test_every_metric_counts_the_events_of_the_load() -> None:
    bodies = EventMaker(seed=1).bodies(20, events_per_request=100)
    [rows] = columns_of(bodies, rows_per_batch=2000)
    windows = aggregate(rows, lambda _: LOAD_METRICS)
    for definition in LOAD_METRICS:
        groups = {key.dimensions for key in windows if key.metric == definition.name}
        totals = [window for key, window in windows.items() if key.metric == definition.name and not key.dimensions]
        assert sum(window.count for window in totals) > 0, definition.name
        assert all(window.value(definition.aggregation) for window in totals)
        assert len(groups) > (1 if definition.dimensions else 0)
        # Fewer than `windows.max_groups`: none of it becomes __other__.
        assert len(groups) < 100


class _System:
    """Takes an event in `answer_s`, and shows it `shown_s` after its 202."""

    def __init__(
        self,
        *,
        answer_s: float = 0.01,
        shown_s: Callable[[int], float] = lambda _: 0.2,
        degraded: bool = False,
        status: int = 200,
    ) -> None:
        self.shown_at_s: list[float] = []
        self.posted: list[str] = []
        self._answer_s = answer_s
        self._shown_s = shown_s
        self._degraded = degraded
        self._status = status

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        loop = asyncio.get_running_loop()
        if request.method == "POST":
            await asyncio.sleep(self._answer_s)
            self.posted.append(json.loads(request.content)["eventType"])
            self.shown_at_s.append(loop.time() + self._shown_s(len(self.shown_at_s)))
            return httpx.Response(202)
        count = 0
        while count < len(self.shown_at_s) and self.shown_at_s[count] <= loop.time():
            count += 1
        points = [{"value": count // 2}, {"value": None}, {"value": count - count // 2}]
        content = {"points": points} | ({"degraded": True} if self._degraded else {})
        return httpx.Response(self._status, json=content)


def probe(system: _System, *, seconds: float) -> Probes:
    async def main() -> Probes:
        loop = asyncio.get_running_loop()
        async with httpx.AsyncClient(transport=httpx.MockTransport(system), base_url="http://system") as client:
            prober = Prober(client, Project("p", "write", "read"), "probe", clock=loop.time, wall_clock=lambda: 1e9)
            return await prober.run(seconds=seconds)

    return virtual_time.run(main())


def test_freshness_counts_from_the_202_to_the_first_answer_that_shows_the_event() -> None:
    system = _System(shown_s=lambda _: 0.2)
    found = probe(system, seconds=2)
    assert system.posted == ["probe"] * 20
    assert len(found.waits_s) == 20
    assert all(0.2 <= wait_s <= 0.221 for wait_s in found.waits_s)
    assert found.answers > 50
    assert found.degraded_answers == 0


def test_a_stall_is_seen_by_all_probes_that_fall_into_it() -> None:
    """The sixth is shown after a second, and with it those after it, since counts go in order."""
    found = probe(_System(shown_s=lambda number: 1.0 if number == 5 else 0.1), seconds=2)
    assert found.waits_s[4] < 0.13
    expected = [1.0 - number * INTERVAL_S for number in range(9)]
    assert found.waits_s[5:14] == pytest.approx(expected, abs=0.025)
    assert found.waits_s[16] < 0.13


def test_what_is_shown_before_its_202_took_no_time() -> None:
    assert probe(_System(shown_s=lambda _: -0.01), seconds=1).waits_s == pytest.approx([0.0] * 10, abs=0.021)


def test_degraded_answers_are_told() -> None:
    found = probe(_System(degraded=True), seconds=1)
    assert found.degraded_answers == found.answers > 0


def test_probes_that_are_never_shown_are_a_failure() -> None:
    with pytest.raises(SystemFailed, match="0 of 10 probes"):
        probe(_System(shown_s=lambda _: 1e9), seconds=1)


def test_an_answer_that_was_not_expected_is_a_failure() -> None:
    with pytest.raises(SystemFailed, match="503"):
        probe(_System(status=503), seconds=1)


async def test_roll_ups_have_every_hour_of_every_group_and_the_total() -> None:
    rollups = MemoryRollups()
    start = 20_000 * DAY_S
    await fill(rollups, "shop", start=start, days=2, groups=3)
    end = start + 2 * DAY_S
    grouped = await rollups.read("shop", GROUPED.name, "1h", start, end, grouped=True)
    assert [len(series.starts) for series in grouped.series] == [48] * 3
    for definition in ROLLED_METRICS:
        [total] = (await rollups.read("shop", definition.name, "1h", start, end, grouped=False)).series
        assert np.array_equal(total.starts, np.arange(start, end, 3600))


def test_a_query_is_a_complete_request() -> None:
    target = Target("127.0.0.1", 8080, "/v1/events", "write")
    assert get_request(target, "/v1/metrics/orders?limit=1", "secret") == (
        b"GET /v1/metrics/orders?limit=1 HTTP/1.1\r\nHost: 127.0.0.1:8080\r\nAuthorization: Bearer secret\r\n\r\n"
    )


def test_times_of_all_rounds_are_taken_together() -> None:
    results = Results()
    results.keep_times("query", [number / 1000 for number in range(200, 0, -1)])
    assert results.figures == {"query_p50_ms": 100, "query_p99_ms": 198, "query_worst_ms": 200}


def test_cpu_of_an_event_is_that_of_the_roles_without_the_generator() -> None:
    costs = {
        role: {"cpu_s_per_million_events": cpu_s}
        for role, cpu_s in (("gateway", 8.0), ("aggregator", 2.0), ("generator", 1.0))
    }
    assert cpu_us_per_event(costs) == 10.0
    assert cpu_us_per_event(costs, ["aggregator"]) == 2.0
    assert cpu_us_per_event(costs, ["exporter"]) == 0.0


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("batch100_windows_on_vs_off", 0.85, "≥ 0.8"),
        ("batch100_windows_on_vs_off", 0.79, "≥ 0.8, missed"),
        ("freshness_p99_ms", 999.0, "< 1000"),
        ("freshness_p99_ms", 1000.0, "< 1000, missed"),
        ("freshness_p50_ms", 5000.0, ""),
    ],
)
def test_what_is_wanted_stands_beside_the_number(name: str, value: float, said: str) -> None:
    assert wanted(name, value) == said
