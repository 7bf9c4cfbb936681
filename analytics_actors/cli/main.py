"""`analytics-actors`: the commands, and how their failures are told.

A command's module is imported when the command is used, so that `up` (which stays) and `--help` are light.
Exit codes: 0 done, 1 it failed, 2 the command was wrong. What a user can get wrong is told in a sentence.
"""

import errno
import sys
from importlib import import_module
from typing import Any

import click

from analytics_actors.cli.failure import Failure
from analytics_actors.up.children import ChildFailed
from config import SettingsError
from storage.errors import StorageError

_COMMANDS = {
    "up": "start a system here: databases, actors, gateway",
    "down": "stop the system of a data folder",
    "status": "show gateways, shards and services",
    "load": "post events from NDJSON files",
    "tail": "show events as they arrive",
    "metrics": "show, define, list and backfill metrics",
    "query": "run SQL over events",
    "batch": "count days of metrics again, and show the daily job",
    "log": "find records of the log that cannot be read, and set them aside",
    "lake": "list, verify and rebuild the Parquet files",
    "projects": "list and create projects",
    "retention": "show and change how long what is kept, and remove what is too old",
    "keys": "list, create and revoke keys",
    "patterns": "list what was detected in metrics",
    "ledger": "show what became of the events received",
    "drain": "wait until every accepted event is stored",
    "config": "show every setting and where its value comes from",
    "migrate": "bring a database to this release's schema",
}


class LazyGroup(click.Group):
    """Finds `analytics_actors.cli.<name>.<name>` when asked for it."""

    def list_commands(self, _ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, _ctx: click.Context, name: str) -> click.Command | None:
        if name not in _COMMANDS:
            return None
        command: click.Command = getattr(import_module(f"analytics_actors.cli.{name}"), name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except SettingsError as error:
            raise click.UsageError(str(error)) from error
        except (Failure, StorageError, ChildFailed) as error:
            raise click.ClickException(str(error)) from error
        except UnicodeEncodeError as error:
            raise click.ClickException(f"a text cannot be written: {error}") from error
        except OSError as error:
            # Whoever reads from a pipe may close it early: click ends without a word then.
            if error.errno == errno.EPIPE:
                raise
            raise click.ClickException(str(error)) from error


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="analytics-actors")
def cli() -> None:
    """A light analytics event server: events posted over HTTP are stored exactly once in PostgreSQL.

    \b
    First steps:
      analytics-actors up                 start everything in ./data; prints a URL, keys and a curl line
      analytics-actors load FILE.ndjson   post events
      analytics-actors status             look at the system
    """


def main() -> None:
    """The console script."""
    sys.exit(cli(prog_name="analytics-actors"))
