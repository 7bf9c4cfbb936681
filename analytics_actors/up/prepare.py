"""Bring the database up to this release and find or make the keys: a short-lived child of `up`.

    python -m analytics_actors.up.prepare --settings FILE [--connection FILE]

A process of its own, so that `up` itself stays small: what this imports (drivers, Arrow) is 60 MB. The keys
go to stdout, a pipe. Those of the connection file are kept when the database knows them; what is lost,
expired or revoked is made anew. Exits 1 with the reason on stderr.
"""

import argparse
import asyncio
import sys
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import msgspec
from msgspec.structs import replace

from analytics_actors.up.connection import Connection, Prepared
from config.settings import Settings
from storage.errors import Misconfigured, NotFound, StorageError, Unavailable
from storage.key_text import KeyKind, hash_key
from storage.metric_definitions import default_metrics
from storage.migrate import migrate
from storage.object_store import open_object_store
from storage.postgres import Postgres
from storage.redis_log import RedisLog
from storage.registry import FIRST_PROJECT, Registry

LAKE_PATIENCE_S = 5.0
"""A start waits less long for a silent S3 than an exporter does."""


async def prepare(settings: Settings, kept: Connection | None) -> Prepared:
    """Raises `StorageError` when a service is away or must be refused. Only the lake may be away."""
    _check_metrics(settings)
    await _check_log(settings)
    warnings = await _check_lake(settings)
    applied = await migrate(settings.store.postgres_url, connect_timeout_s=settings.store.connect_timeout_s)
    postgres = Postgres(settings.store.postgres_url, owner="analytics-actors up", pool_size=1, deadline_s=30.0)
    try:
        registry = Registry(postgres)
        await _fix_partitions(registry, settings.log.partitions)
        made = await registry.ensure_bootstrap()
        if made is not None:
            keys = (made.project_id, made.write_key, made.read_key, made.admin_key)
            return Prepared(*keys, applied, is_new=True, warnings=warnings)
        project_id, write_key = await _write_key(registry, kept)
        read_key = await _key(registry, project_id, "read", kept.read_key if kept else "")
        admin_key = await _key(registry, None, "admin", kept.admin_key if kept else "")
        return Prepared(project_id, write_key, read_key, admin_key, applied, is_new=False, warnings=warnings)
    finally:
        await postgres.close()


def _check_metrics(settings: Settings) -> None:
    """Here, where somebody reads it, and not in each process that will use them."""
    try:
        default_metrics(settings.windows)
    except ValueError as error:
        raise Misconfigured(str(error)) from error


async def _check_log(settings: Settings) -> None:
    log = RedisLog(settings.log.redis_url, settings.log)
    try:
        await log.check()
    finally:
        await log.close()


async def _check_lake(settings: Settings) -> list[str]:
    """What to tell when it cannot be reached: its files wait, and everything else goes on."""
    if not settings.lake.enabled:
        return []
    patience_s = min(settings.lake.request_timeout_s, LAKE_PATIENCE_S)
    lake = open_object_store(replace(settings.lake, request_timeout_s=patience_s), data=Path(settings.data))
    try:
        await lake.check()
    except Unavailable as error:
        return [f"the lake cannot be reached, its files are written when it is back: {error}"]
    finally:
        await lake.close()
    return []


async def _fix_partitions(registry: Registry, wanted: int) -> None:
    fixed = await registry.fix_at_creation("log.partitions", wanted)
    if fixed != wanted:
        raise Misconfigured(
            f"this system was created with log.partitions = {fixed}, and the setting is {wanted}: a project's log "
            "would be looked for in another partition. Set it back; the number of shards is free to change"
        )


async def _write_key(registry: Registry, kept: Connection | None) -> tuple[str, str]:
    """For the kept project if it is still there, else the first that was made, else any."""
    if kept is not None:
        with suppress(NotFound):
            return kept.project_id, await _key(registry, kept.project_id, "write", kept.write_key)
    with suppress(NotFound):
        return FIRST_PROJECT, await _key(registry, FIRST_PROJECT, "write", "")
    project_id = (await registry.list_projects(limit=1))[0].project_id
    return project_id, await _key(registry, project_id, "write", "")


async def _key(registry: Registry, project_id: str | None, kind: KeyKind, text: str) -> str:
    if text:
        for record in await registry.find_keys([hash_key(text)]):
            if (record.kind, record.project_id) == (kind, project_id) and record.is_valid(datetime.now(UTC)):
                return text
    return (await registry.create_key(project_id, kind)).key


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m analytics_actors.up.prepare")
    parser.add_argument("--settings", type=Path, required=True)
    parser.add_argument("--connection", type=Path)
    arguments = parser.parse_args()
    settings = Settings.from_json(arguments.settings.read_bytes())
    try:
        kept = Connection.load(arguments.connection) if arguments.connection else None
    except ValueError as error:
        advice = "put it back as it was, or delete it: new keys are made then, and the old ones stay valid"
        sys.stderr.write(f"cannot read {arguments.connection}: {error}; {advice}\n")
        return 1
    try:
        prepared = asyncio.run(prepare(settings, kept))
    except StorageError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.buffer.write(msgspec.json.encode(prepared))
    return 0


if __name__ == "__main__":
    sys.exit(main())
