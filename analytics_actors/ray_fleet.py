"""The controller's view of Ray: actors found, made, probed and killed by name."""

from collections.abc import Callable
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError

from analytics_actors import actors, aggregator_actor, exporter_actor, keeper_actor
from analytics_actors.controller import KEEPER, Kind, Place, View
from analytics_actors.messages import aggregator_name, batcher_name, exporter_name, keeper_name
from config.settings import Settings

_NAMES: dict[Kind, Callable[[int], str]] = {
    "batcher": batcher_name,
    "aggregator": aggregator_name,
    "exporter": exporter_name,
    "keeper": lambda _: keeper_name(),
}
_DECODERS: dict[Kind, Callable[[bytes], View | None]] = {
    "batcher": actors.decode_view,
    "aggregator": aggregator_actor.decode_view,
    "exporter": exporter_actor.decode_view,
    "keeper": keeper_actor.decode_view,
}


class RayActor:
    """`ActorHandle` of a Ray actor."""

    def __init__(self, actor: Any, decode: Callable[[bytes], View | None]) -> None:
        self._actor = actor
        self._decode = decode
        self._ready: Any = None
        self.killed = False

    def probe(self, *, deadline_s: float) -> View | None:
        """None also while Ray restarts the actor."""
        try:
            view = self._observe(deadline_s)
            if view is None:
                self._start(deadline_s)
                view = self._observe(deadline_s)
            return view
        except GetTimeoutError as error:
            raise TimeoutError(f"{self._actor} did not answer within {deadline_s} s") from error
        except RayActorError:
            return None

    def _observe(self, deadline_s: float) -> View | None:
        return self._decode(ray.get(self._actor.observe.remote(), timeout=deadline_s))

    def _start(self, deadline_s: float) -> None:
        """An actor's loops start with `ready`; there is never more than one call that waits."""
        if self._ready is not None:
            done, _ = ray.wait([self._ready], timeout=0)
            if not done:
                return
        self._ready = self._actor.ready.remote()
        ray.wait([self._ready], timeout=deadline_s)

    def kill(self) -> None:
        ray.kill(self._actor, no_restart=True)
        self.killed = True


class RayFleet:
    """`Fleet` of detached actors in the current namespace, as it was when `places` was last called."""

    def __init__(self, settings: Settings) -> None:
        self._settings_json = settings.to_json()
        self._classes: dict[Kind, Any] = {
            "batcher": ray.remote(**actors.BATCHER_OPTIONS)(actors.BatcherActor),
            "aggregator": ray.remote(**aggregator_actor.AGGREGATOR_OPTIONS)(aggregator_actor.AggregatorActor),
            "exporter": ray.remote(**exporter_actor.EXPORTER_OPTIONS)(exporter_actor.ExporterActor),
            "keeper": ray.remote(**keeper_actor.KEEPER_OPTIONS)(keeper_actor.KeeperActor),
        }
        self._handles: dict[Place, RayActor] = {}

    def places(self) -> list[Place]:
        found = [place for name in ray.util.list_named_actors() if (place := _place_of(name)) is not None]
        # The name of one that has died for good is free: another is made.
        self._handles = {place: self._handles[place] for place in found if place in self._handles}
        return found

    def get_or_create(self, place: Place) -> RayActor:
        if place not in self._handles or self._handles[place].killed:
            named = self._classes[place.kind].options(
                name=_NAMES[place.kind](place.shard), get_if_exists=True, lifetime="detached"
            )
            actor = named.remote(place.shard, self._settings_json)
            self._handles[place] = RayActor(actor, _DECODERS[place.kind])
        return self._handles[place]


def _place_of(name: str) -> Place | None:
    if name == keeper_name():
        return KEEPER
    for kind, name_of in _NAMES.items():
        shard = name.removeprefix(name_of(0).removesuffix("0"))
        if shard != name and shard.isdecimal():
            return Place(kind, int(shard))
    return None
