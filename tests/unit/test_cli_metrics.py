"""`analytics-actors metrics` through click's runner: what is asked for, how it is shown."""

import time
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from tests.unit.cli_server import FakeGateway, data, gateway, invoke

__all__ = ["data", "gateway"]

POINTS: list[dict[str, Any]] = [
    {"timestamp": "2026-01-01T00:00:00Z", "value": 1234.56, "count": 3, "dimensions": {"country": "DE\x1b[2J"}},
    {"timestamp": "2026-01-01T01:00:00Z", "value": None, "count": 0, "dimensions": {"country": "FR"}},
]
ANSWER: dict[str, Any] = {
    "metric": "revenue",
    "aggregation": "sum",
    "points": POINTS,
    "sources": [{"source": "rollups", "from": "", "to": ""}, {"source": "events", "from": "", "to": ""}],
    "freshAt": "2026-01-01T02:00:00Z",
    "exact": True,
}
DEFINITION = {
    "definition": {
        "name": "revenue",
        "aggregation": "sum",
        "property": "amount",
        "eventTypes": ["purchase"],
        "dimensions": [],
    },
    "builtIn": True,
}


def test_a_metric_is_shown_as_a_table(gateway: FakeGateway, data: Path) -> None:
    answer = ANSWER | {"degraded": True, "degradedBecause": "Redis does not answer", "omittedGroups": 4}
    gateway.answer("GET", "/v1/metrics/revenue", answer)
    words = ("--since", "2026-01-01", "--group-by", "country", "--filter", "a:b", "--filter", "c:ne:d")
    result = invoke("metrics", "revenue", *words, "--data", data)
    assert result.exit_code == 0
    for text in ("1,234.56", "country", "DE�[2J", "from rollups, events", "Redis does not answer", "4 smaller groups"):
        assert text in result.output
    asked = gateway.requests[0].url.params
    assert asked.get_list("filter") == ["a:b", "c:ne:d"]
    assert (asked["startTime"], asked["groupBy"], asked["timezone"]) == ("2026-01-01", "country", "UTC")
    assert "endTime" not in asked
    assert gateway.keys == ["the-read-key"]


def test_what_a_metric_lacks_is_told(gateway: FakeGateway, data: Path) -> None:
    part = {"from": "2026-01-01T00:00:00Z", "to": "2026-01-02T00:00:00Z", "because": "too many", "hint": "Backfill it."}
    gateway.answer("GET", "/v1/metrics/revenue", ANSWER | {"missing": [part]})
    output = invoke("metrics", "revenue", "--data", data).output
    assert "missing from 2026-01-01T00:00:00Z to 2026-01-02T00:00:00Z: too many. Backfill it." in output


@pytest.mark.parametrize(("since", "seconds"), [("90m", 5400), ("6h", 21600), ("2w", 1209600)])
def test_how_long_ago(gateway: FakeGateway, data: Path, since: str, seconds: int) -> None:
    gateway.answer("GET", "/v1/metrics/revenue", ANSWER)
    invoke("metrics", "revenue", "--since", since, "--data", data)
    assert abs(int(gateway.requests[0].url.params["startTime"]) / 1000 - (time.time() - seconds)) < 60


@pytest.mark.parametrize(
    ("error", "words"), [({"relative": 0.01625}, "± 1.6%"), ({"rank": 0.0164}, "± 1.6% of the rank")]
)
def test_estimates_are_told(gateway: FakeGateway, data: Path, error: dict[str, float], words: str) -> None:
    gateway.answer("GET", "/v1/metrics/users", ANSWER | {"error": error, "exact": False})
    assert words in invoke("metrics", "users", "--data", data).output


def test_names_of_event_types_are_escaped_and_commands_names_can_be_shown(gateway: FakeGateway, data: Path) -> None:
    asked = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.raw_path)
        return httpx.Response(200, json=ANSWER)

    gateway.routes["GET", "/v1/metrics/sign/up?"] = gateway.routes["GET", "/v1/metrics/list"] = answer
    assert invoke("metrics", "sign/up?", "--data", data).exit_code == 0
    assert invoke("metrics", "show", "list", "--data", data).exit_code == 0
    assert asked[0].startswith(b"/v1/metrics/sign%2Fup%3F?")


def test_the_answer_as_json(gateway: FakeGateway, data: Path) -> None:
    gateway.answer("GET", "/v1/metrics/revenue", ANSWER)
    assert msgspec.json.decode(invoke("metrics", "revenue", "--json", "--data", data).output) == ANSWER


def test_metrics_are_listed(gateway: FakeGateway, data: Path) -> None:
    answer = {"projectId": "default", "definitions": [DEFINITION], "daysLeft": 7}
    gateway.answer("GET", "/v1/metrics-definitions", answer)
    output = invoke("metrics", "list", "--data", data).output
    for text in ("revenue", "purchase", "amount", "7 days are still to be counted"):
        assert text in output


def test_a_metric_is_defined(gateway: FakeGateway, data: Path) -> None:
    gateway.answer("POST", "/v1/metrics-definitions", DEFINITION, status=201)
    gateway.answer("POST", "/v1/metrics-definitions/slow/backfill", {"daysLeft": 30}, status=202)
    words = (
        "--aggregation",
        "p95",
        "--property",
        "ms",
        "--event-type",
        "view",
        "--dimension",
        "path=context.page.path",
    )
    filters = ("--filter", "ms:gt:500", "--filter", "plan:in:a,b", "--filter", "test:exists:false")
    result = invoke("metrics", "define", "slow", *words, *filters, "--backfill", "--project", "default", "--data", data)
    assert result.exit_code == 0
    assert "analytics-actors metrics slow --project default\n30 days are being counted" in result.output
    assert gateway.bodies()[0] == {
        "name": "slow",
        "aggregation": "p95",
        "property": "ms",
        "fallbacks": [],
        "eventTypes": ["view"],
        "dimensions": ["path=context.page.path"],
        "filters": [
            {"path": "ms", "op": "gt", "value": 500},
            {"path": "plan", "op": "in", "value": ["a", "b"]},
            {"path": "test", "op": "exists", "value": False},
        ],
        "projectId": "default",
    }
    assert gateway.requests[1].url.params["projectId"] == "default"
    assert gateway.keys == ["the-admin-key"] * 2


def test_a_metric_is_replaced_and_deleted(gateway: FakeGateway, data: Path) -> None:
    gateway.answer("PUT", "/v1/metrics-definitions/slow", DEFINITION)
    gateway.answer("DELETE", "/v1/metrics-definitions/slow", {"name": "slow"})
    assert invoke("metrics", "define", "slow", "--replace", "--data", data).exit_code == 0
    assert invoke("metrics", "delete", "slow", "--data", data).exit_code == 0
    assert [request.method for request in gateway.requests] == ["PUT", "DELETE"]


def test_a_filter_that_is_none_is_refused(gateway: FakeGateway, data: Path) -> None:
    result = invoke("metrics", "define", "slow", "--filter", "nonsense", "--data", data)
    assert result.exit_code == 2
    assert "PATH:OP:VALUE" in result.output


def test_a_backfill_is_waited_for(gateway: FakeGateway, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("analytics_actors.cli.metrics.POLL_S", 0.001)
    left = iter([2, 1, 0])
    gateway.answer("POST", "/v1/metrics-definitions/slow/backfill", {"daysMarked": 3, "daysLeft": 3}, status=202)
    gateway.routes["GET", "/v1/metrics-definitions/slow"] = lambda _: httpx.Response(200, json={"daysLeft": next(left)})
    result = invoke("metrics", "backfill", "slow", "--wait", "--data", data)
    assert result.output.split("\n")[:4] == ["3 days left", "2 days left", "1 days left", "all days are counted"]


@pytest.mark.parametrize("command", ["show", "list", "define", "backfill", "delete"])
def test_commands_have_help_with_an_example(command: str) -> None:
    result = invoke("metrics", command, "--help")
    assert result.exit_code == 0
    assert f"analytics-actors metrics {command}" in result.output
