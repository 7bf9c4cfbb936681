"""Keeps wanted and actual in step: of every shard its actors, alive, answering, of the wanted settings.

A shard is a batcher and, with windows, an aggregator, with a lake an exporter; the lake has one keeper. An actor
whose process dies is restarted by Ray itself. What Ray does not see is left to the controller: an actor that is there
and does not answer (SIGSTOP, a dead node that nobody declared dead). After `unresponsive_after_s` it is killed for
good, its name is free, and another takes its place; should the old process come back to life, its epoch is stale and
it can neither append nor commit (FN-1).
"""

import time
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, Protocol

from analytics_actors.messages import AggregatorView, BatcherView, ExporterView, KeeperView

STARTING_S = 60.0

Kind = Literal["batcher", "aggregator", "exporter", "keeper"]
View = BatcherView | AggregatorView | ExporterView | KeeperView


class Place(NamedTuple):
    """What one actor is there for."""

    kind: Kind
    shard: int
    """0 for what there is one of."""


KEEPER = Place("keeper", 0)


class ActorHandle(Protocol):
    """One actor as the controller sees it; `analytics_actors.ray_fleet` makes it of a Ray actor."""

    def probe(self, *, deadline_s: float) -> View | None:
        """Whether it is open (a view), still opening (None); raises `TimeoutError` when it does not answer."""

    def kill(self) -> None:
        """End it for good; its name is free afterwards."""


class Fleet(Protocol):
    """Makes and finds actors by their place."""

    def places(self) -> Sequence[Place]:
        """Those that have an actor now."""

    def get_or_create(self, place: Place) -> ActorHandle: ...


class ActorStatus(NamedTuple):
    place: Place
    state: str
    """open, opening, silent"""
    view: View | None
    replaced: int


class Controller:
    """Call `step` every `observe_interval_s`."""

    def __init__(
        self,
        fleet: Fleet,
        *,
        shards: int,
        kinds: Sequence[Kind] = ("batcher",),
        single: Sequence[Place] = (),
        probe_deadline_s: float,
        unresponsive_after_s: float,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._fleet = fleet
        self._wanted = [*(Place(kind, shard) for kind in kinds for shard in range(shards)), *single]
        self._probe_deadline_s = probe_deadline_s
        self._unresponsive_after_s = unresponsive_after_s
        self._clock_s = clock_s
        self._answered_at: dict[Place, float] = {}
        self._opened: set[Place] = set()
        self._replaced: dict[Place, int] = dict.fromkeys(self._wanted, 0)
        self.statuses: dict[Place, ActorStatus] = {}

    def step(self) -> None:
        """Remove what is not wanted, make what is missing, look at each, replace the silent."""
        for place in self._fleet.places():
            if place not in self._wanted:
                self._fleet.get_or_create(place).kill()
        for place in self._wanted:
            self.statuses[place] = self._look_after(place)

    def _look_after(self, place: Place) -> ActorStatus:
        actor = self._fleet.get_or_create(place)
        try:
            view = actor.probe(deadline_s=self._probe_deadline_s)
        except TimeoutError:
            return self._silent(place, actor)
        self._answered_at[place] = self._clock_s()
        if view is None:
            self._opened.discard(place)
            return ActorStatus(place, "opening", None, self._replaced[place])
        self._opened.add(place)
        return ActorStatus(place, "open", view, self._replaced[place])

    def _silent(self, place: Place, actor: ActorHandle) -> ActorStatus:
        now = self._clock_s()
        silent_s = now - self._answered_at.setdefault(place, now)
        if silent_s >= self._patience_s(place):
            actor.kill()
            self._opened.discard(place)
            self._replaced[place] += 1
            self._answered_at[place] = now
            self._fleet.get_or_create(place)
        return ActorStatus(place, "silent", None, self._replaced[place])

    def _patience_s(self, place: Place) -> float:
        return self._unresponsive_after_s if place in self._opened else max(STARTING_S, self._unresponsive_after_s)

    @property
    def ready(self) -> bool:
        """Whether events are taken everywhere: for that the batchers are enough."""
        batchers = [place for place in self._wanted if place.kind == "batcher"]
        return all(place in self.statuses and self.statuses[place].state == "open" for place in batchers)
