"""The Ray actor around `Controller`: a thread that steps it, and questions answered beside it."""

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import ray
from ray.exceptions import RayError

from analytics_actors.batch_thread import BatchThread
from analytics_actors.controller import KEEPER, ActorStatus, Controller, Kind, Place
from analytics_actors.messages import (
    CONTROLLER_NAME,
    aggregator_name,
    batcher_name,
    exporter_name,
    keeper_name,
    to_plain,
)
from analytics_actors.ray_fleet import RayFleet
from analytics_actors.resting import rest_between_calls
from config import logs
from config.settings import Settings

PROBE_DEADLINE_S = 2.0

EXPORTED_DEADLINE_S = 5.0
"""For a plan under way when everything else is done: a part is written within a second or two."""

CONTROLLER_OPTIONS: dict[str, Any] = {
    "name": CONTROLLER_NAME,
    "get_if_exists": True,
    "num_cpus": 0,
    "max_restarts": -1,
    "lifetime": "detached",
    # Questions are cheap and few; one that drains must not keep the others from an answer.
    "max_concurrency": 8,
}

_log = logging.getLogger(__name__)


class ControllerActor:
    """Starts looking after the shards as soon as it lives."""

    def __init__(self, settings_json: bytes) -> None:
        logs.configure(CONTROLLER_NAME)
        self._settings = Settings.from_json(settings_json)
        actors = self._settings.actors
        self._controller = Controller(
            RayFleet(self._settings),
            shards=actors.shards,
            kinds=_kinds(self._settings),
            single=[KEEPER] if self._settings.lake.enabled or self._settings.retention.enabled else [],
            probe_deadline_s=PROBE_DEADLINE_S,
            unresponsive_after_s=actors.unresponsive_after_s,
        )
        self._batch = BatchThread(self._settings) if self._settings.windows.enabled else None
        self._draining = False
        threading.Thread(target=self._run, name="controller", daemon=True).start()
        rest_between_calls()

    def __repr__(self) -> str:
        return f"Controller(shards={self._settings.actors.shards})"

    def _run(self) -> None:
        while not self._draining:
            try:
                self._controller.step()
            except RayError as error:
                _log.error("a step failed", exc_info=error, extra={"action": "step_failed"})
            # Impatient until the system has come up, then at the settled pace.
            time.sleep(self._settings.actors.observe_interval_s if self._controller.ready else 0.1)

    def ready(self) -> bool:
        """Whether every wanted shard takes events."""
        return self._controller.ready

    def status(self) -> list[dict[str, Any]]:
        """One row a shard, as `GET /v1/status` shows it: its batcher, and under `aggregator` and `exporter` those, if
        there are any."""
        statuses = dict(self._controller.statuses)
        rows = []
        for place, status in statuses.items():
            if place.kind != "batcher":
                continue
            aggregator = statuses.get(Place("aggregator", place.shard))
            exporter = statuses.get(Place("exporter", place.shard))
            rows.append(
                {"shard": place.shard}
                | _row(batcher_name(place.shard), status)
                | {"aggregator": _row(aggregator_name(place.shard), aggregator) if aggregator else None}
                | {"exporter": _row(exporter_name(place.shard), exporter) if exporter else None}
            )
        return rows

    def keeper(self) -> dict[str, Any] | None:
        """The lake keeper's row, if there is one."""
        status = self._controller.statuses.get(KEEPER)
        return _row(keeper_name(), status) if status else None

    def batch(self) -> dict[str, Any] | None:
        """What the driver of batch jobs says of itself; None without windows."""
        return self._batch.observe() if self._batch else None

    def drain(self, deadline_s: float) -> bool:
        """Every batcher stores what it has taken, and exporters finish what they have begun; then the actors are
        ended. Whether all was stored: what is not in the lake is taken from the log or the event store later."""
        self._draining = True
        shards = range(self._settings.actors.shards)
        batchers = [ray.get_actor(batcher_name(shard)) for shard in shards]
        exporters = self._found(exporter_name)
        # What the keeper has begun the next one finishes.
        for keeper in self._named([keeper_name()]):
            ray.kill(keeper, no_restart=True)
        exported = [exporter.drain.remote(deadline_s) for exporter in exporters]
        done: list[bool] = ray.get([b.drain.remote(deadline_s) for b in batchers], timeout=deadline_s + 5)
        # An exporter that waits for the object store is not waited for.
        if exported:
            ray.wait(exported, num_returns=len(exported), timeout=min(deadline_s, EXPORTED_DEADLINE_S))
        for actor in [*batchers, *exporters, *self._found(aggregator_name)]:
            # An aggregator has nothing to finish: the next one goes on from what it has published.
            ray.kill(actor, no_restart=True)
        return all(done)

    def _found(self, name_of: Callable[[int], str]) -> list[Any]:
        return self._named([name_of(shard) for shard in range(self._settings.actors.shards)])

    def _named(self, names: Sequence[str]) -> list[Any]:
        found = []
        for name in names:
            with contextlib.suppress(ValueError):
                found.append(ray.get_actor(name))
        return found


def _kinds(settings: Settings) -> list[Kind]:
    kinds: list[Kind] = ["batcher"]
    if settings.windows.enabled:
        kinds.append("aggregator")
    if settings.lake.enabled:
        kinds.append("exporter")
    return kinds


def _row(name: str, status: ActorStatus) -> dict[str, Any]:
    return {
        "actor": name,
        "state": status.state,
        "replaced": status.replaced,
        "view": to_plain(status.view) if status.view else None,
    }
