"""From the windows of all sources to the points of an answer: merged into buckets and groups, filled, written as JSON.

Everything that answers "how many different" or "which percentile" is a merge of sketches, never a sum. What is a
number is merged in arrays, and points are put together of pieces of JSON, column by column: 36,000 of them are one
answer.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime
from decimal import Decimal
from functools import cached_property
from operator import add
from typing import Annotated, Generic, Literal, NamedTuple, TypeVar

import msgspec
import numpy as np
from msgspec import Meta

from gateway.exact_numbers import Sum, means_json, sums_json
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
    """Points by time, then by group, the largest group first. All buckets are whole: `startTime` and `endTime` are the
    range that the points cover."""

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
        self._sums: list[Sum | None] = [None] * buckets if aggregation in ("sum", "mean") else []
        self._extremes = np.full(buckets, np.nan)
        self.counts = np.zeros(buckets, np.int64)

    def add_series(self, at: np.ndarray, series: RollupSeries) -> None:
        np.add.at(self.counts, at, series.counts)
        if self._sums:
            self._add_sums(at.tolist(), series.sums)
        elif self._aggregation == "min":
            np.fmin.at(self._extremes, at, series.minima)
        elif self._aggregation == "max":
            np.fmax.at(self._extremes, at, series.maxima)

    def _add_sums(self, at: Iterable[int], sums: Iterable[Sum]) -> None:
        for bucket, number in zip(at, sums, strict=True):
            before = self._sums[bucket]
            self._sums[bucket] = number if before is None else EXACT.add(Decimal(before), Decimal(number))

    def add(self, at: int, aggregate: Aggregate) -> None:
        self.counts[at] += aggregate.count
        if self._sums:
            self._add_sums((at,), (aggregate.total,))
        elif self._aggregation == "min" and aggregate.minimum is not None:
            self._extremes[at] = np.fmin(self._extremes[at], aggregate.minimum)
        elif self._aggregation == "max" and aggregate.maximum is not None:
            self._extremes[at] = np.fmax(self._extremes[at], aggregate.maximum)

    def values(self) -> bytes:
        """A JSON array, with null where there is nothing."""
        if self._aggregation == "count":
            return _encode([count or None for count in self.counts.tolist()])
        if self._aggregation == "sum":
            return sums_json(self._sums, self.counts)
        if self._aggregation == "mean":
            return means_json(self._sums, self.counts)
        return _encode(self._extremes.tolist())

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

    def values(self) -> bytes:
        """A JSON array, with null where there is nothing."""
        return _encode([None if merged is None else merged.value(self._aggregation) for merged in self._merged])

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
        counts = {group: int(cells.counts.sum()) for group, cells in self._groups.items()}
        ranked = sorted(counts, key=lambda group: (-counts[group], group)) if self._plan.group_by else [()]
        shown = ranked[: self._plan.limit]
        rows: Iterable[Sequence[bytes]] = zip(*map(self._endings, shown), strict=True)
        if self._plan.fill == "none":
            rows = (tuple(filter(None, row)) for row in rows)
        points = b"".join([head + head.join(row) for head, row in zip(self._heads, rows, strict=False) if row])
        return Written(
            msgspec.Raw(b"[%b]" % points[:-1]),
            all(self._groups[group].exact for group in shown if group in self._groups),
            self._overflow,
            len(ranked) - len(shown),
        )

    def column(self, group: Group) -> list[bytes]:
        """The points of one group as JSON; b"" where there is none."""
        endings = zip(self._heads, self._endings(group), strict=True)
        return [head + ending[:-1] if ending else b"" for head, ending in endings]

    def _endings(self, group: Group) -> list[bytes]:
        """What the points of one group have behind their `_heads`, and a comma; b"" where there is none."""
        cells = self._groups.get(group) or _Numbers(self._plan.buckets, self._aggregation)
        tail = b"},"
        if group:
            tail = b',"dimensions":%b},' % _encode(dict(zip(self._plan.group_by, group, strict=True)))
        values = cells.values().replace(b"null", b"0" if self._plan.fill == "zero" else b"null")
        if self._aggregation == "count":
            endings = _elements(values, tail)
        else:
            counts = _encode(cells.counts.tolist())
            endings = list(map(add, _elements(values, b',"count":'), _elements(counts, tail)))
        if self._plan.fill == "none":
            return [ending if count else b"" for ending, count in zip(endings, cells.counts.tolist(), strict=True)]
        return endings

    @cached_property
    def _heads(self) -> list[bytes]:
        """The beginning of each bucket's points."""
        begins = np.datetime_as_string(self._plan.edges[:-1].astype("datetime64[s]"))
        return [b'{"timestamp":"%bZ","value":' % begin for begin in begins.astype(bytes).tolist()]


def _elements(array: bytes, end: bytes) -> list[bytes]:
    """The numbers of a JSON array as they are written there, with `end`, which has no line break, behind each."""
    return (array[1:-1].replace(b",", end + b"\n") + end).split(b"\n")


def _is_overflow(dimensions: Dimensions) -> bool:
    return bool(dimensions) and dimensions == other(dimensions)


def error_bound(aggregation: Aggregation, *, exact: bool) -> ErrorBound | None:
    """What an answer says of values that are estimates."""
    if exact:
        return None
    if aggregation == "unique":
        return ErrorBound(relative=round(RELATIVE_ERROR, 5))
    return ErrorBound(rank=round(RANK_ERROR, 5))
