"""`analytics-actors retention`."""

import asyncio
import os
import tempfile
from collections.abc import Mapping
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import click

from analytics_actors.cli.api import Api
from analytics_actors.cli.lake_settings import lake_settings
from analytics_actors.cli.output import bytes_text, print_json, print_table
from analytics_actors.cli.server_options import json_option, server_options
from analytics_actors.cli.settings_options import settings_options
from analytics_actors.counters import Counters
from analytics_actors.lake.ageing import Ageing
from analytics_actors.lake.compaction import Compaction
from analytics_actors.retention.report import Report
from analytics_actors.retention.run import RetentionRun
from analytics_actors.windows.sources import in_thread
from config.settings import Settings
from storage.object_store import open_object_store
from storage.postgres import Postgres
from storage.postgres_lake_listing import PostgresLakeListing
from storage.postgres_manifest import PostgresManifest
from storage.postgres_retention import PostgresRetention

DEADLINE_S = 60.0
Limit = click.IntRange(0, 36500)

_WORDS = {
    "partitions": "days of raw events",
    "events": "raw events of projects with shorter limits",
    "moved_files": "files become cold",
    "expired_files": "files of the lake go",
    "rewritten_files": "files lose some projects",
    "rollups": "roll-ups",
    "aggregated": "records of aggregated events",
    "dead_letters": "dead letters",
    "patterns": "patterns",
    "recomputed_days": "notes of recomputed days",
    "counted_days": "notes of days' metrics",
    "plans": "plans of the lake",
    "runs": "runs of the retention",
}


@click.group()
def retention() -> None:
    """Look at how long what is kept, change it for a project, and remove what is too old.

    \b
    Examples:
      analytics-actors retention run --dry-run
      analytics-actors retention set shop --raw-days 3 --lake-days 365
    """


@retention.command()
@click.argument("project")
@server_options("admin")
@json_option
def show(api: Api, project: str, as_json: bool) -> None:
    """Show how long a project's data is kept.

    \b
    Example:
      analytics-actors retention show shop
    """
    _print_limits(api.get(_path(project)), as_json)


@retention.command("set")
@click.argument("project")
@click.option("--raw-days", type=Limit, help="Raw events stay in PostgreSQL so long after their export; 0: for ever.")
@click.option("--lake-days", type=Limit, help="And in the lake, after they happened or were exported.")
@click.option("--rollup-days", type=Limit, help="Roll-ups of metrics.")
@click.option("--default", "as_settings", is_flag=True, help="The settings' limits hold again.")
@server_options("admin")
@json_option
def set_limits(
    api: Api,
    project: str,
    raw_days: int | None,
    lake_days: int | None,
    rollup_days: int | None,
    as_settings: bool,
    as_json: bool,
) -> None:
    """Give a project limits of its own, in days. Those that are not given are the settings'.

    \b
    Examples:
      analytics-actors retention set shop --raw-days 3
      analytics-actors retention set shop --default
    """
    given = {"rawDays": raw_days, "lakeDays": lake_days, "rollupDays": rollup_days}
    limits = {name: days for name, days in given.items() if days is not None}
    if as_settings == bool(limits):
        raise click.UsageError("give limits, or --default")
    path = _path(project)
    _print_limits(api.delete(path) if as_settings else api.put(path, limits), as_json)


def _path(project: str) -> str:
    return f"/v1/projects/{quote(project, safe='')}/retention"


def _print_limits(answer: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(answer)
        return
    own, effective = answer["own"], answer["effective"]
    names = {"rawDays": "raw events in PostgreSQL", "lakeDays": "events in the lake", "rollupDays": "roll-ups"}
    rows = [
        [words, _days(effective[name]), "own" if own.get(name) is not None else ""] for name, words in names.items()
    ]
    print_table("", ["what", "#days", ""], rows)
    if answer.get("historyBegins"):
        click.echo(f"what was stored before {answer['historyBegins']} has left PostgreSQL")


def _days(days: int | None) -> str | None:
    return None if days is None else f"{days:,}" if days else "for ever"


@retention.command()
@settings_options
@click.option("--dry-run", is_flag=True, help="Only tell what would go: days, rows, files and bytes.")
@json_option
def run(*, config: Path | None, flags: Mapping[str, Any], dry_run: bool, as_json: bool) -> None:
    """Remove what is too old, as the lake keeper does each day. It looks into the database and the object store itself:
    those of the system of the data folder, or of the settings that are given.

    \b
    Examples:
      analytics-actors retention run --dry-run
      analytics-actors retention run --json
    """
    report = asyncio.run(_run(lake_settings(config, flags, os.environ), dry_run=dry_run))
    if as_json:
        print_json(_as_json(report))
    else:
        _print(report)


async def _run(settings: Settings, *, dry_run: bool) -> Report:
    async with AsyncExitStack() as stack:
        postgres = Postgres(
            settings.store.postgres_url,
            owner="analytics-actors retention",
            pool_size=2,
            deadline_s=DEADLINE_S,
            connect_timeout_s=settings.store.connect_timeout_s,
        )
        stack.push_async_callback(postgres.close)
        listing = PostgresLakeListing(postgres)
        ageing = _ageing(settings, postgres, listing, stack) if settings.lake.enabled else None
        store = PostgresRetention(postgres)
        made = RetentionRun(store, listing, settings, ageing=ageing, clock=lambda: datetime.now(UTC))
        return await made.all(dry_run=dry_run)


def _ageing(settings: Settings, postgres: Postgres, listing: PostgresLakeListing, stack: AsyncExitStack) -> Ageing:
    objects = open_object_store(settings.lake, data=Path(settings.data))
    stack.push_async_callback(objects.close)
    manifest = PostgresManifest(postgres, write_timeout_s=settings.store.write_timeout_seconds)
    counters, kind = Counters(), settings.retention.cold_storage_class
    compaction = Compaction(
        manifest,
        listing,
        objects,
        counters,
        settings=settings.lake,
        folder=Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="retention-"))),
        compute=in_thread,
        cold_storage_class=kind,
    )
    settled_s = settings.lake.compact_quiet_s
    return Ageing(manifest, listing, objects, compaction, counters, settled_s=settled_s, cold_storage_class=kind)


def _as_json(report: Report) -> dict[str, Any]:
    return {
        "dryRun": report.dry_run,
        "startedAt": report.started_at,
        "totals": [each._asdict() for each in report.totals()],
        "removals": [each._asdict() for each in report.removals],
        "kept": report.kept,
    }


def _print(report: Report) -> None:
    rows = [
        [_WORDS[each.kind], each.names, each.files or None, each.rows, bytes_text(each.bytes)]
        for each in report.totals()
    ]
    columns = ["what", "#days or names", "#files", "#rows", "#bytes"]
    if rows:
        print_table("would go" if report.dry_run else "", columns, rows)
    else:
        click.echo("nothing is too old")
    for reason in report.kept:
        click.echo(f"stays: {reason}")


@retention.command()
@settings_options
@click.option("-n", "limit", type=click.IntRange(1, 1000), default=10, show_default=True, help="Newest to show.")
@json_option
def runs(*, config: Path | None, flags: Mapping[str, Any], limit: int, as_json: bool) -> None:
    """Show what retention has removed, run by run.

    \b
    Example:
      analytics-actors retention runs --json
    """
    found = asyncio.run(_runs(lake_settings(config, flags, os.environ), limit))
    if as_json:
        print_json(found)
        return
    for each in found:
        ended = "" if each["finished_at"] else ", not finished"
        click.echo(f"run {each['run_id']} of {each['started_at']:%Y-%m-%d %H:%M}Z{ended}")
        removals = [
            [_WORDS[of["kind"]], of["name"], of["files"] or None, of["rows"], bytes_text(of["bytes"])]
            for of in each["removals"]
        ]
        if removals:
            print_table("", ["what", "name", "#files", "#rows", "#bytes"], removals)
        for reason in each["kept"]:
            click.echo(f"stayed: {reason}")


async def _runs(settings: Settings, limit: int) -> list[dict[str, Any]]:
    postgres = Postgres(
        settings.store.postgres_url, owner="analytics-actors retention", pool_size=1, deadline_s=DEADLINE_S
    )
    try:
        found = await PostgresRetention(postgres).runs(limit=limit)
    finally:
        await postgres.close()
    return [each._asdict() | {"removals": [of._asdict() for of in each.removals]} for each in found]
