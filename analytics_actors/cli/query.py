"""`analytics-actors query`."""

import sys
from typing import Any

import click
import msgspec

from analytics_actors.cli.api import Api, answer_of
from analytics_actors.cli.output import print_table
from analytics_actors.cli.server_options import server_options

_NUMBERS = ("INT", "DECIMAL", "DOUBLE", "FLOAT", "BIGNUM")


@click.command()
@click.argument("sql", required=False)
@click.option(
    "--format",
    "form",
    type=click.Choice(["table", "json", "ndjson", "csv", "arrow"]),
    default="table",
    show_default=True,
    help="How the rows are printed.",
)
@click.option("--limit", type=click.IntRange(min=1), help="Most rows. [default: the server's bound]")
@click.option("--strict", is_flag=True, help="Fail rather than answer without files that cannot be had.")
@click.option("--project", help="Another project, with the system's admin key. [default: the key's]")
@server_options("read", admin_with=("project",))
def query(api: Api, sql: str | None, form: str, limit: int | None, strict: bool, project: str | None) -> None:
    """Run SQL over the events of a project: one SELECT in DuckDB's dialect, over the table events. Without SQL it is
    read from standard input.

    \b
    Examples:
      analytics-actors query "select event_type, count(*) from events group by all"
      analytics-actors query --format csv "select * from events where timestamp > now() - interval 1 hour"
    """
    body: dict[str, Any] = {"sql": sys.stdin.read() if sql is None else sql, "strict": strict}
    body["format"] = "json" if form == "table" else form
    if limit is not None:
        body["limit"] = limit
    content, headers = api.post_for_bytes("/v1/query", body, {"projectId": project})
    if form == "table":
        _print_table(answer_of(200, content))
        return
    click.echo(content, nl=form == "json")
    if headers.get("x-query-truncated") == "true":
        click.echo("there are more rows", err=True)
    if int(headers.get("x-query-missing", 0)):
        click.echo(f"{headers['x-query-missing']} files of the lake could not be had", err=True)
    _tell_cold(int(headers.get("x-query-cold-files", 0)))


def _print_table(answer: dict[str, Any]) -> None:
    columns = [_heading(column) for column in answer["columns"]]
    print_table("", columns, [[_cell(value) for value in row] for row in answer["rows"]])
    if answer["truncated"]:
        click.echo("there are more rows", err=True)
    for file in answer["missing"]:
        click.echo(f"without {file['file']}: {file['reason']}", err=True)
    _tell_cold(answer.get("coldFiles", 0))


def _tell_cold(files: int) -> None:
    if files:
        click.echo(f"{files:,} files are in the cold part of the lake, which is slower", err=True)


def _heading(column: dict[str, str]) -> str:
    is_number = column["type"].removeprefix("U").startswith(_NUMBERS) or column["type"].endswith("INT")
    return f"#{column['name']}" if is_number else column["name"]


def _cell(value: Any) -> str | None:
    """As it was sent: digits are not grouped, and control characters of a client's do not reach the terminal."""
    if value is None:
        return None
    text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
    return "".join(character if character.isprintable() else "�" for character in text)
