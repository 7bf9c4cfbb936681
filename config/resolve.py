"""Where settings come from: defaults < TOML file < environment < flags, each value with its origin.

Environment names are `ANALYTICS_<SECTION>_<FIELD>` in capitals (`ANALYTICS_DATA`,
`ANALYTICS_GATEWAY_PORT`); the batch constants are also taken under their plain names
(`BATCH_SIZE`, `MAX_CONCURRENT_WRITES`, `WRITE_TIMEOUT_SECONDS`, `DATABASE_POOL_SIZE`).
"""

import difflib
import math
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, get_args, get_origin, get_type_hints

import msgspec

from config.settings import Settings

ENVIRONMENT_PREFIX = "ANALYTICS_"
PLAIN_NAMES = {
    "BATCH_SIZE": "store.batch_size",
    "MAX_CONCURRENT_WRITES": "store.max_concurrent_writes",
    "WRITE_TIMEOUT_SECONDS": "store.write_timeout_seconds",
    "DATABASE_POOL_SIZE": "store.pool_size",
}


class SettingsError(ValueError):
    """A setting is unknown or out of bounds; the message names it, its origin and what to do."""


class Setting(NamedTuple):
    """One row of `analytics-actors config`."""

    name: str
    value: Any
    origin: str
    description: str


class Resolved(NamedTuple):
    """Settings together with the origin of each value that is not a default, by dotted name."""

    settings: Settings
    origins: dict[str, str]

    def rows(self) -> Iterator[Setting]:
        for name, field in _fields(Settings).items():
            value: Any = self.settings
            for part in name.split("."):
                value = getattr(value, part)
            yield Setting(name, value, self.origins.get(name, "default"), field.description)


class _Field(NamedTuple):
    annotation: Any
    description: str


def _fields(section: type[msgspec.Struct], prefix: str = "") -> dict[str, _Field]:
    found: dict[str, _Field] = {}
    for name, annotation in get_type_hints(section, include_extras=True).items():
        if isinstance(annotation, type) and issubclass(annotation, msgspec.Struct):
            found |= _fields(annotation, f"{prefix}{name}.")
        else:
            found[prefix + name] = _Field(annotation, _description(annotation))
    return found


def _description(annotation: Any) -> str:
    return next((m.description for m in get_args(annotation)[1:] if getattr(m, "description", None)), "")


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _from_file(path: Path) -> Iterator[tuple[str, Any, str]]:
    try:
        tree = tomllib.loads(path.read_text("utf-8-sig"))
    except OSError as error:
        raise SettingsError(f"cannot read {path}: {error.strerror}; name a readable file with --config") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} is not valid TOML: {error}") from error
    for name, value in _flatten(tree):
        yield name, value, str(path)


def _from_environment(environ: Mapping[str, str]) -> Iterator[tuple[str, Any, str]]:
    known = {ENVIRONMENT_PREFIX + name.replace(".", "_").upper(): name for name in _fields(Settings)} | PLAIN_NAMES
    # The prefixed name of a setting wins over its plain one, which may be meant for another program.
    for variable, value in sorted(environ.items(), key=lambda item: item[0] not in PLAIN_NAMES):
        if variable in known:
            yield known[variable], value, f"${variable}"
        elif variable.startswith(ENVIRONMENT_PREFIX):
            raise SettingsError(
                f"${variable} is no setting{_nearest(variable, known)}; `analytics-actors config` lists them"
            )


def _nearest(name: str, known: Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def resolve(
    *,
    file: Path | None = None,
    environ: Mapping[str, str] | None = None,
    flags: Mapping[str, Any] | None = None,
) -> Resolved:
    """Merge all sources, the later winning. Raises `SettingsError` on the first value that is wrong."""
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    entries: list[tuple[str, Any, str]] = []
    if file is not None:
        entries += _from_file(file)
    entries += _from_environment(environ or {})
    entries += [(name, value, "flag") for name, value in (flags or {}).items() if value is not None]
    fields = _fields(Settings)
    for name, raw, origin in entries:
        if name not in fields:
            raise SettingsError(f"{name} (from {origin}) is no setting{_nearest(name, fields)}")
        values[name] = _convert(name, raw, origin, fields[name].annotation)
        origins[name] = origin
    if values.get("data") == "":
        # A variable that is not set, most likely: the system would be made in the current directory.
        raise SettingsError(f"data (from {origins['data']}) is empty; name a folder, or `.` for the current one")
    return Resolved(msgspec.convert(_nest(values), Settings), origins)


def _convert(name: str, raw: Any, origin: str, annotation: Any) -> Any:
    is_list = get_origin(get_args(annotation)[0]) is list
    try:
        if is_list and isinstance(raw, str):
            raw = _read_list(raw)
        value = msgspec.convert(raw, annotation, strict=not isinstance(raw, str))
    except msgspec.DecodeError as error:
        raise SettingsError(f"{name} = {raw!r} (from {origin}): {error}") from error
    # JSON, in which the settings go to every process, has neither inf nor nan.
    if isinstance(value, float) and not math.isfinite(value):
        raise SettingsError(f"{name} = {raw!r} (from {origin}): Expected a finite number")
    return value


def _read_list(text: str) -> list[Any]:
    """A JSON array, or words with commas between."""
    if text.lstrip().startswith("["):
        return msgspec.json.decode(text, type=list[Any])
    return [part.strip() for part in text.split(",") if part.strip()]


def _nest(values: Mapping[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for name, value in values.items():
        *sections, leaf = name.split(".")
        node = tree
        for section in sections:
            node = node.setdefault(section, {})
        node[leaf] = value
    return tree
