"""`analytics-actors down`."""

from pathlib import Path

import click

from analytics_actors.cli.server_options import data_option
from analytics_actors.up.folder import DataFolder
from analytics_actors.up.run import down as stop


@click.command()
@data_option
def down(data: Path) -> None:
    """Stop the system of a data folder, and wait until it has ended.

    Requests and events in flight are finished first. After a kill -9 of `up` this ends what it left behind.

    \b
    Example:
      analytics-actors down --data /srv/analytics
    """
    stopped = stop(DataFolder(data))
    click.echo(f"stopped: {', '.join(stopped)}" if stopped else f"nothing runs in {data}")
