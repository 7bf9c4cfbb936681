"""The metrics of every project: which are wanted, and which the windows are being counted with.

**Built, in words** (`Definitions.version`): what the checkpoint keeps of each project. `defaults;name=version;…`: a
digest of the default metrics and the versions of the project's own, by name. Two texts tell which metrics differ.
`*=digest` among them stands for the event types that are aggregate-only, which every other metric leaves out.
`defaults!;…`: the windows are, but which of them were rolled up is not known yet (`doubted`).
"""

import asyncio
from collections.abc import Mapping
from typing import NamedTuple, Protocol

import msgspec
from xxhash import xxh3_64_hexdigest

from analytics_actors.windows.aggregate_only import digest, effective
from config.settings import WindowSettings
from storage.metric_definitions import EVENTS, Aggregation, MetricDefinition, default_metrics
from storage.metric_registry import Changes

SETTLED_S = 5.0
"""Changed declarations of aggregate-only events are taken up so much later: every batcher stores accordingly then."""

_AGGREGATE_ONLY = "*"
_Own = Mapping[str, tuple[int, MetricDefinition]]


class Definitions(NamedTuple):
    """A project's metrics, its own in the place of defaults of the same name; each without the aggregate-only events
    that it does not count."""

    version: str
    metrics: tuple[MetricDefinition, ...]


class Registry(Protocol):
    """The part of `storage.metric_registry.MetricRegistry` that is needed here."""

    async def changes_since(self, since: int) -> Changes: ...


def doubted(version: str) -> str:
    """The same definitions, with roll-ups that have to be written anew."""
    defaults, separator, own = undoubted(version).partition(";")
    return f"{defaults}!{separator}{own}"


def undoubted(version: str) -> str:
    return version.replace("!", "", 1)


def is_built(built: str | None, metric: str, version: int) -> bool:
    """Whether what `built` says has this version of a metric; None is a project that there is nothing of, so that
    nothing is missing either."""
    return built is None or _read(built)[1].get(metric, "0") == str(version)


def version_of(definitions: Definitions, metric: str) -> int:
    """0 for a metric that is not the project's own."""
    return int(_read(definitions.version)[1].get(metric, "0"))


def is_doubted(version: str) -> bool:
    return "!" in version


class DefinitionBook:
    """Read from threads too: entries are replaced, never changed."""

    def __init__(self, registry: Registry, settings: WindowSettings) -> None:
        self._registry = registry
        self._defaults = default_metrics(settings)
        self._default_version = xxh3_64_hexdigest(msgspec.msgpack.encode(self._defaults))[:8]
        self._default = Definitions(self._default_version, self._defaults)
        self._since = 0
        self._own: dict[str, dict[str, tuple[int, MetricDefinition]]] = {}
        self._declared: dict[str, _Own] = {}
        """Of projects with aggregate-only events: the metrics that declare them, as wanted."""
        self._settled_at: dict[str, float] = {}
        self._wanted: dict[str, Definitions] = {}
        self._applied: dict[str, Definitions] = {}
        self._refreshing = asyncio.Lock()
        self.loaded = False
        """Whether the registry was read at all."""

    async def refresh(self) -> None:
        """Read what has changed. Raises what the registry raises."""
        # One after the other: what was read before must not be taken in after what was read later.
        async with self._refreshing:
            self._take(await self._registry.changes_since(self._since))

    def _take(self, changes: Changes) -> None:
        touched = set()
        for stored in changes.definitions:
            own = self._own.setdefault(stored.project_id, {})
            if stored.deleted_at is None:
                own[stored.definition.name] = (stored.version, stored.definition)
            else:
                own.pop(stored.definition.name, None)
            touched.add(stored.project_id)
        now = asyncio.get_running_loop().time()
        for project_id in touched:
            if self.loaded and _declaring(self._own[project_id]) != self._declared.get(project_id, {}):
                self._settled_at.setdefault(project_id, now + SETTLED_S)
        for project_id in touched | self._settled_at.keys():
            if self._settled_at.get(project_id, now) <= now:
                self._want(project_id)
        self._since = changes.next_since
        self.loaded = True

    def _want(self, project_id: str) -> None:
        self._settled_at.pop(project_id, None)
        own = self._own[project_id]
        wanted = self._wanted[project_id] = self._combine(own)
        if project_id in self._applied and self._applied[project_id].version == wanted.version:
            # Patterns alone are others, which nothing is built for.
            self._applied[project_id] = wanted
        if declaring := _declaring(own):
            self._declared[project_id] = declaring
        else:
            self._declared.pop(project_id, None)

    def _combine(self, own: _Own) -> Definitions:
        if not own:
            return self._default
        names = sorted(own)
        versions = [f"{name}={own[name][0]}" for name in names]
        if left_out := digest(definition for _, definition in own.values()):
            versions.append(f"{_AGGREGATE_ONLY}={left_out}")
        kept = [metric for metric in self._defaults if metric.name not in own]
        metrics = effective([*kept, *(own[name][1] for name in names)])
        return Definitions(";".join([self._default_version, *versions]), metrics)

    def wanted(self, project_id: str) -> Definitions:
        """As the registry has them."""
        return self._wanted.get(project_id, self._default)

    def applied(self, project_id: str) -> Definitions:
        """As events are to be counted: the ones that the windows were built for, or for a new project the wanted."""
        return self._applied.setdefault(project_id, self.wanted(project_id))

    def apply(self, project_id: str, definitions: Definitions) -> None:
        wanted = self.wanted(project_id)
        # What was built for may be older; then patterns alone have changed since.
        self._applied[project_id] = wanted if wanted.version == definitions.version else definitions

    def apply_built(self, built: Mapping[str, str]) -> None:
        """These projects' windows are as the checkpoint says; those that are not as wanted are to be built."""
        for project_id in built:
            self._applied[project_id] = self.wanted(project_id)

    def mismatched(self, built: Mapping[str, str]) -> list[str]:
        """Projects whose windows were built for other definitions than are wanted."""
        return [
            project_id for project_id, version in built.items() if undoubted(version) != self.wanted(project_id).version
        ]

    def changed(self, project_id: str, *, since: str) -> dict[str, MetricDefinition | None]:
        """Metrics that differ from those that `since` names; None for one that there is no more."""
        wanted = self.wanted(project_id)
        old_default, old = _read(since)
        new_default, new = _read(wanted.version)
        names = {name for name in old.keys() | new.keys() if old.get(name) != new.get(name)}
        if old_default != new_default:
            names |= {metric.name for metric in self._defaults}
        metrics = {metric.name: metric for metric in wanted.metrics}
        if _AGGREGATE_ONLY in names:
            names.remove(_AGGREGATE_ONLY)
            names |= metrics.keys() - {EVENTS.name}
        return {name: metrics.get(name) for name in sorted(names)}

    def definition(self, project_id: str, metric: str) -> MetricDefinition | None:
        """As applied."""
        applied = self._applied.get(project_id) or self.wanted(project_id)
        return next((each for each in applied.metrics if each.name == metric), None)

    def aggregation(self, project_id: str, metric: str) -> Aggregation | None:
        definition = self.definition(project_id, metric)
        return None if definition is None else definition.aggregation


def _declaring(own: _Own) -> _Own:
    return {name: stored for name, stored in own.items() if stored[1].aggregate_only}


def _read(version: str) -> tuple[str, dict[str, str]]:
    default, *own = undoubted(version).split(";")
    return default, dict(_pair(each) for each in own)


def _pair(text: str) -> tuple[str, str]:
    name, _, version = text.partition("=")
    return name, version
