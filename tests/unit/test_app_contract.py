"""The OpenAPI document: valid, complete, and true to what the routes answer."""

import re
from typing import Any

import jsonschema
from starlette.routing import Route

from gateway.errors import ERRORS
from gateway.middleware import Edge
from gateway.openapi import public_path
from tests.unit.fake_services import System
from tests.unit.metric_data import Sent, begin_windows, publish

BEYOND = ("0001-01-01T00:00:00%2B23:59", "9999-12-31T23:59:59-23:59")
SHAPE = {
    "type": "object",
    "required": ["openapi", "info", "paths", "components"],
    "properties": {
        "openapi": {"const": "3.1.0"},
        "info": {"type": "object", "required": ["title", "version"]},
        "paths": {
            "type": "object",
            "patternProperties": {"^/": {"additionalProperties": {"$ref": "#/$defs/operation"}}},
            "additionalProperties": False,
        },
        "components": {
            "type": "object",
            "required": ["schemas", "securitySchemes"],
            "properties": {
                "schemas": {"additionalProperties": {"$ref": jsonschema.Draft202012Validator.META_SCHEMA["$id"]}}
            },
        },
    },
    "$defs": {
        "operation": {
            "type": "object",
            "required": ["operationId", "summary", "parameters", "responses", "security"],
            "properties": {
                "parameters": {
                    "items": {
                        "required": ["name", "in", "required", "schema"],
                        "properties": {"in": {"enum": ["path", "query", "header"]}},
                    }
                },
                "requestBody": {"required": ["content"], "properties": {"content": {"$ref": "#/$defs/content"}}},
                "responses": {
                    "minProperties": 1,
                    "patternProperties": {
                        "^[1-5][0-9]{2}$": {
                            "required": ["description"],
                            "properties": {"content": {"$ref": "#/$defs/content"}},
                        }
                    },
                    "additionalProperties": False,
                },
            },
        },
        "content": {"type": "object", "patternProperties": {"^[a-z]+/": {"type": "object"}}, "minProperties": 1},
    },
}


async def document() -> dict[str, Any]:
    async with System().client() as client:
        answer = await client.get("/openapi.json")
    found: dict[str, Any] = answer.json()
    return found


def references(node: object) -> set[str]:
    if isinstance(node, dict):
        own = {node["$ref"]} if "$ref" in node else set()
        return own.union(*(references(value) for value in node.values()))
    if isinstance(node, list):
        return set().union(*(references(value) for value in node))
    return set()


async def test_document_is_valid() -> None:
    found = await document()
    jsonschema.Draft202012Validator(SHAPE).validate(found)
    schemas = {f"#/components/schemas/{name}" for name in found["components"]["schemas"]}
    assert references(found) <= schemas
    assert all(name.isalnum() and schema["title"] == name for name, schema in found["components"]["schemas"].items())
    operations = [spec["operationId"] for path in found["paths"].values() for spec in path.values()]
    assert len(operations) == len(set(operations))


async def test_every_route_is_in_the_document_and_nothing_else() -> None:
    client = System().client()
    edge = client._transport.app  # type: ignore[attr-defined]
    assert isinstance(edge, Edge)
    routes = [route for route in edge.routes if isinstance(route, Route)]
    assert len(routes) == len(edge.routes)
    routed = {(public_path(r.path), method) for r in routes for method in r.methods or () if method != "HEAD"}
    written = {("/v1/events", "POST"), ("/v1/events/batch", "POST")}
    documented = {(path, method.upper()) for path, methods in (await document())["paths"].items() for method in methods}
    assert documented == routed | written
    await client.aclose()


async def test_answers_match_their_schemas() -> None:
    found = await document()

    def check(path: str, method: str, status: int, body: object) -> None:
        schema = found["paths"][path][method]["responses"][str(status)]["content"]["application/json"]["schema"]
        jsonschema.validate(body, schema | {"components": found["components"]})

    async with System().client("system") as client:
        made = await client.post("/v1/projects", json={"projectId": "p", "keys": ["write"]})
        check("/v1/projects", "post", 201, made.json())
        check("/v1/projects", "get", 200, (await client.get("/v1/projects")).json())
        check("/v1/keys", "get", 200, (await client.get("/v1/keys")).json())
        check("/v1/projects", "post", 409, (await client.post("/v1/projects", json={"projectId": "p"})).json())
        check("/readyz", "get", 200, (await client.get("/readyz")).json())
    system = System()
    system.queries.add("e1")
    async with system.client("read") as client:
        check("/v1/events", "get", 200, (await client.get("/v1/events")).json())
        check("/v1/events/{eventId}", "get", 200, (await client.get("/v1/events/e1")).json())
        check("/v1/events/{eventId}/trace", "get", 200, (await client.get("/v1/events/e1/trace")).json())
        check("/v1/exports", "get", 200, (await client.get("/v1/exports")).json())
        check("/v1/exports/volumes", "get", 200, (await client.get("/v1/exports/volumes")).json())
    system = System()
    await begin_windows(system.statistics)
    await publish(system.statistics, [Sent(system.statistics.now_s - 5, "purchase", properties={"amount": "1.50"})])
    async with system.client("admin") as client:
        for query in ("events?groupBy=eventType", "revenue", "unique_users?fill=null", "events?startTime=2020-01-01"):
            metric = await client.get(f"/v1/metrics/{query}")
            check("/v1/metrics/{metric}", "get", 200, metric.json())
        check("/v1/metrics/{metric}", "get", 400, (await client.get("/v1/metrics/events?limit=x")).json())
        definition = {"name": "m", "aggregation": "p95", "property": "ms", "dimensions": ["path=context.page.path"]}
        made = await client.post("/v1/metrics-definitions", json=definition)
        check("/v1/metrics-definitions", "post", 201, made.json())
        check("/v1/metrics-definitions", "get", 200, (await client.get("/v1/metrics-definitions")).json())
        named = "/v1/metrics-definitions/{name}"
        check(named, "get", 200, (await client.get("/v1/metrics-definitions/m")).json())
        check(named, "put", 200, (await client.put("/v1/metrics-definitions/m", json=definition)).json())
        begun = await client.post("/v1/metrics-definitions/m/backfill")
        check(f"{named}/backfill", "post", 202, begun.json())
        check(named, "delete", 200, (await client.delete("/v1/metrics-definitions/m")).json())
    async with System().client("write") as client:
        event = {"eventType": "x"}
        check("/v1/events", "post", 202, (await client.post("/v1/events", json=event)).json())
        check("/v1/events", "post", 422, (await client.post("/v1/events", json={})).json())
        check("/v1/events/batch", "post", 202, (await client.post("/v1/events/batch", json=[event, {}])).json())


WRITES = {"/v1/events": "post", "/v1/events/batch": "post"}


async def test_no_parameter_reaches_a_driver_that_no_driver_takes() -> None:
    """U+0000, and times that are outside the years 1 to 9999 in UTC: said of each route's contract, and answered so."""
    system = System()
    tried = set()
    async with system.client("system") as client:
        for path, operations in (await document())["paths"].items():
            for method, operation in operations.items():
                assert "400" in operation["responses"], (path, method)
                if WRITES.get(path) == method:
                    continue  # their bodies are the decoder's, and of their parameters nothing is looked up
                for parameter in operation["parameters"]:
                    name, kind = parameter["name"], parameter["in"]
                    is_time = "date-time" in str(parameter["schema"])
                    for value in ("a%00b", *(BEYOND if is_time else ())):
                        url = path.replace(f"{{{name}}}", value) if kind == "path" else f"{path}?{name}={value}"
                        answer = await client.request(method, re.sub(r"{\w+}", "x", url))
                        assert (answer.status_code, answer.json()["code"]) == (400, "invalid_parameter"), url
                        assert answer.json()["pointer"] == f"/{name}", url
                        tried.add((kind, is_time))
    assert tried == {("query", False), ("query", True), ("path", False)}


async def test_events_may_carry_older_names() -> None:
    event = (await document())["components"]["schemas"]["Event"]
    assert event["required"] == ["eventType"]
    jsonschema.validate({"eventType": "x", "visitor_id": "v"}, event)


async def test_examples_are_of_their_types() -> None:
    found = await document()

    def examples(node: object) -> list[tuple[Any, Any]]:
        if isinstance(node, dict):
            own = [(node, example) for example in node.get("examples", [])]
            return own + [pair for value in node.values() for pair in examples(value)]
        return [pair for value in node for pair in examples(value)] if isinstance(node, list) else []

    pairs = examples(found)
    assert pairs
    for schema, example in pairs:
        jsonschema.validate(example, schema | {"components": found["components"]})


async def test_page_loads_nothing_from_elsewhere() -> None:
    async with System().client() as client:
        answer = await client.get("/docs")
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert "http" not in answer.text.replace("openapi.json", "")
    assert "src=" not in answer.text
    assert "href=" not in answer.text


def test_error_codes_are_of_valid_statuses() -> None:
    assert all(400 <= kind.status < 600 for kind in ERRORS.values())
