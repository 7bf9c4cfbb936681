"""Windows of an answer out of the window store: all of one owner, or none."""

from collections.abc import Sequence
from datetime import UTC, datetime

from analytics_actors.windows.definition_book import is_built
from gateway.counted_offsets import CountedOffsets
from gateway.errors import ApiError
from gateway.metric_query import Plan
from gateway.metric_read import Interval, Read
from storage.aggregate import Aggregate
from storage.fingerprint import partition_of
from storage.window_key import SIZE_S, TOTAL, Size, WindowKey
from storage.window_store import WindowsCheckpoint, WindowStore

WINDOWS_PER_LOAD = 250
"""Decoding them takes a few milliseconds; then other requests have their turn."""

MAX_WINDOWS = 50_000
"""Windows that one answer is made of: a second or so of reading."""

STARTS_PER_READ = 50
"""Times whose groups are asked for at once; with a thousand groups each they are as many as an answer may have."""


class Unusable(Exception):
    """The windows may not be asked; the text says why. `rolled`: whether the metric has roll-ups of the live hours."""

    def __init__(self, reason: str, *, rolled: bool = True) -> None:
        super().__init__(reason)
        self.rolled = rolled


class _Moved(Exception):
    """The windows got another owner while they were read."""


class WindowReads:
    def __init__(self, windows: WindowStore, counted: CountedOffsets, *, partitions: int) -> None:
        self._windows = windows
        self._counted = counted
        self._partitions = partitions

    async def read(self, plan: Plan, read: Read, interval: Interval) -> None:
        """Raises `Unusable`, `ApiError` where there are too many, and what the store raises."""
        try:
            await self._read_of_one_owner(plan, read, interval)
        except _Moved:
            try:
                await self._read_of_one_owner(plan, read, interval)
            except _Moved as moved:
                raise Unusable("the windows are being taken over") from moved

    async def _read_of_one_owner(self, plan: Plan, read: Read, interval: Interval) -> None:
        """What is read is complete only if the windows were the same owner's, and live, before and after."""
        partition = partition_of(plan.project_id, self._partitions)
        before = await self._usable(partition, plan)
        windows = await self._load(plan, interval)
        after = await self._usable(partition, plan)
        if after.epoch != before.epoch:
            raise _Moved
        self._counted.reached(partition, after.next_offset)
        read.windows += windows
        if after.watermark_ms:
            read.fresh_at = datetime.fromtimestamp(after.watermark_ms / 1000, UTC)
        read.name("windows", interval)

    async def _usable(self, partition: int, plan: Plan) -> WindowsCheckpoint:
        """The checkpoint of windows that may be asked; raises `Unusable` when they may not."""
        [checkpoint] = await self._windows.checkpoints([partition])
        if checkpoint is None:
            raise Unusable("the windows were lost and are not rebuilt yet")
        if checkpoint.state != "live":
            raise Unusable("the windows are being rebuilt")
        if not is_built(checkpoint.built.get(plan.project_id), plan.definition.name, plan.version):
            raise Unusable("the metric is new or was changed, and its windows are being built", rolled=False)
        if checkpoint.next_offset < self._counted[partition]:
            raise Unusable("the windows are behind what was counted already")
        return checkpoint

    async def _load(self, plan: Plan, interval: Interval) -> list[tuple[WindowKey, Aggregate]]:
        size = next(size for size in plan.sizes if size != "1d")
        starts = range(interval.start, interval.end, SIZE_S[size])
        if len(starts) > MAX_WINDOWS:
            raise _too_many_windows()
        keys = await self._keys(plan, size, starts)
        found: list[tuple[WindowKey, Aggregate]] = []
        for at in range(0, len(keys), WINDOWS_PER_LOAD):
            chunk = keys[at : at + WINDOWS_PER_LOAD]
            loaded = await self._windows.load(chunk)
            found += [(key, window) for key, window in zip(chunk, loaded, strict=True) if window is not None]
        return found

    async def _keys(self, plan: Plan, size: Size, starts: Sequence[int]) -> list[WindowKey]:
        project_id, metric = plan.project_id, plan.definition.name
        if not plan.grouped:
            return [WindowKey(project_id, metric, size, start, TOTAL) for start in starts]
        keys: list[WindowKey] = []
        for at in range(0, len(starts), STARTS_PER_READ):
            some = starts[at : at + STARTS_PER_READ]
            groups = await self._windows.groups(project_id, metric, size, some)
            keys += [
                WindowKey(project_id, metric, size, start, dimensions)
                for start, tuples in zip(some, groups, strict=True)
                for dimensions in tuples
                if plan.wants(dimensions)
            ]
            if len(keys) > MAX_WINDOWS:
                raise _too_many_windows()
        return keys


def _too_many_windows() -> ApiError:
    message = f"This answer would be made of more than {MAX_WINDOWS} windows."
    hint = "Ask for a shorter range, a coarser granularity or fewer dimensions."
    return ApiError("invalid_parameter", message, hint=hint)
