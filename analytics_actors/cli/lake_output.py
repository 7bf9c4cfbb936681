"""What the commands of `analytics-actors lake` print."""

from typing import Any

import click

from analytics_actors.cli.output import bytes_text, print_table
from analytics_actors.lake.overview import LakeOverview
from analytics_actors.lake.rebuilding import Rebuilt
from analytics_actors.lake.verification import Verified

SHOWN = 20
"""Names of a kind; JSON has all of them."""


def print_status(found: LakeOverview, url: str) -> None:
    click.echo(f"lake        {url}")
    click.echo(f"live        {found.files:,} files, {found.rows:,} rows, {bytes_text(found.bytes)}{_span(found)}")
    click.echo(f"cold        {found.cold_files:,} files, {bytes_text(found.cold_bytes)}")
    click.echo(f"replaced    {found.retired_files:,} files, {bytes_text(found.retired_bytes)}")
    click.echo(f"plans       {found.open_plans:,} open")
    columns = ["shard", "#partitions", "#records pending", "#partitions behind", "not exported since"]
    rows = [[s.shard, s.partitions, s.pending_records, s.partitions_behind, s.since] for s in found.shards]
    print_table("not exported yet", columns, rows)
    hours = [[hour.hour, hour.files, hour.rows, bytes_text(hour.bytes)] for hour in found.hours_to_compact]
    print_table("hours to compact", ["hour", "#files", "#rows", "#bytes"], hours[:SHOWN])
    if len(hours) > SHOWN:
        click.echo(f"and {len(hours) - SHOWN} hours more")


def _span(found: LakeOverview) -> str:
    if found.first_hour is None or found.last_hour is None:
        return ""
    return f", hours {found.first_hour:%Y-%m-%dT%HZ} to {found.last_hour:%Y-%m-%dT%HZ}"


def print_verified(found: Verified) -> None:
    for problem in found.problems:
        click.echo(f"problem: {problem}")
    _print_names("replaced, to be removed by the lake keeper", found.retired)
    _print_names("of an export or merge under way", found.planned)
    _print_names("not of this manifest", found.foreign)
    if found.forgotten:
        click.echo(f"when offsets were exported is forgotten of the beginnings of {len(found.forgotten)} partitions")


def _print_names(what: str, keys: list[str]) -> None:
    for key in keys[:SHOWN]:
        click.echo(f"{what}: {key}")
    if len(keys) > SHOWN:
        click.echo(f"{what}: and {len(keys) - SHOWN:,} more")


def rebuilt_json(found: Rebuilt) -> dict[str, Any]:
    return {
        "files": len(found.live),
        "rows": sum(each.file.rows for each in found.live),
        "bytes": sum(each.file.bytes for each in found.live),
        "superseded": list(found.superseded),
        "foreign": list(found.foreign),
        "unreadable": found.unreadable,
        "dropped_plans": list(found.dropped_plans),
        "missing": [each._asdict() for each in found.missing],
        "checkpoints": {str(partition): offset for partition, offset in sorted(found.checkpoints.items())},
    }


def print_rebuilt(found: Rebuilt) -> None:
    size = sum(each.file.bytes for each in found.live)
    rows = sum(each.file.rows for each in found.live)
    click.echo(f"the manifest has {len(found.live):,} files, {rows:,} rows, {bytes_text(size)}")
    _print_names("others hold its events, it will be removed", list(found.superseded))
    _print_names("no file of the lake", list(found.foreign))
    if found.dropped_plans:
        click.echo(f"not all files were put of plans {found.dropped_plans}: their offsets are exported again")
    for key, reason in found.unreadable.items():
        click.echo(f"cannot be read: {key}: {reason}")
    for each in found.missing:
        offsets = f"offsets {each.first_offset} to {each.next_offset} of partition {each.partition}"
        click.echo(f"in no file: {each.events:,} stored events of {each.hour:%Y-%m-%dT%HZ}, {offsets}")
