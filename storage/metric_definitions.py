"""What a metric counts: which events, what of them, and by which dimensions.

**Paths** say where in an event a value stands: a column (`eventType`, `userId`, `sessionId`, `anonymousId`, `siteId`),
`properties.a.b`, or `context.page.path`; anything else is taken as a path in the properties (`amount` is
`properties.amount`). A key that has a dot, a quotation mark, a backslash or a control character in its name cannot be
reached.

**Texts** (dimensions, unique counts, filters): strings as they are; numbers in one form whichever way they were
written (`1.0`, `1` and `1e0` are `1`); `true` and `false`; null, objects and arrays are as if the value was absent.

**Numbers** (sums, extremes, percentiles): JSON numbers, and strings that are one. The rest is left out of the metric.
"""

import builtins
import re
from collections.abc import Callable, Iterable, Sequence
from decimal import ROUND_HALF_EVEN, Decimal, InvalidOperation
from functools import lru_cache
from typing import Any, Literal, NamedTuple, get_args

import msgspec
from msgspec.structs import replace

from config.settings import WindowSettings
from storage.aggregate import AGGREGATIONS, EXACT, SUM_DIGITS, SUM_SCALE, decimal_text
from storage.aggregate import Aggregation as Aggregation  # noqa: PLC0414 (handed on)
from storage.patterns import PatternSettings, check_pattern_settings

Op = Literal["eq", "ne", "gt", "gte", "lt", "lte", "in", "exists"]
OPS: tuple[Op, ...] = get_args(Op)
Scalar = str | int | float | bool

Source = Literal["column", "properties", "context"]
COLUMN_NAMES = {
    "eventType": "event_type",
    "userId": "user_id",
    "sessionId": "session_id",
    "anonymousId": "anonymous_id",
    "siteId": "site_id",
}
"""Paths that are columns of `storage.event_batch.COLUMNS`."""

MAX_DIMENSIONS = 4
MAX_FILTERS = 16
MAX_EVENT_TYPES = 50
MAX_FALLBACKS = 8
MAX_PATH_CHARS = 256
MAX_PATH_DEPTH = 8
MAX_FILTER_VALUES = 100
MAX_VALUE_CHARS = 200
"""A dimension's value is cut after so many characters."""

LARGEST_INTEGER = (1 << 63) - 1
"""Of a filter's value, also below zero; what is beyond it is written as a float."""

_UNREACHABLE = re.compile(r'[\x00-\x1f\x7f"\\]')
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,99}")
_RESERVED = "stream"  # GET /v1/metrics/stream is another route
_DIMENSION_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,63}")
_MAX_EVENT_TYPE_CHARS = 256
_NUMBER = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]{1,4})?")
_MAX_NUMBER_CHARS = 64
_QUANTUM = Decimal(1).scaleb(-SUM_SCALE)
_LARGEST_EXPONENT = SUM_DIGITS - SUM_SCALE - 1  # of the leading digit


class Path(NamedTuple):
    """Where a value stands: a column by its name, or keys inside properties or context."""

    source: Source
    keys: tuple[str, ...]


class Dimension(NamedTuple):
    name: str
    path: Path


class Filter(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A condition on one value of an event.

    A number as `value` compares numbers (and strings that are one), anything else compares texts. `ne` also holds
    where the value is absent, the other comparisons do not. `exists` with `value` false holds where it is absent.
    `in` takes a list of values."""

    path: str
    op: Op = "eq"
    value: Scalar | list[Scalar] | None = None


class MetricDefinition(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """One metric of a project.

    - `event_types`: the events that it takes; [] is all of them.
    - `property`: the path that is aggregated, `fallbacks` those that are tried in order where it is absent; with
      `count` and no property, events are counted, with one, the events that have it.
    - `dimensions`: paths, or `name=path`; without a name it is the path's last key.
    - `filters`: all of them must hold.
    - `patterns`: what is to be detected, see `storage.patterns`.
    - `aggregate_only`: events of its event types are not stored one by one, but as one record a minute and group; they
      are counted by this metric and by `events`, and by no other. A project has one such metric for a type at most.
    """

    name: str
    aggregation: Aggregation = "count"
    event_types: list[str] = []
    property: str = ""
    fallbacks: list[str] = []
    dimensions: list[str] = []
    filters: list[Filter] = []
    patterns: dict[str, Any] = {}
    aggregate_only: bool = False

    @builtins.property
    def paths(self) -> tuple[Path, ...]:
        """Where the aggregated value may stand, in order; () when events are counted."""
        return tuple(map(resolve_path, [self.property, *self.fallbacks])) if self.property else ()

    @builtins.property
    def dimension_paths(self) -> tuple[Dimension, ...]:
        return tuple(map(read_dimension, self.dimensions))

    @builtins.property
    def dimension_names(self) -> tuple[str, ...]:
        return tuple(dimension.name for dimension in self.dimension_paths)


EVENTS = MetricDefinition("events", dimensions=["eventType"])
"""Counts every event. What roll-ups lack, and which days hold events, is found out by it: so no project and no settings
define one of this name that counts otherwise."""


def resolve_path(text: str) -> Path:
    """Raises `ValueError` when the text is no path."""
    if not text or len(text) > MAX_PATH_CHARS:
        raise ValueError(f"a path has 1 to {MAX_PATH_CHARS} characters: {text[:40]!r}")
    if text in COLUMN_NAMES:
        return Path("column", (COLUMN_NAMES[text],))
    if _UNREACHABLE.search(text):
        raise ValueError(
            f"{text!r} has a quotation mark, a backslash or a control character: keys with these cannot be reached; "
            "send the value under another name too"
        )
    keys = tuple(text.split("."))
    if not all(keys):
        raise ValueError(f"{text!r} has an empty key: write keys with single dots between them")
    if len(keys) > MAX_PATH_DEPTH:
        raise ValueError(f"{text!r} is {len(keys)} keys deep; {MAX_PATH_DEPTH} are allowed")
    if keys[0] == "properties" and len(keys) > 1:
        return Path("properties", keys[1:])
    if keys[0] == "context" and len(keys) > 1:
        return Path("context", keys[1:])
    return Path("properties", keys)


def read_dimension(text: str) -> Dimension:
    """A dimension as declared: a path, or `name=path`. Raises `ValueError`."""
    name, equals, path_text = text.partition("=")
    if not equals:
        name, path_text = text.rpartition(".")[2], text
    if not _DIMENSION_NAME.fullmatch(name):
        raise ValueError(
            f"{name[:64]!r} is no name of a dimension: letters, digits, _ and -, 64 at most; give it one as name=path"
        )
    return Dimension(name, resolve_path(path_text))


def validate(definition: MetricDefinition) -> None:
    """Raises `ValueError`; the message begins with the field's name (as in JSON) and says what to change."""
    if not _NAME.fullmatch(definition.name):
        raise ValueError("name: a letter, then letters, digits, _, . and -; 100 characters at most")
    if definition.name == _RESERVED:
        raise ValueError(f"name: {_RESERVED} is none that can be asked for: /v1/metrics/{_RESERVED} is another route")
    if definition.aggregation not in AGGREGATIONS:
        raise ValueError(f"aggregation: one of {', '.join(AGGREGATIONS)}")
    _validate_value(definition)
    _at_most("eventTypes", definition.event_types, MAX_EVENT_TYPES)
    for event_type in definition.event_types:
        if not 1 <= len(event_type) <= _MAX_EVENT_TYPE_CHARS:
            raise ValueError(f"eventTypes: an event type has 1 to {_MAX_EVENT_TYPE_CHARS} characters")
        if "\0" in event_type:
            raise ValueError("eventTypes: an event type has no NUL in it")
    if definition.aggregate_only and not definition.event_types:
        raise ValueError("eventTypes: name the event types that are to be aggregate-only; without them it would be all")
    _validate_dimensions(definition)
    if definition.name == EVENTS.name and not counts_alike(definition, EVENTS):
        raise ValueError(
            f"name: {EVENTS.name} is the metric that counts every event, by eventType; only its patterns can be "
            "others: give a metric that counts otherwise another name"
        )
    _at_most("filters", definition.filters, MAX_FILTERS)
    for number, condition in enumerate(definition.filters):
        try:
            validate_filter(condition)
        except ValueError as error:
            raise ValueError(f"filters[{number}]: {error}") from error


def counts_alike(one: MetricDefinition, other: MetricDefinition) -> bool:
    """Whether they differ in their patterns at most."""
    return replace(one, patterns={}) == replace(other, patterns={})


def validate_among(definition: MetricDefinition, others: Iterable[MetricDefinition]) -> None:
    """Raises `ValueError` when the definition cannot stand beside the others of its project. One of the same name,
    which it would replace, does not count."""
    if not definition.aggregate_only:
        return
    for other in others:
        taken = set(definition.event_types) & set(other.event_types)
        if other.aggregate_only and other.name != definition.name and taken:
            raise ValueError(
                f"eventTypes: {', '.join(sorted(taken))} is aggregate-only for the metric {other.name} already; "
                "an event type can be for one metric only: give that one more dimensions, or leave the type out here"
            )


def _validate_value(definition: MetricDefinition) -> None:
    if not definition.property:
        if definition.aggregation != "count":
            raise ValueError(f"property: {definition.aggregation} needs the path of what it aggregates")
        if definition.fallbacks:
            raise ValueError("fallbacks: these are further paths after property; give property first")
        return
    _at_most("fallbacks", definition.fallbacks, MAX_FALLBACKS)
    for field, texts in (("property", [definition.property]), ("fallbacks", definition.fallbacks)):
        for text in texts:
            try:
                resolve_path(text)
            except ValueError as error:
                raise ValueError(f"{field}: {error}") from error


def _validate_dimensions(definition: MetricDefinition) -> None:
    _at_most("dimensions", definition.dimensions, MAX_DIMENSIONS)
    try:
        names = definition.dimension_names
    except ValueError as error:
        raise ValueError(f"dimensions: {error}") from error
    if len(set(names)) < len(names):
        raise ValueError(f"dimensions: {', '.join(names)} has a name twice; tell them apart as name=path")


def validate_filter(condition: Filter) -> None:
    """Raises `ValueError` with what to change."""
    resolve_path(condition.path)
    value = condition.value
    for one in value if isinstance(value, list) else [value]:
        if isinstance(one, int) and abs(one) > LARGEST_INTEGER:
            raise ValueError(f"value: {one} is beyond 64 bits; write it with an exponent (1e20), or as text")
        if isinstance(one, str) and "\0" in one:
            raise ValueError("value: no value of an event has a NUL in it")
    if condition.op == "in":
        if not isinstance(value, list) or not 1 <= len(value) <= MAX_FILTER_VALUES:
            raise ValueError(f"value: in takes a list of 1 to {MAX_FILTER_VALUES} values")
    elif condition.op == "exists":
        if value is not None and not isinstance(value, bool):
            raise ValueError("value: exists takes true (also when left out) or false")
    elif value is None or isinstance(value, list):
        raise ValueError(f"value: {condition.op} takes one string, number or boolean")


def _at_most(field: str, values: Sequence[object], limit: int) -> None:
    if len(values) > limit:
        raise ValueError(f"{field}: {len(values)} given, {limit} allowed")


def default_metrics(windows: WindowSettings) -> tuple[MetricDefinition, ...]:
    """What every project has without asking: the built-in ones, and those of the settings, which may replace them.

    Raises `ValueError` that names the metric of the settings that is wrong."""
    configured = {metric.name: metric for metric in map(_configured, windows.metrics)}
    built_in = [metric for metric in _built_in(windows) if metric.name not in configured]
    return (*built_in, *configured.values())


def _configured(written: dict[str, Any]) -> MetricDefinition:
    try:
        definition = msgspec.convert(written, MetricDefinition)
        validate(definition)
        if definition.aggregate_only:
            raise ValueError("aggregateOnly: it is declared by projects, each for itself; leave it out here")
        _check_patterns(definition)
    except ValueError as error:
        raise ValueError(f"windows.metrics, {written.get('name', written)!r}: {error}") from error
    return definition


def _check_patterns(definition: MetricDefinition) -> None:
    try:
        check_pattern_settings(msgspec.convert(definition.patterns, PatternSettings))
    except ValueError as error:
        raise ValueError(f"patterns: {error}") from error


def _built_in(windows: WindowSettings) -> tuple[MetricDefinition, ...]:
    amount, *others = windows.revenue_properties or ["amount"]
    return (
        EVENTS,
        MetricDefinition("unique_users", "unique", property="userId"),
        MetricDefinition("daily_active_users", "unique", property="userId"),
        MetricDefinition("sessions", "unique", property="sessionId"),
        MetricDefinition(
            "revenue", "sum", event_types=list(windows.revenue_event_types), property=amount, fallbacks=others
        ),
    )


DEFAULT_METRICS = default_metrics(WindowSettings())
"""Those of the settings' defaults."""


def text_of(value: object) -> str | None:
    """A JSON value as text, None when it has none; see the module's head."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value) if abs(value) < _PLAIN_INTEGER else decimal_text(Decimal(value))
    # jsonb writes 1e20 as 100000000000000000000: a float's text must be that of the integer.
    return decimal_text(Decimal(repr(value))) if isinstance(value, float) else None


_PLAIN_INTEGER = 1 << 63
_FLOAT_INTEGERS = 2.0**53
_PLAIN_NUMBERS = frozenset({int, float})


def number_of(value: object) -> Decimal | None:
    """A JSON value as the exact number that is summed, None when it is no number or does not fit 38 digits."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        number = Decimal(value)
    elif isinstance(value, float):
        number = Decimal(repr(value))
    elif isinstance(value, str) and len(value) <= _MAX_NUMBER_CHARS and _NUMBER.fullmatch(value.strip()):
        number = Decimal(value.strip())
    else:
        return None
    try:
        rounded = number.quantize(_QUANTUM, ROUND_HALF_EVEN, EXACT)
    except InvalidOperation:
        return None
    return rounded if rounded.adjusted() <= _LARGEST_EXPONENT else None


@lru_cache(maxsize=1024)
def _predicate(encoded: bytes) -> Callable[[object], bool]:
    return _compile(msgspec.json.decode(encoded, type=Filter))


def predicate(condition: Filter) -> Callable[[object], bool]:
    """The filter as a function of the value at its path; None is for an absent value."""
    return _predicate(msgspec.json.encode(condition))


def _compile(condition: Filter) -> Callable[[object], bool]:
    value = condition.value
    match condition.op:
        case "exists":
            wanted = value is not False
            return lambda found: (text_of(found) is not None) is wanted
        case "eq":
            return _equal(value)
        case "ne":
            equal = _equal(value)
            return lambda found: not equal(found)
        case "in":
            equals = [_equal(one) for one in value] if isinstance(value, list) else []
            return lambda found: any(equal(found) for equal in equals)
        case "gt" | "gte" | "lt" | "lte" as op:
            return _compared(op, value)


def _equal(value: object) -> Callable[[object], bool]:
    if isinstance(value, int | float) and not isinstance(value, bool):
        number = number_of(value)

        def equal(found: object) -> bool:
            if number is None:
                return False
            return found == value if type(found) is int and type(value) is int else number_of(found) == number

        return equal
    text = text_of(value)
    return lambda found: found == text if type(found) is str else text is not None and text_of(found) == text


_HOLDS: dict[Op, Callable[[Any, Any], bool]] = {
    "gt": lambda found, limit: found > limit,
    "gte": lambda found, limit: found >= limit,
    "lt": lambda found, limit: found < limit,
    "lte": lambda found, limit: found <= limit,
}


def _compared(op: Op, value: object) -> Callable[[object], bool]:
    holds = _HOLDS[op]
    convert: Callable[[object], Any] = text_of
    if isinstance(value, int | float) and not isinstance(value, bool):
        convert = number_of
    limit = convert(value)
    is_plain = limit is not None and type(value) in _PLAIN_NUMBERS

    def check(found: object) -> bool:
        # Most are plain. Larger floats come back from jsonb as integers, and both must give the same answer.
        if is_plain and type(found) in _PLAIN_NUMBERS and -_FLOAT_INTEGERS < found < _FLOAT_INTEGERS:  # type: ignore[operator]
            return holds(found, value)
        converted = convert(found)
        return limit is not None and converted is not None and holds(converted, limit)

    return check
