"""The lake of a running system, read from its folder: what was sent is there, once, and nothing else."""

import asyncio
import json
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars
import pyarrow.parquet as pq
import pytest

from tests.data_sets import DataSet, read_rows
from tests.integration.main_job.conftest import SETS
from tests.lake_reading import LakeRow, exporters, files_in, live_keys, same_members, wait_exported
from tests.lake_reading import read_rows as read_lake
from tests.plain_http import AsyncWeb
from tests.system import Client, RunningSystem

pytestmark = pytest.mark.timeout(400)


@pytest.fixture
def folder(system: RunningSystem) -> Path:
    return system.data / "lake"


async def settle(client: Client) -> None:
    await asyncio.to_thread(client.settle)
    await wait_exported(client.system)


@pytest.fixture(scope="module")
def rows(loaded: RunningSystem) -> list[LakeRow]:
    """Everything that is in the live files, the sets and whatever else was sent."""
    asyncio.run(wait_exported(loaded))
    return read_lake([str(loaded.data / "lake" / key) for key in asyncio.run(live_keys(loaded))])


@pytest.mark.parametrize("data_set", SETS, ids=lambda each: each.name)
def test_a_data_set_is_in_the_folder_once(rows: list[LakeRow], data_set: DataSet) -> None:
    sent: dict[tuple[str, str], dict[str, Any]] = {}
    for row in map(json.loads, read_rows(data_set.path)):
        sent.setdefault((row["projectId"], row["eventId"]), row)
    rows = [row for row in rows if (row.project_id, row.event_id) in sent]
    assert len(rows) == len(sent) == data_set.answers["all"]["events"]
    hours: Counter[tuple[str, str]] = Counter()
    for row in rows:
        original = sent[row.project_id, row.event_id]
        assert (row.event_type, row.user_id) == (original["eventType"], original.get("userId"))
        assert json.loads(row.properties_json) == original["properties"]
        assert same_members(row.properties, original["properties"])
        assert (json.loads(row.context_json) if row.context_json else {}) == original.get("context", {})
        assert row.context == {name: original.get("context", {}).get(name) for name in ("ip", "userAgent")}
        hours[_text(row.hour), row.event_type] += 1
    wanted = data_set.answers["all"]["eventsPerTypePerHour"]
    assert hours == {(hour, kind): count for hour, kinds in wanted.items() for kind, count in kinds.items()}
    assert Counter(row.project_id for row in rows) == data_set.answers["eventsPerProject"]


def _text(hour: int) -> str:
    return datetime.fromtimestamp(hour, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


async def test_files_lie_under_their_hour_and_every_reader_takes_them(
    system: RunningSystem, client: Client, folder: Path
) -> None:
    properties = {"text": 'ä\n"\\', "amount": 12.5, "none": None, "nested": {"a": [1, {"b": "c"}]}, "yes": True}
    at = datetime.now(UTC)
    event = {"eventId": "one", "eventType": "buy", "userId": "u", "properties": properties, "timestamp": at.isoformat()}
    async with AsyncWeb() as http:
        headers = {"Authorization": f"Bearer {client.write_key}"}
        context = {"ip": "203.0.113.9", "userAgent": "curl/8", "page": {"url": "https://example.com/"}}
        answer = await http.post(f"{system.url}/v1/events", json=event | {"context": context}, headers=headers)
    assert answer.status_code == 202
    await settle(client)
    [key] = [
        row["key"]
        for row in await system.sql(
            "SELECT storage_path AS key FROM events_metadata WHERE project_id = $1 AND status = 'processed'",
            client.project,
        )
    ]
    path = folder / key
    assert key.startswith(f"events/year={at:%Y}/month={at:%m}/day={at:%d}/hour={at:%H}/")
    assert path.name.startswith("part-")

    [row] = await asyncio.to_thread(read_lake, [str(path)], f"project_id = '{client.project}'")
    assert same_members(row.properties, properties)
    [by_arrow] = [each for each in pq.read_table(path).to_pylist() if each["project_id"] == client.project]
    assert same_members(dict(by_arrow["properties"]), properties)
    assert by_arrow["context"] == {"ip": "203.0.113.9", "userAgent": "curl/8"}
    [by_polars] = polars.read_parquet(path).filter(polars.col("project_id") == client.project).to_dicts()
    assert same_members(dict(by_polars["properties"]), properties)
    assert by_polars["timestamp"] == by_arrow["timestamp"]


async def test_nothing_lies_in_the_folder_that_the_manifest_does_not_know(client: Client, folder: Path) -> None:
    await client.run(seconds=1, workers=2)
    await settle(client)
    live = await live_keys(client.system)
    there = files_in(folder)
    known = {row["key"] for row in await client.system.sql("SELECT key FROM lake_files")}
    assert set(live) <= there <= known


async def test_the_log_is_trimmed_behind_the_lake_and_status_and_metrics_tell(client: Client) -> None:
    await client.run(seconds=1, workers=2)
    await settle(client)
    system = client.system
    async with asyncio.timeout(20):
        while not all(shard["view"] and shard["view"]["log_bytes"] == 0 for shard in system.status()["shards"]):
            await asyncio.sleep(0.2)
        while not all(each["view"] and not each["view"]["lag_records"] for each in exporters(system)):
            await asyncio.sleep(0.2)
    [exporter] = exporters(system)
    assert exporter["state"] == "open"
    assert exporter["view"]["counters"]["events_exported"] >= len(client.acknowledged)
    assert exporter["view"]["trouble"] == ""
    async with AsyncWeb() as http:
        metrics = (await http.get(f"{system.url}/metrics")).text
    assert 'analytics_lake_lag_records{shard="0"} 0.0' in metrics
    assert 'analytics_lake_events_total{shard="0"}' in metrics
    assert "exporter-0" in system.cli("status").stdout
