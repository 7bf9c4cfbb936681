"""Definitions of metrics: defined, replaced, deleted, backfilled; who may, and what is refused with what to do."""

import asyncio
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from config.settings import WindowSettings
from gateway.metric_definitions import Changes, Definitions
from storage.metric_definitions import MetricDefinition
from storage.metric_registry import MemoryMetricRegistry
from tests.unit.fake_services import System

BODY = {
    "name": "checkout_value",
    "aggregation": "sum",
    "eventTypes": ["purchase"],
    "property": "properties.amount",
    "dimensions": ["country", "device=context.device.type"],
    "filters": [{"path": "properties.test", "op": "ne", "value": True}],
}
ROUTE = "/v1/metrics-definitions"


async def test_a_metric_is_defined_and_can_be_asked_for_at_once() -> None:
    system = System()
    async with system.client("admin") as client:
        made = await client.post(ROUTE, json=BODY)
        assert made.status_code == 201
        found = made.json()
        assert found["definition"]["dimensions"] == BODY["dimensions"]
        assert found["dimensionNames"] == ["country", "device"]
        assert (found["builtIn"], found["version"], found["daysLeft"]) == (False, 1, 0)
        assert (await client.post(ROUTE, json=BODY)).status_code == 409
        answer = await client.get("/v1/metrics/checkout_value?groupBy=device&startTime=2020-01-01&endTime=2020-01-01")
    assert (answer.status_code, answer.json()["aggregation"]) == (200, "sum")


async def test_the_list_has_built_in_and_own_metrics() -> None:
    system = System()
    async with system.client("admin") as client:
        await client.post(ROUTE, json=BODY)
        # One of the project's own may take the place of a built-in one.
        await client.post(ROUTE, json={"name": "revenue", "aggregation": "sum", "property": "net"})
    async with system.client("read") as client:
        found = (await client.get(ROUTE)).json()
    by_name = {each["definition"]["name"]: each for each in found["definitions"]}
    assert set(by_name) == {
        *("events", "unique_users", "daily_active_users", "sessions", "revenue"),
        "checkout_value",
    }
    assert [name for name, each in by_name.items() if not each["builtIn"]] == ["checkout_value", "revenue"]
    assert by_name["revenue"]["definition"]["property"] == "net"


async def test_replace_and_delete() -> None:
    system = System()
    async with system.client("admin") as client:
        assert (await client.put(f"{ROUTE}/checkout_value", json=BODY)).status_code == 404
        await client.post(ROUTE, json=BODY)
        replaced = await client.put(f"{ROUTE}/checkout_value", json=BODY | {"aggregation": "mean"})
        assert (replaced.status_code, replaced.json()["version"]) == (200, 2)
        other = await client.put(f"{ROUTE}/other", json=BODY)
        assert (other.status_code, other.json()["pointer"]) == (400, "/name")
        assert (await client.get(f"{ROUTE}/checkout_value")).json()["definition"]["aggregation"] == "mean"
        assert (await client.delete(f"{ROUTE}/checkout_value")).json() == {"name": "checkout_value"}
        assert (await client.delete(f"{ROUTE}/checkout_value")).status_code == 404
        assert (await client.get(f"{ROUTE}/checkout_value")).status_code == 404


@pytest.mark.parametrize(
    ("change", "pointer"),
    [
        ({"name": "1x"}, "/name"),
        ({"name": "stream"}, "/name"),
        ({"name": "events"}, "/name"),
        ({"aggregation": "median"}, "/aggregation"),
        ({"property": ""}, "/property"),
        ({"dimensions": ["a.b", "c.b"]}, "/dimensions"),
        ({"filters": [{"path": "x", "op": "in", "value": 1}]}, "/filters/0"),
        ({"filters": [{"path": "x", "op": "like", "value": 1}]}, "/filters/0/op"),
        ({"groupBy": ["x"]}, None),
        ({"patterns": {"spikeFactor": 0}}, "/patterns"),
        ({"patterns": {"webhookUrl": "https://intranet.example/x"}}, "/patterns/webhookUrl"),
    ],
)
async def test_what_is_wrong_is_named(change: dict[str, Any], pointer: str | None) -> None:
    async with System().client("admin") as client:
        answer = await client.post(ROUTE, json=BODY | change)
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_body")
    assert answer.json().get("pointer") == pointer


@pytest.mark.parametrize(
    ("url", "status"),
    [
        ("https://hooks.example/x", 201),
        ("https://HOOKS.example/x", 201),
        ("https://a.team.example/x", 201),
        ("http://localhost:9000/x", 201),
        ("http://localhost:9001/x", 400),
        ("https://team.example/x", 400),
        ("http://169.254.169.254/latest", 400),
    ],
)
async def test_webhooks_go_to_allowed_hosts_only(url: str, status: int) -> None:
    """As those that deliver them read the setting."""
    system = System()
    system.statistics.settings = WindowSettings(webhook_hosts=["hooks.example", "*.team.example", "localhost:9000"])
    async with system.client("admin") as client:
        answer = await client.post(ROUTE, json=BODY | {"patterns": {"webhookUrl": url}})
    assert answer.status_code == status
    assert answer.json().get("pointer") == (None if status == 201 else "/patterns/webhookUrl")


async def test_a_change_is_known_to_all_workers_of_a_machine_at_once(tmp_path: Path) -> None:
    registry = MemoryMetricRegistry()
    one, other = (
        Definitions(
            registry,
            WindowSettings(),
            changes=Changes(tmp_path / "changes", worker=number, workers=2),
            ttl_s=60.0,
        )
        for number in range(2)
    )
    assert "mine" not in await one.of("shop")
    assert "mine" not in await other.of("shop")
    await registry.create("shop", MetricDefinition("mine"))
    assert "mine" not in await other.of("shop"), "it is not asked for each time"
    one.changed("shop")
    assert "mine" in await one.of("shop")
    assert "mine" in await other.of("shop")


async def test_metrics_of_a_project_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.routes.metric_definitions.MAX_OWN", 1)
    async with System().client("admin") as client:
        await client.post(ROUTE, json=BODY)
        answer = await client.post(ROUTE, json=BODY | {"name": "another"})
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_body")


async def test_what_is_nested_too_deeply_is_refused() -> None:
    async with System().client("admin") as client:
        answer = await client.post(ROUTE, content=b'{"patterns":' + b'{"a":' * 5000)
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_json")


async def test_who_may() -> None:
    for key in ("write", "import"):
        async with System().client(key) as client:
            assert (await client.get(ROUTE)).status_code == 403
    async with System().client("read") as client:
        assert (await client.get(ROUTE)).status_code == 200
        assert (await client.post(ROUTE, json=BODY)).status_code == 403
        assert (await client.put(f"{ROUTE}/x", json=BODY)).status_code == 403
        assert (await client.delete(f"{ROUTE}/x")).status_code == 403
        assert (await client.post(f"{ROUTE}/events/backfill")).status_code == 403
    async with System().client("admin") as client:
        assert (await client.post(ROUTE, json=BODY | {"projectId": "other"})).status_code == 403
        assert (await client.get(f"{ROUTE}?projectId=other")).status_code == 403


async def test_the_systems_key_names_the_project_in_the_body_or_the_url() -> None:
    system = System()
    async with system.client("system") as client:
        assert (await client.post(ROUTE, json=BODY)).json()["pointer"] == "/projectId"
        assert (await client.post(ROUTE, json=BODY | {"projectId": "shop"})).status_code == 201
        assert (await client.post(f"{ROUTE}?projectId=shop", json=BODY | {"name": "b"})).status_code == 201
        assert (await client.post(f"{ROUTE}?projectId=a", json=BODY | {"projectId": "b"})).status_code == 400
    assert [each.definition.name for each in await system.statistics.registry.list("shop")] == ["b", "checkout_value"]


async def test_a_backfill_shows_its_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    system = System()
    rollups = system.statistics.rollups
    mark_days = rollups.mark_days
    days = [date(2026, 1, day) for day in (1, 2, 3)]

    async def with_events(project_id: str, _days: object = None) -> int:
        return await mark_days(project_id, days)

    monkeypatch.setattr(rollups, "mark_days", with_events)
    async with system.client("admin") as client:
        await client.post(ROUTE, json=BODY)
        begun = await client.post(f"{ROUTE}/checkout_value/backfill")
        assert begun.status_code == 202
        assert begun.json() == {"name": "checkout_value", "daysMarked": 3, "daysLeft": 3}
        await rollups.clear_late_days(await rollups.late_days(range(64), quiet_s=0, max_wait_s=0, limit=1))
        assert (await client.get(f"{ROUTE}/checkout_value")).json()["daysLeft"] == 2
        assert (await client.get(ROUTE)).json()["daysLeft"] == 2
        assert (await client.post(f"{ROUTE}/nothing/backfill")).status_code == 404


async def test_a_long_backfill_goes_on_after_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    system = System()
    marked = asyncio.Event()

    async def slowly(project_id: str) -> int:
        await asyncio.sleep(0.1)
        marked.set()
        return 1

    monkeypatch.setattr(system.statistics.rollups, "mark_days", slowly)
    async with system.client("admin") as client:
        begun = await client.post(f"{ROUTE}/events/backfill")
    assert (begun.status_code, begun.json()["daysMarked"]) == (202, None)
    await asyncio.wait_for(marked.wait(), 1)


async def test_with_the_database_away_metrics_are_known_from_before(monkeypatch: pytest.MonkeyPatch) -> None:
    system = System()
    async with system.client("admin") as client:
        await client.post(ROUTE, json=BODY)
        query = "startTime=2020-01-01&endTime=2020-01-01"
        assert (await client.get(f"/v1/metrics/checkout_value?{query}")).status_code == 200
        system.statistics.registry.away = True
        assert (await client.get(f"/v1/metrics/checkout_value?{query}")).json()["aggregation"] == "sum"
    stranger = System()
    stranger.statistics.registry.away = True
    async with stranger.client("read") as client:
        assert (await client.get("/v1/metrics/events")).status_code == 503
