"""SQL through HTTP on a whole system: each stored event is there once, while events arrive and are exported."""

import asyncio
from typing import Any

import httpx
import msgspec
import pytest

from tests.lake_reading import wait_exported
from tests.plain_http import AsyncWeb
from tests.query_onlooker import QueryOnlooker
from tests.system import Client

pytestmark = pytest.mark.timeout(240)

FILES = 3
"""Of the system's first exports of a project, each a second's events."""


async def ask(client: Client, sql: str, **fields: Any) -> httpx.Response:
    async with AsyncWeb(base_url=client.system.url, timeout=60) as http:
        url = f"/v1/query?projectId={client.project}"
        return await http.post(url, json={"sql": sql, **fields}, headers=client.admin())


async def test_each_event_once_while_they_arrive_and_are_exported(client: Client) -> None:
    onlooker, over = QueryOnlooker(client), asyncio.Event()
    asking = asyncio.create_task(onlooker.run_until(over))
    async with client.posting():
        async with asyncio.timeout(90):
            while onlooker.files < FILES or onlooker.steps < FILES:
                await asyncio.sleep(0.1)
                if asking.done():
                    await asking
    await asyncio.to_thread(client.settle)
    await onlooker.check_complete()
    await wait_exported(client.system)
    over.set()
    await asking
    await onlooker.check_complete()


async def test_formats_errors_and_the_command_line(client: Client) -> None:
    async with AsyncWeb() as http:
        assert await client.post(http, ["a", "b"])
    await asyncio.to_thread(client.settle)
    lines = await ask(client, "SELECT event_id FROM events ORDER BY 1", format="ndjson")
    assert [msgspec.json.decode(line) for line in lines.content.splitlines()] == [{"event_id": "a"}, {"event_id": "b"}]
    refused = await ask(client, "SELECT * FROM read_text('/etc/hostname')")
    assert (refused.status_code, refused.json()["code"]) == (400, "sql_not_allowed")
    words = ("query", "select event_id from events order by 1", "--project", client.project)
    printed = await asyncio.to_thread(client.system.cli, *words)
    assert {"a", "b"} <= set(printed.stdout.replace("│", " ").split())


async def test_a_file_that_is_damaged_within_is_named(client: Client) -> None:
    """By queries, and by who verifies the lake."""
    system, count = client.system, "SELECT count(*) FROM events"
    async with AsyncWeb() as http:
        assert await client.post(http, ["a", "b"])
    await asyncio.to_thread(client.settle)
    await wait_exported(system)
    of_project = "SELECT key FROM lake_files JOIN lake_file_projects USING (file_id) WHERE project_id = $1"
    [row] = await system.sql(f"{of_project} AND retired_at IS NULL", client.project)
    path = system.data / "lake" / row["key"]
    whole = path.read_bytes()
    try:
        path.write_bytes(whole.replace(b'"n"', b'"N"'))
        answer = (await ask(client, count)).json()
        assert (answer["rows"], answer["degraded"]) == ([[0]], True)
        assert answer["missing"] == [{"file": row["key"], "reason": "damaged"}]
        strict = await ask(client, count, strict=True)
        assert strict.status_code == 503 and row["key"] in strict.text
        printed = await asyncio.to_thread(system.cli, "query", count, "--project", client.project)
        assert f"without {row['key']}: damaged" in printed.stderr
        verified = await asyncio.to_thread(system.cli, "lake", "verify", check=False)
        assert verified.returncode == 1 and row["key"] in verified.stdout
    finally:
        path.write_bytes(whole)
    assert (await ask(client, count, strict=True)).json()["rows"] == [[2]]
