"""Metric definitions: what is allowed, what a path means, and which events a filter lets through."""

from decimal import Decimal
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from config.settings import WindowSettings
from storage.metric_definitions import (
    DEFAULT_METRICS,
    EVENTS,
    Filter,
    MetricDefinition,
    Path,
    default_metrics,
    number_of,
    predicate,
    read_dimension,
    resolve_path,
    text_of,
    validate,
)


def definition(**fields: Any) -> MetricDefinition:
    return msgspec.structs.replace(MetricDefinition("m"), **fields)


def test_the_default_metrics() -> None:
    for each in DEFAULT_METRICS:
        validate(each)
    assert [(each.name, each.aggregation, each.property) for each in DEFAULT_METRICS] == [
        ("events", "count", ""),
        ("unique_users", "unique", "userId"),
        ("daily_active_users", "unique", "userId"),
        ("sessions", "unique", "sessionId"),
        ("revenue", "sum", "amount"),
    ]
    assert DEFAULT_METRICS[0].dimension_names == ("eventType",)
    assert DEFAULT_METRICS[4].event_types == ["purchase"]
    assert DEFAULT_METRICS[4].paths == tuple(Path("properties", (name,)) for name in ("amount", "value", "price"))


def test_revenue_follows_the_settings() -> None:
    revenue = default_metrics(
        WindowSettings(revenue_event_types=["order", "renewal"], revenue_properties=["total.net"])
    )
    assert revenue[4].event_types == ["order", "renewal"]
    assert revenue[4].paths == (Path("properties", ("total", "net")),)


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("eventType", Path("column", ("event_type",))),
        ("userId", Path("column", ("user_id",))),
        ("amount", Path("properties", ("amount",))),
        ("payload.size", Path("properties", ("payload", "size"))),
        ("properties.payload.size", Path("properties", ("payload", "size"))),
        ("properties.userId", Path("properties", ("userId",))),
        ("context.page.path", Path("context", ("page", "path"))),
        ("context", Path("properties", ("context",))),
    ],
)
def test_paths(text: str, path: Path) -> None:
    assert resolve_path(text) == path


@pytest.mark.parametrize(
    "text", ["", ".", "a.", ".a", "a..b", "properties.", "a" * 257, ".".join("abcdefghi"), 'a["b"]', "a\\b", "a\nb"]
)
def test_what_is_no_path(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        resolve_path(text)


def test_dimensions_are_named_by_their_last_key_or_as_said() -> None:
    assert read_dimension("context.page.path") == ("path", Path("context", ("page", "path")))
    assert read_dimension("page=context.page.path") == ("page", Path("context", ("page", "path")))
    assert read_dimension("eventType") == ("eventType", Path("column", ("event_type",)))
    for wrong in ("a b", "=a", "x=", "1a"):
        with pytest.raises(ValueError, match=r"name|path"):
            read_dimension(wrong)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (definition(name=""), "name: "),
        (definition(name="1st"), "name: "),
        (definition(name="a:b"), "name: "),
        (definition(name="a" * 101), "name: "),
        (definition(aggregation="median"), "aggregation: one of count, sum"),
        (definition(aggregation="sum"), "property: sum needs"),
        (definition(fallbacks=["a"]), "fallbacks: .* give property first"),
        (definition(property="a..b"), "property: .*empty key"),
        (definition(property="a", fallbacks=["b", ""]), "fallbacks: "),
        (definition(property="a", fallbacks=["b"] * 9), "fallbacks: 9 given, 8 allowed"),
        (definition(event_types=["a"] * 51), "eventTypes: 51 given, 50 allowed"),
        (definition(event_types=[""]), "eventTypes: "),
        (definition(dimensions=list("abcde")), "dimensions: 5 given, 4 allowed"),
        (definition(dimensions=["a b"]), "dimensions: .*name=path"),
        (definition(dimensions=["page.path", "context.page.path"]), "dimensions: path, path has a name twice"),
        (definition(filters=[Filter("a", "exists")] * 17), "filters: 17 given, 16 allowed"),
        (definition(filters=[Filter("a", "eq", 1), Filter("a", "eq")]), r"filters\[1\]: value: eq takes"),
        (definition(filters=[Filter("a", "gt", [1])]), r"filters\[0\]: value: gt takes"),
        (definition(filters=[Filter("a", "in", "x")]), r"filters\[0\]: value: in takes a list of 1 to 100"),
        (definition(filters=[Filter("a", "in", [])]), r"filters\[0\]: value: in takes"),
        (definition(filters=[Filter("a", "exists", 3)]), r"filters\[0\]: value: exists takes"),
        (definition(filters=[Filter("a", "lt", 10**20)]), r"filters\[0\]: value: 1000.* is beyond 64 bits"),
        (definition(filters=[Filter("a", "in", [1, -(10**20)])]), r"filters\[0\]: value: -1000.* is beyond 64 bits"),
        (definition(filters=[Filter("a", "eq", "x\0")]), r"filters\[0\]: value: .*NUL"),
        (definition(event_types=["x\0"]), "eventTypes: .*NUL"),
        (definition(property='a."b"'), "property: .*quotation mark"),
        (definition(filters=[Filter("", "exists")]), r"filters\[0\]: a path has 1 to 256"),
    ],
)
def test_what_is_wrong_is_said_with_the_field(wrong: MetricDefinition, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        validate(wrong)


@pytest.mark.parametrize(
    "change",
    [
        {"aggregation": "unique", "property": "userId"},
        {"property": "amount"},
        {"event_types": ["click"]},
        {"filters": [Filter("x", "exists")]},
        {"dimensions": []},
        {"dimensions": ["eventType", "country"]},
        {"event_types": ["click"], "aggregate_only": True},
    ],
)
def test_the_metric_that_counts_everything_is_always_that(change: dict[str, Any]) -> None:
    validate(replace(EVENTS, patterns={"spikeFactor": 4}))
    with pytest.raises(ValueError, match=r"^name: events is the metric that counts every event"):
        validate(replace(EVENTS, **change))
    validate(replace(EVENTS, name="other", **change))


def test_the_largest_definition_is_valid() -> None:
    largest = definition(
        aggregation="p95",
        property="context.a.b",
        fallbacks=list("abcdefgh"),
        event_types=["e" * 256] * 50,
        dimensions=["a", "b", "c=a", "eventType"],
        filters=[Filter("a", "in", ["x", 1, 1.5, True] * 25)] * 16,
    )
    validate(largest)
    assert msgspec.json.decode(msgspec.json.encode(largest), type=MetricDefinition) == largest


def test_the_json_form_is_camel_case_and_strict() -> None:
    raw = b'{"name":"m","eventTypes":["a"],"filters":[{"path":"p","op":"in","value":[1,"x"]}]}'
    decoded = msgspec.json.decode(raw, type=MetricDefinition)
    assert decoded.event_types == ["a"]
    assert decoded.filters == [Filter("p", "in", [1, "x"])]
    for wrong in (b'{"name":"m","evenTypes":[]}', b'{"name":"m","filters":[{"path":"p","op":"like"}]}', b"{}"):
        with pytest.raises(msgspec.ValidationError):
            msgspec.json.decode(wrong, type=MetricDefinition)


@pytest.mark.parametrize(
    ("condition", "passes", "fails"),
    [
        (Filter("a", "eq", "x"), ["x"], ["X", "", None, 1, True]),
        (Filter("a", "eq", "5"), ["5", 5, 5.0], ["5.0", 6]),
        (Filter("a", "eq", 5), [5, 5.0, "5", "5.0"], [6, "five", None, True]),
        (Filter("a", "eq", 1), [1], [True, "true"]),
        (Filter("a", "eq", 10**40), [], [10**40, str(10**40)]),
        (Filter("a", "gte", 3), [3, 3.0, 4], [2, 2.9, True]),
        (Filter("a", "gte", -(10**40)), [], [5, 5.0]),
        (Filter("a", "eq", True), [True, "true"], [1, False, None]),
        (Filter("a", "ne", "x"), ["y", None, 1], ["x"]),
        (Filter("a", "ne", 0.1), [0.2, None, "x"], [0.1, "0.10"]),
        (Filter("a", "gt", 3), [3.5, 4, "4", 2**70], [3, 3.0, "3", "x", None, True]),
        (Filter("a", "gte", 9007199254740993), [9007199254740993, "9007199254740993"], [9007199254740992]),
        (Filter("a", "lt", 12.9), [12.89, "12", -1], [12.9, "12.90", 13]),
        (Filter("a", "lte", 12.9), [12.9, "12.90"], [12.91]),
        (Filter("a", "gt", "2024-01"), ["2024-02"], ["2023", None]),
        (Filter("a", "in", ["x", 2]), ["x", 2, "2", 2.0], ["y", 3, None]),
        (Filter("a", "exists"), ["", 0, False], [None]),
        (Filter("a", "exists", True), ["x"], [None]),
        (Filter("a", "exists", False), [None], ["x"]),
    ],
)
def test_filters(condition: Filter, passes: list[object], fails: list[object]) -> None:
    holds = predicate(condition)
    assert [value for value in passes if not holds(value)] == []
    assert [value for value in fails if holds(value)] == []


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ((1, 1.0), "1"),
        ((10**20, 1e20), "100000000000000000000"),
        ((10**23, 1e23), "1" + "0" * 23),
        ((0, -0.0, 0.0), "0"),
        ((1e-7,), "0.0000001"),
        ((12.9,), "12.9"),
        ((True, "true"), "true"),
        (("1.0",), "1.0"),
        ((None, [], {}), None),
    ],
)
def test_a_value_has_one_text_however_it_was_written(values: tuple[object, ...], text: str | None) -> None:
    """jsonb writes a large float as an integer; what comes from the event store must fall into the same group."""
    assert {text_of(value) for value in values} == {text}


@pytest.mark.parametrize(
    ("value", "number"),
    [
        (5, "5"),
        (12.9, "12.9"),
        ("12.90", "12.90"),
        (" 7 ", "7"),
        ("+.5", "0.5"),
        ("1e3", "1000"),
        (2**80, str(2**80)),
        (1e20, "100000000000000000000"),
        (1e-20, "0"),
        (0.0000000015, "0.000000002"),
        (0.0000000025, "0.000000002"),
        ("99999999999999999999999999999.999999999", "99999999999999999999999999999.999999999"),
    ],
)
def test_numbers_are_exact_to_nine_digits(value: object, number: str) -> None:
    assert number_of(value) == Decimal(number)


@pytest.mark.parametrize(
    "value",
    [None, True, "", "x", "1,5", "0x1", "1_000", "NaN", "inf", "٣", "1e99999", "9" * 70, 1e300, 10**400, 1e29,
     "1e9999", "99999999999999999999999999999.9999999999"],
)  # fmt: skip
def test_what_is_no_number_or_does_not_fit_38_digits(value: object) -> None:
    assert number_of(value) is None


@given(st.floats(-1e15, 1e15))
def test_a_float_is_the_decimal_that_json_shows(value: float) -> None:
    number = number_of(value)
    assert number is not None
    assert abs(number - Decimal(repr(value))) <= Decimal("0.5e-9")


def test_metrics_of_the_settings_join_the_built_in_ones_or_replace_them() -> None:
    slow = {"name": "slow", "aggregation": "p95", "property": "ms", "eventTypes": ["request"]}
    found = {metric.name: metric for metric in default_metrics(WindowSettings(metrics=[slow, {"name": "sessions"}]))}
    assert list(found) == ["events", "unique_users", "daily_active_users", "revenue", "slow", "sessions"]
    assert found["slow"].event_types == ["request"]
    assert found["sessions"].aggregation == "count"


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ({"name": "x", "agregation": "sum"}, "agregation"),
        ({"name": "x", "aggregation": "sum"}, "property"),
        ({"aggregation": "count"}, "name"),
        ({"name": "events"}, "name: events"),
        ({"name": "x", "patterns": {"sigma": 1}}, "'x': patterns: "),
        ({"name": "x", "patterns": {"minimumWindows": 100}}, "'x': patterns: minimumWindows"),
    ],
)
def test_a_wrong_metric_of_the_settings_is_named(written: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=r"windows\.metrics") as raised:
        default_metrics(WindowSettings(metrics=[written]))
    assert said in str(raised.value)
