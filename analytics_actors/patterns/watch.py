"""Watches the metrics of a shard for patterns: takes closed windows, judges them, stores what it finds.

The law:
- `closed` takes a window and returns at once. `tick` judges, and does all reading and storing. It is to be called about
  every second, with a time up to which every window that has closed was handed to `closed` and rolled up: what
  is missing then was empty. While that cannot be said (Redis is away), it is not called.
- A window is judged once, in time order. What happens to it afterwards (late events) changes nothing.
- What cannot be stored is tried again at the next tick; a restart goes on after the last window whose judgement was
  stored (`storage.pattern_store`). So no alarm is repeated and none is lost.
- Only totals are watched, of metrics whose settings have `enabled`.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from analytics_actors.patterns.past import usual_week, window_of, windows_between
from analytics_actors.patterns.watched import Watched
from storage.aggregate import Aggregate
from storage.errors import StorageError
from storage.metric_definitions import MetricDefinition
from storage.pattern_store import PatternStore
from storage.patterns import Detection, PatternSettings, check_pattern_settings
from storage.rollups import RollupStore
from storage.window_key import WindowKey

MAX_METRICS = 5000
"""Of a shard; some 10 kB each. Metrics in which nothing has happened for a while make room."""

SETTLE_S = 60.0
"""After a start, windows that closed meanwhile are still being rolled up for so long."""

PROFILE_S = 6 * 3600.0
DISCOVER_S = 600.0
RETRY_S = 5.0
SAVE_METRICS = 500
LOAD_METRICS = 50
"""A tick loads at most so many: some 20 ms each, most of it for the usual week."""

_log = logging.getLogger(__name__)


class PatternWatch:
    def __init__(
        self,
        store: PatternStore,
        rollups: RollupStore,
        definition: Callable[[str, str], MetricDefinition | None],
        *,
        owns: Callable[[str], bool],
        close_after_s: float,
        on_found: Callable[[Sequence[Detection]], None] = lambda _: None,
        webhooks: Callable[[], Mapping[str, Any]] = dict,
        clock: Callable[[], float] = time.time,
        settle_s: float = SETTLE_S,
    ) -> None:
        """`owns` says whether the shard has that project now; `on_found` is told what was stored newly; `webhooks`
        tells how its deliveries stand, for `observe`."""
        self._store = store
        self._rollups = rollups
        self._definition = definition
        self._owns = owns
        self._close_after_s = close_after_s
        self._on_found = on_found
        self._webhooks = webhooks
        self._clock = clock
        self._settled_s = clock() + settle_s
        self._watched: dict[tuple[str, str], Watched] = {}
        self._discovered_s = 0.0
        self._retry_s = 0.0
        self._trouble = ""
        self._detections = 0
        self._unwatched = 0

    async def closed(self, project_id: str, definition: MetricDefinition, key: WindowKey, aggregate: Aggregate) -> None:
        """The window has closed. Called in the order of the windows' ends; a window may come again."""
        if key.dimensions:
            return
        watched = self._watch(project_id, definition)
        if watched is not None and key.size == watched.settings.window:
            watched.wait(window_of(key.start, aggregate, definition.aggregation, watched.measure))

    async def tick(self, now_s: float) -> None:
        """Judge what has closed until `now_s`. Raises nothing that a service raises: `observe` shows it."""
        if now_s < self._retry_s or self._clock() < self._settled_s:
            return
        try:
            self._drop()
            await self._load(now_s)
            await self._judge(now_s)
            await self._save()
            await self._discover(now_s)
        except StorageError as error:
            self._trouble = str(error)
            self._retry_s = now_s + RETRY_S
        else:
            self._trouble = ""

    def observe(self) -> dict[str, Any]:
        """A snapshot for status and metrics."""
        return {
            "metrics": len(self._watched),
            "unwatchedWindows": self._unwatched,
            "unsaved": sum(len(watched.found) for watched in self._watched.values()),
            "detections": self._detections,
            "webhooks": dict(self._webhooks()),
            "trouble": self._trouble,
        }

    def _watch(self, project_id: str, definition: MetricDefinition) -> Watched | None:
        known = self._watched.get((project_id, definition.name))
        if known is not None and known.definition == definition:
            return known
        settings = pattern_settings(definition)
        if not settings.enabled:
            self._watched.pop((project_id, definition.name), None)
            return None
        if known is None and len(self._watched) >= MAX_METRICS:
            self._unwatched += 1
            return None
        watched = Watched(project_id, definition, settings)
        if known is not None:
            watched.found = known.found
        self._watched[watched.metric] = watched
        return watched

    async def _discover(self, now_s: float) -> None:
        """Metrics that were watched before a restart, or by another owner, and have stopped since close no windows."""
        if now_s < self._discovered_s + DISCOVER_S:
            return
        for saved in await self._store.states():
            if (saved.project_id, saved.metric) not in self._watched and self._owns(saved.project_id):
                definition = self._definition(saved.project_id, saved.metric)
                if definition is not None:
                    self._watch(saved.project_id, definition)
        self._discovered_s = now_s

    def _drop(self) -> None:
        """Projects that went to another shard, metrics that are no more."""
        for project_id, metric in list(self._watched):
            if not self._owns(project_id) or self._definition(project_id, metric) is None:
                del self._watched[project_id, metric]

    async def _load(self, now_s: float) -> None:
        new = [watched for watched in self._watched.values() if watched.detector is None][:LOAD_METRICS]
        if not new:
            return
        states = await self._store.states([watched.metric for watched in new])
        saved = {(state.project_id, state.metric): state for state in states}
        for watched in new:
            await self._read_week(watched, now_s)
            await watched.load(saved.get(watched.metric), self._rollups, self._closed(watched, now_s))

    async def _read_week(self, watched: Watched, now_s: float) -> None:
        definition, measure = watched.definition, watched.measure
        watched.profile = await usual_week(self._rollups, watched.metric, definition.aggregation, measure, now_s=now_s)
        watched.profile_s = now_s

    def _closed(self, watched: Watched, now_s: float) -> int:
        """The windows of this metric that begin before it have closed."""
        return int(now_s - self._close_after_s) // watched.size_s * watched.size_s

    async def _judge(self, now_s: float) -> None:
        weeks_to_read = LOAD_METRICS
        for watched in list(self._watched.values()):
            if watched.detector is None or watched.detector.state.next_start >= self._closed(watched, now_s):
                continue
            if now_s >= watched.profile_s + PROFILE_S and weeks_to_read:
                weeks_to_read -= 1
                await self._read_week(watched, now_s)
            closed_s = self._closed(watched, now_s)
            if watched.detector.expects_events:
                await self._look_for_absent(watched, closed_s)
            watched.judge(closed_s, self._clock())
            # A turn for the others: a judgement takes some 0.2 ms.
            await asyncio.sleep(0)

    async def _look_for_absent(self, watched: Watched, closed_s: int) -> None:
        """A busy metric has a window without events: nearly always it has stopped, but the owner may have changed, or
        Redis may have been away when the window was to be handed over."""
        absent = watched.absent(closed_s)
        if not absent:
            return
        definition = watched.definition
        rolled = await windows_between(
            self._rollups,
            watched.metric,
            definition.aggregation,
            watched.measure,
            watched.settings.window,
            absent[0],
            absent[-1] + watched.size_s,
        )
        for start in absent:
            if start in rolled:
                watched.wait(rolled[start])

    async def _save(self) -> None:
        dirty = [watched for watched in self._watched.values() if watched.is_dirty]
        for first in range(0, len(dirty), SAVE_METRICS):
            chunk = dirty[first : first + SAVE_METRICS]
            found = [one for watched in chunk for one in watched.found]
            new = await self._store.save([watched.saved() for watched in chunk], found)
            for watched in chunk:
                watched.found = []
                watched.is_dirty = False
            self._detections += len(new)
            for detection in new:
                _log.info("pattern detected", extra={"action": "pattern", **_fields(detection)})
            if new:
                self._on_found(new)
        await self._forget_idle()

    async def _forget_idle(self) -> None:
        idle = [w.metric for w in self._watched.values() if w.is_idle]
        if idle:
            await self._store.forget(idle)
            for metric in idle:
                del self._watched[metric]


def pattern_settings(definition: MetricDefinition) -> PatternSettings:
    """Those of the definition; the defaults when it names none. With unusable ones nothing is watched."""
    given: Any = definition.patterns
    if isinstance(given, PatternSettings):
        return given
    try:
        settings = msgspec.convert(given or {}, PatternSettings)
        check_pattern_settings(settings)
    except (msgspec.ValidationError, ValueError) as error:
        _log.warning("unusable pattern settings", extra={"action": "pattern_settings", "error": str(error)})
        return PatternSettings(enabled=False)
    return settings


def _fields(detection: Detection) -> dict[str, Any]:
    names = ("project_id", "metric", "kind", "direction", "start")
    return {name: getattr(detection, name) for name in names}
