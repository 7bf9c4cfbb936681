"""Keeps wanted and actual in step: one batcher a shard, alive, answering, of the wanted settings.

An actor whose process dies is restarted by Ray itself. What Ray does not see is left to the controller: an
actor that is there and does not answer (SIGSTOP, a dead node that nobody declared dead). After
`unresponsive_after_s` it is killed for good, its name is free, and another takes its place; should the
old process come back to life, its epoch is stale and it can neither append nor commit (FN-1).
"""

import time
from collections.abc import Callable
from typing import NamedTuple, Protocol

from analytics_actors.messages import BatcherView


class BatcherHandle(Protocol):
    """One batcher as the controller sees it; `analytics_actors.ray_fleet` makes it of a Ray actor."""

    def probe(self, *, deadline_s: float) -> BatcherView | None:
        """Whether it is open (a view), still opening (None); raises `TimeoutError` when it does not answer."""

    def kill(self) -> None:
        """End it for good; its name is free afterwards."""


class Fleet(Protocol):
    """Makes and finds batchers by shard."""

    def shards(self) -> list[int]:
        """Shards that have a batcher now."""

    def get_or_create(self, shard: int) -> BatcherHandle: ...


class ShardStatus(NamedTuple):
    shard: int
    state: str
    """open, opening, silent"""
    view: BatcherView | None
    replaced: int


class Controller:
    """Call `step` every `observe_interval_s`."""

    def __init__(
        self,
        fleet: Fleet,
        *,
        shards: int,
        probe_deadline_s: float,
        unresponsive_after_s: float,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._fleet = fleet
        self._wanted = range(shards)
        self._probe_deadline_s = probe_deadline_s
        self._unresponsive_after_s = unresponsive_after_s
        self._clock_s = clock_s
        self._answered_at: dict[int, float] = {}
        self._replaced: dict[int, int] = dict.fromkeys(self._wanted, 0)
        self.statuses: dict[int, ShardStatus] = {}

    def step(self) -> None:
        """Remove what is not wanted, make what is missing, look at each, replace the silent."""
        for shard in self._fleet.shards():
            if shard not in self._wanted:
                self._fleet.get_or_create(shard).kill()
        for shard in self._wanted:
            self.statuses[shard] = self._look_after(shard)

    def _look_after(self, shard: int) -> ShardStatus:
        batcher = self._fleet.get_or_create(shard)
        try:
            view = batcher.probe(deadline_s=self._probe_deadline_s)
        except TimeoutError:
            return self._silent(shard, batcher)
        self._answered_at[shard] = self._clock_s()
        state = "opening" if view is None else "open"
        return ShardStatus(shard, state, view, self._replaced[shard])

    def _silent(self, shard: int, batcher: BatcherHandle) -> ShardStatus:
        now = self._clock_s()
        silent_s = now - self._answered_at.setdefault(shard, now)
        if silent_s >= self._unresponsive_after_s:
            batcher.kill()
            self._replaced[shard] += 1
            self._answered_at[shard] = now
            self._fleet.get_or_create(shard)
        return ShardStatus(shard, "silent", None, self._replaced[shard])

    @property
    def ready(self) -> bool:
        return all(shard in self.statuses and self.statuses[shard].state == "open" for shard in self._wanted)
