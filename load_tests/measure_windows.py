"""What grouping into windows costs, in µs an event: `python -m load_tests.measure_windows`.

Every line is the best of many runs in one thread, garbage collection off: tables of events as they come out of the
log, to 1-minute deltas. `merged` is the further cost of merging these into a minute, a 5-minute and an hour window.
Digging, numbers, texts and sketches are in it; reading the log, Redis and PostgreSQL are not.
"""

import argparse
import gc
import random
import time
import uuid
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta

import msgspec
import pyarrow as pa

from analytics_actors.windows.grouping import aggregate, coarser
from storage.aggregate import Aggregate
from storage.event_batch import COLUMNS
from storage.metric_definitions import DEFAULT_METRICS, Filter, MetricDefinition
from storage.window_key import WindowKey

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
COUNTRIES = [f"c{number:02}" for number in range(50)]
DEVICES = ["desktop", "mobile", "tablet", "tv"]

TEN_METRICS = (
    *DEFAULT_METRICS,
    MetricDefinition("views", dimensions=["country", "device"], event_types=["page_view"]),
    MetricDefinition("time", "mean", property="price", dimensions=["country", "device"]),
    MetricDefinition("visitors", "unique", property="userId", dimensions=["country", "context.page.section"]),
    MetricDefinition("slow", "p95", property="responseTime", dimensions=["country", "device"]),
    MetricDefinition("pro_views", filters=[Filter("plan", "eq", "pro")]),
)


def made_events(events: int, projects: int, users: int) -> pa.RecordBatch:
    """As the generator of the benchmark makes them, within two minutes; one in ten is a purchase."""
    rng = random.Random(1)
    rows = []
    for number in range(events):
        at = NOW + timedelta(milliseconds=number * 60_000 // events)
        properties = {
            "plan": rng.choice(["pro", "free"]),
            "price": round(rng.random() * 100, 2),
            "country": rng.choice(COUNTRIES),
            "device": rng.choice(DEVICES),
            "responseTime": rng.random() * 300,
            "tags": ["a", "b"],
            "title": f"Product {number}",
        }
        context = {
            "ip": "10.0.0.1",
            "userAgent": "Mozilla/5.0 (X11; Linux x86_64)",
            "page": {"url": f"https://example.com/products/{number}", "section": rng.choice(DEVICES)},
        }
        rows.append({
            "project_id": f"project_{rng.randrange(projects)}",
            "event_id": str(uuid.UUID(int=rng.getrandbits(128))),
            "event_type": "purchase" if rng.random() < 0.1 else "page_view",
            "user_id": f"user_{rng.randrange(users)}",
            "session_id": f"session_{rng.randrange(users)}",
            "timestamp": at,
            "received_at": at,
            "properties": msgspec.json.encode(properties).decode(),
            "context": msgspec.json.encode(context).decode(),
        })  # fmt: skip
    return pa.RecordBatch.from_pylist(rows, schema=COLUMNS)


def best_us(call: Callable[[], object], events: int, seconds: float) -> float:
    best, until = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < until:
        started = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - started)
    return best / events * 1e6


def merge_all(deltas: dict[WindowKey, Aggregate], windows: dict[WindowKey, Aggregate]) -> None:
    for key, delta in deltas.items():
        for target in (key, coarser(key, "5m"), coarser(key, "1h")):
            known = windows.get(target)
            if known is None:
                windows[target] = delta.copy()
            else:
                known.merge(delta)


def measure(name: str, rows: pa.RecordBatch, metrics: Sequence[MetricDefinition], seconds: float) -> float:
    events = rows.num_rows
    deltas = aggregate(rows, lambda _: metrics)
    cost = best_us(lambda: aggregate(rows, lambda _: metrics), events, seconds)
    windows: dict[WindowKey, Aggregate] = {}
    merged = best_us(lambda: merge_all(deltas, windows), events, seconds / 2)
    print(f"{name:44} {cost:6.2f} µs   merged {merged:5.2f}   windows {len(deltas):6}")
    return cost


def main() -> None:
    parser = argparse.ArgumentParser(description="what grouping into windows costs, in µs an event")
    parser.add_argument("--seconds", type=float, default=2.0, help="of measuring a line")
    seconds: float = parser.parse_args().seconds
    gc.disable()
    count_only = DEFAULT_METRICS[:1]
    costs: dict[str, float] = {}
    for events, projects, users in (
        (100, 3, 100), (1_000, 3, 1_000), (10_000, 3, 1_000), (10_000, 3, 10_000), (10_000, 1_000, 10_000),
    ):  # fmt: skip
        rows = made_events(events, projects, users)
        where = f"{events:,} rows, {projects:,} projects, {users:,} users"
        measure(f"{where}: counts", rows, count_only, seconds)
        costs["default"] = measure(f"{where}: default", rows, DEFAULT_METRICS, seconds)
        costs["ten"] = measure(f"{where}: 10 metrics", rows, TEN_METRICS, seconds)
    print(f"10 metrics against the default ones, last table: {costs['ten'] / costs['default']:.2f}")


if __name__ == "__main__":
    main()
