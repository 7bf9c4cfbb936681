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
    volume = {"clientId": "acme", "projectId": "shop", "day": "2026-11-20", "files": 2, "rows": 6, "bytes": 600}
    totals = {"rows": 6, "bytes": 600}
    gateway.answer("GET", "/v1/exports/volumes", {"of": "exported", "volumes": [volume], "totals": totals})
    result = invoke("lake", "volumes", "--data", data, "--project", "shop", "--end", "2026-11-21")
    assert "600 B" in result.stdout and "2026-11-20" in result.stdout
    assert "acme" in result.stdout
    [asked] = gateway.requests
    assert dict(asked.url.params) == {"projectId": "shop", "endDay": "2026-11-21", "of": "exported"}


def test_volumes_of_a_client_by_destination(gateway: FakeGateway, data: Path) -> None:
    volume: dict[str, Any] = {"clientId": "acme", "projectId": "shop", "destinationId": "d-1", "day": "2026-11-20"}
    volume |= {"files": 2, "rows": 6, "bytes": 600}
    answer = {"of": "delivered", "volumes": [volume], "totals": {"rows": 6, "bytes": 600}}
    gateway.answer("GET", "/v1/exports/volumes", answer)
    result = invoke("lake", "volumes", "--data", data, "--client", "acme", "--delivered")
    assert "d-1" in result.stdout and gateway.keys == ["the-admin-key"]
    assert dict(gateway.requests[0].url.params) == {"clientId": "acme", "of": "delivered"}
    assert invoke("lake", "volumes", "--data", data, "--held", "--delivered").exit_code == 1


DESTINATION = {
    "destinationId": "d-1",
    "clientId": "acme",
    "state": "failing",
    "files": 1234,
    "rows": 5,
    "bytes": 2048,
    "pendingFiles": 7,
    "freshAt": "2026-11-20T12:00:00Z",
    "url": "s3://acme/events",
    "lastError": "there is no such bucket",
}


def test_destinations(gateway: FakeGateway, data: Path) -> None:
    route = "/v1/exports/destinations"
    gateway.answer("GET", route, {"destinations": [DESTINATION]})
    gateway.answer("POST", route, DESTINATION, status=201)
    for method in ("GET", "PATCH", "DELETE"):
        gateway.answer(method, f"{route}/d-1", DESTINATION)

    def run(*words: str) -> str:
        result = invoke("lake", "destinations", *words, "--data", data)
        assert result.exit_code == 0, result.output
        return result.output

    shown = run("list")
    for text in ("d-1", "client acme", "failing", "1,234", "2.0 KiB", "d-1: there is no such bucket"):
        assert text in shown
    assert "last error: there is no such bucket" in run("show", "d-1")
    run("create", "s3://acme/events", "--client", "acme", "--credentials", "acme", "--since", "beginning")
    run("set", "d-1", "--disable")
    run("remove", "d-1")
    created, changed = gateway.bodies()
    assert created == {
        "url": "s3://acme/events",
        "clientId": "acme",
        "kind": "client",
        "pathStyle": False,
        "credentials": "acme",
        "since": "beginning",
    }
    assert changed == {"enabled": False}
    assert set(gateway.keys) == {"the-admin-key"}
    nobodys = invoke("lake", "destinations", "create", "s3://a/b", "--data", data)
    assert nobodys.exit_code == 1 and "whose events" in nobodys.output


def test_a_project_is_given_to_a_client(gateway: FakeGateway, data: Path) -> None:
    gateway.answer("PATCH", "/v1/projects/shop", {"projectId": "shop", "clientId": "acme"})
    assert "shop is of acme" in invoke("projects", "set-client", "shop", "acme", "--data", data).output
    assert gateway.bodies() == [{"clientId": "acme"}]


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
