"""POST /v1/query: what is handed on, what comes back in each format, errors, bounds, and clients that go away."""

import asyncio
import subprocess
import sys
from typing import Any

import httpx
import pytest

from config.settings import QuerySettings
from gateway.body import ClientGone
from gateway.errors import ApiError
from gateway.routes.query import _unless_gone
from storage.errors import Unavailable
from storage.lake_cache import NotFetched
from tests.unit.fake_services import System

SQL = "SELECT event_type, count(*) AS n FROM events GROUP BY event_type"


async def post(system: System, body: dict[str, Any], *, key: str = "read", query: str = "") -> httpx.Response:
    async with system.client(key) as client:
        return await client.post(f"/v1/query{query}", json=body)


async def test_answer_as_json() -> None:
    system = System()
    answer = await post(system, {"sql": SQL})
    assert answer.json() == {
        "columns": [{"name": "event_type", "type": "VARCHAR"}, {"name": "n", "type": "BIGINT"}],
        "rows": [["view", 2]],
        "truncated": False,
        "degraded": False,
        "missing": [],
        "files": 3,
        "coldFiles": 0,
        "bytesRead": 9,
    }
    assert system.sql.asked == [("shop", SQL, "json", None, False)]


@pytest.mark.parametrize(
    ("form", "content_type"),
    [
        ("ndjson", "application/x-ndjson"),
        ("csv", "text/csv; charset=utf-8; header=present"),
        ("arrow", "application/vnd.apache.arrow.stream"),
    ],
)
async def test_other_formats_tell_the_rest_in_headers(form: str, content_type: str) -> None:
    system = System()
    system.sql.body, system.sql.truncated, system.sql.cold_files = b"as it is", True, 2
    system.sql.missing = [NotFetched("events/x.parquet", "not in the object store")]
    answer = await post(system, {"sql": SQL, "format": form, "limit": 7})
    assert (answer.content, answer.headers["content-type"]) == (b"as it is", content_type)
    async with system.client() as client:
        contract = (await client.get("/openapi.json")).json()
    assert content_type in contract["paths"]["/v1/query"]["post"]["responses"]["200"]["content"]
    assert (answer.headers["x-query-truncated"], answer.headers["x-query-missing"]) == ("true", "1")
    assert answer.headers["x-query-cold-files"] == "2"
    assert system.sql.asked == [("shop", SQL, form, 7, False)]


async def test_what_is_missing_is_named() -> None:
    system = System()
    system.sql.missing = [NotFetched("events/x.parquet", "damaged")]
    answer = (await post(system, {"sql": SQL, "strict": True})).json()
    assert answer["degraded"]
    assert answer["missing"] == [{"file": "events/x.parquet", "reason": "damaged"}]
    assert system.sql.asked[0][-1] is True


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({}, "invalid_body"),
        ({"sql": ""}, "invalid_body"),
        ({"sql": SQL, "format": "xml"}, "invalid_body"),
        ({"sql": SQL, "limit": 0}, "invalid_body"),
        ({"sql": SQL, "sqll": 1}, "invalid_body"),
        ({"sql": "SELECT '" + "x" * 70_000 + "'"}, "body_too_large"),
    ],
)
async def test_bad_requests(body: dict[str, Any], code: str) -> None:
    system = System()
    assert (await post(system, body)).json()["code"] == code
    assert system.sql.asked == []


async def test_what_is_none_of_several_words_is_told_them() -> None:
    answer = (await post(System(), {"sql": SQL, "format": "xml"})).json()
    assert answer["message"] == "Invalid enum value 'xml': arrow, csv, json, ndjson are possible."
    assert answer["pointer"] == "/format"


async def test_errors_of_the_query() -> None:
    system = System()
    system.sql.error = ApiError("sql_not_allowed", "There is no table 'x'.", pointer="/sql")
    answer = await post(system, {"sql": SQL})
    assert answer.status_code == 400
    assert answer.json()["code"] == "sql_not_allowed"
    assert answer.json()["pointer"] == "/sql"
    assert "hint" in answer.json()
    system.sql.error = Unavailable("PostgreSQL did not answer")
    away = await post(system, {"sql": SQL})
    assert (away.status_code, away.json()["code"]) == (503, "unavailable")


@pytest.mark.parametrize("key", ["write", "import"])
async def test_keys_for_writing_cannot_query(key: str) -> None:
    assert (await post(System(), {"sql": SQL}, key=key)).status_code == 403


async def test_the_project_is_that_of_the_key() -> None:
    system = System()
    system.registry.add("other")
    other = await post(system, {"sql": SQL}, query="?projectId=other")
    assert (other.status_code, other.json()["code"]) == (403, "project_mismatch")
    assert (await post(system, {"sql": SQL}, key="system")).status_code == 400
    assert (await post(system, {"sql": SQL}, key="system", query="?projectId=other")).status_code == 200
    assert [asked[0] for asked in system.sql.asked] == ["other"]


async def test_queries_wait_for_their_turn_and_more_are_shed() -> None:
    system = System()
    system.sql.settings = QuerySettings(concurrency=1, queue=1)
    system.sql.delay_s = 0.05
    async with system.client("read") as client:
        answers = await asyncio.gather(*(client.post("/v1/query", json={"sql": SQL}) for _ in range(4)))
        assert sorted(answer.status_code for answer in answers) == [200, 200, 503, 503]
        shed = next(answer for answer in answers if answer.status_code == 503)
        assert (shed.json()["code"], shed.headers["retry-after"]) == ("overloaded", "1")
        # Other read routes have places of their own.
        assert (await client.get("/v1/events")).status_code == 200


class GoneRequest:
    """A request whose client goes away when it is told to."""

    def __init__(self) -> None:
        self.gone = asyncio.Event()

    async def receive(self) -> dict[str, str]:
        await self.gone.wait()
        return {"type": "http.disconnect"}


async def test_a_query_that_nobody_waits_for_is_ended() -> None:
    system, request = System(), GoneRequest()
    system.sql.delay_s = 60
    waiting = asyncio.create_task(_unless_gone(request, system.sql.run("shop", SQL, "json")))  # type: ignore[arg-type]
    await asyncio.sleep(0)
    request.gone.set()
    with pytest.raises(ClientGone):
        await waiting
    assert system.sql.cancelled == 1


def test_the_app_is_made_without_duckdb() -> None:
    """duckdb belongs to the sandbox processes: it would cost every worker its memory."""
    check = "import sys, gateway.worker; sys.exit('duckdb' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
