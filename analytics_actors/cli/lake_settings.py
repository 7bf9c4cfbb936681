"""Which database and object store a command looks into: the settings that the data folder's system runs on, and over
them those that are given."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from analytics_actors.cli.failure import Failure
from analytics_actors.up.folder import DataFolder
from config import resolve
from config.settings import Settings


def lake_settings(config: Path | None, flags: Mapping[str, Any], environ: Mapping[str, str]) -> Settings:
    """Raises `Failure` when nobody says where PostgreSQL is."""
    given = resolve(file=config, environ=environ, flags=flags)
    folder = DataFolder(Path(given.settings.data))
    settings = _over(_kept(folder), given.settings, given.origins)
    if not settings.store.postgres_url:
        raise Failure(
            f"there is no {folder.settings_file}: start a system with `up`, or give --data, or --postgres-url"
            " and --lake-url"
        )
    return settings


def _kept(folder: DataFolder) -> Settings:
    """As `up` has filled them in; the defaults when it never ran here."""
    try:
        return Settings.from_json(folder.settings_file.read_bytes())
    except FileNotFoundError:
        return Settings(data=str(folder.path))
    except (OSError, msgspec.MsgspecError) as error:
        raise Failure(f"cannot read {folder.settings_file}: {error}") from error


def _over(kept: Settings, given: Settings, names: Mapping[str, str]) -> Settings:
    """The settings that are kept but for those that were named."""
    tree: dict[str, Any] = msgspec.to_builtins(kept)
    named: dict[str, Any] = msgspec.to_builtins(given)
    for name in names:
        *sections, leaf = name.split(".")
        target, source = tree, named
        for section in sections:
            target, source = target[section], source[section]
        target[leaf] = source[leaf]
    return msgspec.convert(tree, Settings)
