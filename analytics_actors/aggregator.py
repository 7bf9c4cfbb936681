"""The aggregator of one shard: it follows the logs of the batcher's partitions and keeps their windowed statistics.

A plain class; `analytics_actors.aggregator_actor` makes a Ray actor of it. Everything runs in one event loop:

    partition log → Consumer → windows in memory → window store (Redis) → RollUp → roll-ups (PostgreSQL)
    event store → Rebuilder, Builder: what the log does not tell any more
    all stored events, in the lake too → Recompute

The law:
- A window is published with the checkpoint of the records that it counts, so a crash anywhere ends in the same windows
  (WM-2); a stale aggregator publishes nothing (FN-1).
- Ingest never waits for an aggregator. While Redis or PostgreSQL is away it tries again for ever.
- What is in memory is bounded (`windows.max_resident_bytes`); it is all found again in the stores.
- `observe` is cheap and may be called from another thread.
"""

import os
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from typing import Any

from analytics_actors.background import Background
from analytics_actors.messages import AggregatorView, WindowPartitionView
from analytics_actors.windows.builder import Builder
from analytics_actors.windows.consumer import Consumer
from analytics_actors.windows.definition_book import DefinitionBook
from analytics_actors.windows.forgetting import Forgetting
from analytics_actors.windows.opening import Opening
from analytics_actors.windows.partition import WindowPartition, WindowState
from analytics_actors.windows.rebuild import Rebuilder
from analytics_actors.windows.recompute import Recompute
from analytics_actors.windows.roll_up import RollUp
from analytics_actors.windows.shared import WindowShard
from analytics_actors.windows.sources import Compute, LogStates, StoredCheckpoints, in_thread
from analytics_actors.windows.watching import NoPatterns, PatternWatch
from config.settings import Settings
from storage.errors import Fenced
from storage.event_columns import EventColumns, StoredEvents
from storage.log_tail import Tail
from storage.rollups import RollupStore
from storage.set_aside import SetAside
from storage.window_store import WindowStore


class Aggregator:
    """`start` it, then ask for `failure` from time to time."""

    def __init__(
        self,
        shard: int,
        partitions: Sequence[int],
        *,
        tail: Tail,
        store: WindowStore,
        rollups: RollupStore,
        events: EventColumns,
        past: StoredEvents,
        stored: StoredCheckpoints,
        log_states: LogStates,
        book: DefinitionBook,
        set_aside: SetAside,
        settings: Settings,
        watch: PatternWatch | None = None,
        clock_s: Callable[[], float] = time.time,
        compute: Compute = in_thread,
    ) -> None:
        self.shard = shard
        self._state = WindowShard(partitions, store, settings, clock_s=clock_s, compute=compute)
        self._background = Background()
        self._book = book
        self._started_ms = self._state.now_ms
        self._opening = Opening(self._state, store, stored, book)
        self._consumer = Consumer(self._state, tail, store, rollups, book)
        self._rebuilder = Rebuilder(self._state, store, events, rollups, book, stored=stored, log_states=log_states)
        self._watch = watch or NoPatterns()
        self._roll_up = RollUp(self._state, store, rollups, book, self._watch)
        self._builder = Builder(self._state, store, events, stored, book, self._roll_up)
        self._recompute = Recompute(self._state, past, rollups, stored, book)
        self._forgetting = Forgetting(self._state, rollups, set_aside)

    def start(self, *beside: Coroutine[Any, Any, None]) -> None:
        """Begin to take the partitions over and to follow them; needs a running event loop. What runs `beside` ends
        with it, and is as much a failure when it fails."""
        parts = (self._builder, self._opening, self._consumer, self._rebuilder, self._roll_up, self._recompute)
        for run in (*(part.run() for part in parts), self._forgetting.run(), *beside):
            self._background.spawn(run)

    async def close(self) -> None:
        """End at once: whoever comes next goes on from what was published. The collaborators stay open."""
        await self._background.close()

    @property
    def failure(self) -> BaseException | None:
        """Why this aggregator must be replaced by a new life of the same actor, if it must: see `Batcher.failure`."""
        fenced = [owner.partition for owner in self._state.in_state(WindowState.FENCED)]
        if fenced and not self._background.failure:
            return Fenced(f"windows of partitions {fenced} were taken over")
        return self._background.failure

    @property
    def ready(self) -> bool:
        """Whether every partition that can be followed is."""
        return all(p.state in (WindowState.LIVE, WindowState.UNREADABLE) for p in self._state.partitions.values())

    def observe(self) -> AggregatorView:
        state = self._state
        owners = list(state.partitions.values())
        patterns = self._watch.observe()
        return AggregatorView(
            shard=self.shard,
            pid=os.getpid(),
            started_ms=self._started_ms,
            live_partitions=sum(owner.state is WindowState.LIVE for owner in owners),
            partitions=[_view(owner) for owner in owners],
            watermark_ms=max((owner.watermark_ms for owner in owners), default=0),
            lag_s=state.lag_s,
            open_windows=state.closing.open_windows,
            waiting_windows=self._roll_up.waiting_windows,
            resident_windows=len(state.windows),
            groups=state.windows.groups,
            resident_bytes=state.windows.resident_bytes,
            late_events=int(state.counters.totals["events_late"]),
            overflow_groups=state.windows.overflow_groups,
            recomputing=self._recompute.running,
            late_days_left=self._recompute.days_left,
            patterns=patterns,
            counters=dict(state.counters.totals) | _pattern_counters(patterns),
            trouble="; ".join(filter(None, (state.counters.troubles, *_pattern_troubles(patterns)))),
        )


def _pattern_counters(patterns: Mapping[str, Any]) -> dict[str, float]:
    webhooks = patterns.get("webhooks", {})
    counts = {f"webhooks_{name}": webhooks.get(name, 0) for name in ("delivered", "retried", "given_up")}
    return counts | {"patterns_detected": patterns.get("detections", 0)}


def _pattern_troubles(patterns: Mapping[str, Any]) -> Iterator[str]:
    for part, view in (("patterns", patterns), ("webhooks", patterns.get("webhooks", {}))):
        if view.get("trouble"):
            yield f"{part}: {view['trouble']}"


def _view(owner: WindowPartition) -> WindowPartitionView:
    return WindowPartitionView(
        partition=owner.partition,
        state=owner.state.value,
        epoch=owner.epoch,
        next_offset=owner.next_offset,
        watermark_ms=owner.watermark_ms,
        projects=len(owner.built),
    )
