"""`/v1/patterns`, and the command that lists them."""

from datetime import UTC, datetime
from pathlib import Path

import jsonschema
import pytest

from storage.pattern_store import Found
from storage.patterns import Detection, Kind
from tests.unit.cli_server import FakeGateway, data, gateway, invoke
from tests.unit.fake_services import System

__all__ = ["data", "gateway"]

BEGIN = datetime(2026, 11, 20, 12, tzinfo=UTC)
URL = "https://hooks.example.com/x"


def detection(minute: int, kind: Kind = "spike", *, metric: str = "events", project_id: str = "shop") -> Detection:
    return Detection(
        project_id=project_id,
        metric=metric,
        kind=kind,
        direction="up",
        size="1m",
        start=int(BEGIN.timestamp()) + 60 * minute,
        value=250.0,
        mean=100.0,
        expected=101.5,
        sigmas=12.254,
        events=250,
        windows=60,
        seasonal=False,
        detected_at=BEGIN.timestamp() + 120,
    )


async def system_with(*detections: Detection, url: str = "") -> System:
    system = System()
    await system.patterns.save([], [Found(one, url) for one in detections])
    return system


async def test_a_pattern_shows_its_window_its_numbers_and_its_delivery() -> None:
    system = await system_with(detection(0), url=URL)
    async with system.client("read") as client:
        answer = (await client.get("/v1/patterns")).json()
    assert answer == {
        "patterns": [
            {
                "id": detection(0).id,
                "projectId": "shop",
                "metric": "events",
                "kind": "spike",
                "direction": "up",
                "window": "1m",
                "startTime": "2026-11-20T12:00:00Z",
                "endTime": "2026-11-20T12:01:00Z",
                "dimensions": {},
                "value": 250.0,
                "mean": 100.0,
                "factor": 2.5,
                "expected": 101.5,
                "sigmas": 12.25,
                "events": 250,
                "windows": 60,
                "seasonal": False,
                "detectedAt": "2026-11-20T12:02:00Z",
                "webhook": {"state": "pending", "attempts": 0, "deliveredAt": None, "lastError": None},
            }
        ]
    }


async def test_filters_and_pages() -> None:
    kinds: list[Kind] = ["spike", "drop", "spike", "drop", "spike"]
    system = await system_with(
        *(detection(minute, kind) for minute, kind in enumerate(kinds)), detection(9, metric="m")
    )
    async with system.client("read") as client:

        async def starts(query: str) -> list[str]:
            return [one["startTime"][14:16] for one in (await client.get(f"/v1/patterns?{query}")).json()["patterns"]]

        assert await starts("metric=events&kind=drop") == ["03", "01"]
        assert await starts("metric=m") == ["09"]
        assert await starts("since=2026-11-20T12:01:00Z&until=2026-11-20T12:03:00Z") == ["02", "01"]
        first = (await client.get("/v1/patterns?limit=4")).json()
        second = (await client.get(f"/v1/patterns?limit=4&cursor={first['nextCursor']}")).json()
    assert [one["startTime"][14:16] for one in first["patterns"] + second["patterns"]] == [
        "09",
        "04",
        "03",
        "02",
        "01",
        "00",
    ]
    assert "nextCursor" not in second


@pytest.mark.parametrize("query", ["cursor=x", "kind=other", "since=yesterday", "limit=0", "limit=1001", "other=1"])
async def test_what_cannot_be_used_is_refused(query: str) -> None:
    async with System().client("read") as client:
        answer = await client.get(f"/v1/patterns?{query}")
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_parameter")


async def test_only_the_own_project_is_shown() -> None:
    system = await system_with(detection(0, project_id="blog"))
    system.registry.add("blog")
    async with system.client("read") as client:
        assert (await client.get("/v1/patterns")).json()["patterns"] == []
        assert (await client.get("/v1/patterns?projectId=blog")).status_code == 403
    async with system.client("write") as client:
        assert (await client.get("/v1/patterns")).status_code == 403
    async with system.client("system") as client:
        assert len((await client.get("/v1/patterns?projectId=blog")).json()["patterns"]) == 1


async def test_postgres_away_is_said() -> None:
    system = System()
    system.patterns.away = True
    async with system.client("read") as client:
        assert (await client.get("/v1/patterns")).status_code == 503


async def test_the_secret_is_for_admins_and_can_be_replaced() -> None:
    system = System()
    async with system.client("read") as client:
        assert (await client.get("/v1/patterns/webhook-secret")).status_code == 403
    async with system.client("admin") as client:
        first = (await client.get("/v1/patterns/webhook-secret")).json()["secret"]
        assert first.startswith("whsec_")
        assert (await client.get("/v1/patterns/webhook-secret")).json()["secret"] == first
        replaced = await client.post("/v1/patterns/webhook-secret")
        assert (replaced.status_code, replaced.json()["secret"] == first) == (201, False)
        assert (await client.get("/v1/patterns/webhook-secret")).json() == replaced.json()
    async with system.client("system") as client:
        assert (await client.get("/v1/patterns/webhook-secret?projectId=none")).status_code == 404


async def test_the_answer_is_as_the_contract_says() -> None:
    system = await system_with(detection(0), url=URL)
    async with system.client("read") as client:
        contract = (await client.get("/openapi.json")).json()
        body = (await client.get("/v1/patterns")).json()
    schema = contract["paths"]["/v1/patterns"]["get"]["responses"]["200"]["content"]["application/json"]["schema"]
    jsonschema.validate(body, schema | {"components": contract["components"]})


ENTRY = {
    "metric": "events",
    "kind": "drop",
    "direction": "down",
    "window": "1m",
    "startTime": "2026-11-20T12:00:00Z",
    "value": 3,
    "mean": 100.5,
    "sigmas": -9.1,
    "webhook": {"state": "failed", "attempts": 8, "lastError": "the receiver answered 500"},
}


def test_the_command_lists_them(gateway: FakeGateway, data: Path) -> None:
    gateway.answer("GET", "/v1/patterns", {"patterns": [ENTRY], "nextCursor": "x"})
    result = invoke("patterns", "--data", data, "--metric", "events", "--kind", "drop", "-n", "5")
    assert result.exit_code == 0
    for word in ("events", "drop", "▼", "100.5", "failed: the receiver answered 500", "there are more"):
        assert word in result.output
    assert dict(gateway.requests[0].url.params) == {"metric": "events", "kind": "drop", "limit": "5"}
    assert gateway.keys == ["the-read-key"]


def test_the_command_prints_json_and_says_when_there_is_nothing(gateway: FakeGateway, data: Path) -> None:
    gateway.answer("GET", "/v1/patterns", {"patterns": []})
    assert invoke("patterns", "--data", data).output == "nothing was detected\n"
    assert '"patterns": []' in invoke("patterns", "--data", data, "--json").output
    invoke("patterns", "--data", data, "--project", "blog")
    assert gateway.keys[-1] == "the-admin-key"
