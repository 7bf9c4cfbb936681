"""`analytics-actors metrics`."""

import re
import time
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

import click
import msgspec

from analytics_actors.cli.api import Api
from analytics_actors.cli.output import print_json, print_table
from analytics_actors.cli.server_options import json_option, server_options

POLL_S = 1.0

_AGO = re.compile(r"(\d{1,6})([smhdw])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_AGGREGATIONS = ["count", "sum", "mean", "min", "max", "unique", "p50", "p90", "p95", "p99"]
_ROUTE = "/v1/metrics-definitions"

_project_option = click.option(
    "--project", help="The project; the system's admin key, which the data folder's is, needs one."
)


class MetricsGroup(click.Group):
    """A first word that is no command is the name of a metric to show."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in self.commands:
            args = ["show", *args]
        return super().resolve_command(ctx, args)


@click.group(cls=MetricsGroup, subcommand_metavar="NAME [OPTIONS] | COMMAND [ARGS]...")
def metrics() -> None:
    """Show a metric, or the events of a type; define, list and backfill metrics.

    \b
    Examples:
      analytics-actors metrics events
      analytics-actors metrics revenue --since 30d --granularity day
      analytics-actors metrics events --since 2024-01-01 --group-by eventType
      analytics-actors metrics show --help
    """


@metrics.command("show")
@click.argument("name")
@click.option("--since", metavar="TIME", help="From then on: 90m, 6h, 30d, 2w ago, or ISO 8601. [default: 1h]")
@click.option("--until", metavar="TIME", help="Before then. [default: now]")
@click.option("--granularity", type=click.Choice(["minute", "5minutes", "hour", "day"]), help="[default: by range]")
@click.option("--group-by", metavar="NAMES", help="Dimensions with commas between.")
@click.option("--filter", "filters", metavar="NAME:VALUE", multiple=True, help="Also NAME:ne:VALUE, NAME:in:A,B.")
@click.option("--timezone", default="UTC", show_default=True, help="Days and hours are this zone's.")
@click.option("--fill", type=click.Choice(["zero", "null", "none"]), help="What a bucket without events has.")
@click.option("--limit", type=click.IntRange(1, 1000), help="Groups, the largest first. [default: 100]")
@click.option("--project", help="Another project, with the system's admin key. [default: the key's]")
@server_options("read", admin_with=("project",))
@json_option
def show(
    api: Api,
    name: str,
    since: str | None,
    until: str | None,
    granularity: str | None,
    group_by: str | None,
    filters: Sequence[str],
    timezone: str,
    fill: str | None,
    limit: int | None,
    project: str | None,
    as_json: bool,
) -> None:
    """Show a metric, or the events of that type, as a table.

    \b
    Examples:
      analytics-actors metrics show events --since 6h --group-by eventType
      analytics-actors metrics show daily_active_users --since 2024-01-01 --until 2024-01-31 --timezone Europe/Berlin
    """
    parameters = {
        "startTime": _time(since),
        "endTime": _time(until),
        "granularity": granularity,
        "groupBy": group_by,
        "filter": list(filters) or None,
        "timezone": timezone,
        "fill": fill,
        "limit": limit,
        "projectId": project,
    }
    answer = api.get(f"/v1/metrics/{quote(name, safe='')}", parameters)
    if as_json:
        print_json(answer)
        return
    dimensions = [part for part in (group_by or "").split(",") if part]
    has_count = answer["aggregation"] != "count"
    columns = ["time", *dimensions, f"#{answer['aggregation']}", *(["#of events"] if has_count else [])]
    print_table(name, columns, [_row(point, dimensions, has_count=has_count) for point in answer["points"]])
    for line in _remarks(answer):
        click.echo(line)


def _time(text: str | None) -> str | None:
    """A time as the API takes it; `6h` is six hours ago."""
    ago = _AGO.fullmatch(text or "")
    if ago is None:
        return text
    return str(int((time.time() - int(ago[1]) * _SECONDS[ago[2]]) * 1000))


def _row(point: dict[str, Any], dimensions: Sequence[str], *, has_count: bool) -> list[Any]:
    value = point["value"]
    row = [
        point["timestamp"],
        *(_plain(point["dimensions"][name]) for name in dimensions),
        None if value is None else f"{value:,}",
    ]
    return [*row, point.get("count", 0)] if has_count else row


def _plain(text: str) -> str:
    """A client chose it: control characters must not reach the terminal."""
    return "".join(character if character.isprintable() else "�" for character in text)


def _remarks(answer: dict[str, Any]) -> list[str]:
    sources = ", ".join(dict.fromkeys(source["source"] for source in answer["sources"]))
    remarks = [f"from {sources or 'nothing'}; newest event received {answer['freshAt']}"]
    if answer.get("degraded"):
        remarks.append(f"degraded: {answer['degradedBecause']}")
    remarks += [
        f"missing from {part['from']} to {part['to']}: {part['because']}. {part['hint']}"
        for part in answer.get("missing", ())
    ]
    error = answer.get("error")
    if error and "relative" in error:
        remarks.append(f"estimates, ± {error['relative']:.1%} (one standard deviation)")
    elif error:
        remarks.append(f"estimates, ± {error['rank']:.1%} of the rank")
    if answer.get("overflow"):
        remarks.append(f"{answer['overflow']:,} events are in the group __other__")
    if answer.get("omittedGroups"):
        remarks.append(f"{answer['omittedGroups']:,} smaller groups are left out; see --limit")
    return remarks


@metrics.command("list")
@click.option("--project", help="Another project, with the system's admin key. [default: the key's]")
@server_options("read", admin_with=("project",))
@json_option
def list_metrics(api: Api, project: str | None, as_json: bool) -> None:
    """List the metrics of a project, built-in ones too.

    \b
    Example:
      analytics-actors metrics list
    """
    answer = api.get(_ROUTE, {"projectId": project})
    if as_json:
        print_json(answer)
        return
    rows = []
    for each in answer["definitions"]:
        definition = each["definition"]
        types = ", ".join(definition["eventTypes"]) or "all"
        rows.append(
            [
                *(definition["name"], definition["aggregation"], definition["property"] or "–", types),
                *(", ".join(definition["dimensions"]) or "–", each["builtIn"]),
            ]
        )
    print_table("", ["name", "aggregation", "of", "event types", "dimensions", "built in"], rows)
    if answer["daysLeft"]:
        click.echo(f"{answer['daysLeft']} days are still to be counted")


@metrics.command("define")
@click.argument("name")
@click.option("--aggregation", type=click.Choice(_AGGREGATIONS), default="count", show_default=True)
@click.option("--property", "path", metavar="PATH", help="What is aggregated: amount, userId, context.page.path, …")
@click.option("--fallback", "fallbacks", metavar="PATH", multiple=True, help="Tried when the property is absent.")
@click.option("--event-type", "event_types", metavar="TYPE", multiple=True, help="Only these. [default: all]")
@click.option("--dimension", "dimensions", metavar="[NAME=]PATH", multiple=True, help="To group and filter by.")
@click.option("--filter", "filters", metavar="PATH:OP:VALUE", multiple=True, help="eq ne gt gte lt lte in exists.")
@click.option(
    "--aggregate-only", is_flag=True, help="Of events of these types only one record a minute is stored, no rows."
)
@click.option("--replace", is_flag=True, help="Replace the metric of that name.")
@click.option("--backfill", "with_backfill", is_flag=True, help="Also count what is stored already.")
@_project_option
@server_options("admin")
@json_option
def define(
    api: Api,
    name: str,
    aggregation: str,
    path: str | None,
    fallbacks: Sequence[str],
    event_types: Sequence[str],
    dimensions: Sequence[str],
    filters: Sequence[str],
    aggregate_only: bool,
    replace: bool,
    with_backfill: bool,
    project: str | None,
    as_json: bool,
) -> None:
    """Define a metric. It counts from now on, and the last hours; --backfill counts the rest.

    \b
    Examples:
      analytics-actors metrics define checkout_value --project shop --aggregation sum \\
          --property amount --event-type purchase --dimension country
      analytics-actors metrics define response_time --aggregation p95 --property value \\
          --event-type response_time --aggregate-only --project shop
      analytics-actors metrics define slow --filter properties.ms:gt:500 --project shop
    """
    body = {
        "name": name,
        "aggregation": aggregation,
        "property": path or "",
        "fallbacks": list(fallbacks),
        "eventTypes": list(event_types),
        "dimensions": list(dimensions),
        "filters": [_filter(text) for text in filters],
        "projectId": project,
    } | ({"aggregateOnly": True} if aggregate_only else {})
    answer = api.put(f"{_ROUTE}/{quote(name, safe='')}", body) if replace else api.post(_ROUTE, body)
    if with_backfill:
        answer["daysLeft"] = _start_backfill(api, name, project)["daysLeft"]
    if as_json:
        print_json(answer)
        return
    of_project = f" --project {project}" if project else ""
    click.echo(f"{name} counts from now on: analytics-actors metrics {name}{of_project}")
    if with_backfill:
        click.echo(f"{answer['daysLeft']} days are being counted")


def _filter(text: str) -> dict[str, Any]:
    """`path:op:value`; a value that is JSON (a number, true, a list) is taken as that."""
    path, _, rest = text.partition(":")
    op, _, value = rest.partition(":")
    if not path or not op:
        raise click.BadParameter("write PATH:OP:VALUE, as properties.ms:gt:500", param_hint="--filter")
    condition: dict[str, Any] = {"path": path, "op": op}
    if value:
        try:
            condition["value"] = msgspec.json.decode(value)
        except msgspec.DecodeError:
            condition["value"] = value.split(",") if op == "in" else value
    return condition


@metrics.command("backfill")
@click.argument("name")
@click.option("--wait", is_flag=True, help="Return when it is done, and show how far it is.")
@_project_option
@server_options("admin")
@json_option
def backfill(api: Api, name: str, wait: bool, project: str | None, as_json: bool) -> None:
    """Count a metric for the time before it was defined, from stored events.

    \b
    Example:
      analytics-actors metrics backfill checkout_value --project shop --wait
    """
    answer = _start_backfill(api, name, project)
    days_left = answer["daysLeft"]
    while wait and days_left:
        if not as_json:
            click.echo(f"{days_left} days left")
        time.sleep(POLL_S)
        days_left = api.get(f"{_ROUTE}/{quote(name, safe='')}", {"projectId": project})["daysLeft"]
    if as_json:
        print_json(answer | {"daysLeft": days_left})
    elif wait:
        click.echo("all days are counted")
    else:
        click.echo(f"{days_left} days are being counted")


def _start_backfill(api: Api, name: str, project: str | None) -> dict[str, Any]:
    query = f"?projectId={quote(project, safe='')}" if project else ""
    answer: dict[str, Any] = api.post(f"{_ROUTE}/{quote(name, safe='')}/backfill{query}", {})
    return answer


@metrics.command("delete")
@click.argument("name")
@_project_option
@server_options("admin")
def delete(api: Api, name: str, project: str | None) -> None:
    """Delete a metric of the project's own.

    \b
    Example:
      analytics-actors metrics delete checkout_value --project shop
    """
    query = f"?projectId={quote(project, safe='')}" if project else ""
    api.delete(f"{_ROUTE}/{quote(name, safe='')}{query}")
    click.echo(f"{name} is deleted")
