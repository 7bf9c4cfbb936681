"""A project's limits through HTTP, and where an answer says that history ends."""

from datetime import UTC, datetime
from typing import Any

import pytest

from storage.retention import ProjectLimits
from tests.unit.fake_services import System

PATH = "/v1/projects/shop/retention"
BEGINS = datetime(2026, 11, 1, tzinfo=UTC)


async def call(system: System, method: str, key: str = "system", path: str = PATH, **body: Any) -> tuple[int, Any]:
    async with system.client(key) as client:
        answer = await client.request(method, path, json=body if method == "PUT" else None)
    return answer.status_code, answer.json()


async def test_limits_are_set_shown_and_cleared() -> None:
    system = System()
    effective = {"rawDays": 7, "lakeDays": 760, "rollupDays": 1826}
    nothing = {"rawDays": None, "lakeDays": None, "rollupDays": None}
    assert await call(system, "GET") == (200, {"projectId": "shop", "own": nothing, "effective": effective})
    status, answer = await call(system, "PUT", rawDays=3, rollupDays=0)
    assert status == 200 and answer["own"] == {"rawDays": 3, "lakeDays": None, "rollupDays": 0}
    assert answer["effective"] == effective | {"rawDays": 3, "rollupDays": 0}
    assert await system.retention.limits() == {"shop": ProjectLimits(3, None, 0)}
    status, answer = await call(system, "GET", key="admin")
    assert (status, answer["own"]["rawDays"]) == (200, 3)
    status, answer = await call(system, "DELETE")
    assert (status, answer["own"]) == (200, nothing) and await system.retention.limits() == {}


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"rawDays": -1}, 400, "invalid_body"),
        ({"rawDays": 40000}, 400, "invalid_body"),
        ({"days": 3}, 400, "invalid_body"),
        ({"rawDays": 800}, 400, "invalid_body"),
        ({"lakeDays": 3}, 400, "invalid_body"),
    ],
)
async def test_limits_that_cannot_be(body: dict[str, Any], status: int, code: str) -> None:
    system = System()
    found, answer = await call(system, "PUT", **body)
    assert (found, answer["code"]) == (status, code) and await system.retention.limits() == {}


async def test_only_the_systems_admin_changes_them() -> None:
    system = System()
    for key in ("write", "read", "admin"):
        assert (await call(system, "PUT", key=key, rawDays=3))[0] == 403
        assert (await call(system, "DELETE", key=key))[0] == 403
    assert (await call(system, "GET", key="read"))[0] == 403
    assert (await call(system, "GET", key="admin", path="/v1/projects/blog/retention"))[0] == 403
    assert (await call(system, "PUT", path="/v1/projects/nobody/retention", rawDays=3))[0] == 404


async def test_the_end_of_the_list_says_where_history_begins() -> None:
    system = System()
    for number in range(3):
        system.queries.add(f"e{number}")
    system.queries.begins = BEGINS
    async with system.client("read") as client:
        first = (await client.get("/v1/events?limit=2")).json()
        last = (await client.get(f"/v1/events?limit=2&cursor={first['nextCursor']}")).json()
    assert "historyBegins" not in first and last["historyBegins"] == "2026-11-01T00:00:00Z"


async def test_an_event_that_is_in_the_lake_alone() -> None:
    system = System()
    system.queries.begins = BEGINS
    system.sql.body = b'[[3,7,"2026-10-01T10:00:00Z","2026-10-01T10:00:01Z"]]'
    async with system.client("read") as client:
        plain = (await client.get("/v1/events/it's/trace")).json()
        found = (await client.get("/v1/events/it's/trace?lake=true")).json()
        system.sql.body = b"[]"
        missing = (await client.get("/v1/events/it's/trace?lake=true")).json()
    assert plain["state"] == "unknown" and "ask with lake=true" in plain["message"]
    assert plain["historyBegins"] == "2026-11-01T00:00:00Z"
    assert (found["state"], found["partition"], found["offset"]) == ("archived", 3, 7)
    assert found["receivedAt"] == "2026-10-01T10:00:01Z"
    project, sql, *_ = system.sql.asked[0]
    assert project == "shop" and "event_id = 'it''s' " in sql
    assert missing["state"] == "unknown" and "in no file" in missing["message"]
    assert len(system.sql.asked) == 2, "only when it is asked for"


async def test_what_is_stored_is_not_looked_for_in_the_lake() -> None:
    system = System()
    system.queries.add("e")
    async with system.client("read") as client:
        assert (await client.get("/v1/events/e/trace?lake=true")).json()["state"] == "stored"
    assert system.sql.asked == []
