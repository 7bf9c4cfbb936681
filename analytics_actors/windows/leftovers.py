"""Windows that are in the store although nothing is counted in them: of an earlier definition, or of records that were
set aside after they had been counted.
"""

from collections.abc import Callable, Iterable, Sequence

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
    """Of these metrics in these hours. They are to be taken away in this order: without its total nothing is looked for
    in an hour any more."""
    gone: list[WindowKey] = []
    for metric in metrics:
        totals = [WindowKey(project_id, metric, "1h", hour, TOTAL) for hour in hours]
        found = await source.load(totals)
        there = [total.start for total, value in zip(totals, found, strict=True) if value is not None]
        for size in _FROM_THE_SMALLEST if there else ():
            starts = [start for hour in there for start in range(hour, hour + _HOUR_S, SIZE_S[size])]
            gone += await _of_size(source, WindowKey(project_id, metric, size, 0, TOTAL), starts, is_counted)
    return gone


async def _of_size(
    source: WindowSource, like: WindowKey, starts: Sequence[int], is_counted: Callable[[WindowKey], bool]
) -> list[WindowKey]:
    """Each window's groups, then its total."""
    groups = await source.groups(like.project_id, like.metric, like.size, starts)
    totals = [total for start in starts if not is_counted(total := like._replace(start=start))]
    found = {total.start for total, value in zip(totals, await source.load(totals), strict=True) if value is not None}
    gone: list[WindowKey] = []
    for start, known in zip(starts, groups, strict=True):
        keys = [like._replace(start=start, dimensions=dimensions) for dimensions in known]
        gone += [key for key in keys if not is_counted(key)]
        if start in found:
            gone.append(like._replace(start=start))
    return gone
