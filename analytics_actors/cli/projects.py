"""`analytics-actors projects`."""

from urllib.parse import quote

import click

from analytics_actors.cli.api import Api
from analytics_actors.cli.keys import LIFETIME_S
from analytics_actors.cli.output import print_json, print_table
from analytics_actors.cli.pages import all_pages
from analytics_actors.cli.server_options import json_option, server_options


@click.group()
def projects() -> None:
    """List and create projects, and give them to clients. Needs the system's admin key."""


@projects.command("list")
@server_options("admin")
@json_option
def list_projects(api: Api, as_json: bool) -> None:
    """List all projects.

    \b
    Example:
      analytics-actors projects list
    """
    found = list(all_pages(api, "/v1/projects", "projects"))
    if as_json:
        print_json(found)
    else:
        names = ["projectId", "clientId", "createdAt"]
        print_table("", ["project", "client", "created"], [[project[name] for name in names] for project in found])


@projects.command("create")
@click.argument("project_id")
@click.option(
    "--with-key",
    "kinds",
    type=click.Choice(["write", "read", "import", "admin"]),
    multiple=True,
    default=("write", "read"),
    show_default=True,
    help="Kind of key to make with it; may be given several times.",
)
@click.option("--client", help="Of whom it is. [default: itself]")
@click.option("--expires-in", "expires_in_s", type=LIFETIME_S, help="Seconds after which these keys stop working.")
@server_options("admin")
@json_option
def create_project(
    api: Api,
    project_id: str,
    kinds: tuple[str, ...],
    client: str | None,
    expires_in_s: float | None,
    as_json: bool,
) -> None:
    """Create a project and keys for it. The keys are shown this once.

    \b
    Example:
      analytics-actors projects create shop --with-key write --with-key read
    """
    wanted = {"projectId": project_id, "clientId": client, "keys": kinds, "expiresInSeconds": expires_in_s}
    answer = api.post("/v1/projects", wanted)
    if as_json:
        print_json(answer)
        return
    click.echo(f"created {answer['projectId']}")
    for key in answer["keys"]:
        click.echo(f"{key['kind']:7} {key['key']}    (id {key['keyId']})")


@projects.command("set-client")
@click.argument("project_id")
@click.argument("client_id")
@server_options("admin")
def set_client(api: Api, project_id: str, client_id: str) -> None:
    """Give a project to a client: its destinations get what is stored from now on, the former client's what was stored
    before.

    \b
    Example:
      analytics-actors projects set-client shop acme
    """
    api.patch(f"/v1/projects/{quote(project_id, safe='')}", {"clientId": client_id})
    click.echo(f"{project_id} is of {client_id} from now on")
