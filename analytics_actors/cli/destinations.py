"""`analytics-actors lake destinations`."""

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import click

from analytics_actors.cli.api import Api
from analytics_actors.cli.failure import Failure
from analytics_actors.cli.output import bytes_text, print_json, print_table
from analytics_actors.cli.pages import all_pages
from analytics_actors.cli.server_options import json_option, server_options

_ROUTE = "/v1/exports/destinations"


@click.group()
def destinations() -> None:
    """Buckets and folders that events are delivered to: a client's own, or a backup. Needs the system's admin key.

    \b
    Examples:
      analytics-actors lake destinations create s3://acme-events/raw --client acme --region eu-west-1 --credentials acme
      analytics-actors lake destinations list
    """


@destinations.command("list")
@server_options("admin")
@json_option
def list_destinations(api: Api, as_json: bool) -> None:
    """List all destinations, each with its state.

    \b
    Example:
      analytics-actors lake destinations list
    """
    found = list(all_pages(api, _ROUTE, "destinations"))
    if as_json:
        print_json(found)
        return
    columns = ["id", "of", "state", "#files", "#rows", "#bytes", "#pending files", "fresh at", "url"]
    print_table("", columns, [_row(each) for each in found])
    for each in found:
        if each["state"] in ("failing", "behind") and each["lastError"]:
            click.echo(f"{each['destinationId']}: {each['lastError']}")


def _row(found: Mapping[str, Any]) -> list[Any]:
    return [
        found["destinationId"],
        _owner(found),
        found["state"],
        found["files"],
        found["rows"],
        bytes_text(found["bytes"]),
        found["pendingFiles"],
        found["freshAt"],
        found["url"],
    ]


def _owner(found: Mapping[str, Any]) -> str:
    if "clientId" in found:
        return f"client {found['clientId']}"
    return f"project {found['projectId']}" if "projectId" in found else "all projects"


@destinations.command("show")
@click.argument("destination_id")
@server_options("admin")
@json_option
def show(api: Api, destination_id: str, as_json: bool) -> None:
    """Show one destination: state, last error, what was delivered, what waits.

    \b
    Example:
      analytics-actors lake destinations show d-0123456789ab
    """
    _print(api.get(_path(destination_id)), as_json=as_json)


@destinations.command("create")
@click.argument("place", metavar="URL")
@click.option("--project", help="Its events.")
@click.option("--client", help="The events of all its projects.")
@click.option("--all", "all_projects", is_flag=True, help="All events.")
@click.option("--kind", type=click.Choice(["client", "backup"]), default="client", show_default=True)
@click.option("--endpoint", "endpoint_url", help="S3 server that is not Amazon's.")
@click.option("--region", help="Region of the bucket. [default: us-east-1]")
@click.option("--path-style", is_flag=True, help="The bucket's name goes into the path.")
@click.option("--credentials", help="Profile of the servers' AWS configuration. [default: the system's credentials]")
@click.option(
    "--since", metavar="TIME", help="What was exported since: now, beginning, 2026-11-20T00:00:00Z. [default: now]"
)
@server_options("admin")
@json_option
def create(
    api: Api,
    place: str,
    project: str | None,
    client: str | None,
    all_projects: bool,
    kind: str,
    endpoint_url: str | None,
    region: str | None,
    path_style: bool,
    credentials: str | None,
    since: str | None,
    as_json: bool,
) -> None:
    """Deliver events to s3://bucket/prefix or file:///folder. An object is put there, read and deleted first.

    \b
    Example:
      analytics-actors lake destinations create s3://acme-events/raw --client acme --credentials acme --since beginning
    """
    if (project is not None) + (client is not None) + all_projects != 1:
        raise Failure("say whose events: one of --project, --client and --all")
    wanted = {
        "url": place,
        "projectId": project,
        "clientId": client,
        "kind": kind,
        "endpointUrl": endpoint_url,
        "region": region,
        "pathStyle": path_style,
        "credentials": credentials,
        "since": since,
    }
    _print(api.post(_ROUTE, {name: value for name, value in wanted.items() if value is not None}), as_json=as_json)


@destinations.command("set")
@click.argument("destination_id")
@click.option("--enable/--disable", "enabled", default=None, help="Begin or stop to deliver; nothing is left out.")
@click.option("--endpoint", "endpoint_url", help="S3 server.")
@click.option("--region", help="Region of the bucket.")
@click.option("--path-style/--virtual-style", "path_style", default=None, help="Where the bucket's name goes.")
@click.option("--credentials", help="Profile of the servers' AWS configuration.")
@server_options("admin")
@json_option
def change(
    api: Api,
    destination_id: str,
    enabled: bool | None,
    endpoint_url: str | None,
    region: str | None,
    path_style: bool | None,
    credentials: str | None,
    as_json: bool,
) -> None:
    """Change how a destination is reached, or whether it is served.

    \b
    Example:
      analytics-actors lake destinations set d-0123456789ab --disable
    """
    wanted = {
        "enabled": enabled,
        "endpointUrl": endpoint_url,
        "region": region,
        "pathStyle": path_style,
        "credentials": credentials,
    }
    changed = {name: value for name, value in wanted.items() if value is not None}
    _print(api.patch(_path(destination_id), changed), as_json=as_json)


@destinations.command("remove")
@click.argument("destination_id")
@server_options("admin")
def remove(api: Api, destination_id: str) -> None:
    """Deliver nothing there any more. What was delivered stays.

    \b
    Example:
      analytics-actors lake destinations remove d-0123456789ab
    """
    api.delete(_path(destination_id))
    click.echo(f"removed {destination_id}; what was delivered is still there")


def _path(destination_id: str) -> str:
    return f"{_ROUTE}/{quote(destination_id, safe='')}"


def _print(found: Mapping[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(found)
        return
    click.echo(f"{found['destinationId']}: {_owner(found)} to {found['url']}, {found['state']}")
    size = f"{found['files']:,} files, {found['rows']:,} rows, {bytes_text(found['bytes'])}"
    click.echo(f"{size} delivered; {found['pendingFiles']:,} files of the lake may hold more")
    if found["lastError"]:
        click.echo(f"last error: {found['lastError']}")
