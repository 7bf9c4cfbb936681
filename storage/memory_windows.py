"""The window store in memory: for tests, and proved by the contract suite that `RedisWindows` passes.

Its knobs make what a test needs: `available`, `fail_next`, `flush_all`, and the clock.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from config.settings import WindowSettings
from storage.aggregate import Aggregate
from storage.errors import Fenced, LogLost, Unavailable
from storage.window_key import SIZE_S, Dimensions, Size, WindowKey
from storage.window_store import Publication, PublishOutcome, WindowsCheckpoint


@dataclass(frozen=True)
class _Held:
    owner: str
    checkpoint: WindowsCheckpoint


class _Data:
    def __init__(self) -> None:
        self.checkpoints: dict[int, _Held] = {}
        self.windows: dict[WindowKey, Aggregate] = {}


class MemoryWindows:
    """`sharing` makes a second owner on another store's data, as two processes share one Redis."""

    def __init__(
        self,
        settings: WindowSettings | None = None,
        *,
        owner: str = "memory",
        sharing: "MemoryWindows | None" = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.available = True
        """While False every call raises `Unavailable` and changes nothing."""
        self.published = 0
        """Windows written by this owner so far."""
        self._settings = settings or WindowSettings()
        self._owner = owner
        self._clock = clock
        self._data: _Data = sharing._data if sharing else _Data()
        self._failures: list[bool] = []

    @property
    def windows(self) -> dict[WindowKey, Aggregate]:
        """All windows that are kept now."""
        return {key: window for key, window in self._data.windows.items() if not self._is_over(key)}

    def fail_next(self, *, applied: bool, times: int = 1) -> None:
        """Make the next calls of `publish` raise `Unavailable`, after they took effect or without."""
        self._failures += [applied] * times

    def flush_all(self) -> None:
        self._data.checkpoints.clear()
        self._data.windows.clear()

    async def checkpoints(self, partitions: Sequence[int]) -> list[WindowsCheckpoint | None]:
        self._require_available()
        held = [self._data.checkpoints.get(partition) for partition in partitions]
        return [_copy(each.checkpoint) if each else None for each in held]

    async def claim(self, partition: int, *, epoch: int) -> WindowsCheckpoint | None:
        self._require_available()
        held = self._claimable(partition, epoch)
        if held is None:
            return None
        self._data.checkpoints[partition] = _Held(self._owner, held.checkpoint._replace(epoch=epoch))
        return _copy(self._data.checkpoints[partition].checkpoint)

    async def begin_rebuild(self, partition: int, *, epoch: int) -> None:
        self._require_available()
        held = self._claimable(partition, epoch)
        begun = WindowsCheckpoint(partition, epoch, 0, held.checkpoint.built if held else {}, 0, "rebuilding")
        self._data.checkpoints[partition] = _Held(self._owner, begun)

    def _claimable(self, partition: int, epoch: int) -> _Held | None:
        held = self._data.checkpoints.get(partition)
        if held and (held.checkpoint.epoch > epoch or (held.checkpoint.epoch == epoch and held.owner != self._owner)):
            raise Fenced(f"the windows of partition {partition} have an owner of epoch {held.checkpoint.epoch}")
        return held

    async def reset(self, partition: int, *, epoch: int, next_offset: int, built: Mapping[str, str]) -> None:
        self._require_available()
        held = self._data.checkpoints.get(partition)
        if held is None or held.checkpoint.epoch < epoch:
            raise LogLost(f"the windows of partition {partition} are gone")
        known = held.checkpoint
        if known.epoch > epoch or (known.state == "live" and known.next_offset != next_offset):
            raise Fenced(f"the windows of partition {partition} have an owner of epoch {known.epoch}")
        ended = known._replace(next_offset=next_offset, built=dict(built), state="live")
        self._data.checkpoints[partition] = replace(held, checkpoint=ended)

    async def publish(self, publications: Sequence[Publication]) -> list[PublishOutcome]:
        self._require_available()
        applied = self._failures.pop(0) if self._failures else None
        if applied is False:
            raise Unavailable("made to fail")
        outcomes = [self._publish(publication) for publication in publications]
        if applied:
            raise Unavailable("made to fail")
        return outcomes

    def _publish(self, publication: Publication) -> PublishOutcome:
        held = self._data.checkpoints.get(publication.partition)
        outcome = _judge(held.checkpoint if held else None, publication)
        if held is None or outcome != "published":
            return outcome
        self.published += len(publication.windows)
        for key, window in publication.windows:
            self._data.windows[key] = window.copy()
        for key in publication.gone:
            self._data.windows.pop(key, None)
        known = held.checkpoint
        moved = known._replace(
            next_offset=publication.next_offset if known.state == "live" else known.next_offset,
            built={**known.built, **publication.built},
            watermark_ms=max(known.watermark_ms, publication.watermark_ms),
        )
        self._data.checkpoints[publication.partition] = replace(held, checkpoint=moved)
        return "published"

    async def load(self, keys: Sequence[WindowKey]) -> list[Aggregate | None]:
        self._require_available()
        windows = self._data.windows
        return [windows[key].copy() if key in windows and not self._is_over(key) else None for key in keys]

    async def groups(self, project_id: str, metric: str, size: Size, starts: Sequence[int]) -> list[list[Dimensions]]:
        self._require_available()
        found: dict[int, list[Dimensions]] = {start: [] for start in starts}
        for key in self.windows:
            if key[:3] == (project_id, metric, size) and key.start in found and key.dimensions:
                found[key.start].append(key.dimensions)
        return [sorted(found[start]) for start in starts]

    async def close(self) -> None:
        """There is nothing to close."""

    def _is_over(self, key: WindowKey) -> bool:
        return key.start + SIZE_S[key.size] + self._settings.ttl_s <= self._clock()

    def _require_available(self) -> None:
        if not self.available:
            raise Unavailable("made to be away")


def _judge(known: WindowsCheckpoint | None, publication: Publication) -> Literal["published", "fenced", "lost"]:
    if known is None or known.epoch < publication.epoch:
        return "lost"
    if known.epoch > publication.epoch:
        return "fenced"
    if known.state == "rebuilding" or known.next_offset in (publication.from_offset, publication.next_offset):
        return "published"
    return "fenced" if known.next_offset > publication.from_offset else "lost"


def _copy(checkpoint: WindowsCheckpoint) -> WindowsCheckpoint:
    return checkpoint._replace(built=dict(checkpoint.built))
