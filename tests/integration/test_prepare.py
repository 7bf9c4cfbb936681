"""What `up` does to the database before it starts anything else: schema, keys, facts that stay."""

import asyncio
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import redis
from msgspec.structs import replace

from analytics_actors.up.connection import Connection, Prepared
from analytics_actors.up.prepare import main, prepare
from config import Settings
from config.settings import LakeSettings, LogSettings, StoreSettings, WindowSettings
from storage.embedded.valkey import EmbeddedValkey
from storage.errors import Misconfigured, Unavailable
from storage.key_text import is_well_formed
from storage.postgres import Postgres
from storage.registry import Registry
from tests.object_servers import ObjectServer


@pytest.fixture
def postgres_url(empty_postgres_url: str) -> str:
    return empty_postgres_url


@pytest.fixture
def settings(postgres_url: str, valkey_url: str, tmp_path: Path) -> Settings:
    log, store = LogSettings(redis_url=valkey_url), StoreSettings(postgres_url=postgres_url)
    return Settings(data=str(tmp_path / "data"), log=log, store=store)


def kept(prepared: Prepared) -> Connection:
    keys = (prepared.project_id, prepared.admin_key, prepared.write_key, prepared.read_key)
    return Connection("http://g", "", *keys, "p", "r", "l", "1:1", "/token", 1)


def keys_of(prepared: Prepared) -> tuple[str, str, str]:
    return prepared.write_key, prepared.read_key, prepared.admin_key


async def revoke(settings: Settings, key: str) -> None:
    connection = await asyncpg.connect(settings.store.postgres_url)
    await connection.execute("UPDATE api_keys SET revoked_at = now() WHERE key_hash = sha256($1::text::bytea)", key)
    await connection.close()


async def test_a_new_database_gets_schema_project_and_keys(settings: Settings) -> None:
    prepared = await prepare(settings, None)
    assert prepared.is_new
    assert prepared.migrations
    assert prepared.project_id == "default"
    assert all(is_well_formed(key) for key in keys_of(prepared))


async def test_a_second_start_keeps_the_keys(settings: Settings) -> None:
    first = await prepare(settings, None)
    again = await prepare(settings, kept(first))
    assert (again.migrations, again.is_new) == ([], False)
    assert keys_of(again) == keys_of(first)


async def test_lost_keys_are_made_anew_and_the_old_ones_stay(settings: Settings) -> None:
    first = await prepare(settings, None)
    again = await prepare(settings, None)
    assert not set(keys_of(first)) & set(keys_of(again))
    assert keys_of(await prepare(settings, kept(first))) == keys_of(first)


async def test_only_the_revoked_key_is_replaced(settings: Settings) -> None:
    first = await prepare(settings, None)
    await revoke(settings, first.read_key)
    again = await prepare(settings, kept(first))
    assert (again.write_key, again.admin_key) == (first.write_key, first.admin_key)
    assert again.read_key != first.read_key


async def test_keys_of_another_database_are_not_believed(settings: Settings) -> None:
    first = await prepare(settings, None)
    foreign = replace(kept(first), project_id="elsewhere", write_key="aa_write_x", admin_key=first.write_key)
    again = await prepare(settings, foreign)
    assert again.project_id == "default"
    assert again.admin_key.startswith("aa_admin_")
    assert again.write_key not in ("aa_write_x", first.write_key)


async def test_another_number_of_partitions_is_refused(settings: Settings) -> None:
    await prepare(settings, None)
    changed = replace(settings, log=replace(settings.log, partitions=settings.log.partitions * 2))
    with pytest.raises(Misconfigured, match=r"created with log\.partitions = 64, and the setting is 128"):
        await prepare(changed, None)


@pytest.mark.parametrize("wrong", [{"aggregation": "p95"}, {"patterns": {"sigma": 1}}])
async def test_a_metric_of_the_settings_that_is_wrong_is_told_before_anything_starts(
    settings: Settings, wrong: dict[str, Any]
) -> None:
    metrics = [{"name": "fine"}, {"name": "slow"} | wrong]
    with pytest.raises(Misconfigured, match=r"windows\.metrics, 'slow'"):
        await prepare(replace(settings, windows=WindowSettings(metrics=metrics)), None)


async def test_the_lakes_folder_is_made(settings: Settings) -> None:
    assert (await prepare(settings, None)).warnings == []
    assert Path(settings.data, "lake").stat().st_mode & 0o777 == 0o700


async def test_a_lake_that_is_not_enabled_is_not_looked_at(settings: Settings) -> None:
    off = replace(settings, lake=LakeSettings(enabled=False, url="no url"))
    assert (await prepare(off, None)).warnings == []
    assert not Path(settings.data, "lake").exists()


@pytest.mark.parametrize(
    ("lake", "said"),
    [
        ({"url": "/srv/lake"}, r"lake\.url = '/srv/lake' is neither"),
        ({"url": "file:///dev/null/lake"}, "owner and file system"),
        ({"url": "s3://nobody-made-this"}, "no such bucket"),
        ({"url": "s3://nobody-made-this", "endpoint_url": "nowhere"}, r"lake\.endpoint_url = 'nowhere'"),
    ],
)
async def test_a_lake_that_only_a_person_can_mend_is_refused(
    settings: Settings,
    moto_server: ObjectServer,
    monkeypatch: pytest.MonkeyPatch,
    lake: dict[str, str],
    said: str,
) -> None:
    for name, value in moto_server.environment().items():
        monkeypatch.setenv(name, value)
    there = LakeSettings(path_style=True, endpoint_url=moto_server.endpoint_url)
    with pytest.raises(Misconfigured, match=said):
        await prepare(replace(settings, lake=replace(there, **lake)), None)


async def test_a_lake_that_is_away_is_told_and_waited_for_later(
    settings: Settings, moto_server: ObjectServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in moto_server.environment().items():
        monkeypatch.setenv(name, value)
    away = LakeSettings(url="s3://lake", endpoint_url="http://127.0.0.1:9", path_style=True)
    [warning] = (await prepare(replace(settings, lake=away), None)).warnings
    assert warning.startswith("the lake cannot be reached, its files are written when it is back: s3://lake at http")


async def test_a_project_that_came_first_by_another_name_is_used(settings: Settings) -> None:
    await prepare(settings, None)
    postgres = Postgres(settings.store.postgres_url, owner="test", pool_size=1, deadline_s=10.0)
    await Registry(postgres).create_project("shop")
    await postgres.close()
    connection = await asyncpg.connect(settings.store.postgres_url)
    await connection.execute("DELETE FROM api_keys")
    await connection.execute("DELETE FROM projects WHERE project_id = 'default'")
    await connection.close()
    assert (await prepare(settings, None)).project_id == "shop"


async def test_a_log_that_forgets_is_refused(settings: Settings, tmp_path: Path) -> None:
    server = EmbeddedValkey(tmp_path, max_memory_bytes=64 << 20)
    await asyncio.to_thread(server.start)
    try:
        with redis.Redis.from_url(server.url) as client:
            client.config_set("appendfsync", "everysec")
        forgetful = replace(settings, log=replace(settings.log, redis_url=server.url))
        with pytest.raises(Misconfigured, match="appendfsync"):
            await prepare(forgetful, None)
    finally:
        await asyncio.to_thread(server.stop)


async def test_a_database_that_is_away_is_told(settings: Settings) -> None:
    away = replace(settings, store=replace(settings.store, postgres_url="postgresql://a:b@127.0.0.1:1/x"))
    with pytest.raises(Unavailable, match="did not answer: ConnectionRefusedError"):
        await prepare(away, None)


def test_a_damaged_connection_file_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings_file, connection_file = tmp_path / "settings.json", tmp_path / "connection.json"
    settings_file.write_bytes(Settings().to_json())
    connection_file.write_text("{")
    words = ["--settings", str(settings_file), "--connection", str(connection_file)]
    monkeypatch.setattr("sys.argv", ["prepare", *words])
    assert main() == 1
    said = capsys.readouterr().err
    assert said.startswith(f"cannot read {connection_file}: ")
    assert "delete it" in said
