"""Roll-ups of a shop that has been counted for a while: the hours of some days, of metrics that cost differently to
read. They are made up and written directly, as if their events had been counted."""

from decimal import Decimal

import numpy as np

from storage.aggregate import Aggregate
from storage.metric_definitions import MetricDefinition
from storage.quantile_sketch import QuantileSketch
from storage.rollups import RollupStore
from storage.unique_sketch import UniqueSketch
from storage.window_key import WindowKey

HOUR_S, DAY_S = 3600, 86400

GROUPED = MetricDefinition("orders", dimensions=["country"])
SUM = MetricDefinition("turnover", "sum", property="amount", dimensions=["country"])
UNIQUE = MetricDefinition("people", "unique", property="userId")
LATENCY = MetricDefinition("latency", "p95", property="ms")
ROLLED_METRICS = (GROUPED, SUM, UNIQUE, LATENCY)


async def fill(rollups: RollupStore, project_id: str, *, start: int, days: int, groups: int) -> None:
    """Write every hour from `start` (seconds since the epoch); `GROUPED` and `SUM` have so many groups."""
    random = np.random.default_rng(1)
    for day in range(start, start + days * DAY_S, DAY_S):
        rows: list[tuple[WindowKey, Aggregate]] = []
        for hour in range(day, day + DAY_S, HOUR_S):
            for metric in (GROUPED.name, SUM.name):
                for group in range(groups):
                    dimensions = (("country", f"country {group}"),)
                    amount = Decimal(int(random.integers(1, 10**6))) / 100
                    value = Aggregate(int(random.integers(1, 1000)), amount, 0.5, 99.5)
                    rows.append((WindowKey(project_id, metric, "1h", hour, dimensions), value))
                rows.append(
                    (WindowKey(project_id, metric, "1h", hour, ()), Aggregate(1000, Decimal("9.99"), 0.5, 99.5))
                )
            users = random.integers(0, 1 << 20, 5000).astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
            rows.append(
                (WindowKey(project_id, UNIQUE.name, "1h", hour, ()), Aggregate(5000, unique=UniqueSketch(users)))
            )
            sketch = QuantileSketch()
            sketch.add(random.exponential(100, 5000))
            latency = Aggregate(5000, Decimal(500_000), 0.1, 900.0, quantiles=sketch)
            rows.append((WindowKey(project_id, LATENCY.name, "1h", hour, ()), latency))
        await rollups.upsert(rows, epoch=1, next_offset=1)
