"""Metrics of several workers: any of them answers for all, also for one that is gone."""

import os
import re
import subprocess
import sys
from pathlib import Path

WORKER = """
from gateway.metrics import Metrics
metrics = Metrics()
metrics.request("/v1/events", 202, 0.003)
metrics.acknowledged("logged", accepted=5, duplicate=1)
metrics.rejected({"too_deep": 2})
metrics.flush()
"""

SCRAPED = (
    WORKER
    + """
import asyncio
from gateway.metrics import Exposition
async def snapshot():
    return {"shards": []}
print(asyncio.run(Exposition(metrics, snapshot).text()).decode())
"""
)


def run(code: str, folder: Path) -> str:
    environment = os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(folder)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    return done.stdout


def test_counts_of_all_workers_are_summed(tmp_path: Path) -> None:
    run(WORKER, tmp_path)
    run(WORKER, tmp_path)
    text = run(SCRAPED, tmp_path)
    assert 'analytics_http_requests_total{route="/v1/events",status="202"} 3.0' in text
    assert 'analytics_http_request_seconds_count{route="/v1/events"} 3.0' in text
    buckets = 'analytics_http_request_seconds_bucket{le="%s",route="/v1/events"}'
    assert [f"{buckets % le} {n}" in text for le, n in (("0.002", 0.0), ("0.005", 3.0), ("+Inf", 3.0))] == [True] * 3
    assert 'analytics_events_total{outcome="accepted"} 15.0' in text
    assert 'analytics_event_rejections_total{code="too_deep"} 6.0' in text


def test_processes_are_told_apart(tmp_path: Path) -> None:
    """Else the counters of one would be followed by another's, as the scrapes meet them."""
    run(WORKER, tmp_path)
    (gone,) = tmp_path.glob("gauge_livesum_*.db")
    gone.rename(tmp_path / f"gauge_livesum_{os.getpid()}.db")
    seconds = re.findall(r'^process_cpu_seconds_total{pid="(\d+)"} [0-9.]+$', run(SCRAPED, tmp_path), re.MULTILINE)
    assert len(seconds) == 2
    assert str(os.getpid()) in seconds
