"""From the windows of all sources to the points of an answer: merged into buckets and groups, filled, written as JSON.

Everything that answers "how many different" or "which percentile" is a merge of sketches, never a sum. What is a
number is merged in arrays, and points are put together of pieces of JSON, column by column, by Arrow: 36,000 of them
are one answer.
"""

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Annotated, Generic, Literal, NamedTuple, TypeVar

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from msgspec import Meta

from gateway.exact_numbers import Sum, means, sum_texts
from gateway.metric_query import Granularity, Plan
from storage.aggregate import EXACT, Aggregate, Aggregation, is_sketched
from storage.quantile_sketch import EXACT_LIMIT as EXACT_QUANTILES
from storage.quantile_sketch import RANK_ERROR
from storage.rollups import RollupSeries
from storage.unique_sketch import RELATIVE_ERROR
from storage.window_key import Dimensions, WindowKey, other

SourceName = Literal["windows", "rollups", "events", "lake", "cache"]

PointJson = TypeVar("PointJson")
Group = tuple[str, ...]
"""Values of the dimensions that are grouped by."""

POINTS_AT_ONCE = 4000
"""Put together at once: pieces of so many stay in the processor's cache, and in memory that is there already."""

_encode = msgspec.json.Encoder().encode


class Point(msgspec.Struct, rename="camel", omit_defaults=True, kw_only=True):
    """One bucket of one group. `timestamp` is the bucket's begin. `count` (of what the value was made from) is left
    out where it is the value."""

    timestamp: datetime
    value: float | None
    count: int | None = None
    dimensions: dict[str, str] | None = None


class Source(msgspec.Struct):
    """Which store answered for a part of the range."""

    source: SourceName
    start: datetime = msgspec.field(name="from")
    end: datetime = msgspec.field(name="to")


class MissingPart(msgspec.Struct):
    """A part of the range that the points tell nothing of, although there may be something, and what can be done."""

    start: datetime = msgspec.field(name="from")
    end: datetime = msgspec.field(name="to")
    because: str
    hint: str


class ErrorBound(msgspec.Struct, omit_defaults=True):
    """How far values may be off: a unique count by the part `relative` of itself (one standard deviation), a
    percentile by `rank` of its rank (99 % confidence)."""

    relative: float | None = None
    rank: float | None = None


class MetricAnswer(msgspec.Struct, Generic[PointJson], rename="camel", omit_defaults=True, kw_only=True):
    """Points by time, then by group, the largest group first: by its sum where sums are asked for, else by its count.
    All buckets are whole: `startTime` and `endTime` are the range that the points cover."""

    metric: str
    aggregation: Aggregation
    granularity: Granularity
    timezone: str
    start_time: datetime
    end_time: datetime
    points: PointJson
    sources: list[Source]
    fresh_at: Annotated[datetime, Meta(description="the newest receipt of an event that the answer can know of")]
    exact: bool
    error: ErrorBound | None = None
    degraded: Annotated[bool, Meta(description="the windows could not be asked; see degradedBecause")] = False
    degraded_because: str | None = None
    overflow: Annotated[int, Meta(description="events in the group __other__: too many groups to tell apart")] = 0
    omitted_groups: Annotated[int, Meta(description="groups beyond limit, which have no points")] = 0
    missing: list[MissingPart] = []
    cache: Literal["hit", "miss"] | None = None


class Written(NamedTuple):
    """The points of an answer as JSON, and what is to be said of them."""

    points: msgspec.Raw
    exact: bool
    overflow: int
    omitted_groups: int


class _Numbers:
    """The buckets of one group of a metric whose answers are numbers."""

    def __init__(self, buckets: int, aggregation: Aggregation) -> None:
        self._aggregation = aggregation
        self._has_sums = aggregation in ("sum", "mean")
        self._sums = np.full(buckets if self._has_sums else 0, "0", np.object_)
        self._extremes = np.full(buckets, np.nan)
        self.counts = np.zeros(buckets, np.int64)

    def add_series(self, at: np.ndarray, series: RollupSeries) -> None:
        if self._has_sums:
            if self.counts[at].any() or (np.diff(at) == 0).any():
                self._add_sums(at.tolist(), series.sums)
            else:
                self._sums[at] = series.sums
        elif self._aggregation == "min":
            np.fmin.at(self._extremes, at, series.minima)
        elif self._aggregation == "max":
            np.fmax.at(self._extremes, at, series.maxima)
        np.add.at(self.counts, at, series.counts)

    def _add_sums(self, at: Iterable[int], sums: Iterable[Sum]) -> None:
        for bucket, number in zip(at, sums, strict=True):
            self._sums[bucket] = EXACT.add(Decimal(self._sums[bucket]), Decimal(number))

    def add(self, at: int, aggregate: Aggregate) -> None:
        self.counts[at] += aggregate.count
        if self._has_sums:
            self._add_sums((at,), (aggregate.total,))
        elif self._aggregation == "min" and aggregate.minimum is not None:
            self._extremes[at] = np.fmin(self._extremes[at], aggregate.minimum)
        elif self._aggregation == "max" and aggregate.maximum is not None:
            self._extremes[at] = np.fmax(self._extremes[at], aggregate.maximum)

    @property
    def weight(self) -> float:
        """What groups are ranked by: the sum of sums, else how much was counted."""
        if self._aggregation == "sum":
            return float(np.sum(pa.array(sum_texts(self._sums), pa.string()).cast(pa.float64()).to_numpy()))
        return float(self.counts.sum())

    def values(self) -> pa.StringArray:
        """Numbers of JSON, null where there is nothing."""
        if self._aggregation == "sum":
            return pa.array(sum_texts(self._sums), pa.string(), mask=self.counts == 0)
        if self._aggregation == "count":
            return pa.array(self.counts, mask=self.counts == 0).cast(pa.string())
        numbers = means(self._sums, self.counts) if self._aggregation == "mean" else self._extremes
        return pa.array(numbers, mask=np.isnan(numbers)).cast(pa.string())

    @property
    def exact(self) -> bool:
        return True


class _Sketches:
    """The buckets of one group of a metric whose answers come from sketches."""

    def __init__(self, buckets: int, aggregation: Aggregation) -> None:
        self._aggregation = aggregation
        self._merged: list[Aggregate | None] = [None] * buckets
        self.counts = np.zeros(buckets, np.int64)

    def add_series(self, at: np.ndarray, series: RollupSeries) -> None:
        for row, bucket in enumerate(at.tolist()):
            self.add(bucket, series.aggregate(row))

    def add(self, at: int, aggregate: Aggregate) -> None:
        """The aggregate becomes ours."""
        self.counts[at] += aggregate.count
        merged = self._merged[at]
        if merged is None:
            self._merged[at] = aggregate
        else:
            merged.merge(aggregate)

    @property
    def weight(self) -> float:
        """How much was counted."""
        return float(self.counts.sum())

    def values(self) -> pa.StringArray:
        """Numbers of JSON, null where there is nothing."""
        numbers = [None if merged is None else merged.value(self._aggregation) for merged in self._merged]
        return pa.array(numbers).cast(pa.string())

    @property
    def exact(self) -> bool:
        return all(merged is None or _is_exact(merged, self._aggregation) for merged in self._merged)


def _is_exact(aggregate: Aggregate, aggregation: Aggregation) -> bool:
    if aggregation == "unique":
        return aggregate.unique is None or aggregate.unique.exact
    return aggregate.quantiles is None or aggregate.quantiles.n <= EXACT_QUANTILES


class Grid:
    """Buckets by groups. Windows are added in any order; each must lie within one bucket."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._aggregation = plan.definition.aggregation
        self._groups: dict[Group, _Numbers | _Sketches] = {}
        self._overflow = 0

    def add_series(self, series: RollupSeries) -> None:
        if _is_overflow(series.dimensions):
            self._overflow += int(series.counts.sum())
        cells = self._cells(series.dimensions)
        if cells is not None:
            cells.add_series(np.searchsorted(self._plan.edges, series.starts, side="right") - 1, series)

    def add_windows(self, windows: Sequence[tuple[WindowKey, Aggregate]]) -> None:
        """The aggregates become ours."""
        starts = np.fromiter((key.start for key, _ in windows), np.int64, len(windows))
        at = (np.searchsorted(self._plan.edges, starts, side="right") - 1).tolist()
        for bucket, (key, aggregate) in zip(at, windows, strict=True):
            if _is_overflow(key.dimensions):
                self._overflow += aggregate.count
            cells = self._cells(key.dimensions)
            if cells is not None:
                cells.add(bucket, aggregate)

    def _cells(self, dimensions: Dimensions) -> _Numbers | _Sketches | None:
        """Those of the group that a tuple of dimensions belongs to; None when a filter does not admit it."""
        if not self._plan.admits(dimensions):
            return None
        values = dict(dimensions)
        group = tuple(values.get(name, "") for name in self._plan.group_by)
        cells = self._groups.get(group)
        if cells is None:
            kind = _Sketches if is_sketched(self._aggregation) else _Numbers
            cells = self._groups[group] = kind(self._plan.buckets, self._aggregation)
        return cells

    @property
    def shown_groups(self) -> int:
        return min(len(self._groups), self._plan.limit) if self._plan.group_by else 1

    def write(self) -> Written:
        """The points as JSON."""
        weights = {group: cells.weight for group, cells in self._groups.items()}
        ranked = sorted(weights, key=lambda group: (-weights[group], group)) if self._plan.group_by else [()]
        shown = ranked[: self._plan.limit]
        # What an array of texts holds are the texts, one behind the other.
        pieces = [memoryview(points.buffers()[2]) for points in self._points(shown)]
        if pieces:
            pieces[-1] = pieces[-1][:-1]
        return Written(
            msgspec.Raw(b"".join([b"[", *pieces, b"]"])),
            all(self._groups[group].exact for group in shown if group in self._groups),
            self._overflow,
            len(ranked) - len(shown),
        )

    def column(self, group: Group) -> list[bytes]:
        """The points of one group as JSON, oldest first."""
        return [point[:-1].encode() for points in self._points([group]) for point in points.to_pylist()]

    def _points(self, groups: Sequence[Group]) -> Iterator[pa.StringArray]:
        """The points of these groups as JSON, by time, a comma behind each; `POINTS_AT_ONCE` in an array."""
        if not groups:
            return
        plan, buckets = self._plan, self._plan.buckets
        cells = [self._groups.get(group) or _Numbers(buckets, self._aggregation) for group in groups]
        counts = np.concatenate([each.counts for each in cells])
        values = pa.concat_arrays([each.values() for each in cells]).fill_null("0" if plan.fill == "zero" else "null")
        begins = np.datetime_as_string(plan.edges[:-1].astype("datetime64[s]")).tolist()
        heads = pa.array([f'{{"timestamp":"{begin}Z","value":' for begin in begins])
        tails = pa.array([self._tail(group) for group in groups], pa.string())
        by_time = np.arange(len(counts)).reshape(-1, buckets).T.ravel()
        if plan.fill == "none":
            by_time = by_time[counts[by_time] > 0]
        for first in range(0, len(by_time), POINTS_AT_ONCE):
            rows = by_time[first : first + POINTS_AT_ONCE]
            parts = [heads.take(rows % buckets), values.take(rows)]
            if self._aggregation != "count":
                parts += [pa.scalar(',"count":'), pa.array(counts[rows]).cast(pa.string())]
            yield pc.binary_join_element_wise(*parts, tails.take(rows // buckets), "")

    def _tail(self, group: Group) -> str:
        """What the points of a group end with."""
        if not group:
            return "},"
        return f',"dimensions":{_encode(dict(zip(self._plan.group_by, group, strict=True))).decode()}}},'


def _is_overflow(dimensions: Dimensions) -> bool:
    return bool(dimensions) and dimensions == other(dimensions)


def error_bound(aggregation: Aggregation, *, exact: bool) -> ErrorBound | None:
    """What an answer says of values that are estimates."""
    if exact:
        return None
    if aggregation == "unique":
        return ErrorBound(relative=round(RELATIVE_ERROR, 5))
    return ErrorBound(rank=round(RANK_ERROR, 5))
