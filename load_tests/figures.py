"""Rounds become named numbers: medians over the rounds, ratios of neighbours, costs a million events."""

import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from load_tests.process_costs import Cost
from load_tests.rounds import Latency, Round, Speed, Workload
from load_tests.schedule import percentile

NEVER_STORES = "bare"


@dataclass
class Results:
    """Named numbers, units in the names; `costs` by workload, server and role; `attempts` by workload, server
    and connections, in requests a second."""

    figures: dict[str, float] = field(default_factory=dict)
    ratios: dict[str, float] = field(default_factory=dict)
    costs: dict[str, dict[str, dict[str, dict[str, float]]]] = field(default_factory=lambda: defaultdict(dict))
    attempts: dict[str, dict[str, dict[str, float]]] = field(default_factory=lambda: defaultdict(dict))

    def keep_attempts(self, workload: Workload, server: str, tried: Iterable[Speed]) -> None:
        self.attempts[workload.name][server] = {str(speed.connections): speed.requests_per_s for speed in tried}

    def keep_rounds(self, workload: Workload, rounds: Mapping[str, Sequence[Round]]) -> None:
        """Of a workload, by the server's name."""
        for name, found in rounds.items():
            prefix = f"{name}_{workload.name}"
            self.costs[workload.name][name] = median_costs(found)
            self.figures[f"{prefix}_requests_per_s"] = median(r.requests_per_s for r in found)
            if name != NEVER_STORES:
                self.figures[f"{prefix}_accepted_events_per_s"] = median(r.accepted_events_per_s for r in found)
                self.figures[f"{prefix}_stored_events_per_s"] = median(r.stored_events_per_s for r in found)
                wal_bytes = median(r.wal_bytes * 1e6 / r.events for r in found)
                self.figures[f"{prefix}_wal_bytes_per_million_events"] = wal_bytes

    def keep_ratio(self, name: str, ours: Sequence[Round], floor_events_per_s: Iterable[float]) -> None:
        """Of events stored a second, round by round."""
        pairs = zip(ours, floor_events_per_s, strict=True)
        self.ratios[name] = median(found.stored_events_per_s / floor for found, floor in pairs)

    def keep_latency(self, prefix: str, found: Sequence[Latency]) -> None:
        self.figures[f"{prefix}_requests_per_s"] = median(latency.requests_per_s for latency in found)
        self.figures[f"{prefix}_p50_ms"] = median(latency.p50_ms for latency in found)
        self.figures[f"{prefix}_p99_ms"] = median(latency.p99_ms for latency in found)
        self.figures[f"{prefix}_worst_ms"] = max(latency.worst_ms for latency in found)

    def keep_times(self, prefix: str, seconds: Sequence[float]) -> None:
        """Of all rounds together: they are too few in one for a 99th percentile."""
        self.figures[f"{prefix}_p50_ms"] = percentile(seconds, 0.5) * 1000
        self.figures[f"{prefix}_p99_ms"] = percentile(seconds, 0.99) * 1000
        self.figures[f"{prefix}_worst_ms"] = max(seconds) * 1000


def stored_events_per_s(rounds: Iterable[Round]) -> list[float]:
    return [found.stored_events_per_s for found in rounds]


def median(values: Iterable[float]) -> float:
    return statistics.median(values)


def median_costs(rounds: Sequence[Round]) -> dict[str, dict[str, float]]:
    """By role, a million events; memory as its peak."""
    roles = sorted({role for found in rounds for role in found.costs})
    return {role: _median_cost(role, rounds) for role in roles}


def cpu_us_per_event(costs: Mapping[str, Mapping[str, float]], roles: Sequence[str] = ()) -> float:
    """Of these roles, or of all but the generator."""
    wanted = roles or [role for role in costs if role != "generator"]
    return sum(costs[role]["cpu_s_per_million_events"] for role in wanted if role in costs)


def _median_cost(role: str, rounds: Sequence[Round]) -> dict[str, float]:
    costs = [(found.costs.get(role, Cost()), found.events) for found in rounds]
    return {
        "cpu_s_per_million_events": median(cost.cpu_s * 1e6 / events for cost, events in costs),
        "written_bytes_per_million_events": median(cost.written_bytes * 1e6 / events for cost, events in costs),
        "pss_peak_bytes": median(cost.pss_bytes for cost, _ in costs),
    }
