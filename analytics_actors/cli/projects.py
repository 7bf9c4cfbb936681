"""`analytics-actors projects`."""

import click

from analytics_actors.cli.api import Api
from analytics_actors.cli.output import print_json, print_table
from analytics_actors.cli.pages import all_pages
from analytics_actors.cli.server_options import json_option, server_options


@click.group()
def projects() -> None:
    """List and create projects. Needs the system's admin key."""


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
        print_table("", ["project", "created"], [(project["projectId"], project["createdAt"]) for project in found])


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
@click.option("--expires-in", "expires_in_s", type=float, help="Seconds after which these keys stop working.")
@server_options("admin")
@json_option
def create_project(
    api: Api, project_id: str, kinds: tuple[str, ...], expires_in_s: float | None, as_json: bool
) -> None:
    """Create a project and keys for it. The keys are shown this once.

    \b
    Example:
      analytics-actors projects create shop --with-key write --with-key read
    """
    answer = api.post("/v1/projects", {"projectId": project_id, "keys": kinds, "expiresInSeconds": expires_in_s})
    if as_json:
        print_json(answer)
        return
    click.echo(f"created {answer['projectId']}")
    for key in answer["keys"]:
        click.echo(f"{key['kind']:7} {key['key']}    (id {key['keyId']})")
