"""`analytics-actors config`."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from analytics_actors.cli.output import print_json, print_table
from analytics_actors.cli.settings_options import settings_options
from config import SettingsError, resolve
from config.logs import redact
from storage.metric_definitions import default_metrics


@click.command()
@settings_options
@click.option("--changed", is_flag=True, help="Only settings that are not at their default.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def config(config: Path | None, flags: Mapping[str, Any], changed: bool, as_json: bool) -> None:
    """Show every setting: its value, where that comes from, and what it means.

    Later sources win: defaults, the file (--config), the environment (ANALYTICS_<SECTION>_<NAME>), options.
    Passwords in URLs are not shown.

    \b
    Examples:
      analytics-actors config --changed
      ANALYTICS_GATEWAY_PORT=9000 analytics-actors config --json
    """
    resolved = resolve(file=config, environ=os.environ, flags=flags)
    try:
        default_metrics(resolved.settings.windows)
    except ValueError as error:
        raise SettingsError(str(error)) from error
    shown = [row._replace(value=_shown(row.value)) for row in resolved.rows() if not changed or row.origin != "default"]
    if as_json:
        print_json([row._asdict() for row in shown])
    else:
        print_table("", ["setting", "value", "from", "meaning"], [(r.name, _text(r.value), *r[2:]) for r in shown])


def _shown(value: Any) -> Any:
    return redact(value) if isinstance(value, str) else value


def _text(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
