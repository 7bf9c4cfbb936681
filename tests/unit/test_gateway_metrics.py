"""The gateway's counters: what is added up and flushed equals what the collector would have been told one by one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram, generate_latest

from config import metrics as catalogue
from gateway.metrics import Metrics

SECONDS = st.one_of(st.sampled_from(catalogue.HTTP_SECONDS.buckets), st.floats(0, 100))


def samples(text: bytes, name: str) -> dict[str, float]:
    lines = [line.rpartition(" ") for line in text.decode().splitlines() if line.startswith(name)]
    return {sample: float(value) for sample, _, value in lines if "_created" not in sample}


@given(rounds=st.lists(st.lists(SECONDS, max_size=20), max_size=4))
def test_latencies_equal_those_observed_one_by_one(rounds: list[list[float]]) -> None:
    metrics, registry = Metrics(), CollectorRegistry()
    metric = catalogue.HTTP_SECONDS
    wanted = Histogram(metric.name, metric.help, metric.labels, registry=registry, buckets=metric.buckets)
    for seconds in rounds:
        for each in seconds:
            metrics.request("/v1/events", 202, each)
            wanted.labels("/v1/events").observe(each)
        metrics.flush()
    found = samples(generate_latest(metrics.registry), metric.name)
    assert found == pytest.approx(samples(generate_latest(registry), metric.name))


def test_counts_show_once_they_are_flushed() -> None:
    metrics = Metrics()
    for _ in range(3):
        metrics.body(10, 30)
        metrics.acknowledged("logged", accepted=2, duplicate=1)
        metrics.rejected({"too_deep": 2, "invalid_json": 1})
    assert (
        samples(generate_latest(metrics.registry), "analytics_events_total")[
            'analytics_events_total{outcome="accepted"}'
        ]
        == 0
    )
    for _ in range(2):
        metrics.flush()
    text = generate_latest(metrics.registry)
    assert samples(text, "analytics_events_total") == {
        'analytics_events_total{outcome="accepted"}': 6,
        'analytics_events_total{outcome="duplicate"}': 3,
        'analytics_events_total{outcome="rejected"}': 9,
    }
    assert samples(text, "analytics_http_body_bytes_total") == {
        'analytics_http_body_bytes_total{form="sent"}': 30,
        'analytics_http_body_bytes_total{form="inflated"}': 90,
    }
    assert samples(text, "analytics_event_rejections_total")['analytics_event_rejections_total{code="too_deep"}'] == 6
