"""Jobs that count days again, over HTTP and by command."""

from datetime import date
from pathlib import Path
from typing import Any

import pytest

from config.settings import WindowSettings
from storage.batch_jobs import Outcome, PlannedPiece, Request
from storage.metric_definitions import MetricDefinition
from tests.unit.cli_server import FakeGateway, data, gateway, invoke
from tests.unit.fake_services import FakeStatistics, System

__all__ = ["data", "gateway"]

DAY = date(2026, 5, 1)


async def ask(system: System, body: dict[str, Any], *, key: str = "system") -> Any:
    async with system.client(key) as client:
        return await client.post("/v1/batch", json=body)


async def test_a_job_is_asked_for_and_shown() -> None:
    system = System()
    answer = await ask(system, {"firstDay": "2026-05-01", "lastDay": "2026-05-02", "projectId": "shop", "dryRun": True})
    assert (answer.status_code, answer.json()) == (202, {"jobId": 1})
    await system.batch.begin(1, [PlannedPiece(DAY, DAY, ("shop", "zoo"))], days_open=2)
    piece = await system.batch.take(1, "x")
    assert piece is not None
    await system.batch.fail(piece, "the lake is away", retry_after_s=9)
    async with system.client("system") as client:
        listed = (await client.get("/v1/batch")).json()
    assert listed["runAt"] == "02:00"
    [job] = listed["jobs"]
    assert (job["kind"], job["state"], job["firstDay"], job["lastDay"]) == (
        "command",
        "running",
        "2026-05-01",
        "2026-05-02",
    )
    progress = job["progress"]
    assert (progress["days"], progress["daysLeft"], progress["daysOpen"]) == (2, 2, 2)
    assert progress["errors"] == ["the lake is away"]
    assert job["dryRun"] is True


async def test_what_cannot_be_asked_is_refused() -> None:
    system = System()
    refused: list[tuple[dict[str, Any], int]] = [
        ({"metric": "m"}, 400),
        ({"metric": "m", "projectId": "shop"}, 404),
        ({"firstDay": "2026-05-02", "lastDay": "2026-05-01"}, 400),
        ({"firstDay": "tomorrow"}, 400),
        ({"days": 1}, 400),
    ]
    for body, status in refused:
        assert (await ask(system, body)).status_code == status, body
    for key in ("admin", "read", "write"):
        assert (await ask(system, {}, key=key)).status_code == 403
    assert await system.batch.jobs(limit=9) == []
    system.statistics = FakeStatistics(settings=WindowSettings(enabled=False))
    assert (await ask(system, {})).status_code == 409


async def test_a_backfill_counts_among_the_days_left_of_its_metric() -> None:
    system = System()
    await system.statistics.registry.create("shop", MetricDefinition("m"))
    assert (await ask(system, {"metric": "m", "projectId": "shop"})).status_code == 202
    [job] = await system.batch.jobs(limit=1)
    assert job.request == Request("backfill", project_id="shop", metric="m")
    await system.batch.begin(1, [PlannedPiece(DAY, DAY.replace(day=3), ("shop",))], days_open=0)
    await system.statistics.rollups.mark_days("shop", [DAY])
    async with system.client("admin") as client:
        assert (await client.get("/v1/metrics-definitions/m")).json()["daysLeft"] == 4
        piece = await system.batch.take(1, "x")
        assert piece is not None
        await system.batch.done(piece, Outcome())
        assert (await client.get("/v1/metrics-definitions/m")).json()["daysLeft"] == 1


def job(**changed: Any) -> dict[str, Any]:
    progress: dict[str, Any] = {
        "days": 3,
        "daysLeft": 0,
        "daysSuperseded": 0,
        "daysFailed": 0,
        "daysOpen": 0,
        "projects": 1,
    }
    progress |= {"events": 1234, "rows": 70, "rowsChanged": 5, "seconds": 1.5, "errors": []}
    made = {"jobId": 7, "kind": "command", "state": "done", "daily": None, "firstDay": "2026-05-01", "lastDay": None}
    made |= {"projectId": "shop", "metric": None, "dryRun": False, "createdAt": "2026-05-02T00:00:00Z"}
    return made | {"startedAt": None, "endedAt": None, "progress": progress} | changed


def test_the_command_waits_for_its_job(gateway: FakeGateway, data: Path) -> None:
    gateway.answer("POST", "/v1/batch", {"jobId": 7}, status=202)
    gateway.answer("GET", "/v1/batch", {"runAt": "02:00", "jobs": [job()]})
    result = invoke("batch", "run", "--from", "2026-05-01", "--project", "shop", "--dry-run", "--data", data)
    assert result.exit_code == 0, result.output
    assert "1,234" in result.output and "2026-05-01" in result.output
    [asked] = [request for request in gateway.requests if request.method == "POST"]
    assert asked.read() == b'{"firstDay":"2026-05-01","projectId":"shop","dryRun":true}'


def test_days_that_could_not_be_counted_are_a_failure(gateway: FakeGateway, data: Path) -> None:
    progress = job()["progress"] | {"daysFailed": 2, "errors": ["part-1 of the lake is damaged"]}
    gateway.answer("POST", "/v1/batch", {"jobId": 7}, status=202)
    gateway.answer("GET", "/v1/batch", {"runAt": None, "jobs": [job(state="incomplete", progress=progress)]})
    result = invoke("batch", "run", "--data", data)
    assert result.exit_code == 1
    assert "part-1 of the lake is damaged" in result.output
    assert "next daily job" in result.output


@pytest.mark.parametrize(("run_at", "said"), [("02:00", "due at 02:00 UTC"), (None, "turned off")])
def test_status_shows_the_last_jobs(gateway: FakeGateway, data: Path, run_at: str | None, said: str) -> None:
    gateway.answer("GET", "/v1/batch", {"runAt": run_at, "jobs": [job(daily="2026-05-02", kind="daily")]})
    result = invoke("batch", "status", "--data", data)
    assert result.exit_code == 0, result.output
    assert "daily" in result.output and said in result.output
