"""`analytics-actors keys`."""

from urllib.parse import quote

import click

from analytics_actors.cli.api import Api
from analytics_actors.cli.output import print_json, print_table
from analytics_actors.cli.pages import all_pages
from analytics_actors.cli.server_options import json_option, server_options

LIFETIME_S = click.FloatRange(0, 100 * 366 * 86400.0, min_open=True)
"""What may be said of how long a key works."""


@click.group()
def keys() -> None:
    """List, create and revoke keys. Needs an admin key: the system's, or a project's for its own keys."""


@keys.command("list")
@click.option("--project", help="Only of this project.")
@server_options("admin")
@json_option
def list_keys(api: Api, project: str | None, as_json: bool) -> None:
    """List keys; their texts are not kept.

    \b
    Example:
      analytics-actors keys list --project shop
    """
    found = list(all_pages(api, "/v1/keys", "keys", projectId=project))
    if as_json:
        print_json(found)
        return
    columns = ["key id", "project", "kind", "created", "expires", "revoked"]
    names = ["keyId", "projectId", "kind", "createdAt", "expiresAt", "revokedAt"]
    print_table("", columns, [[key.get(name) for name in names] for key in found])


@keys.command("create")
@click.option("--project", help="The project; may be left out for an admin key of the whole system.")
@click.option(
    "--kind",
    type=click.Choice(["write", "read", "import", "admin"]),
    required=True,
    help="write: public, may sit in a page. import: may also send old events.",
)
@click.option(
    "--expires-in",
    "expires_in_s",
    type=LIFETIME_S,
    help="Seconds after which the key stops working.",
)
@server_options("admin")
@json_option
def create_key(api: Api, project: str | None, kind: str, expires_in_s: float | None, as_json: bool) -> None:
    """Make a key. It is shown this once.

    \b
    Examples:
      analytics-actors keys create --project shop --kind write
      analytics-actors keys create --project shop --kind import --expires-in 3600
    """
    answer = api.post("/v1/keys", {"projectId": project, "kind": kind, "expiresInSeconds": expires_in_s})
    if as_json:
        print_json(answer)
    else:
        click.echo(f"{answer['key']}    (id {answer['keyId']})")


@keys.command("revoke")
@click.argument("key_id")
@server_options("admin")
@json_option
def revoke_key(api: Api, key_id: str, as_json: bool) -> None:
    """Revoke the key with that id (not its text).

    \b
    Example:
      analytics-actors keys revoke 01890a5d-ac96-774b-bcce-b302099a8057
    """
    answer = api.delete(f"/v1/keys/{quote(key_id, safe='')}")
    if as_json:
        print_json(answer)
    else:
        click.echo(f"revoked; every gateway refuses it within {answer['effectiveWithinSeconds']:g} s")
