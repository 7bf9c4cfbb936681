"""Windows that are in the store although nothing is counted in them: of an earlier definition, or of records that were
set aside after they had been counted.
"""

from collections.abc import Callable, Iterable

from analytics_actors.windows.window_set import WindowSource
from storage.window_key import SIZE_S, TOTAL, Size, WindowKey

_HOUR_S = 3600
_FROM_THE_SMALLEST: tuple[Size, ...] = ("1m", "5m", "1h")


async def leftovers(
    source: WindowSource,
    project_id: str,
    metrics: Iterable[str],
    hours: range,
    is_counted: Callable[[WindowKey], bool],
) -> list[WindowKey]:
    """Of these metrics in these hours; take them away in this order."""
    gone: list[WindowKey] = []
    for metric in metrics:
        totals = [WindowKey(project_id, metric, "1h", hour, TOTAL) for hour in hours]
        # Each event counts in its hour's total: without it there is nothing in the hour. So it is the last to go.
        for total, found in zip(totals, await source.load(totals), strict=True):
            if found is not None:
                gone += [key for key in await _windows_of(source, total) if not is_counted(key)]
    return gone


async def _windows_of(source: WindowSource, hour: WindowKey) -> list[WindowKey]:
    """All that there may be in an hour, its total the last."""
    keys: list[WindowKey] = []
    for size in _FROM_THE_SMALLEST:
        starts = range(hour.start, hour.start + _HOUR_S, SIZE_S[size])
        groups = await source.groups(hour.project_id, hour.metric, size, starts)
        for start, known in zip(starts, groups, strict=True):
            keys += [hour._replace(size=size, start=start, dimensions=each) for each in (*known, TOTAL)]
    return keys
