"""What holds for every route: request ids, CORS, unknown routes and methods, metrics, log lines."""

import logging

import pytest

from config.settings import GatewaySettings
from tests.unit.fake_services import System, bearer

EVENT = {"eventType": "x"}


@pytest.mark.parametrize("given", ["abc-123", "A/b:c.d=e+f@g_h"])
async def test_sane_request_id_is_kept(given: str) -> None:
    async with System().client() as client:
        answer = await client.get("/healthz", headers={"X-Request-Id": given})
    assert answer.headers["x-request-id"] == given


@pytest.mark.parametrize("given", [b"", b"a b", b"x" * 129, b'"><script>', "é".encode()])
async def test_other_request_ids_are_replaced(given: bytes) -> None:
    async with System().client() as client:
        first = await client.post("/v1/events", headers={b"X-Request-Id": given})
        second = await client.get("/healthz")
    made = first.headers["x-request-id"]
    assert made
    assert made.encode() != given
    assert first.json()["requestId"] == made
    assert made != second.headers["x-request-id"]


async def test_unknown_route_and_method() -> None:
    async with System().client() as client:
        unknown = await client.get("/v2/events")
        wrong = await client.put("/v1/events", json=EVENT)
        keys = await client.patch("/v1/keys", json={})
    assert (unknown.status_code, unknown.json()["code"]) == (404, "not_found")
    assert (wrong.status_code, wrong.json()["code"]) == (405, "method_not_allowed")
    assert "POST" in wrong.headers["allow"]
    assert keys.headers["allow"] == "GET, HEAD, POST"


async def test_trailing_slash_makes_no_difference() -> None:
    async with System().client("system") as client:
        assert (await client.get("/v1/projects/")).status_code == 200
        assert (await client.get("/healthz/")).status_code == 200
        for nothing in ("/v1/metrics", "/v1/metrics/"):
            answer = await client.get(nothing, follow_redirects=False)
            assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


ORIGIN = {"Origin": "https://shop.example"}


async def test_write_routes_are_open_to_all_origins() -> None:
    async with System().client() as client:
        accepted = await client.post("/v1/events", json=EVENT, headers=ORIGIN | bearer("write"))
        refused = await client.post("/v1/events", json=EVENT, headers=ORIGIN)
    for answer in (accepted, refused):
        assert answer.headers["access-control-allow-origin"] == "*"
        exposed = answer.headers["access-control-expose-headers"].split(", ")
        assert exposed == [
            "Retry-After",
            "X-Request-Id",
            *(f"X-Query-{x}" for x in ("Truncated", "Missing", "Cold-Files")),
        ]
        assert "access-control-allow-credentials" not in answer.headers


async def test_preflight_of_a_write() -> None:
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}
    async with System().client() as client:
        answer = await client.options("/v1/events/batch", headers=ORIGIN | asked)
    assert answer.status_code == 204
    assert answer.headers["access-control-allow-origin"] == "*"
    assert answer.headers["access-control-allow-headers"] == "authorization,content-type"
    assert answer.headers["access-control-max-age"] == "86400"
    assert "POST" in answer.headers["access-control-allow-methods"]


async def test_preflight_allows_every_method_that_there_is() -> None:
    async with System().client() as client:
        allowed = (
            await client.options("/v1/events", headers=ORIGIN | {"Access-Control-Request-Method": "POST"})
        ).headers
        contract = (await client.get("/openapi.json")).json()
    methods = {method.upper() for path in contract["paths"].values() for method in path if method != "parameters"}
    assert methods <= set(allowed["access-control-allow-methods"].split(", "))
    assert "PUT" in methods


@pytest.mark.parametrize(("origins", "allowed"), [([], False), (["https://shop.example"], True)])
async def test_read_routes_are_open_to_listed_origins(origins: list[str], allowed: bool) -> None:
    system = System(settings=GatewaySettings(query_origins=origins))
    asked = ORIGIN | {"Access-Control-Request-Method": "GET"}
    async with system.client("system") as client:
        plain = await client.get("/v1/projects", headers=ORIGIN)
        preflight = await client.options("/v1/projects", headers=asked)
        same_path_as_a_write = await client.options("/v1/events", headers=asked)
    for answer in (plain, preflight, same_path_as_a_write):
        assert answer.headers.get("access-control-allow-origin") == (ORIGIN["Origin"] if allowed else None)
        assert answer.headers["vary"] == "Origin"


async def test_no_cors_headers_without_an_origin() -> None:
    async with System().client("write") as client:
        answer = await client.post("/v1/events", json=EVENT)
    assert not [name for name in answer.headers if name.startswith("access-control")]


async def test_requests_and_events_are_counted_by_route_and_outcome() -> None:
    system = System()
    async with system.client("write") as client:
        await client.post("/v1/events/batch/", json=[EVENT, EVENT, {}])
        await client.post("/v1/events", json={})
        await client.get("/v1/keys/any-id")
        text = (await client.get("/metrics")).text
    assert 'analytics_http_requests_total{route="/v1/events/batch",status="202"} 1.0' in text
    assert 'analytics_http_requests_total{route="/v1/events",status="422"} 1.0' in text
    assert 'analytics_events_total{outcome="accepted"} 2.0' in text
    assert 'analytics_event_rejections_total{code="missing_event_type"} 2.0' in text
    assert "any-id" not in text


async def test_failures_are_logged_once_each_with_their_fields(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    system = System()
    system.ingest.overload(1)
    async with system.client("write") as client:
        answer = await client.post("/v1/events", json=EVENT)
    [record] = [record for record in caplog.records if getattr(record, "action", "") == "request_failed"]
    assert record.levelno == logging.WARNING
    fields = vars(record)
    assert (fields["code"], fields["status"], fields["path"]) == ("overloaded", 503, "/v1/events")
    assert (fields["project_id"], fields["key_id"]) == ("shop", "w1")
    assert fields["request_id"] == answer.headers["x-request-id"]
    assert fields["reason"] == "the shard is full"


async def test_a_storm_of_failures_is_few_lines(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with System().client() as client:
        for _ in range(100):
            await client.post("/v1/events", json=EVENT)
    assert len([r for r in caplog.records if getattr(r, "action", "") == "request_failed"]) <= 10


async def test_accepted_requests_are_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with System().client("write") as client:
        await client.post("/v1/events", json=EVENT)
    assert [record for record in caplog.records if record.name.startswith("gateway")] == []
