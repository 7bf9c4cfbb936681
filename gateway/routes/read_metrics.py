"""Metrics read: points over a range, and live ones as a stream."""

import asyncio
from collections.abc import Mapping
from contextlib import nullcontext
from functools import partial
from typing import Annotated, Any
from urllib.parse import parse_qsl
from zoneinfo import ZoneInfo

import msgspec
from msgspec import Meta

from gateway.answers import HEADERS, Answer
from gateway.credentials import find_key, parse_query
from gateway.endpoint import Call, Endpoint, ProjectQuery
from gateway.errors import ApiError
from gateway.metric_answers import Grid, MetricAnswer, Point, Source, Written, error_bound
from gateway.metric_definitions import Known
from gateway.metric_query import (
    STEP_S,
    Fill,
    Filter,
    Granularity,
    Plan,
    bucket_edges,
    default_fill,
    default_granularity,
    read_filters,
    read_group_by,
    read_range,
    read_zone,
)
from gateway.metric_read import Read
from gateway.metric_stream import CONTENT_TYPE, Messages, message
from gateway.services import Statistics
from storage.metric_definitions import EVENTS
from storage.window_key import live_from

EVENT_TYPE = "eventType"
"""The dimension by which `events` knows every event type."""

IN_A_THREAD_FROM = 5000
"""Windows, and buckets of all groups, from which on an answer is put together in a thread: below it takes less than the
hand-over is worth. A few windows of many groups have many buckets: the sums of a thousand groups over a month of hours
take a tenth of a second, however few are not 0."""

LARGE_FROM_BUCKETS = 100
"""Of a metric with a hundred groups these are 10,000 windows, a tenth of a second and more."""

MAX_STREAMED_METRICS = 10

_Start = Annotated[
    str, Meta(description="ISO 8601, a date, or Unix time in s or ms", examples=["2024-01-01", "2024-01-15T10:00:00Z"])
]
_End = Annotated[
    str, Meta(description="as startTime, not included; a date is included", examples=["2024-01-31", "1705312800000"])
]
_GroupBy = Annotated[str, Meta(description="dimensions with commas between", examples=["country,device"])]
_Filter = Annotated[
    str,
    Meta(
        description="dimension:value, dimension:ne:value or dimension:in:value,value; of several all must hold",
        examples=["country:DE"],
    ),
]
_Zone = Annotated[str, Meta(description="IANA name; days and hours are the zone's", examples=["Europe/Berlin"])]


_FILL = "what a bucket without events has; none: no point. By default zero for counts and sums, null for the others"


class MetricQuery(ProjectQuery, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """The last hour where no range is given."""

    start_time: _Start | None = None
    end_time: _End | None = None
    granularity: Annotated[Granularity | None, Meta(description="by the length of the range when left out")] = None
    group_by: _GroupBy | None = None
    filter: _Filter | None = None
    timezone: _Zone = "UTC"
    # Not None: the text null is read as that.
    fill: Annotated[Fill, Meta(description=_FILL)] | msgspec.UnsetType = msgspec.UNSET
    limit: Annotated[int, Meta(ge=1, le=1000, description="groups, the largest first: by sum, else by count")] = 100


class StreamQuery(ProjectQuery, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """Every `point` tells a window's value as it is now; the current and the last window are told."""

    metrics: Annotated[str, Meta(description="names with commas between", examples=["events,revenue"])]
    granularity: Granularity = "minute"
    timezone: _Zone = "UTC"


async def read_metric(call: Call) -> Answer:
    statistics = call.services.statistics
    query: MetricQuery = call.query
    project_id = await call.project(query.project_id)
    metric = call.request.path_params["metric"]
    known = await statistics.definitions.of(project_id)
    filters = read_filters(_given("filter", call))
    plan = make_plan(statistics, query, project_id, metric, known, filters)
    return Answer(200, await answer(statistics, plan))


async def answer(statistics: Statistics, plan: Plan) -> bytes:
    """The JSON of a plan's answer, from the cache when it is there."""
    question = await statistics.answers.question(plan) if statistics.reader.is_closed(plan) else None
    if question is not None:
        kept = await statistics.answers.get(question)
        if kept is not None:
            return kept
    async with statistics.large_answers if _may_be_large(plan) else nullcontext():
        read = await statistics.reader.read(plan)
        written = await _written(plan, read, statistics.settings.max_points)
    if question is None or read.missing:
        return _encode(_answer(plan, read, written))
    made = _answer(plan, read, written, cache="miss")
    cached = [Source("cache", made.start_time, made.end_time)]
    hit = msgspec.structs.replace(made, cache="hit", sources=cached)
    statistics.answers.keep(question, partial(_encode, hit))
    return _encode(made)


_encode = msgspec.json.Encoder().encode


def _may_be_large(plan: Plan) -> bool:
    """Who asks for groups is not known to ask for few."""
    return plan.grouped and plan.buckets >= LARGE_FROM_BUCKETS


def _given(name: str, call: Call) -> list[str]:
    """All values of a parameter that may be given several times."""
    pairs = parse_qsl(call.request.scope["query_string"].decode("latin-1"), keep_blank_values=True)
    return [value for given, value in pairs if given == name]


def make_plan(
    statistics: Statistics,
    query: MetricQuery,
    project_id: str,
    metric: str,
    known: Mapping[str, Known],
    filters: tuple[Filter, ...],
) -> Plan:
    """Raises `ApiError` for what cannot be asked."""
    zone = read_zone(query.timezone)
    start_s, end_s = read_range(query.start_time, query.end_time, zone, now_s=statistics.reader.now_s)
    granularity = query.granularity or default_granularity(start_s, end_s)
    edges = bucket_edges(granularity, zone, start_s, end_s, max_buckets=statistics.settings.max_points)
    found, implied = _find(metric, known)
    group_by = read_group_by(query.group_by)
    names = found.definition.dimension_names
    for pointer, wanted in (("/groupBy", group_by), ("/filter", tuple(each.name for each in filters))):
        for name in wanted:
            if name not in names:
                raise _no_dimension(name, names, pointer)
    return Plan(
        project_id=project_id,
        metric=metric,
        definition=found.counted,
        version=found.version,
        granularity=granularity,
        timezone=query.timezone,
        edges=edges,
        group_by=group_by,
        filters=(*implied, *filters),
        fill=default_fill(found.definition.aggregation) if query.fill is msgspec.UNSET else query.fill,
        limit=query.limit,
        counted_from=_counted_from(found, statistics),
    )


def _counted_from(found: Known, statistics: Statistics) -> int:
    if found.definition.name == EVENTS.name:
        # One of the project's own has other patterns only: it was always counted.
        return 0
    return int(live_from(found.changed_at.timestamp(), statistics.settings)) if found.changed_at else 0


def _find(metric: str, known: Mapping[str, Known]) -> tuple[Known, tuple[Filter, ...]]:
    """A metric of that name, or else the events of that type."""
    if metric in known:
        return known[metric], ()
    return known[EVENTS.name], (Filter(EVENT_TYPE, frozenset({metric})),)


def _no_dimension(name: str, names: tuple[str, ...], pointer: str) -> ApiError:
    has = f"It has {', '.join(names)}." if names else "It has none."
    hint = "Define a metric that has it: POST /v1/metrics-definitions."
    return ApiError("invalid_parameter", f"The metric has no dimension {name}. {has}", pointer=pointer, hint=hint)


async def _written(plan: Plan, read: Read, max_points: int) -> Written:
    size = read.size
    if size < IN_A_THREAD_FROM and size + max(1, read.tuples) * plan.buckets < IN_A_THREAD_FROM:
        return _write(plan, read, max_points)
    return await asyncio.to_thread(_write, plan, read, max_points)


def _write(plan: Plan, read: Read, max_points: int) -> Written:
    grid = _grid(plan, read)
    points = plan.buckets * grid.shown_groups
    if points > max_points:
        message = f"{grid.shown_groups} groups of {plan.buckets} points each are more than {max_points} points."
        hint = "Ask for a coarser granularity, a shorter range or a lower limit."
        raise ApiError("invalid_parameter", message, pointer="/limit", hint=hint)
    return grid.write()


def _grid(plan: Plan, read: Read) -> Grid:
    grid = Grid(plan)
    for series in read.series:
        grid.add_series(series)
    grid.add_windows(read.windows)
    return grid


def _answer(plan: Plan, read: Read, written: Written, *, cache: Any = None) -> MetricAnswer[msgspec.Raw]:
    aggregation = plan.definition.aggregation
    start, end = plan.times
    return MetricAnswer(
        metric=plan.metric,
        aggregation=aggregation,
        granularity=plan.granularity,
        timezone=plan.timezone,
        start_time=start,
        end_time=end,
        points=written.points,
        sources=read.sources,
        fresh_at=read.fresh_at,
        exact=written.exact,
        error=error_bound(aggregation, exact=written.exact),
        degraded=read.degraded_because is not None,
        degraded_because=read.degraded_because,
        overflow=written.overflow,
        omitted_groups=written.omitted_groups,
        missing=read.missing,
        cache=cache,
    )


async def stream_metrics(call: Call) -> Answer:
    query: StreamQuery = call.query
    project_id = await call.project(query.project_id)
    metrics = tuple(dict.fromkeys(name for name in query.metrics.split(",") if name))
    if not 1 <= len(metrics) <= MAX_STREAMED_METRICS:
        message = f"Name 1 to {MAX_STREAMED_METRICS} metrics."
        raise ApiError("invalid_parameter", message, pointer="/metrics")
    zone = read_zone(query.timezone)
    services = call.services
    key = find_key(call.request.scope[HEADERS], parse_query(call.request.scope["query_string"]))

    async def check() -> None:
        await services.keys.lookup(key)

    subscription = (project_id, metrics, query.granularity, query.timezone)
    poll = partial(_poll, services.statistics, project_id, metrics, query, zone)
    return services.statistics.streams.stream(subscription, poll, check)


async def _poll(
    statistics: Statistics, project_id: str, metrics: tuple[str, ...], query: StreamQuery, zone: ZoneInfo
) -> Messages:
    known = await statistics.definitions.of(project_id)
    now_s = statistics.reader.now_s
    begin_s = now_s - STEP_S[query.granularity]
    edges = bucket_edges(query.granularity, zone, begin_s, now_s + 1e-6, max_buckets=10)[-3:]
    messages: dict[Any, bytes] = {}
    for metric in metrics:
        found, implied = _find(metric, known)
        plan = Plan(
            project_id=project_id,
            metric=metric,
            definition=found.counted,
            version=found.version,
            granularity=query.granularity,
            timezone=query.timezone,
            edges=edges,
            filters=implied,
            fill=default_fill(found.definition.aggregation),
            counted_from=_counted_from(found, statistics),
        )
        read = await statistics.reader.read(plan)
        head = msgspec.json.encode({"metric": metric, "granularity": query.granularity})[:-1] + b","
        for start, point in zip(edges.tolist(), _grid(plan, read).column(()), strict=False):
            messages[metric, start] = message("point", head + point[1:])
    return messages


ENDPOINTS = [
    Endpoint(
        method="GET",
        path="/v1/metrics/stream",
        summary="Live points of metrics as server-sent events, once a second at most",
        access="read",
        query=StreamQuery,
        answers={200: CONTENT_TYPE},
        errors=("invalid_parameter", "project_mismatch", "not_found"),
        handler=stream_metrics,
    ),
    Endpoint(
        method="GET",
        path="/v1/metrics/{metric:path}",
        summary="A metric, or the events of a type, over a range of time",
        access="read",
        query=MetricQuery,
        answers={200: MetricAnswer[list[Point]]},
        errors=("invalid_parameter", "project_mismatch", "not_found"),
        handler=read_metric,
    ),
]
