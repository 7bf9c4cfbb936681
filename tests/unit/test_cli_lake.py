"""`analytics-actors lake`: what it asks a gateway, what it prints, and which settings it looks into the lake with."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from analytics_actors.cli.failure import Failure
from analytics_actors.cli.lake_settings import lake_settings
from analytics_actors.lake.overview import overview_of
from config.settings import ActorSettings, LakeSettings, LogSettings, Settings, StoreSettings
from storage.event_store import Checkpoint
from storage.memory_lake_listing import MemoryLakeListing
from storage.memory_manifest import MemoryManifest
from storage.memory_store import MemoryStore
from tests.unit.cli_server import FakeGateway, data, gateway, invoke

__all__ = ["data", "gateway"]

PATH = "events/year=2026/month=11/day=20/hour=10/part-000000000001-00000.parquet"


def page(*paths: str, **fields: Any) -> dict[str, Any]:
    file = {"hour": "2026-11-20T10:00:00Z", "rows": 30, "bytes": 2048, "tier": "hot"}
    totals = {"files": 2, "rows": 60, "bytes": 4096}
    pending = {"events": 5, "complete": False, "records": 7}
    answer = {"files": [file | {"path": path} for path in paths], "totals": totals, "pending": pending}
    return answer | {"freshAt": "2026-11-20T12:00:00Z"} | fields


def test_files_of_all_pages(gateway: FakeGateway, data: Path) -> None:
    answers = iter([page(PATH, nextCursor="c"), page("b.parquet")])
    gateway.routes["GET", "/v1/exports"] = lambda _: httpx.Response(200, json=next(answers))
    result = invoke("lake", "files", "--data", data, "--start", "2026-11-20T00:00Z")
    assert result.exit_code == 0
    for shown in (PATH, "b.parquet", "30", "2.0 KiB", "2 files, 60 rows, 4.0 KiB", "5 or more events", "2026-11-20T12"):
        assert shown in result.stdout
    first, second = (dict(request.url.params) for request in gateway.requests)
    assert first == {"startTime": "2026-11-20T00:00Z", "limit": "1000"}
    assert second == first | {"cursor": "c"}
    assert gateway.keys == ["the-read-key"] * 2


def test_files_as_json_up_to_a_limit(gateway: FakeGateway, data: Path) -> None:
    gateway.answer("GET", "/v1/exports", page(PATH, nextCursor="c"))
    result = invoke("lake", "files", "--data", data, "-n", "1", "--json", "--all")
    assert [file["path"] for file in msgspec.json.decode(result.stdout)["files"]] == [PATH]
    assert gateway.keys == ["the-admin-key"]


def test_volumes(gateway: FakeGateway, data: Path) -> None:
    volume = {"projectId": "shop", "day": "2026-11-20", "files": 2, "rows": 6, "bytes": 600}
    totals = {"rows": 6, "bytes": 600}
    gateway.answer("GET", "/v1/exports/volumes", {"of": "exported", "volumes": [volume], "totals": totals})
    result = invoke("lake", "volumes", "--data", data, "--project", "shop", "--end", "2026-11-21")
    assert "600 B" in result.stdout and "2026-11-20" in result.stdout
    [asked] = gateway.requests
    assert dict(asked.url.params) == {"projectId": "shop", "endDay": "2026-11-21", "of": "exported"}


def test_the_settings_are_those_of_the_data_folder_and_what_is_given_goes_over_them(tmp_path: Path) -> None:
    kept = Settings(
        data=str(tmp_path),
        store=StoreSettings(postgres_url="postgresql://kept"),
        lake=LakeSettings(url="s3://kept/x", path_style=True, compact_max_parts=7),
        log=LogSettings(partitions=8),
    )
    (tmp_path / "settings.json").write_bytes(kept.to_json())
    flags = {"data": str(tmp_path), "lake.url": "s3://other/y"}
    found = lake_settings(None, flags, {"ANALYTICS_LAKE_REGION": "eu-central-1"})
    assert (found.lake.url, found.lake.region, found.lake.path_style) == ("s3://other/y", "eu-central-1", True)
    assert (found.store.postgres_url, found.log.partitions) == ("postgresql://kept", 8)
    assert lake_settings(None, {"data": str(tmp_path)}, {}) == kept


def test_without_a_system_the_place_must_be_named(tmp_path: Path) -> None:
    flags = {"data": str(tmp_path / "none")}
    with pytest.raises(Failure, match="--postgres-url"):
        lake_settings(None, flags, {})
    named = flags | {"store.postgres_url": "postgresql://named"}
    assert lake_settings(None, named, {}).store.postgres_url == "postgresql://named"
    (tmp_path / "settings.json").write_text("{")
    with pytest.raises(Failure, match="cannot read"):
        lake_settings(None, {"data": str(tmp_path)}, {})


@pytest.mark.parametrize("command", ["status", "verify", "rebuild"])
def test_what_is_away_is_told_in_a_sentence(command: str, tmp_path: Path) -> None:
    result = invoke("lake", command, "--data", tmp_path / "none")
    assert result.exit_code == 1
    assert "start a system with `up`" in result.stderr


async def test_what_each_shard_has_not_exported() -> None:
    manifest = MemoryManifest(MemoryStore(), partitions=4)
    settings = Settings(log=LogSettings(partitions=4), actors=ActorSettings(shards=2))
    since = datetime.now(UTC) - timedelta(minutes=3)
    for partition in range(4):
        await manifest.store.claim(partition, epoch=1)
        manifest.store._checkpoints[partition] = Checkpoint(partition, 1, 10)
        manifest.checkpoints[partition] = Checkpoint(partition, 1, 10 - partition)
        manifest.tails[partition] = since + timedelta(seconds=partition)
    found = await overview_of(MemoryLakeListing(manifest), settings)
    assert sum(shard.pending_records for shard in found.shards) == 6
    assert sum(shard.partitions for shard in found.shards) == 4
    assert sum(shard.partitions_behind for shard in found.shards) == 3
    assert min(shard.since for shard in found.shards if shard.since) == since + timedelta(seconds=1)
    assert (found.files, found.first_hour, found.hours_to_compact) == (0, None, [])
