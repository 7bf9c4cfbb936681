"""`analytics-actors patterns`."""

from typing import Any

import click

from analytics_actors.cli.api import Api
from analytics_actors.cli.output import print_json, print_table
from analytics_actors.cli.server_options import json_option, server_options

_COLUMNS = ["window", "metric", "kind", "", "#value", "#mean", "#sigmas", "webhook"]
_SIGNS = {"up": "▲", "down": "▼"}


@click.command()
@click.option("--metric", help="Only of this metric.")
@click.option("--kind", type=click.Choice(["spike", "drop", "anomaly", "trend"]), help="Only of this kind.")
@click.option("--since", metavar="TIME", help="Windows that begin then or later, such as 2026-11-20T00:00:00Z.")
@click.option("--until", metavar="TIME", help="Windows that begin before this time.")
@click.option("-n", "limit", type=click.IntRange(1, 1000), default=20, show_default=True, help="Newest to show.")
@click.option("--project", help="Another project, with the system's admin key. [default: the key's]")
@server_options("read", admin_with=("project",))
@json_option
def patterns(
    api: Api,
    metric: str | None,
    kind: str | None,
    since: str | None,
    until: str | None,
    limit: int,
    project: str | None,
    as_json: bool,
) -> None:
    """List spikes, drops, anomalies and trends that were detected in metrics, the newest first.

    \b
    Examples:
      analytics-actors patterns
      analytics-actors patterns --metric revenue --kind drop --json
    """
    where = {"metric": metric, "kind": kind, "since": since, "until": until, "limit": limit, "projectId": project}
    answer = api.get("/v1/patterns", where)
    if as_json:
        print_json(answer)
        return
    if not answer["patterns"]:
        click.echo("nothing was detected")
        return
    print_table("", _COLUMNS, [_row(pattern) for pattern in answer["patterns"]])
    if answer.get("nextCursor"):
        click.echo("there are more: see -n, --since and --until")


def _row(pattern: dict[str, Any]) -> list[Any]:
    webhook = pattern["webhook"]
    state = webhook["state"]
    if state in ("pending", "failed") and webhook.get("lastError"):
        state += f": {webhook['lastError']}"
    window = f"{pattern['startTime']} {pattern['window']}"
    numbers = [float(pattern["value"]), float(pattern["mean"]), float(pattern["sigmas"])]
    return [window, pattern["metric"], pattern["kind"], _SIGNS[pattern["direction"]], *numbers, state]
