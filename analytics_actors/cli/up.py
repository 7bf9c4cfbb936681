"""`analytics-actors up`."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from analytics_actors.cli.failure import Failure
from analytics_actors.cli.settings_options import as_words, settings_options
from analytics_actors.up.connection import Connection, summary
from analytics_actors.up.daemon import Progress, start_detached
from analytics_actors.up.folder import DataFolder, FolderInUse
from analytics_actors.up.run import run
from config import resolve
from storage.embedded.process import log_end

_READY_OPTION = "--ready-fd"


@click.command()
@settings_options
@click.option("-d", "--detach", is_flag=True, help="Return when all is ready; `down` stops it.")
@click.option(_READY_OPTION, type=int, hidden=True)
def up(config: Path | None, flags: Mapping[str, Any], detach: bool, ready_fd: int | None) -> None:
    """Start a whole system on this machine, and keep it running until Ctrl-C or SIGTERM.

    PostgreSQL, Valkey and Ray are started too, unless a setting names ones that run already. Everything
    lies in the data folder, listens on loopback, and is there again after a restart.

    \b
    Examples:
      analytics-actors up
      analytics-actors up --detach --data /srv/analytics --port 0
      analytics-actors up --shards 2 --set store.batch_interval_ms=200
      ANALYTICS_STORE_POSTGRES_URL=postgresql://… analytics-actors up
    """
    settings = resolve(file=config, environ=os.environ, flags=flags).settings
    folder = DataFolder(Path(settings.data))
    if detach:
        _detach(folder, config, flags)
    elif ready_fd is not None:
        progress = Progress(ready_fd)
        run(folder, settings, ready=lambda _: progress.ready(), report=progress.report)
    else:
        run(folder, settings, ready=lambda connection: click.echo(summary(connection)), report=_say)


def _detach(folder: DataFolder, config: Path | None, flags: Mapping[str, Any]) -> None:
    os.umask(0o077)
    folder.create()
    if (holder := folder.holder()) is not None:
        raise FolderInUse(folder.path, holder)
    command = ["-m", "analytics_actors.cli", "up", *as_words({**flags, "data": folder.path})]
    command += ["--config", str(config)] if config else []
    log_path = folder.logs / "up.stderr.log"
    try:
        process = start_detached(command, log_path=log_path, report=_say, option=_READY_OPTION)
    except KeyboardInterrupt:
        raise Failure("stopped before it was ready") from None
    if process.returncode == 0:
        raise Failure("it was stopped before it was ready, by `down` or a signal")
    if process.returncode is not None:
        # It ends with the last lines of another log.
        end = log_end(log_path, lines=30)
        raise Failure(f"it did not start (exit code {process.returncode}); the end of {log_path}:\n{end}")
    connection = Connection.load(folder.connection_file)
    assert connection is not None
    click.echo(summary(connection))
    click.echo(f"it runs in the background; stop it with: analytics-actors down --data {folder.path}")


def _say(text: str) -> None:
    click.echo(click.style("· ", dim=True) + text)
