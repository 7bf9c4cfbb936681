"""The lake as anybody reads it: Parquet files and DuckDB, without a line of our code; and when it is complete."""

import asyncio
import json
import time
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import duckdb

from tests.system import Client, RunningSystem

_BEHIND = """
    SELECT s.partition_id, s.next_offset AS stored, l.next_offset AS exported
    FROM checkpoints AS s LEFT JOIN checkpoints AS l ON l.sink = 'lake' AND l.partition_id = s.partition_id
    WHERE s.sink = 'event_store' AND s.next_offset > coalesce(l.next_offset, 0)
"""


class LakeRow(NamedTuple):
    event_id: str
    user_id: str | None
    event_type: str
    project_id: str
    hour: int
    properties: dict[str, str | None]
    context: dict[str, str | None]
    properties_json: str
    context_json: str | None


async def wait_exported(system: RunningSystem, *, deadline_s: float = 60.0) -> None:
    """Until everything that is stored is in the lake. What was acknowledged must be stored already."""
    until = time.monotonic() + deadline_s
    while behind := await system.sql(_BEHIND):
        assert time.monotonic() < until, f"not exported: {behind[:5]} {exporters(system)}"
        await asyncio.sleep(0.2)


def exporters(system: RunningSystem) -> list[dict[str, Any]]:
    """By shard, what the controller knows of its exporter; `view` is None while it does not answer, and before it was
    looked at."""
    return [shard["exporter"] or {"state": "", "view": None} for shard in system.status()["shards"]]


async def live_keys(system: RunningSystem) -> list[str]:
    return [row["key"] for row in await system.sql("SELECT key FROM lake_files WHERE retired_at IS NULL")]


def files_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*.parquet")}


def read_rows(paths: list[str], where: str = "true") -> list[LakeRow]:
    """Rows of files in a folder; `where` is SQL."""
    if not paths:
        return []
    with duckdb.connect() as connection:
        found = connection.execute(
            "SELECT event_id, user_id, event_type, project_id, epoch(date_trunc('hour', timestamp))::bigint,"
            " properties, context, properties_json, context_json"
            f" FROM read_parquet(?, hive_partitioning = false) WHERE {where}",
            [paths],
        ).fetchall()
    return [LakeRow(*row) for row in found]


def same_members(members: dict[str, str | None], value: dict[str, Any]) -> bool:
    """Whether the map has what the JSON object has: strings as they are, other values as JSON."""
    return members.keys() == value.keys() and all(
        members[key] == each if isinstance(each, str | None) else json.loads(members[key] or "") == each
        for key, each in value.items()
    )


async def check_lake(client: Client, folder: Path) -> None:
    """The lake in the folder has each stored event of the project once, and each live file is as the manifest says."""
    await wait_exported(client.system)
    keys = await live_keys(client.system)
    missing = set(keys) - files_in(folder)
    assert not missing, f"live files that are not there: {missing}"
    rows = read_rows([str(folder / key) for key in keys], f"project_id = '{client.project}'")
    stored = await client.stored()
    found = Counter(row.event_id for row in rows)
    assert found == stored, f"{(stored - found).total()} are missing, {(found - stored).total()} are too many"
    for row in await client.system.sql("SELECT key, bytes, rows FROM lake_files WHERE retired_at IS NULL"):
        assert (folder / row["key"]).stat().st_size == row["bytes"]
    plans = await client.system.sql("SELECT plan_id FROM lake_plans WHERE state = 'open' AND kind = 'export'")
    assert not plans
