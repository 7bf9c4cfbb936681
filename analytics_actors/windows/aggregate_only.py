"""What it means for windows that event types are aggregate-only (`storage.aggregated`).

Such a type is counted by the metric that declares it and by `events`; every other metric leaves it out,
whether its events are stored or not. So windows are the same whether they are counted from the log, or from rows and
records; also from rows of the time before the declaration.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

import msgspec
from msgspec.structs import replace
from xxhash import xxh3_64_intdigest

from storage.aggregate import QUANTILES, Aggregate
from storage.aggregated import AggregatedRecord, RecordKey
from storage.metric_definitions import EVENTS, Filter, MetricDefinition
from storage.window_key import TOTAL, Dimensions, WindowKey

RECORDS_WINDOW: Sequence[str] = ("count", "unique")
"""Aggregations whose records hold nothing but what their windows hold; of numbers records hold everything."""

DefinitionsOf = Callable[[str], Sequence[MetricDefinition]]


def declared(definitions: Iterable[MetricDefinition]) -> dict[str, MetricDefinition]:
    """The aggregate-only event types and the metric of each. Were there two for one, it would be the first by name."""
    found: dict[str, MetricDefinition] = {}
    for definition in sorted(definitions, key=lambda each: each.name):
        if definition.aggregate_only:
            for event_type in definition.event_types:
                found.setdefault(event_type, definition)
    return found


def own_types(definition: MetricDefinition, types: Mapping[str, MetricDefinition]) -> list[str]:
    """The event types that are aggregate-only for this metric."""
    return [event_type for event_type in definition.event_types if types.get(event_type) is definition]


def shape_of(definition: MetricDefinition) -> int:
    """A digest of what records hold: records of another shape cannot be merged, nor counted by the definition."""
    aggregation = definition.aggregation if definition.aggregation in RECORDS_WINDOW else "numbers"
    shape = (aggregation, definition.property, definition.fallbacks, definition.dimensions, definition.filters)
    return xxh3_64_intdigest(msgspec.msgpack.encode(shape)) - (1 << 63)


def effective(definitions: Sequence[MetricDefinition]) -> tuple[MetricDefinition, ...]:
    """A project's metrics, each without the aggregate-only types that are not its own."""
    types = declared(definitions)
    return tuple(_without(each, types) for each in definitions) if types else tuple(definitions)


def _without(definition: MetricDefinition, types: Mapping[str, MetricDefinition]) -> MetricDefinition:
    if definition.name == EVENTS.name:
        return definition
    others = [
        event_type
        for event_type, owner in types.items()
        if owner is not definition and (not definition.event_types or event_type in definition.event_types)
    ]
    if not others:
        return definition
    if len(others) < len(definition.event_types):
        return replace(definition, event_types=[each for each in definition.event_types if each not in others])
    excluded = [Filter("eventType", "ne", event_type) for event_type in sorted(others)]
    return replace(definition, filters=[*definition.filters, *excluded])


def digest(definitions: Iterable[MetricDefinition]) -> str:
    """Of the aggregate-only types: what the other metrics depend on. "" when there is none."""
    types = sorted(declared(definitions))
    return f"{xxh3_64_intdigest(msgspec.msgpack.encode(types)):016x}" if types else ""


def deltas_of(
    records: Iterable[tuple[RecordKey, AggregatedRecord]], definitions_of: DefinitionsOf
) -> dict[WindowKey, Aggregate]:
    """What records add to 1-minute windows of a project's (effective) metrics."""
    deltas: dict[WindowKey, Aggregate] = {}
    for key, record in records:
        metrics = {metric.name: metric for metric in definitions_of(key.project_id)}
        if EVENTS.name in metrics:
            for dimensions in (TOTAL, (("eventType", key.event_type),)):
                _add(deltas, key, EVENTS.name, dimensions, Aggregate(record.events))
        metric = metrics.get(key.metric)
        if metric is not None and _is_of(key, metric) and record.aggregate.count:
            value = _as_window(record.aggregate, metric)
            _add(deltas, key, metric.name, TOTAL, value)
            if metric.dimensions:
                _add(deltas, key, metric.name, key.dimensions, value)
    return deltas


def _is_of(key: RecordKey, metric: MetricDefinition) -> bool:
    return metric.aggregate_only and key.event_type in metric.event_types and key.shape == shape_of(metric)


def _as_window(aggregate: Aggregate, metric: MetricDefinition) -> Aggregate:
    """Records have percentiles for people to read, windows only where the metric asks for them."""
    if metric.aggregation in QUANTILES or aggregate.quantiles is None:
        return aggregate
    return Aggregate(aggregate.count, aggregate.total, aggregate.minimum, aggregate.maximum)


def _add(
    deltas: dict[WindowKey, Aggregate], key: RecordKey, metric: str, dimensions: Dimensions, value: Aggregate
) -> None:
    window = WindowKey(key.project_id, metric, "1m", key.minute, dimensions)
    known = deltas.get(window)
    if known is None:
        deltas[window] = value.copy()
    else:
        known.merge(value)
