"""`analytics-actors tail`."""

import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

import click
import msgspec

from analytics_actors.cli.api import Api
from analytics_actors.cli.server_options import json_option, server_options

POLL_S = 0.5
PAGE_SIZE = 1000


@click.command()
@click.option("--type", "event_type", help="Only events of this type.")
@click.option("--project", help="Another project, with the system's admin key. [default: the key's]")
@click.option(
    "-n", "count", type=click.IntRange(0, PAGE_SIZE), default=10, show_default=True, help="Newest to show first."
)
@click.option("-f", "--follow", is_flag=True, help="Go on with events as they are stored, until Ctrl-C.")
@server_options("read", admin_with=("project",))
@json_option
def tail(api: Api, event_type: str | None, project: str | None, count: int, follow: bool, as_json: bool) -> None:
    """Show the newest events, and with -f those that arrive.

    \b
    Examples:
      analytics-actors tail -f
      analytics-actors tail -n 100 --type purchase --json
    """
    where = {"type": event_type, "projectId": project}
    began_at = datetime.now(UTC)
    seen = []
    for event in reversed(newest(api, where, count)):
        seen.append(event["eventId"])
        _show(event, as_json)
    if follow:
        try:
            for event in arriving(api, where, began_at):
                if event["eventId"] not in seen:
                    _show(event, as_json)
        except KeyboardInterrupt:
            click.echo(err=True)


def newest(api: Api, where: Mapping[str, Any], count: int) -> list[dict[str, Any]]:
    """The newest events, the newest first; a page of large ones has fewer than were asked for."""
    events: list[dict[str, Any]] = []
    cursor: str | None = None
    while len(events) < count:
        parameters = {**where, "order": "newest", "limit": count - len(events), "cursor": cursor}
        page = api.get("/v1/events", parameters)
        events += page["events"]
        cursor = page.get("nextCursor")
        if cursor is None:
            break
    return events


def arriving(api: Api, where: Mapping[str, Any], since: datetime) -> Iterator[dict[str, Any]]:
    """Events in the order in which they are stored, from that time on; waits when there are none."""
    parameters = {**where, "order": "received", "limit": PAGE_SIZE, "startTime": since.isoformat()}
    while True:
        page = api.get("/v1/events", parameters)
        yield from page["events"]
        if page.get("nextCursor"):
            parameters["cursor"] = page["nextCursor"]
        if len(page["events"]) < PAGE_SIZE:
            time.sleep(POLL_S)


def _show(event: Mapping[str, Any], as_json: bool) -> None:
    if as_json:
        click.echo(msgspec.json.encode(event))
        return
    user = event.get("userId") or event.get("anonymousId") or "–"
    time_text = click.style(str(event["timestamp"]), dim=True)
    # A client chose these texts: control characters must not reach the terminal.
    words = (_plain(event["eventType"]), _plain(user), _plain(event["eventId"]))
    click.echo(f"{time_text}  {words[0]:<20}  {words[1]:<24}  {words[2]}")


def _plain(text: Any) -> str:
    return "".join(character if character.isprintable() else "�" for character in str(text))
