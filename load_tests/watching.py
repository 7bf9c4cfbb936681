"""Looking at a system for a while: idle, or at half load for minutes (the check for growing memory)."""

import asyncio
import itertools
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from config.metrics import SHARD_GAUGES
from load_tests.comparison import Report
from load_tests.events import EventMaker
from load_tests.process_costs import Meter, pss_of
from load_tests.rounds import SystemServer, Workload, keep_rate
from load_tests.running_system import RunningSystem
from load_tests.schedule import poisson_offsets_s

SETTLE_S = 10.0
"""After the start Ray's agents are busy for some seconds."""
SOAK_SAMPLE_S = 10.0


class Sample(NamedTuple):
    """Memory by role at a time, in seconds since the start."""

    at_s: float
    pss_bytes: dict[str, int]


def idle(system: RunningSystem, *, seconds: float, report: Report) -> dict[str, Any]:
    """CPU and memory of a system that does nothing, by role and in all."""
    time.sleep(SETTLE_S)
    with Meter(system.processes) as meter:
        time.sleep(seconds)
    costs = {role: cost for role, cost in meter.costs.items() if role != "generator"}
    for role, cost in sorted(costs.items()):
        report(f"{role:12} {cost.cpu_s / seconds * 100:6.2f} % of a core {cost.pss_bytes / 1e6:8.0f} MB")
    cpu_percent = sum(cost.cpu_s for cost in costs.values()) / seconds * 100
    pss_bytes = sum(cost.pss_bytes for cost in costs.values())
    report(f"{'in all':12} {cpu_percent:6.2f} % of a core {pss_bytes / 1e6:8.0f} MB")
    return {"idle_cpu_percent_of_a_core": cpu_percent, "idle_pss_bytes": pss_bytes}


def soak(
    runner: asyncio.Runner,
    system: RunningSystem,
    workload: Workload,
    *,
    requests_per_s: float,
    seconds: float,
    seed: int,
    report: Report,
) -> dict[str, Any]:
    """Keep the rate for so long, and tell the slope of every role's memory, from the second fifth on.

    Two parts grow by design, to a bound: a dedupe window by 8 bytes an id until it is a day old (it is told
    beside the slopes), and PostgreSQL until its shared buffers (256 MB) were all used once.
    """
    maker = EventMaker(seed=seed)
    offsets_s = poisson_offsets_s(requests_per_s, seconds, random=np.random.default_rng(seed))
    bodies = (
        body for _ in itertools.count() for body in maker.bodies(200, events_per_request=workload.events_per_request)
    )
    window_bytes = SHARD_GAUGES["window_bytes"]
    window_before = system.metric(window_bytes)
    with _MemoryWatch(system, report=report) as watch:
        latency = runner.run(keep_rate(SystemServer(system), workload, bodies, offsets_s))
    kept = [sample for sample in watch.samples if sample.at_s >= seconds / 5]
    slopes = slopes_bytes_per_min(kept)
    window_growth = (system.metric(window_bytes) - window_before) / seconds * 60
    for role, slope in slopes.items():
        report(f"{role:12} {slope / 1e6:+8.3f} MB/min")
    report(f"{'of it dedupe windows':20} {window_growth / 1e6:+8.3f} MB/min")
    return {
        "workload": workload.name,
        "requests_per_s": latency.requests_per_s,
        "p50_ms": latency.p50_ms,
        "p99_ms": latency.p99_ms,
        "slope_bytes_per_min": slopes,
        "window_growth_bytes_per_min": window_growth,
        "samples": [{"at_s": sample.at_s, "pss_bytes": sample.pss_bytes} for sample in watch.samples],
    }


def slopes_bytes_per_min(samples: Sequence[Sample]) -> dict[str, float]:
    """The line of least squares through each role's memory, and of all together (`total`). Needs two samples."""
    if len(samples) < 2:
        raise ValueError("a slope needs two samples: soak for longer")
    minutes = [sample.at_s / 60 for sample in samples]
    roles = sorted({role for sample in samples for role in sample.pss_bytes})
    series = {role: [sample.pss_bytes.get(role, 0) for sample in samples] for role in roles}
    series["total"] = [sum(sample.pss_bytes.values()) for sample in samples]
    return {role: float(np.polyfit(minutes, values, 1)[0]) for role, values in series.items()}


class _MemoryWatch:
    """Samples the system's memory within `with`, in a thread of its own."""

    def __init__(self, system: RunningSystem, *, report: Report, clock: Callable[[], float] = time.monotonic) -> None:
        self.samples: list[Sample] = []
        self._system = system
        self._report = report
        self._clock = clock
        self._ended = threading.Event()
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="memory", daemon=True)

    def __enter__(self) -> "_MemoryWatch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        started_s = self._clock()
        try:
            while not self._ended.wait(SOAK_SAMPLE_S):
                self._sample(self._clock() - started_s)
        except Exception as error:  # told by __exit__, in the thread that can act on it
            self._failure = error

    def _sample(self, at_s: float) -> None:
        found: dict[str, int] = defaultdict(int)
        for role, process in self._system.processes():
            found[role] += pss_of(process.pid)
        self.samples.append(Sample(at_s, dict(found)))
        parts = "  ".join(f"{role} {pss_bytes / 1e6:.0f}" for role, pss_bytes in sorted(found.items()))
        self._report(f"{at_s:6.0f} s  MB: {parts}  in all {sum(found.values()) / 1e6:.0f}")
