"""SQL through HTTP on a whole system: each stored event is there once, while events arrive and are exported."""

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import httpx
import msgspec
import pytest

from tests.system import Client, RunningSystem

SECONDS = 12.0
"""Some parts of `lake.part_interval_s` long."""


@pytest.fixture(scope="module")
def lake_system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningSystem]:
    """Parts follow one another quickly."""
    folder = tmp_path_factory.mktemp("query") / "data"
    running = RunningSystem(folder, arguments=("--port", "0"), environment={"ANALYTICS_LAKE_PART_INTERVAL_S": "2"})
    try:
        running.start()
        running.wait_healthy()
        yield running
    finally:
        running.close()


@pytest.fixture
def client(lake_system: RunningSystem) -> Client:
    made = Client(lake_system)
    made.create_project()
    return made


async def ask(client: Client, sql: str, **fields: Any) -> httpx.Response:
    async with httpx.AsyncClient(base_url=client.system.url, timeout=60) as http:
        url = f"/v1/query?projectId={client.project}"
        return await http.post(url, json={"sql": sql, **fields}, headers=client.admin())


async def test_each_event_once_while_they_arrive_and_are_exported(client: Client) -> None:
    posting = asyncio.create_task(client.run(seconds=SECONDS))
    counts = [0]
    until = time.monotonic() + SECONDS
    while time.monotonic() < until:
        answer = (await ask(client, "SELECT count(*), count(DISTINCT event_id) FROM events", strict=True)).json()
        [[count, distinct]] = answer["rows"]
        assert count == distinct >= counts[-1]
        counts.append(count)
    await posting
    await asyncio.to_thread(client.settle)
    stored = sum((await client.stored()).values())
    for _ in range(5):
        answer = (await ask(client, "SELECT count(*), count(DISTINCT event_id) FROM events", strict=True)).json()
        assert answer["rows"] == [[stored, stored]]
        await asyncio.sleep(1)
    assert len(set(counts)) > 3
    assert answer["files"] > 0


async def test_formats_errors_and_the_command_line(client: Client) -> None:
    async with httpx.AsyncClient() as http:
        assert await client.post(http, ["a", "b"])
    await asyncio.to_thread(client.settle)
    lines = await ask(client, "SELECT event_id FROM events ORDER BY 1", format="ndjson")
    assert [msgspec.json.decode(line) for line in lines.content.splitlines()] == [{"event_id": "a"}, {"event_id": "b"}]
    refused = await ask(client, "SELECT * FROM read_text('/etc/hostname')")
    assert (refused.status_code, refused.json()["code"]) == (400, "sql_not_allowed")
    words = ("query", "select event_id from events order by 1", "--project", client.project)
    printed = await asyncio.to_thread(client.system.cli, *words)
    assert {"a", "b"} <= set(printed.stdout.replace("│", " ").split())
