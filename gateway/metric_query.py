"""From the parameters of a metrics request to a plan: its range in time, buckets, groups and filters. Pure.

Buckets are whole: a range that begins or ends within one is widened to it. Their edges are instants, in seconds
since the Unix epoch. Days, and hours of zones whose offset is not whole hours, follow the clocks of the time zone:
a day with a change of clocks has 23 or 25 hours.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Literal, NamedTuple
from zoneinfo import ZoneInfo

import numpy as np

from gateway.errors import ApiError
from gateway.event_times import read_time
from storage.metric_definitions import MAX_VALUE_CHARS, OPS, Aggregation, MetricDefinition
from storage.window_key import Dimensions, Size, other

Granularity = Literal["minute", "5minutes", "hour", "day"]
Fill = Literal["zero", "null", "none"]

MINUTE_S, HOUR_S, DAY_S = 60, 3600, 86400
STEP_S: dict[Granularity, int] = {"minute": MINUTE_S, "5minutes": 5 * MINUTE_S, "hour": HOUR_S, "day": DAY_S}

EARLIEST_S = 0
LATEST_S = int(datetime(2200, 1, 1, tzinfo=UTC).timestamp())

MAX_FILTERS = 16
MAX_FILTER_VALUES = 1000
OPERATORS = ("eq", "ne", "in")

_DATE = re.compile(r"\d{4}-\d{2}-\d{2}")
_NUMBER = re.compile(r"-?\d+(\.\d+)?")
_LOST_PLUS = re.compile(r"(T.*) (\d{2}:?\d{2})")

_DEFAULT_GRANULARITIES: Sequence[tuple[int, Granularity]] = (
    (2 * HOUR_S, "minute"),
    (DAY_S, "5minutes"),
    (14 * DAY_S, "hour"),
)

# What is zero when nothing has happened; a mean or a maximum of nothing is no number.
_ZERO_OF_NOTHING: tuple[Aggregation, ...] = ("count", "unique", "sum")


class Filter(NamedTuple):
    """Which values of a dimension are wanted; with `negated` which are not."""

    name: str
    values: frozenset[str]
    negated: bool = False

    def admits(self, value: str) -> bool:
        return (value in self.values) != self.negated


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is asked for, checked. `edges` are the buckets' boundaries, one more than there are buckets."""

    project_id: str
    metric: str
    """The name that was asked for: a metric's, or an event type, which `filters` then has as well."""
    definition: MetricDefinition
    """As it is counted: without the aggregate-only events of other metrics."""
    version: int
    """Of the definition; 0 for those that are built in."""
    granularity: Granularity
    timezone: str
    edges: np.ndarray
    group_by: tuple[str, ...] = ()
    filters: tuple[Filter, ...] = ()
    fill: Fill = "zero"
    limit: int = 100
    counted_from: int = 0
    """Seconds since the epoch: hours that begin before it were not live any more when the metric got its definition."""

    @property
    def start(self) -> int:
        return int(self.edges[0])

    @property
    def end(self) -> int:
        return int(self.edges[-1])

    @property
    def times(self) -> tuple[datetime, datetime]:
        """Start and end."""
        return datetime.fromtimestamp(self.start, UTC), datetime.fromtimestamp(self.end, UTC)

    @property
    def buckets(self) -> int:
        return len(self.edges) - 1

    @property
    def grouped(self) -> bool:
        """Whether the metric's full tuples of dimensions are needed; the totals will do otherwise."""
        return bool(self.group_by or self.filters)

    def wants(self, dimensions: Dimensions) -> bool:
        """Whether a group is part of the answer: one that the filters admit, or that of the others, which is told of
        whatever they say. Windows of a former definition, with other dimensions, may still be there."""
        if not self.grouped:
            return not dimensions
        if tuple(name for name, _ in dimensions) != self.definition.dimension_names:
            return False
        return self.admits(dimensions) or dimensions == other(dimensions)

    def admits(self, dimensions: Dimensions) -> bool:
        """Whether all filters do."""
        values = dict(dimensions)
        return all(each.name in values and each.admits(values[each.name]) for each in self.filters)

    @property
    def sizes(self) -> tuple[Size, ...]:
        """The sizes of windows that every bucket is made of whole ones of, the largest first."""
        steps: tuple[tuple[Size, int], ...] = (("1d", DAY_S), ("1h", HOUR_S), ("5m", 5 * MINUTE_S), ("1m", MINUTE_S))
        return tuple(size for size, step in steps if not (self.edges % step).any())


def read_zone(name: str) -> ZoneInfo:
    """Raises `ApiError` for what is no IANA time zone."""
    try:
        return ZoneInfo(name)
    except (ValueError, OSError, KeyError) as error:
        hint = "Use a name of the IANA time zone database, as Europe/Berlin."
        raise ApiError("invalid_parameter", "This is no time zone.", pointer="/timezone", hint=hint) from error


def read_range(start: str | None, end: str | None, zone: ZoneInfo, *, now_s: float) -> tuple[float, float]:
    """[start, end) in seconds since the epoch; the last hour where nothing is given.

    A date is that whole day of the zone, both as start and as end; a time without an offset is one of the zone.
    """
    end_s = now_s if end is None else _instant(end, zone, "/endTime", is_end=True)
    start_s = end_s - HOUR_S if start is None else _instant(start, zone, "/startTime", is_end=False)
    if not EARLIEST_S <= start_s < end_s <= LATEST_S:
        message = "startTime is not before endTime, or one of them is outside of the years 1970 to 2199."
        raise ApiError("invalid_parameter", message, pointer="/startTime")
    return start_s, end_s


def _instant(text: str, zone: ZoneInfo, pointer: str, *, is_end: bool) -> float:
    try:
        if _DATE.fullmatch(text):
            day = date.fromisoformat(text)
            return _midnight(day + timedelta(days=1) if is_end else day, zone)
        if _NUMBER.fullmatch(text):
            time = read_time(float(text))
        else:
            # A plus sign that was not escaped in the URL has become a space.
            time = datetime.fromisoformat(_LOST_PLUS.sub(r"\1+\2", text))
        if time is None:
            raise ValueError("beyond the calendar")
        return (time if time.tzinfo else time.replace(tzinfo=zone)).timestamp()
    except (ValueError, OverflowError) as error:
        hint = "Send ISO 8601 (2024-01-15 or 2024-01-15T10:00:00Z) or Unix time in s or ms."
        raise ApiError("invalid_parameter", "This is no time.", pointer=pointer, hint=hint) from error


def default_granularity(start_s: float, end_s: float) -> Granularity:
    """Fine enough for a chart of the range, and not finer: some 10 to 340 points."""
    for longest_s, granularity in _DEFAULT_GRANULARITIES:
        if end_s - start_s <= longest_s:
            return granularity
    return "day"


def default_fill(aggregation: Aggregation) -> Fill:
    return "zero" if aggregation in _ZERO_OF_NOTHING else "null"


def bucket_edges(
    granularity: Granularity, zone: ZoneInfo, start_s: float, end_s: float, *, max_buckets: int
) -> np.ndarray:
    """The boundaries of the buckets that cover [start, end). Raises `ApiError` for more than `max_buckets`."""
    if (end_s - start_s) / STEP_S[granularity] > max_buckets:
        raise ApiError(
            "invalid_parameter",
            f"The range has more than {max_buckets} points.",
            pointer="/granularity",
            hint="Ask for a coarser granularity or a shorter range.",
        )
    if granularity == "day":
        edges = np.fromiter(_day_edges(zone, start_s, end_s), np.int64)
    else:
        step = STEP_S[granularity]
        # Minutes, and by fives, are the same everywhere. Two steps more at both ends than are kept below.
        where = zone if granularity == "hour" else ZoneInfo("UTC")
        edges = np.concatenate(list(_grid(where, int(start_s) - 2 * step, int(end_s) + 2 * step, step)))
    edges = np.unique(edges)
    first = np.searchsorted(edges, start_s, side="right") - 1
    last = np.searchsorted(edges, end_s, side="left")
    return edges[first : last + 1]


def _day_edges(zone: ZoneInfo, start_s: float, end_s: float) -> Iterator[int]:
    day = datetime.fromtimestamp(start_s, zone).date()
    edge = _midnight(day, zone)
    yield edge
    while edge < end_s:
        day += timedelta(days=1)
        edge = _midnight(day, zone)
        yield edge


def _midnight(day: date, zone: ZoneInfo) -> int:
    """The instant at which the day begins; where clocks jump over midnight, that of the jump. Whole minutes."""
    at = datetime(day.year, day.month, day.day, tzinfo=zone)
    return int(at.timestamp()) // MINUTE_S * MINUTE_S


def _grid(zone: ZoneInfo, start: int, end: int, step: int) -> Iterator[np.ndarray]:
    """The instants at which the zone's clocks show a multiple of `step`, and those at which they change."""
    for begin, until, offset in _offsets(zone, start, end):
        first = -(-(begin + offset) // step) * step - offset
        yield np.array([begin], np.int64) if begin > start else np.empty(0, np.int64)
        yield np.arange(first, until, step, dtype=np.int64)


def _offsets(zone: ZoneInfo, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """[begin, until) and the offset from UTC there, in seconds; whole minutes."""
    begin, offset = start, _offset(zone, start)
    probe = start
    while probe < end:
        probe = min(probe + DAY_S, end)
        if _offset(zone, probe) == offset:
            continue
        low, high = max(begin, probe - DAY_S), probe
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if _offset(zone, middle) == offset else (low, middle)
        yield begin, high, offset
        begin, offset, probe = high, _offset(zone, high), high
    yield begin, end, offset


def _offset(zone: ZoneInfo, instant: int) -> int:
    offset = datetime.fromtimestamp(instant, zone).utcoffset()
    assert offset is not None
    return int(offset.total_seconds()) // MINUTE_S * MINUTE_S


def read_filters(texts: Sequence[str]) -> tuple[Filter, ...]:
    """`name:value` or `name:op:value` each, all of which must hold. `in` takes values with commas between."""
    if len(texts) > MAX_FILTERS:
        raise ApiError("invalid_parameter", f"More than {MAX_FILTERS} filters.", pointer="/filter")
    return tuple(map(_read_filter, texts))


def _read_filter(text: str) -> Filter:
    name, colon, rest = text.partition(":")
    if not name or not colon:
        hint = "Send filter=name:value, or name:ne:value, or name:in:value,value."
        raise ApiError("invalid_parameter", "This is no filter.", pointer="/filter", hint=hint)
    operator, colon, value = rest.partition(":")
    if colon and operator in OPS and operator not in OPERATORS:
        message = (
            f"The operator {operator} is one of a metric's definition: answers are filtered by {', '.join(OPERATORS)}."
        )
        hint = f"Where {rest} is the value that is meant, send filter={name}:eq:{rest}."
        raise ApiError("invalid_parameter", message, pointer="/filter", hint=hint)
    if not colon or operator not in OPERATORS:
        operator, value = "eq", rest
    values = value.split(",") if operator == "in" else [value]
    if len(values) > MAX_FILTER_VALUES:
        raise ApiError("invalid_parameter", f"More than {MAX_FILTER_VALUES} values.", pointer="/filter")
    # As the dimensions' values are, to which they are compared.
    return Filter(name, frozenset(value[:MAX_VALUE_CHARS] for value in values), negated=operator == "ne")


def read_group_by(text: str | None) -> tuple[str, ...]:
    """Names with commas between, each once."""
    return tuple(dict.fromkeys(name for name in (text or "").split(",") if name))
