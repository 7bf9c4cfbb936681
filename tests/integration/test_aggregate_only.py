"""The batching guide's promise, through HTTP: a hundred metric events become one record, and the metric is right."""

import asyncio
import time
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.metric_client import MetricClient
from tests.plain_http import web

pytestmark = pytest.mark.timeout(120)

TAKES_EFFECT_WITHIN_S = 30.0
"""The batchers ask for declarations every two seconds."""
VISIBLE_WITHIN_S = 30.0
"""Windows take a declaration up some seconds later than the batchers."""


@pytest.fixture
def client(metric_client: MetricClient) -> MetricClient:
    return metric_client


def response(ms: float, at: datetime) -> dict[str, Any]:
    properties = {"ms": ms, "route": "/checkout"}
    return {
        "eventId": uuid.uuid4().hex,
        "eventType": "response_time",
        "userId": f"user-{ms}",
        "properties": properties,
        "timestamp": at.isoformat(),
    }


def points_of(client: MetricClient, metric: str, minute: datetime) -> list[dict[str, Any]]:
    start = int(minute.timestamp())
    answer = web.get(
        f"{client.system.url}/v1/metrics/{metric}",
        params={
            "projectId": client.project,
            "startTime": datetime.fromtimestamp(start, UTC).isoformat(),
            "endTime": datetime.fromtimestamp(start + 60, UTC).isoformat(),
            "granularity": "minute",
            "fill": "none",
        },
        headers=client.admin(),
        timeout=10,
    )
    assert answer.status_code == 200, answer.text
    points: list[dict[str, Any]] = answer.json()["points"]
    return points


def value_of(client: MetricClient, metric: str, minute: datetime) -> Any:
    points = points_of(client, metric, minute)
    return points[0]["value"] if points else None


def wait_declared(client: MetricClient) -> dict[str, int]:
    """Return when the batchers know all metrics that were defined before; the ledger's totals then. Takes some events
    of an hour ago."""
    client.define({"name": "probes", "aggregation": "count", "eventTypes": ["probe"], "aggregateOnly": True})
    until = time.monotonic() + TAKES_EFFECT_WITHIN_S
    while True:
        an_hour_ago = (datetime.now(UTC) - timedelta(hours=1)).isoformat()
        client.send([{"eventId": uuid.uuid4().hex, "eventType": "probe", "timestamp": an_hour_ago}])
        totals: dict[str, int] = client.settle()["totals"]
        if totals["aggregated"]:
            return totals
        assert time.monotonic() < until, totals


def test_a_hundred_events_become_one_record(client: MetricClient) -> None:
    system = client.system
    client.define(
        {
            "name": "response_p95",
            "aggregation": "p95",
            "eventTypes": ["response_time"],
            "property": "ms",
            "dimensions": ["route"],
            "aggregateOnly": True,
        }
    )
    before = wait_declared(client)
    at = datetime.now(UTC)
    minute = at.replace(second=0, microsecond=0)
    events = [response(float(n), at) for n in range(1, 101)]
    for first in range(0, 100, 25):
        client.send(events[first : first + 25])
    # The same ones again, and one that is stored.
    client.send(events[:50])
    client.send([{"eventId": uuid.uuid4().hex, "eventType": "view", "userId": "a", "timestamp": at.isoformat()}])
    totals = client.settle()["totals"]
    added = {"received": 151, "stored": 1, "duplicate": 50, "aggregated": 100}
    assert {name: totals[name] - before[name] for name in added} == added
    of_project = "WHERE project_id = $1 AND event_type <> 'probe'"
    rows = asyncio.run(system.sql(f"SELECT event_type FROM events_log {of_project}", client.project))
    assert [row["event_type"] for row in rows] == ["view"]
    [record] = asyncio.run(system.sql(f"SELECT * FROM aggregated_events {of_project}", client.project))
    assert (record["events"], record["count"], float(record["sum"])) == (100, 100, 5050.0)
    assert (record["minimum"], record["maximum"], record["mean"]) == (1.0, 100.0, 50.5)
    assert record["p95"] == pytest.approx(95, abs=1)
    assert (record["minute"], record["event_type"], record["late"]) == (minute, "response_time", False)
    until = time.monotonic() + VISIBLE_WITHIN_S
    while value_of(client, "response_p95", minute) is None or value_of(client, "unique_users", minute) != 1:
        assert time.monotonic() < until, [points_of(client, name, minute) for name in ("response_p95", "unique_users")]
        time.sleep(0.2)
    assert value_of(client, "response_p95", minute) == pytest.approx(95, abs=1)
    assert points_of(client, "response_p95", minute)[0]["count"] == 100
    assert value_of(client, "events", minute) == 101
    assert "the ledger agrees" in system.cli("ledger", "--check").stdout


def test_the_guides_figures_are_in_the_status(client: MetricClient) -> None:
    client.send([client.event(uuid.uuid4().hex, n) for n in range(100)])
    client.settle()
    answer = web.get(f"{client.system.url}/v1/status", headers=client.admin(), timeout=10).json()["batching"]
    assert answer["eventsQueued"] >= 100 and answer["databaseWrites"] == answer["batchesProcessed"] >= 1
    assert 0 < answer["writeReductionPercent"] <= 100
    assert "fewer writes %" in client.system.cli("status").stdout


def test_a_type_belongs_to_one_definition(client: MetricClient) -> None:
    system = client.system
    define = ("metrics", "define", "--project", client.project, "--aggregation", "mean", "--property", "ms")
    system.cli(*define, "first", "--event-type", "db_time", "--aggregate-only")
    refused = system.cli(*define, "second", "--event-type", "db_time", "--aggregate-only", check=False)
    assert refused.returncode != 0
    assert "db_time is aggregate-only for the metric first already" in refused.stderr + refused.stdout
    without = system.cli(*define, "third", "--aggregate-only", check=False)
    assert without.returncode != 0 and "name the event types" in without.stderr + without.stdout
