"""The roll-up of a whole day, made of those of its hours when they do not change any more."""

from collections.abc import Sequence

from storage.aggregate import Aggregate
from storage.metric_definitions import EVENTS, MetricDefinition
from storage.rollups import DAY_S, RolledSize, RollupStore
from storage.window_key import TOTAL, WindowKey, other

ROWS_PER_CALL = 1000


async def rolled_counts(
    rollups: RollupStore, project_id: str, size: RolledSize, start: int, end: int
) -> dict[int, int]:
    """How many events each roll-up has, by its start."""
    columns = await rollups.read(project_id, EVENTS.name, size, start, end, grouped=False, wanted="count")
    return {
        int(at): int(count) for series in columns.series for at, count in zip(series.starts, series.counts, strict=True)
    }


class DayRows:
    """One per aggregator."""

    def __init__(self, rollups: RollupStore, *, max_groups: int) -> None:
        self._rollups = rollups
        self._max_groups = max_groups
        self._rolled: dict[str, int] = {}

    async def roll(
        self, project_id: str, metrics: Sequence[MetricDefinition], day: int, *, epoch: int, next_offset: int
    ) -> None:
        """Write the day's rows unless they are there; `day` is its start, in seconds since the epoch."""
        if self._rolled.get(project_id, 0) >= day:
            return
        hours = await rolled_counts(self._rollups, project_id, "1h", day, day + DAY_S)
        known = await rolled_counts(self._rollups, project_id, "1d", day, day + DAY_S)
        if sum(hours.values()) != known.get(day, 0):
            # The count of all events last: where it is, the day is taken as whole.
            for metric in sorted(metrics, key=lambda metric: metric.name == EVENTS.name):
                rows = await self._rows(project_id, metric.name, day)
                for start in range(0, len(rows), ROWS_PER_CALL):
                    chunk = rows[start : start + ROWS_PER_CALL]
                    await self._rollups.upsert(chunk, epoch=epoch, next_offset=next_offset)
        self._rolled[project_id] = day

    async def _rows(self, project_id: str, metric: str, day: int) -> list[tuple[WindowKey, Aggregate]]:
        rows: dict[WindowKey, Aggregate] = {}
        for grouped in (False, True):
            columns = await self._rollups.read(project_id, metric, "1h", day, day + DAY_S, grouped=grouped)
            for series in columns.series:
                key = WindowKey(project_id, metric, "1d", day, series.dimensions)
                if grouped and len(rows) > self._max_groups:
                    key = key._replace(dimensions=other(series.dimensions))
                for row in range(len(series.starts)):
                    rows.setdefault(key, Aggregate()).merge(series.aggregate(row))
        # The total last, for the same reason.
        return sorted(rows.items(), key=lambda row: row[0].dimensions == TOTAL)
