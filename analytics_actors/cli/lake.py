"""`analytics-actors lake`."""

import asyncio
import os
import tempfile
from collections.abc import Callable, Coroutine, Mapping
from datetime import datetime
from functools import wraps
from pathlib import Path
from typing import Any

import click

from analytics_actors.cli.api import Api
from analytics_actors.cli.destinations import destinations
from analytics_actors.cli.failure import Failure
from analytics_actors.cli.lake_output import print_rebuilt, print_status, print_verified, rebuilt_json
from analytics_actors.cli.lake_settings import lake_settings
from analytics_actors.cli.output import bytes_text, print_json, print_table
from analytics_actors.cli.server_options import json_option, server_options
from analytics_actors.cli.settings_options import settings_options
from analytics_actors.lake.overview import overview_of
from analytics_actors.lake.rebuilding import rebuild
from analytics_actors.lake.verification import Verification
from config.settings import Settings
from storage.errors import Conflict
from storage.lake_repair import LakeRepair
from storage.object_store import ObjectStore, lake_url, open_object_store
from storage.postgres import Postgres
from storage.postgres_lake_listing import PostgresLakeListing

CONNECTIONS = 4
DEADLINE_S = 60.0

_time_range = (
    click.option("--start", "start_time", metavar="TIME", help="Hours that end after 2026-11-20T00:00:00Z, say."),
    click.option("--end", "end_time", metavar="TIME", help="Hours that begin before this time."),
)


@click.group()
def lake() -> None:
    """Look at the lake: its Parquet files, what is not in them yet, and whether all of it is as it should be.

    `files` and `volumes` ask a running system. The others look into the database and the object store themselves: those
    of the system of the data folder, or of the settings that are given.

    \b
    Examples:
      analytics-actors lake status
      analytics-actors lake verify --deep
    """


lake.add_command(destinations)


@lake.command()
@server_options("read", admin_with=("project", "all_projects"))
@click.option("--project", help="Another project, with the system's admin key. [default: the key's]")
@click.option("--all", "all_projects", is_flag=True, help="All projects together, with the system's admin key.")
@_time_range[0]
@_time_range[1]
@click.option("-n", "limit", type=click.IntRange(min=1), help="Most files. [default: all]")
@json_option
def files(
    api: Api,
    project: str | None,
    all_projects: bool,
    start_time: str | None,
    end_time: str | None,
    limit: int | None,
    as_json: bool,
) -> None:
    """List the files of a project, by hour: its own rows and bytes in each.

    \b
    Examples:
      analytics-actors lake files --start 2026-11-20T00:00Z
      analytics-actors lake files --json | jq -r '.files[].path'
    """
    where = {"projectId": project, "startTime": start_time, "endTime": end_time}
    found: list[dict[str, Any]] = []
    cursor: str | None = None
    while True:
        size = min(1000, limit - len(found)) if limit else 1000
        answer = api.get("/v1/exports", where | {"limit": size, "cursor": cursor})
        found += answer["files"]
        cursor = answer.get("nextCursor")
        if cursor is None or len(found) == limit:
            break
    if as_json:
        print_json(answer | {"files": found})
        return
    rows = [[file["hour"], file["rows"], bytes_text(file["bytes"]), file["tier"], file["path"]] for file in found]
    print_table("", ["hour", "#rows", "#bytes", "tier", "path"], rows)
    totals, pending = answer["totals"], answer["pending"]
    click.echo(f"{totals['files']:,} files, {totals['rows']:,} rows, {bytes_text(totals['bytes'])}")
    more = "" if pending["complete"] else " or more"
    click.echo(f"{pending['events']:,}{more} events are in no file yet; what was stored before {answer['freshAt']} is")


@lake.command()
@server_options("read", admin_with=("project", "all_projects", "client"))
@click.option("--project", help="Another project, with the system's admin key. [default: the key's]")
@click.option("--client", help="The projects of this client, with the system's admin key.")
@click.option("--all", "all_projects", is_flag=True, help="All projects, with the system's admin key.")
@click.option("--start", "start_day", metavar="DAY", help="From this day (UTC).")
@click.option("--end", "end_day", metavar="DAY", help="Before this day.")
@click.option("--held", is_flag=True, help="What is held now, by day of event time; else what was exported on a day.")
@click.option("--delivered", is_flag=True, help="What was delivered to destinations on a day.")
@json_option
def volumes(
    api: Api,
    project: str | None,
    client: str | None,
    all_projects: bool,
    start_day: str | None,
    end_day: str | None,
    held: bool,
    delivered: bool,
    as_json: bool,
) -> None:
    """Show events and bytes by client, project and day, as bills need them.

    \b
    Examples:
      analytics-actors lake volumes --all --start 2026-11-01 --end 2026-12-01
      analytics-actors lake volumes --client acme --delivered
    """
    if held and delivered:
        raise Failure("what is held was not delivered: give one of --held and --delivered")
    of = "delivered" if delivered else "held" if held else "exported"
    where = {"projectId": project, "clientId": client, "startDay": start_day, "endDay": end_day, "of": of}
    answer = api.get("/v1/exports/volumes", where)
    if as_json:
        print_json(answer)
        return
    names = ["day", "clientId", "projectId", *(["destinationId"] if delivered else []), "files", "rows"]
    rows = [[*(volume[name] for name in names), bytes_text(volume["bytes"])] for volume in answer["volumes"]]
    to = ["destination"] if delivered else []
    print_table("", ["day", "client", "project", *to, "#files", "#rows", "#bytes"], rows)


class _Lake:
    """The parts of the lake that an operator's commands look into."""

    def __init__(self, settings: Settings, postgres: Postgres, objects: ObjectStore, folder: Path) -> None:
        self.settings = settings
        self.objects = objects
        self.listing = PostgresLakeListing(postgres)
        self.repair = LakeRepair(postgres)
        self.folder = folder


def _on_lake(work: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Adds the options of settings; the command gets `lake`."""

    @wraps(work)
    def run(*, config: Path | None, flags: Mapping[str, Any], **options: Any) -> None:
        settings = lake_settings(config, flags, os.environ)
        asyncio.run(_with_lake(settings, work, options))

    return settings_options(run)


async def _with_lake(
    settings: Settings, work: Callable[..., Coroutine[Any, Any, None]], options: Mapping[str, Any]
) -> None:
    postgres = Postgres(
        settings.store.postgres_url,
        owner="analytics-actors lake",
        pool_size=CONNECTIONS,
        deadline_s=DEADLINE_S,
        connect_timeout_s=settings.store.connect_timeout_s,
    )
    objects = open_object_store(settings.lake, data=Path(settings.data))
    try:
        with tempfile.TemporaryDirectory(prefix="lake-") as folder:
            await work(lake=_Lake(settings, postgres, objects, Path(folder)), **options)
    finally:
        await objects.close()
        await postgres.close()


@lake.command()
@_on_lake
@json_option
async def status(lake: _Lake, as_json: bool) -> None:
    """Show how much the lake holds, what each shard has not exported yet, and the hours that are to be compacted.

    \b
    Example:
      analytics-actors lake status
    """
    found = await overview_of(lake.listing, lake.settings)
    if as_json:
        print_json(found)
    else:
        print_status(found, lake_url(lake.settings.lake, data=Path(lake.settings.data)))


@lake.command()
@_on_lake
@click.option("--deep", is_flag=True, help="Read every file, and compare with what is stored in PostgreSQL.")
@json_option
async def verify(lake: _Lake, deep: bool, as_json: bool) -> None:
    """Check that every live file is there as it was written, and that every range of the log is exported once. Exits
    with 1 when anything is wrong. It changes nothing, and may run at any time.

    \b
    Examples:
      analytics-actors lake verify
      analytics-actors lake verify --deep --json
    """
    began = datetime.now().astimezone()
    found = await Verification(lake.listing, lake.repair, lake.objects, folder=lake.folder, deep=deep).run()
    if as_json:
        print_json(found)
    else:
        print_verified(found)
    if found.problems:
        raise Failure(f"problems in the lake: {len(found.problems):,}")
    if not as_json:
        seconds = (datetime.now().astimezone() - began).total_seconds()
        size = f"{found.files:,} files, {found.rows:,} rows, {bytes_text(found.bytes)}"
        click.echo(f"the lake is as it should be: {size}, in {seconds:.1f} s")


@lake.command("rebuild")
@_on_lake
@click.option("--force", is_flag=True, help="Also when the manifest is not empty: what it holds is given up.")
@json_option
async def rebuild_manifest(lake: _Lake, force: bool, as_json: bool) -> None:
    """Make the manifest anew from the footers of the files, for when the database is lost. Nothing may export
    meanwhile: start the system with `lake.enabled=false`, rebuild, and start it again as usual.

    \b
    Example:
      analytics-actors up --detach --set lake.enabled=false
      analytics-actors lake rebuild && analytics-actors lake verify --deep
    """
    try:
        found = await rebuild(lake.repair, lake.objects, folder=lake.folder, force=force)
    except Conflict as error:
        raise Failure(f"{error}: `lake verify` checks it; --force gives it up and makes it anew") from error
    if as_json:
        print_json(rebuilt_json(found))
    else:
        print_rebuilt(found)
    if found.missing or found.unreadable:
        raise Failure("not everything could be had; what is missing is listed")
