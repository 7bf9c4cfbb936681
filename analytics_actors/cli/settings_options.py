"""The options of commands that run on settings: a file, single settings, and short names for the usual ones."""

from collections.abc import Callable, Mapping
from functools import wraps
from operator import attrgetter
from pathlib import Path
from typing import Any

import click

from config.settings import Settings

_SHORT_NAMES: dict[str, tuple[str, Any, str]] = {
    # option: setting, type, help
    "--data": ("data", str, "folder of everything that is kept"),
    "--port": ("gateway.port", int, "port of the gateway; 0 takes any free one"),
    "--host": ("gateway.host", str, "address of the gateway"),
    "--workers": ("gateway.workers", int, "gateway processes"),
    "--shards": ("actors.shards", int, "shards that the partitions are placed on"),
    "--postgres-url": ("store.postgres_url", str, "a PostgreSQL of yours instead of the embedded one"),
    "--redis-url": ("log.redis_url", str, "a Redis or Valkey of yours instead of the embedded one"),
    "--lake-url": ("lake.url", str, "s3://bucket/prefix or file:///folder [default: <data>/lake]"),
    "--ray-address": ("actors.ray_address", str, "host:port of a Ray cluster instead of a local node"),
    "--dashboard-port": ("actors.dashboard_port", int, "port of Ray's dashboard; 0 takes any free one"),
}


def settings_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options; the command gets `config` (a path or None) and `flags` (values by the settings' names)."""

    @wraps(command)
    def with_flags(*, config: Path | None, settings: tuple[str, ...], **options: Any) -> Any:
        flags = dict(_parse(text) for text in settings)
        for option, (setting, _, _) in _SHORT_NAMES.items():
            value = options.pop(_parameter(option))
            if value is not None:
                flags[setting] = value
        return command(config=config, flags=flags, **options)

    decorated: Callable[..., Any] = with_flags
    set_option = click.option(
        "--set",
        "settings",
        multiple=True,
        metavar="NAME=VALUE",
        help="any setting; `analytics-actors config` lists them",
    )
    decorated = set_option(decorated)
    for option, (setting, kind, text) in reversed(_SHORT_NAMES.items()):
        decorated = click.option(option, type=kind, help=_with_default(text, setting))(decorated)
    file = click.Path(exists=True, dir_okay=False, path_type=Path)
    return click.option("-c", "--config", type=file, help="TOML file with settings")(decorated)


def _with_default(text: str, setting: str) -> str:
    """Said and not set: a flag that is not given must not win over a file."""
    default = attrgetter(setting)(Settings())
    return text if default == "" else f"{text} [default: {default}]"


def as_words(flags: Mapping[str, Any]) -> list[str]:
    """The same flags on another command line."""
    return [word for name, value in flags.items() for word in ("--set", f"{name}={value}")]


def _parse(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise click.BadParameter(f"{text!r}: write it as NAME=VALUE", param_hint="--set")
    return name.strip(), value.strip()


def _parameter(option: str) -> str:
    return option.removeprefix("--").replace("-", "_")
