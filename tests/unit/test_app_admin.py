"""Projects, keys, health, status, metrics."""

import asyncio
import re
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from config import metrics as catalogue
from config.settings import GatewaySettings
from gateway.services import Readiness
from tests.unit.fake_services import System


async def test_project_with_keys() -> None:
    system = System()
    body = {"projectId": "en.wikipedia", "keys": ["write", "read"], "expiresInSeconds": 60}
    async with system.client("system") as client:
        answer = await client.post("/v1/projects", json=body)
        again = await client.post("/v1/projects", json=body)
        listed = await client.get("/v1/projects")
    assert answer.status_code == 201
    assert answer.json()["projectId"] == "en.wikipedia"
    assert [key["kind"] for key in answer.json()["keys"]] == ["write", "read"]
    assert all(key["key"].startswith("aa_") and key["keyId"] for key in answer.json()["keys"])
    assert (again.status_code, again.json()["code"]) == (409, "conflict")
    assert [project["projectId"] for project in listed.json()["projects"]] == ["en.wikipedia", "shop"]
    expires = [record.expires_at for record in system.registry.keys.values()]
    assert all(at and timedelta(0) < at - datetime.now(UTC) <= timedelta(seconds=60) for at in expires)


async def test_pages_of_projects() -> None:
    system = System()
    async with system.client("system") as client:
        for name in ("a", "b"):
            await client.post("/v1/projects", json={"projectId": name})
        first = (await client.get("/v1/projects?limit=2")).json()
        second = (await client.get(f"/v1/projects?limit=2&after={first['next']}")).json()
    assert [p["projectId"] for p in first["projects"]] == ["a", "b"]
    assert [p["projectId"] for p in second["projects"]] == ["shop"]
    assert "next" not in second


@pytest.mark.parametrize(
    ("body", "status", "pointer"),
    [
        ({}, 400, None),
        ({"projectId": 1}, 400, "/projectId"),
        ({"projectId": "a b"}, 400, "/projectId"),
        ({"projectId": "a", "keys": ["x"]}, 400, "/keys/0"),
        ({"projectId": "a", "typo": 1}, 400, None),
        ([], 400, None),
    ],
)
async def test_bad_project_bodies(body: object, status: int, pointer: str | None) -> None:
    async with System().client("system") as client:
        answer = await client.post("/v1/projects", json=body)
    assert (answer.status_code, answer.json()["code"]) == (status, "invalid_body")
    assert answer.json().get("pointer") == pointer
    assert answer.json()["hint"] == "See /openapi.json for its form."


async def test_broken_json_and_long_bodies() -> None:
    async with System().client("system") as client:
        assert (await client.post("/v1/projects", content=b"{")).json()["code"] == "invalid_json"
        assert (await client.post("/v1/projects", content=b'{"projectId":"\xff"}')).json()["code"] == "invalid_json"
        assert (await client.post("/v1/projects", content=b" " * 70_000)).json()["code"] == "body_too_large"


async def test_key_life() -> None:
    system = System(settings=GatewaySettings(key_refresh_s=3))
    async with system.client("system") as client:
        made = await client.post("/v1/keys", json={"projectId": "shop", "kind": "write"})
        listed = await client.get("/v1/keys?projectId=shop")
        revoked = await client.delete(f"/v1/keys/{made.json()['keyId']}")
        unknown = await client.delete("/v1/keys/nothing")
        no_project = await client.post("/v1/keys", json={"projectId": "none", "kind": "write"})
    assert made.status_code == 201
    assert set(made.json()) == {"kind", "keyId", "key"}
    assert listed.json()["keys"][0] | {"kind": "write", "projectId": "shop"} == listed.json()["keys"][0]
    assert "key" not in listed.json()["keys"][0]
    assert (revoked.status_code, revoked.json()["effectiveWithinSeconds"]) == (200, 3)
    assert unknown.status_code == no_project.status_code == 404


@pytest.mark.parametrize("project_id", ["a\0b", "x" * 60_000, "a/b", "mistyped"])
async def test_what_cannot_be_a_project_is_none_that_there_is(project_id: str) -> None:
    """PostgreSQL does not take the first, and none of its indexes the second."""
    bodies: dict[str, dict[str, object]] = {
        "/v1/keys": {"kind": "admin"},
        "/v1/metrics-definitions": {"name": "a", "aggregation": "count"},
        "/v1/batch": {},
        "/v1/exports/destinations": {"url": "s3://acme-events/raw", "region": "eu-west-1", "credentials": "acme"},
    }
    system = System()
    async with system.client("system") as client:
        for route, body in bodies.items():
            answer = await client.post(route, json=body | {"projectId": project_id})
            assert (answer.status_code, answer.json()["code"], route) == (404, "not_found", route)
            assert answer.json()["pointer"] == "/projectId"
    assert await system.batch.jobs(limit=9) == []


async def test_no_route_reads_a_project_that_there_is_not() -> None:
    system = System()
    async with system.client("system") as client:
        paths = (await client.get("/openapi.json")).json()["paths"]
        named = [path for path, methods in paths.items() if "get" in methods and _names_a_project(path, methods["get"])]
        answers = {path: await _read(client, path, "mistyped") for path in named}
        query = await client.post("/v1/query?projectId=mistyped", json={"sql": "SELECT 1"})
        others = [await _read(client, path, "shop") for path in ("/v1/events", "/v1/ledger", "/v1/keys")]
    assert len(named) >= 14
    for path, answer in (answers | {"/v1/query": query}).items():
        assert (answer.status_code, answer.json().get("pointer")) == (404, "/projectId"), path
    assert [answer.status_code for answer in others] == [200, 200, 200]
    assert system.sql.asked == []


def _names_a_project(path: str, operation: dict[str, Any]) -> bool:
    names = [parameter.get("name") for parameter in operation.get("parameters", ())]
    return "projectId" in names


async def _read(client: httpx.AsyncClient, path: str, project_id: str) -> httpx.Response:
    metrics = "&metrics=events" if path.endswith("/stream") else ""
    in_path = "{projectId}" in path
    path = re.sub(r"{(\w+)}", lambda name: project_id if name[1] == "projectId" else "x", path)
    return await client.get(path if in_path else f"{path}?projectId={project_id}{metrics}")


async def test_a_project_is_asked_for_until_it_is_found() -> None:
    system = System()
    async with system.client("system") as client:
        assert (await client.get("/v1/events?projectId=new")).status_code == 404
        system.registry.add("new")
        for _ in range(3):
            assert (await client.get("/v1/events?projectId=new")).status_code == 200
    async with system.client("read") as client:
        assert (await client.get("/v1/events")).status_code == 200
    assert system.registry.asked == 2


async def test_without_postgres_no_project_is_denied(monkeypatch: pytest.MonkeyPatch) -> None:
    """Away, and then one that does not answer."""
    system = System()
    system.registry.away = True
    async with system.client("system") as client:
        assert (await client.get("/v1/events?projectId=shop")).status_code == 200
        monkeypatch.setattr("gateway.known_projects.WAIT_S", 0.01)
        monkeypatch.setattr(system.registry, "has_project", lambda _: asyncio.Event().wait())
        assert (await client.get("/v1/events?projectId=shop")).status_code == 200


async def test_project_admin_reaches_its_project_alone() -> None:
    system = System()
    await system.registry.create_project("other")
    foreign = await system.registry.create_key("other", "write")
    async with system.client("admin") as client:
        own = await client.post("/v1/keys", json={"kind": "read"})
        other = await client.post("/v1/keys", json={"kind": "read", "projectId": "other"})
        revoked = await client.delete(f"/v1/keys/{foreign.key_id}")
        listed = await client.get("/v1/keys")
        projects = await client.get("/v1/projects")
        status = await client.get("/v1/status")
    assert system.registry.keys[own.json()["keyId"]].project_id == "shop"
    assert (other.status_code, other.json()["code"]) == (403, "project_mismatch")
    assert revoked.status_code == 404
    assert {key["projectId"] for key in listed.json()["keys"]} == {"shop"}
    assert projects.status_code == status.status_code == 403


@pytest.mark.parametrize("key", ["write", "read", "import"])
@pytest.mark.parametrize("route", ["/v1/keys", "/v1/projects", "/v1/status"])
async def test_only_admin_keys_administrate(key: str, route: str) -> None:
    async with System().client(key) as client:
        answer = await client.get(route)
    assert (answer.status_code, answer.json()["code"]) == (403, "key_kind_not_allowed")


@pytest.mark.parametrize("query", ["limit=0", "limit=x", "limit=5000", "typo=1"])
async def test_bad_parameters(query: str) -> None:
    async with System().client("system") as client:
        answer = await client.get(f"/v1/projects?{query}")
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_parameter")


async def test_database_away_is_503() -> None:
    system = System()
    system.registry.away = True
    async with system.client("system") as client:
        answer = await client.get("/v1/keys")
    assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
    assert "retry-after" in answer.headers


async def test_health() -> None:
    async with System().client() as client:
        assert (await client.get("/healthz")).json() == {"status": "ok"}
        assert (await client.head("/healthz")).status_code == 200


@pytest.mark.parametrize(("accepting", "status"), [(True, 200), (False, 503)])
async def test_readiness_shows_each_part_and_asks_once(accepting: bool, status: int) -> None:
    system = System()
    system.status.ready = Readiness(accepting=accepting, parts={"log": "away", "spool": "full"})
    async with system.client() as client:
        answers = [await client.get("/readyz") for _ in range(3)]
    assert {answer.status_code for answer in answers} == {status}
    assert answers[0].json() == {"accepting": accepting, "parts": {"log": "away", "spool": "full"}}
    assert system.status.asked == 1


async def test_metrics_show_the_catalogue_and_the_shards() -> None:
    system = System()
    async with system.client() as client:
        answer = await client.get("/metrics")
        await client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    assert 'analytics_shard_lag_events{shard="0"} 3.0' in answer.text
    assert 'analytics_store_events_total{shard="0"} 8.0' in answer.text
    assert 'analytics_windows_open{shard="0"} 12.0' in answer.text
    assert 'analytics_windows_late_events_total{shard="0"} 11.0' in answer.text
    assert 'analytics_lake_lag_records{shard="0"} 4.0' in answer.text
    assert 'analytics_lake_files_total{shard="0"} 2.0' in answer.text
    assert "analytics_lake_hours_to_compact 6.0" in answer.text
    assert "analytics_lake_merged_files_total 5.0" in answer.text
    for metric in catalogue.CATALOGUE:
        assert f"# HELP {metric.name}" in answer.text
    assert system.status.snapshots == 1
