"""The metrics of a project as the routes need them: the built-in ones and the project's own, which are asked for in
PostgreSQL at most once a second, and at once after a change by any worker of the machine. They are kept for when it is
away."""

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import NamedTuple, Protocol

from analytics_actors.windows.aggregate_only import effective
from config.settings import WindowSettings
from gateway.shared_map import shared_rows
from storage.errors import StorageError, Unavailable
from storage.metric_definitions import MetricDefinition, default_metrics
from storage.metric_registry import StoredDefinition
from storage.rollups import RollupStore

TTL_S = 1.0
REFRESH_WAIT_S = 0.5
"""Longer than that what is kept will do."""
MAX_PROJECTS = 1000
"""Whose metrics a worker keeps; 100 metrics of a project take some 100 kB."""
MAX_OWN = 100
"""Metrics that a project may define: each is computed for every event of it."""


BACKFILL_WAIT_S = 3.0
"""Finding the days that hold events takes some 10 µs an event of the project: longer than that is gone on with after
the answer."""

_log = logging.getLogger(__name__)


class MetricRegistry(Protocol):
    """The part of `storage.metric_registry.MetricRegistry` that the routes need."""

    async def list(self, project_id: str, *, deleted: Collection[str] = ()) -> Sequence[StoredDefinition]: ...

    async def create(self, project_id: str, definition: MetricDefinition) -> StoredDefinition: ...

    async def replace(self, project_id: str, definition: MetricDefinition) -> StoredDefinition: ...

    async def delete(self, project_id: str, name: str) -> object: ...


class Known(NamedTuple):
    """A metric. The built-in ones have version 0, and were never created."""

    definition: MetricDefinition
    counted: MetricDefinition
    """Without the aggregate-only events of other metrics: windows and roll-ups are counted by it."""
    version: int = 0
    created_at: datetime | None = None
    changed_at: datetime | None = None
    """Since when it counts as it does: a built-in one since one of the project's own in its place was deleted, or None
    for always."""


class Changes:
    """How often the workers of a machine have changed metrics. One per worker; without a path it is its own alone."""

    def __init__(self, path: Path | None = None, *, worker: int = 0, workers: int = 1) -> None:
        self._rows = shared_rows(path, workers=workers, words=1)
        self._worker = worker

    @property
    def total(self) -> int:
        return int(self._rows.sum())

    def count(self) -> None:
        """After a change."""
        self._rows[self._worker, 0] += 1


class _Kept(NamedTuple):
    """A project's metrics. `changes`: the total before they were asked for."""

    at_s: float
    changes: int
    metrics: Mapping[str, Known]


class Definitions:
    """One per worker."""

    def __init__(
        self,
        registry: MetricRegistry,
        settings: WindowSettings,
        *,
        changes: Changes | None = None,
        ttl_s: float = TTL_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._registry = registry
        self._changes = changes or Changes()
        self._built_in = {each.name: Known(each, each) for each in default_metrics(settings)}
        self._ttl_s = ttl_s
        self._clock = clock
        self._projects: OrderedDict[str, _Kept] = OrderedDict()

    async def of(self, project_id: str) -> Mapping[str, Known]:
        """By name; the project's own in the place of built-in ones. Raises `Unavailable` when nobody can tell."""
        kept = self._projects.get(project_id)
        changes = self._changes.total
        if kept is not None and kept.changes == changes and self._clock() - kept.at_s < self._ttl_s:
            return kept.metrics
        try:
            async with asyncio.timeout(None if kept is None else REFRESH_WAIT_S):
                own = await self._registry.list(project_id, deleted=self._built_in.keys())
        except (Unavailable, TimeoutError):
            if kept is None:
                raise
            # Not for every answer anew: PostgreSQL may be one that does not answer at all.
            self._projects[project_id] = _Kept(self._clock(), changes, kept.metrics)
            return kept.metrics
        self._projects[project_id] = _Kept(self._clock(), changes, self._with(own))
        self._projects.move_to_end(project_id)
        if len(self._projects) > MAX_PROJECTS:
            self._projects.popitem(last=False)
        return self._projects[project_id].metrics

    def _with(self, own: Sequence[StoredDefinition]) -> Mapping[str, Known]:
        named = {
            each.definition.name: Known(
                each.definition, each.definition, each.version, each.created_at, each.changed_at
            )
            for each in own
            if each.deleted_at is None
        }
        back = {
            each.definition.name: self._built_in[each.definition.name]._replace(changed_at=each.deleted_at)
            for each in own
            if each.deleted_at is not None
        }
        metrics = self._built_in | back | named
        counted = effective([each.definition for each in metrics.values()])
        return {each.name: metrics[each.name]._replace(counted=each) for each in counted}

    def forget(self, project_id: str) -> None:
        """The project's metrics are to be asked for anew."""
        self._projects.pop(project_id, None)

    def changed(self, project_id: str) -> None:
        """The project's metrics were changed here: all workers are to ask for them anew."""
        self.forget(project_id)
        self._changes.count()


class Backfills:
    """Marks all days of projects for recomputation; one run at a time for each project."""

    def __init__(self, rollups: RollupStore, *, wait_s: float = BACKFILL_WAIT_S) -> None:
        self._rollups = rollups
        self._wait_s = wait_s
        self._running: dict[str, asyncio.Task[int]] = {}

    async def start(self, project_id: str) -> int | None:
        """How many days were marked; None when that is still going on."""
        task = self._running.get(project_id)
        if task is None:
            task = asyncio.create_task(self._rollups.mark_days(project_id))
            self._running[project_id] = task
            task.add_done_callback(partial(self._ended, project_id))
        done, _ = await asyncio.wait({task}, timeout=self._wait_s)
        return task.result() if done else None

    def _ended(self, project_id: str, task: "asyncio.Task[int]") -> None:
        del self._running[project_id]
        if not task.cancelled() and isinstance(task.exception(), StorageError):
            fields = {"action": "backfill_failed", "project_id": project_id, "reason": str(task.exception())}
            _log.warning("the days of a backfill could not be marked", extra=fields)

    async def close(self) -> None:
        """End what is running; whoever started it sees no days left and starts it again."""
        tasks = list(self._running.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
