"""The options of commands that talk to a running system: where it is, and as whom."""

import os
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, Literal

import click
import httpx

from analytics_actors.cli.api import Api
from analytics_actors.cli.failure import Failure
from analytics_actors.up.connection import Connection
from analytics_actors.up.folder import DataFolder

data_option = click.option(
    "--data",
    type=click.Path(file_okay=False, path_type=Path),
    default=lambda: Path(os.environ.get("ANALYTICS_DATA", "./data")),
    show_default="./data",
    help="Data folder of the system.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


Role = Literal["admin", "read", "write"]


def server_options(
    role: Role, *, admin_with: tuple[str, ...] = ()
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Adds --data, --url and --key; the command gets `api`, which uses the kept key of that role unless another is
    given. With one of the parameters `admin_with` it is the admin key."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(command)
        def with_api(*, data: Path, url: str | None, key: str | None, **options: Any) -> Any:
            needed: Role = "admin" if any(options[name] for name in admin_with) else role
            with connect(data, url, key, role=needed) as api:
                return command(api=api, **options)

        decorated: Callable[..., Any] = with_api
        key_help = f"Key to use. [default: the {role} key of the data folder]"
        decorated = click.option("--key", envvar="AA_KEY", help=key_help)(decorated)
        url_help = "URL of the gateway. [default: that of the data folder]"
        decorated = click.option("--url", envvar="AA_URL", help=url_help)(decorated)
        return data_option(decorated)

    return decorate


def connect(data: Path, url: str | None, key: str | None, *, role: Role) -> Api:
    """Raises `Failure` when nobody says where the system is, or when the URL or the key can be none."""
    if not (url and key):
        connection = kept_connection(data)
        url, key = url or connection.gateway_url, key or getattr(connection, f"{role}_key")
    _check(url, key)
    return Api(url, key)


def _check(url: str, key: str) -> None:
    try:
        parsed = httpx.URL(url)
        # As the look-up of its address will, which has another exception for what is no name.
        parsed.raw_host.decode().encode("idna")
    except (httpx.InvalidURL, UnicodeError) as error:
        raise Failure(f"{url!r} is no URL of a gateway: {error}") from error
    if parsed.scheme not in ("http", "https") or not parsed.host or not 0 <= (parsed.port or 0) < 65536:
        raise Failure(f"{url!r} is no URL of a gateway: write it as http://HOST:PORT")
    # Not shown: it may be a real one with a slip.
    if not (key.isascii() and key.isprintable() and " " not in key):
        raise Failure("the key has characters that no key has: is it complete, and on one line?")


def kept_connection(data: Path) -> Connection:
    path = DataFolder(data).connection_file
    try:
        connection = Connection.load(path)
    except (OSError, ValueError) as error:
        raise Failure(f"cannot read {path}: {error}") from error
    if connection is None:
        raise Failure(f"there is no {path}: start a system with `up`, or give --data, or --url and --key")
    return connection
