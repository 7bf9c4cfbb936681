"""`analytics-actors ledger`."""

from typing import Any

import click

from analytics_actors.cli.api import Api
from analytics_actors.cli.failure import Failure
from analytics_actors.cli.output import print_json, print_table
from analytics_actors.cli.server_options import json_option, server_options

_COUNTS = ["received", "stored", "duplicate", "deadLettered", "rejected", "lost", "aggregated", "pending", "expired"]


@click.command()
@click.option("--project", help="Another project, with the system's admin key. [default: the key's]")
@click.option("--start", "start_time", metavar="TIME", help="From this hour, such as 2026-11-20T10:00:00Z.")
@click.option("--end", "end_time", metavar="TIME", help="Before this hour.")
@click.option("--check", is_flag=True, help="Recount everything in the database and compare; exits 1 on a difference.")
@server_options("read", admin_with=("project", "check"))
@json_option
def ledger(
    api: Api, project: str | None, start_time: str | None, end_time: str | None, check: bool, as_json: bool
) -> None:
    """Show what became of the events received: stored, duplicate, dead-lettered, rejected, lost,
    aggregated or pending.

    \b
    Examples:
      analytics-actors ledger --project default
      analytics-actors ledger --check
    """
    parameters = {"projectId": project, "startTime": start_time, "endTime": end_time}
    if check:
        _check(api, parameters, as_json)
        return
    answer = api.get("/v1/ledger", parameters)
    if as_json:
        print_json(answer)
        return
    rows = [[hour["hour"], *(hour.get(name, 0) for name in _COUNTS)] for hour in answer["hours"]]
    totals = ["all", *(answer["totals"].get(name, 0) for name in _COUNTS)]
    print_table("", ["hour", *(f"#{name}" for name in _COUNTS)], [*rows, totals])
    click.echo("it balances" if answer["balanced"] else "it does not balance")


def _check(api: Api, parameters: dict[str, Any], as_json: bool) -> None:
    answer: dict[str, Any] = api.get("/v1/ledger/check", parameters)
    differences = answer["differences"]
    if as_json:
        print_json(answer)
    else:
        for difference in differences:
            click.echo("  ".join(f"{name}={value}" for name, value in difference.items()))
    if differences:
        raise Failure(f"{len(differences)} differences between the ledger and what is stored")
    if not as_json:
        click.echo("the ledger agrees with what is stored")
