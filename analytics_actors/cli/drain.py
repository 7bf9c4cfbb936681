"""`analytics-actors drain`."""

import time
from collections.abc import Mapping
from typing import Any

import click

from analytics_actors.cli.api import Api
from analytics_actors.cli.failure import Failure
from analytics_actors.cli.server_options import server_options

POLL_S = 0.25
LOOKS = 2
"""A batch may move from the spool to the log between two questions: empty once is not empty."""


@click.command()
@click.option("--timeout", "timeout_s", type=float, default=120.0, show_default=True, help="Seconds to wait at most.")
@server_options("admin")
def drain(api: Api, timeout_s: float) -> None:
    """Wait until every accepted event is stored in PostgreSQL. What is sent meanwhile is waited for as well.

    \b
    Example:
      analytics-actors load events.ndjson && analytics-actors drain
    """
    until = time.monotonic() + timeout_s
    empty = 0
    while empty < LOOKS:
        waiting = waiting_in(api.get("/v1/status"))
        empty = 0 if waiting else empty + 1
        if waiting and time.monotonic() > until:
            raise Failure(f"not everything is stored after {timeout_s:g} s: {waiting}")
        time.sleep(POLL_S)
    click.echo("everything is stored")


def waiting_in(status: Mapping[str, Any]) -> str:
    """What is not stored yet, in words; empty when nothing is."""
    parts = [
        spool.get("trouble") or f"{spool['spool']}: {spool['batches']} batches"
        for spool in status["spools"]
        if spool["batches"] or "trouble" in spool
    ]
    if not status["shards"]:
        parts.append("the shards cannot be asked")
    for shard in status["shards"]:
        view = shard.get("view")
        if view is None:
            parts.append(f"shard {shard['shard']} is {shard['state']}")
        elif waiting := view["lag_events"] + view["waiting_events"]:
            parts.append(f"shard {shard['shard']}: {waiting} events")
    return "; ".join(parts)
