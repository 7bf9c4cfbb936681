"""`analytics-actors migrate`."""

import asyncio
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from analytics_actors.cli.server_options import kept_connection
from analytics_actors.cli.settings_options import settings_options
from config import resolve
from storage.migrate import migrate as apply_missing


@click.command()
@settings_options
def migrate(config: Path | None, flags: Mapping[str, Any]) -> None:
    """Bring a database to this release's schema. `up` does it too; this is for doing it before.

    It is the one of store.postgres_url, else that of the system that runs on the data folder.

    \b
    Example:
      analytics-actors migrate --postgres-url postgresql://me:secret@db.example.org/analytics
    """
    settings = resolve(file=config, environ=os.environ, flags=flags).settings
    url = settings.store.postgres_url or kept_connection(Path(settings.data)).postgres_url
    applied = asyncio.run(apply_missing(url, connect_timeout_s=settings.store.connect_timeout_s))
    for name in applied:
        click.echo(f"applied {name}")
    if not applied:
        click.echo("nothing to do")
