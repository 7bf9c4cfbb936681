"""`analytics-actors log`."""

import asyncio
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import click

from analytics_actors.cli.failure import Failure
from analytics_actors.cli.lake_settings import lake_settings
from analytics_actors.cli.output import bytes_text, print_json, print_table
from analytics_actors.cli.server_options import json_option
from analytics_actors.cli.settings_options import settings_options
from analytics_actors.log_repair import Checked, LogRepair
from config.settings import Settings
from storage.event_store import LostEvents
from storage.postgres import Postgres
from storage.postgres_store import PostgresStore
from storage.redis_log import RedisLog
from storage.set_aside import PostgresSetAside

OWNER = "analytics-actors log"
DEADLINE_S = 60.0

T = TypeVar("T")


@click.group()
def log() -> None:
    """Look for records of the partition log that cannot be read, and set them aside.

    Such a record stops its own partition's way into PostgreSQL. It looks into the log and the database itself: those of
    the system of the data folder, or of the settings that are given.

    \b
    Examples:
      analytics-actors log check
      analytics-actors log set-aside 17 42
    """


@log.command()
@settings_options
@json_option
def check(*, config: Path | None, flags: Mapping[str, Any], as_json: bool) -> None:
    """Read every record of the log, and show those that cannot be read, and what was set aside. Exits with 1 when a
    record stops its partition. It changes nothing, and may run at any time.

    \b
    Example:
      analytics-actors log check --json
    """
    found = asyncio.run(_on_log(_settings(config, flags), lambda repair: repair.check()))
    if as_json:
        print_json(_as_json(found))
    else:
        _print(found)
    stopping = sum(each.state == "stops" for each in found.unreadable)
    if stopping:
        raise Failure(f"records that stop their partition's way into PostgreSQL: {stopping:,}")


@log.command("set-aside")
@click.argument("partition", type=int)
@click.argument("offset", type=int)
@settings_options
@json_option
def set_aside(*, partition: int, offset: int, config: Path | None, flags: Mapping[str, Any], as_json: bool) -> None:
    """Let a partition go on without a record that cannot be read. The record's bytes are kept in PostgreSQL, its events
    are counted as lost where they are known, and their ids are forgotten: they may be sent again. Done twice it changes
    nothing.

    \b
    Example:
      analytics-actors log set-aside 17 42
    """
    found = asyncio.run(_on_log(_settings(config, flags), lambda repair: repair.set_aside(partition, offset)))
    if as_json:
        fields = {"partition": partition, "offset": offset, "bytes": found.bytes, "reason": found.reason}
        print_json(fields | {"counts": _counts_json(found.counts)})
        return
    click.echo(f"record {offset} of partition {partition} is set aside: {bytes_text(found.bytes)}, {found.reason}")
    click.echo(_lost_text(found.counts))
    click.echo("the partition goes on within seconds, if its shard runs; `analytics-actors log check` shows it")


def _settings(config: Path | None, flags: Mapping[str, Any]) -> Settings:
    settings = lake_settings(config, flags, os.environ)
    if not settings.log.redis_url:
        raise Failure("nobody says where the log is: give --redis-url as well")
    return settings


async def _on_log(settings: Settings, work: Callable[[LogRepair], Awaitable[T]]) -> T:
    postgres = Postgres(
        settings.store.postgres_url,
        owner=OWNER,
        pool_size=1,
        deadline_s=DEADLINE_S,
        connect_timeout_s=settings.store.connect_timeout_s,
    )
    store = PostgresStore(settings.store, owner=OWNER)
    partition_log = RedisLog(settings.log.redis_url, settings.log)
    kept = PostgresSetAside(postgres)
    try:
        return await work(LogRepair(partition_log, store.checkpoints, kept, partitions=settings.log.partitions))
    finally:
        await partition_log.close()
        await store.close()
        await postgres.close()


def _print(found: Checked) -> None:
    rows = [
        [f.partition, f.offset, bytes_text(f.bytes), _events(f.counts), f.state, f.reason] for f in found.unreadable
    ]
    if rows:
        columns = ["#partition", "#offset", "#bytes", "#events", "state", "why"]
        print_table("cannot be read", columns, rows)
    kept = [
        [
            each.partition,
            each.offset,
            bytes_text(each.bytes),
            _events(each.counts),
            each.set_aside_at,
            each.stepped_over_at,
        ]
        for each in found.set_aside
    ]
    if kept:
        columns = ["#partition", "#offset", "#bytes", "#events", "set aside at", "stepped over at"]
        print_table("set aside", columns, kept)
    click.echo(f"{found.records:,} records, {bytes_text(found.bytes)}: {len(found.unreadable):,} cannot be read")


def _as_json(found: Checked) -> dict[str, Any]:
    return {
        "records": found.records,
        "bytes": found.bytes,
        "unreadable": [each._asdict() | {"counts": _counts_json(each.counts)} for each in found.unreadable],
        "setAside": [
            {
                "partition": each.partition,
                "offset": each.offset,
                "bytes": each.bytes,
                "reason": each.reason,
                "counts": _counts_json(each.counts),
                "setAsideAt": each.set_aside_at,
                "steppedOverAt": each.stepped_over_at,
            }
            for each in found.set_aside
        ],
    }


def _counts_json(counts: Sequence[LostEvents] | None) -> list[dict[str, Any]] | None:
    if counts is None:
        return None
    hours = [datetime.fromtimestamp(each.hour * 3600, UTC) for each in counts]
    return [
        {
            "projectId": each.project_id,
            "hour": hour,
            "received": each.received,
            "duplicate": each.duplicate,
            "rejected": each.rejected,
            "lost": each.lost,
        }
        for each, hour in zip(counts, hours, strict=True)
    ]


def _events(counts: Sequence[LostEvents] | None) -> int | None:
    return None if counts is None else sum(each.lost for each in counts)


def _lost_text(counts: Sequence[LostEvents] | None) -> str:
    if counts is None:
        return "how many events it has it does not tell: the ledger counts those that its shard still knows"
    projects = ", ".join(sorted({each.project_id for each in counts}))
    return f"{_events(counts):,} events of {projects or 'no project'} will be counted as lost"
