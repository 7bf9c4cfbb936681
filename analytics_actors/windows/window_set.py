"""Windows in memory: merged from deltas, published by the caller, kept while there is room (BP-1).

A delta is what new events add to a 1-minute window. It is merged into its minute, 5-minute and hour window; all
three are absolute values, so what is not in memory is loaded before. A window that was changed stays until the
caller says that it is published; the others go, the least recently used first.

At most `max_groups` dimension tuples of a metric are admitted in one hour; the further ones are counted under
`__other__`. Which were admitted is part of the windows' state: it is loaded with them.
"""

from collections import OrderedDict, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol

from analytics_actors.windows.grouping import coarser
from storage.aggregate import Aggregate
from storage.window_key import Dimensions, Size, WindowKey, other

COARSER: tuple[Size, ...] = ("5m", "1h")

KEY_BYTES = 600
"""Of Python objects for a window, beside its aggregate: the key with its tuples, entries in the dictionaries."""
GROUP_BYTES = 250
"""Of an admitted tuple."""


class WindowSource(Protocol):
    """The reading half of `storage.window_store.WindowStore`."""

    async def load(self, keys: Sequence[WindowKey]) -> list[Aggregate | None]: ...

    async def groups(
        self, project_id: str, metric: str, size: Size, starts: Sequence[int]
    ) -> list[list[Dimensions]]: ...


class Hour(NamedTuple):
    """Where tuples are admitted."""

    project_id: str
    metric: str
    start: int


class _Kept:
    """A window in memory, and the bytes that it was last found to take."""

    __slots__ = ("aggregate", "bytes")

    def __init__(self, aggregate: Aggregate) -> None:
        self.aggregate = aggregate
        self.bytes = 0


class WindowSet:
    """Not for two callers at once: `merge` and what publishes its result belong together."""

    def __init__(self, source: WindowSource, *, max_bytes: int, max_groups: int) -> None:
        self._source = source
        self._max_bytes = max_bytes
        self._max_groups = max_groups
        self._windows: OrderedDict[WindowKey, _Kept] = OrderedDict()
        self._admitted: OrderedDict[Hour, set[Dimensions]] = OrderedDict()
        self._bytes = 0
        self.unpublished: dict[WindowKey, Aggregate] = {}
        """What was changed since the last `published`. Read it, publish it, do not change it."""
        self.overflow_events = 0
        """Events that were counted under `__other__`, since the start."""
        self.overflow_groups = 0
        """Deltas of tuples that were not admitted, since the start."""

    @property
    def resident_bytes(self) -> int:
        return self._bytes

    @property
    def is_full(self) -> bool:
        return self._bytes > self._max_bytes

    @property
    def groups(self) -> int:
        """Tuples that are known in memory."""
        return sum(map(len, self._admitted.values()))

    def __len__(self) -> int:
        return len(self._windows)

    async def merge(self, deltas: Mapping[WindowKey, Aggregate]) -> None:
        """Add to minutes, 5 minutes and hours. Raises what the source raises; no window is changed then."""
        await self._load_admitted(deltas)
        changes: list[tuple[WindowKey, Aggregate]] = []
        for minute, delta in deltas.items():
            key = self._admit(minute, delta)
            changes += [(key, delta), *((coarser(key, size), delta) for size in COARSER)]
        await self._load_windows({key for key, _ in changes if key not in self._windows})
        for key, delta in changes:
            self._add(key, delta)

    async def get(self, keys: Sequence[WindowKey]) -> list[Aggregate | None]:
        """Windows as they are published, or None; to be looked at, not to be changed. Nothing may be unpublished."""
        missing = [key for key in keys if key not in self._windows]
        found = dict(zip(missing, await self._source.load(missing), strict=True)) if missing else {}
        return [kept.aggregate if (kept := self._windows.get(key)) else found.get(key) for key in keys]

    def published(self) -> None:
        """All of `unpublished` is in the store: what there is no room for may go."""
        self.unpublished.clear()
        while self._bytes > self._max_bytes and self._windows:
            _, kept = self._windows.popitem(last=False)
            self._bytes -= kept.bytes
        while self._bytes > self._max_bytes and self._admitted:
            _, tuples = self._admitted.popitem(last=False)
            self._bytes -= len(tuples) * GROUP_BYTES

    def drop_metrics(self, metrics: Collection[tuple[str, str]]) -> None:
        """Forget the windows of these (project, metric)."""
        self._drop(lambda project_id, metric: (project_id, metric) in metrics)

    def drop(self, belongs: Callable[[str], bool]) -> None:
        """Forget the windows of those projects, published or not."""
        self._drop(lambda project_id, _: belongs(project_id))

    def _drop(self, belongs: Callable[[str, str], bool]) -> None:
        for key in [key for key in self._windows if belongs(key.project_id, key.metric)]:
            self._bytes -= self._windows.pop(key).bytes
            self.unpublished.pop(key, None)
        for hour in [hour for hour in self._admitted if belongs(hour.project_id, hour.metric)]:
            self._bytes -= len(self._admitted.pop(hour)) * GROUP_BYTES

    def _admit(self, key: WindowKey, delta: Aggregate) -> WindowKey:
        if not key.dimensions:
            return key
        hour = _hour_of(key)
        tuples = self._admitted[hour]
        if key.dimensions in tuples:
            return key
        if len(tuples) < self._max_groups:
            tuples.add(key.dimensions)
            self._bytes += GROUP_BYTES
            return key
        self.overflow_events += delta.count
        self.overflow_groups += 1
        return key._replace(dimensions=other(key.dimensions))

    async def _load_admitted(self, keys: Iterable[WindowKey]) -> None:
        hours = {_hour_of(key) for key in keys if key.dimensions}
        starts = defaultdict(list)
        for hour in hours:
            if hour in self._admitted:
                self._admitted.move_to_end(hour)
            else:
                starts[hour.project_id, hour.metric].append(hour.start)
        for (project_id, metric), missing in starts.items():
            found = await self._source.groups(project_id, metric, "1h", missing)
            for start, tuples in zip(missing, found, strict=True):
                known = {each for each in tuples if each != other(each)}
                self._admitted[Hour(project_id, metric, start)] = known
                self._bytes += len(known) * GROUP_BYTES

    async def _load_windows(self, keys: Collection[WindowKey]) -> None:
        missing = list(keys)
        if not missing:
            return
        for key, found in zip(missing, await self._source.load(missing), strict=True):
            if found is not None:
                self._keep(key, found)

    def _add(self, key: WindowKey, delta: Aggregate) -> None:
        kept = self._windows.get(key)
        if kept is None:
            kept = self._keep(key, delta.copy())
        else:
            kept.aggregate.merge(delta)
            self._measure(kept)
            self._windows.move_to_end(key)
        self.unpublished[key] = kept.aggregate

    def _keep(self, key: WindowKey, value: Aggregate) -> _Kept:
        kept = self._windows[key] = _Kept(value)
        self._measure(kept)
        return kept

    def _measure(self, kept: _Kept) -> None:
        size = kept.aggregate.resident_bytes + KEY_BYTES
        self._bytes += size - kept.bytes
        kept.bytes = size


def _hour_of(key: WindowKey) -> Hour:
    return Hour(key.project_id, key.metric, key.start - key.start % 3600)
