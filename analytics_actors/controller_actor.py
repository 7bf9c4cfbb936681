"""The Ray actor around `Controller`: a thread that steps it, and questions answered beside it."""

import contextlib
import logging
import threading
import time
from typing import Any

import ray
from ray.exceptions import RayError

from analytics_actors.controller import ActorStatus, Controller, Kind, Place
from analytics_actors.messages import CONTROLLER_NAME, aggregator_name, batcher_name, to_plain
from analytics_actors.ray_fleet import RayFleet
from config import logs
from config.settings import Settings

PROBE_DEADLINE_S = 2.0

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
        kinds: tuple[Kind, ...] = ("batcher", "aggregator") if self._settings.windows.enabled else ("batcher",)
        self._controller = Controller(
            RayFleet(self._settings),
            shards=actors.shards,
            kinds=kinds,
            probe_deadline_s=PROBE_DEADLINE_S,
            unresponsive_after_s=actors.unresponsive_after_s,
        )
        self._draining = False
        threading.Thread(target=self._run, name="controller", daemon=True).start()

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
        """One row a shard, as `GET /v1/status` shows it: its batcher, and under `aggregator` that, if there is one."""
        statuses = dict(self._controller.statuses)
        rows = []
        for place, status in statuses.items():
            if place.kind != "batcher":
                continue
            aggregator = statuses.get(Place("aggregator", place.shard))
            rows.append(
                {"shard": place.shard}
                | _row(batcher_name(place.shard), status)
                | {"aggregator": _row(aggregator_name(place.shard), aggregator) if aggregator else None}
            )
        return rows

    def drain(self, deadline_s: float) -> bool:
        """Every batcher stores what it has taken; then the actors are ended. Whether nothing was left."""
        self._draining = True
        shards = range(self._settings.actors.shards)
        batchers = [ray.get_actor(batcher_name(shard)) for shard in shards]
        done: list[bool] = ray.get([b.drain.remote(deadline_s) for b in batchers], timeout=deadline_s + 5)
        for actor in [*batchers, *self._aggregators()]:
            # An aggregator has nothing to finish: the next one goes on from what it has published.
            ray.kill(actor, no_restart=True)
        return all(done)

    def _aggregators(self) -> list[Any]:
        found = []
        for shard in range(self._settings.actors.shards):
            with contextlib.suppress(ValueError):
                found.append(ray.get_actor(aggregator_name(shard)))
        return found


def _row(name: str, status: ActorStatus) -> dict[str, Any]:
    return {
        "actor": name,
        "state": status.state,
        "replaced": status.replaced,
        "view": to_plain(status.view) if status.view else None,
    }
