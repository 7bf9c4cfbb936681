"""`analytics-actors batch`."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import click

from analytics_actors.cli.api import Api
from analytics_actors.cli.failure import Failure
from analytics_actors.cli.output import print_json, print_table
from analytics_actors.cli.server_options import json_option, server_options

POLL_S = 1.0
_ROUTE = "/v1/batch"
_COLUMNS = ["job", "kind", "state", "of", "#days", "#left", "#failed", "#events", "#roll-ups", "#changed", "#seconds"]


@click.group()
def batch() -> None:
    """Count days of metrics again from all stored events: what the daily job does, and how far it is.

    \b
    Examples:
      analytics-actors batch status
      analytics-actors batch run --from 2026-11-01 --to 2026-11-07 --dry-run
    """


@batch.command()
@click.option("--from", "first_day", metavar="DAY", help="From this day (UTC). [default: the first with events]")
@click.option("--to", "last_day", metavar="DAY", help="To this day, itself included. [default: the last that is over]")
@click.option("--project", help="Only of this project. [default: all]")
@click.option("--metric", help="Only days that were not counted with this metric yet: its backfill.")
@click.option("--dry-run", is_flag=True, help="Count what differs, and write nothing.")
@click.option("--wait/--no-wait", default=True, show_default=True, help="Show how far it is, and return when it ends.")
@server_options("admin")
@json_option
def run(
    api: Api,
    first_day: str | None,
    last_day: str | None,
    project: str | None,
    metric: str | None,
    dry_run: bool,
    wait: bool,
    as_json: bool,
) -> None:
    """Count days again, now. Needs the system's admin key. Doing it twice changes nothing.

    \b
    Examples:
      analytics-actors batch run --project shop --metric checkout_value
      analytics-actors batch run --from 2026-11-01 --to 2026-11-07 --dry-run --json
    """
    asked = {"firstDay": first_day, "lastDay": last_day, "projectId": project, "metric": metric}
    body = {name: value for name, value in asked.items() if value is not None} | {"dryRun": dry_run}
    job_id = api.post(_ROUTE, body)["jobId"]
    job = _wait(api, job_id, quiet=as_json) if wait else _job(api, job_id)
    if as_json:
        print_json(job)
    else:
        print_table("", _COLUMNS, [_row(job)])
        _print_errors([job])
    if job["state"] == "incomplete":
        raise Failure("some days could not be counted; the next daily job has them again")


@batch.command()
@click.option("-n", "limit", type=click.IntRange(1, 1000), default=10, show_default=True, help="Most jobs.")
@server_options("admin")
@json_option
def status(api: Api, limit: int, as_json: bool) -> None:
    """Show the last jobs, the newest first: what they have counted, and how many roll-ups they found otherwise.

    \b
    Example:
      analytics-actors batch status
    """
    answer = api.get(_ROUTE, {"limit": limit})
    if as_json:
        print_json(answer)
        return
    print_table("", _COLUMNS, map(_row, answer["jobs"]))
    _print_errors(answer["jobs"])
    due = answer["runAt"]
    click.echo(f"the daily job is due at {due} UTC" if due else "the daily job is turned off (batch.enabled)")


def _wait(api: Api, job_id: int, *, quiet: bool) -> dict[str, Any]:
    told = None
    while (job := _job(api, job_id))["state"] in ("waiting", "running"):
        left = job["progress"]["daysLeft"] if job["state"] == "running" else None
        if left != told and not quiet:
            click.echo(f"{left:,} days left")
            told = left
        time.sleep(POLL_S)
    return job


def _job(api: Api, job_id: int) -> dict[str, Any]:
    for job in api.get(_ROUTE, {"limit": 1000})["jobs"]:
        if job["jobId"] == job_id:
            found: dict[str, Any] = job
            return found
    raise Failure(f"there is no job {job_id} any more")


def _row(job: Mapping[str, Any]) -> Sequence[Any]:
    progress = job["progress"]
    days = " to ".join(filter(None, (job["firstDay"], job["lastDay"])))
    of = " ".join(filter(None, (job["daily"], job["projectId"], job["metric"], days, "dry run" * job["dryRun"])))
    numbers = ("days", "daysLeft", "daysFailed", "events", "rows", "rowsChanged", "seconds")
    return (job["jobId"], job["kind"], job["state"], of or "all", *(progress[name] for name in numbers))


def _print_errors(jobs: Sequence[Mapping[str, Any]]) -> None:
    for job in jobs:
        for error in job["progress"]["errors"]:
            click.echo(f"job {job['jobId']}: {error}")
