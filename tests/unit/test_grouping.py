"""Grouping against a plain model that looks at one event at a time, and on five real data sets with known answers."""

import gzip
import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from functools import reduce
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analytics_actors.windows.grouping import Deltas, Skipped, aggregate, coarser
from analytics_actors.windows.numbers import compared
from storage.aggregate import EXACT, QUANTILES, ZERO, Aggregate, decimal_text, encode_aggregate
from storage.errors import FormatError
from storage.event_batch import COLUMNS
from storage.metric_definitions import (
    DEFAULT_METRICS,
    MAX_VALUE_CHARS,
    Filter,
    MetricDefinition,
    Op,
    number_of,
    predicate,
    read_dimension,
    resolve_path,
    text_of,
)
from storage.metric_definitions import Path as ValuePath
from storage.unique_sketch import EXACT_LIMIT, RELATIVE_ERROR
from storage.window_key import Dimensions, WindowKey

NOW = datetime(2026, 5, 1, 12, 30, tzinfo=UTC)
MINUTE = int(NOW.timestamp()) // 60 * 60
SHARED = Path(__file__).parents[2].parent / "shared" / "data"
SAMPLE = Path(__file__).parents[1] / "samples" / "real_events.ndjson"

Event = dict[str, Any]
Definitions = Callable[[str], Sequence[MetricDefinition]]


def event(
    event_type: str = "click",
    properties: Any = None,
    context: Any = None,
    *,
    project: str = "p",
    user: str | None = None,
    session: str | None = None,
    at_s: float = 0,
) -> Event:
    return {
        "project_id": project,
        "event_id": "e",
        "event_type": event_type,
        "user_id": user,
        "session_id": session,
        "timestamp": NOW + timedelta(seconds=at_s),
        "received_at": NOW,
        "properties": properties if isinstance(properties, str) else json.dumps(properties or {}),
        "context": None if context is None else json.dumps(context),
    }


def batch(events: Iterable[Event]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist(list(events), schema=COLUMNS)


def same(*definitions: MetricDefinition) -> Definitions:
    return lambda _: definitions


def key(metric: str, *dimensions: tuple[str, str], project: str = "p", start: int = MINUTE) -> WindowKey:
    return WindowKey(project, metric, "1m", start, dimensions)


def merge_all(parts: Iterable[Deltas]) -> Deltas:
    merged: Deltas = {}
    for part in parts:
        for each, value in part.items():
            merged.setdefault(each, Aggregate()).merge(value)
    return merged


# ---------------------------------------------------------------------------------------------- the model


def value_at(row: Event, path: ValuePath) -> Any:
    if path.source == "column":
        return row.get(path.keys[0])
    value = json.loads(row[path.source] or "null")
    for name in path.keys:
        value = value.get(name) if isinstance(value, dict) else None
    return value if isinstance(value, str | int | float) else None


def model(rows: list[Event], definitions: Definitions) -> dict[WindowKey, tuple[Any, ...]]:
    """What `facts` must show, event by event."""
    found: dict[WindowKey, list[Any]] = {}
    kinds: dict[tuple[str, str], str] = {}
    for row in rows:
        for each in definitions(row["project_id"]):
            kinds[row["project_id"], each.name] = each.aggregation
            if each.event_types and row["event_type"] not in each.event_types:
                continue
            if not all(predicate(one)(value_at(row, resolve_path(one.path))) for one in each.filters):
                continue
            values = [value for value in (value_at(row, path) for path in each.paths) if value is not None]
            value: Any = True
            if each.aggregation == "unique":
                value = text_of(values[0]) or None if values else None
            elif each.aggregation != "count":
                value = values[0] if values and number_of(values[0]) is not None else None
            elif each.property:
                value = values[0] if values else None
            if value is None:
                continue
            tuples: set[Dimensions] = {()}
            if each.dimensions:
                named = map(read_dimension, each.dimensions)
                tuples.add(tuple((d.name, (text_of(value_at(row, d.path)) or "")[:MAX_VALUE_CHARS]) for d in named))
            start = int(row["timestamp"].timestamp()) // 60 * 60
            for dimensions in tuples:
                found.setdefault(WindowKey(row["project_id"], each.name, "1m", start, dimensions), []).append(value)
    return {each: expected(values, kinds[each.project_id, each.metric]) for each, values in found.items()}


def expected(values: list[Any], aggregation: str) -> tuple[Any, ...]:
    if aggregation == "count":
        return (len(values), None, None, None, None, None)
    if aggregation == "unique":
        return (len(values), None, None, None, len(set(values)), None)
    total = reduce(EXACT.add, (number_of(value) or ZERO for value in values), ZERO)
    floats = sorted(map(float, values))
    ranks = None
    if aggregation in QUANTILES:
        ranks = tuple(floats[int(np.ceil(q * len(floats))) - 1] for q in QUANTILES.values())
    return (len(values), decimal_text(total), floats[0], floats[-1], None, ranks)


def facts(value: Aggregate) -> tuple[Any, ...]:
    ranks = None if value.quantiles is None else tuple(map(value.quantiles.quantile, QUANTILES.values()))
    total = None if value.minimum is None else decimal_text(value.total)
    unique = None if value.unique is None else value.unique.estimate()
    return (value.count, total, value.minimum, value.maximum, unique, ranks)


def shown(deltas: Deltas) -> dict[WindowKey, tuple[Any, ...]]:
    return {each: facts(value) for each, value in deltas.items()}


METRICS = (
    *DEFAULT_METRICS,
    MetricDefinition("by_two", dimensions=["country", "context.page.path"]),
    MetricDefinition("by_two_again", dimensions=["country", "context.page.path"]),
    MetricDefinition("total", "sum", property="amount", dimensions=["kind=a.b", "eventType"]),
    MetricDefinition("deep", "mean", property="a.b", fallbacks=["a", "context.page"]),
    MetricDefinition("slow", "p95", property="amount", event_types=["click", "purchase"], dimensions=["country"]),
    MetricDefinition("people", "unique", property="userId", fallbacks=["a.b", "country"], dimensions=["country"]),
    MetricDefinition("having", property="a.b", dimensions=["a"]),
    MetricDefinition("large", filters=[Filter("amount", "gt", 10), Filter("country", "ne", "DE")]),
    MetricDefinition("chosen", "max", property="amount", filters=[Filter("eventType", "in", ["click", "view"])]),
    MetricDefinition("signed_in", filters=[Filter("userId", "exists"), Filter("a.b", "exists", False)]),
)
BY_TYPE = (
    MetricDefinition("clicked", "sum", property="amount", event_types=["click"], dimensions=["country"]),
    MetricDefinition("viewed", "unique", property="a.b", event_types=["view"]),
    MetricDefinition("low", filters=[Filter("amount", "lte", 12.9)], event_types=["view", "click"]),
    MetricDefinition(
        "late", filters=[Filter("context.page", "lt", 3), Filter("value", "gte", 0)], event_types=["view"]
    ),
)
FEW = (MetricDefinition("events", "sum", property="amount"), MetricDefinition("by_two", dimensions=["a.b"]))

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 20),
    st.sampled_from([2**53 + 1, 2**80, 10**30, 1e300, 1e22, -0.0, 0.1, 0.2, 12.9, "12.90", "7", "x", "", "ü", "1e999"]),
    st.floats(-1e6, 1e6),
)
values = st.one_of(scalars, st.lists(scalars, max_size=1), st.dictionaries(st.sampled_from("bc"), scalars, max_size=2))
properties = st.fixed_dictionaries(
    {},
    optional={
        "amount": values,
        "value": scalars,
        "a": values,
        "country": st.one_of(st.sampled_from(["DE", "FR", "", None, 3, 3.0, "3", "x" * 201, "x" * 202]), values),
    },
)
contexts = st.one_of(
    st.none(), st.fixed_dictionaries({}, optional={"page": st.one_of(values, st.dictionaries(st.just("path"), values))})
)
events = st.builds(
    event,
    st.sampled_from(["click", "purchase", "view"]),
    properties,
    contexts,
    project=st.sampled_from(["p", "q", "few", "by_type"]),
    user=st.sampled_from([None, "u1", "u2", "3"]),
    session=st.sampled_from([None, "s1"]),
    at_s=st.sampled_from([0.0, 0.1, 29.999, 30.0, 59.9, -31.0, 3600.0, -86400.0 * 4000]),
)


def definitions_of(project: str) -> Sequence[MetricDefinition]:
    return {"few": FEW, "by_type": BY_TYPE}.get(project, METRICS)


@settings(max_examples=75)
@given(st.lists(events, min_size=1, max_size=25))
def test_it_is_what_a_look_at_each_event_gives(rows: list[Event]) -> None:
    assert shown(aggregate(batch(rows), definitions_of)) == model(rows, definitions_of)


@settings(max_examples=75)
@given(st.lists(events, max_size=25), st.randoms(use_true_random=False), st.integers(1, 6))
def test_any_order_and_any_split_give_the_same_windows(rows: list[Event], random: Any, parts: int) -> None:
    """WM-1: counts, sums, extremes and sketches, to the byte where bytes depend on the values alone."""
    whole = aggregate(batch(rows), definitions_of)
    shuffled = random.sample(rows, len(rows))
    cuts = sorted(random.randint(0, len(rows)) for _ in range(parts))
    pieces = [shuffled[start:end] for start, end in zip([0, *cuts], [*cuts, len(rows)], strict=True)]
    one_by_one = merge_all(aggregate(batch(piece), definitions_of) for piece in pieces)
    table = pa.Table.from_batches([batch(piece) for piece in pieces], schema=COLUMNS)
    for other in (one_by_one, aggregate(table, definitions_of)):
        assert shown(other) == shown(whole)
        for each, value in whole.items():
            if value.quantiles is None:
                assert encode_aggregate(other[each]) == encode_aggregate(value)


def test_a_large_table_split_otherwise_gives_the_same_estimates() -> None:
    """Beyond exact uniques and percentiles."""
    rng = np.random.default_rng(2)
    users = rng.integers(0, 5000, 12_000)
    rows = [
        event("view", {"amount": round(float(x), 2)}, user=f"u{u}")
        for u, x in zip(users, rng.random(12_000), strict=True)
    ]
    definitions = same(*DEFAULT_METRICS, MetricDefinition("slow", "p95", property="amount"))
    whole = aggregate(batch(rows), definitions)
    parts = merge_all(aggregate(batch(rows[start::7]), definitions) for start in range(7))
    unique = whole[key("unique_users")]
    assert unique.unique is not None
    assert not unique.unique.exact
    assert unique.unique.estimate() == pytest.approx(len(set(users.tolist())), rel=3 * RELATIVE_ERROR)
    assert encode_aggregate(parts[key("unique_users")]) == encode_aggregate(unique)
    assert decimal_text(parts[key("slow")].total) == decimal_text(whole[key("slow")].total)
    for found in (whole[key("slow")], parts[key("slow")]):
        assert found.count == 12_000
        assert found.value("p95") == pytest.approx(0.95, abs=0.035)


nearly_ties = st.builds(lambda whole, tail: float(f"{whole}.{tail}5"), st.integers(0, 10**6), st.integers(0, 10**9))
many_numbers = st.lists(
    st.one_of(
        st.floats(-1e30, 1e30),
        st.floats(-1e4, 1e4),
        st.decimals(-(10**10), 10**10, places=4).map(float),
        st.decimals(-100, 100, places=10).map(float),
        st.integers(-(10**29), 10**29),
        nearly_ties,
        scalars,
    ),
    max_size=40,
)


@settings(max_examples=150)
@given(many_numbers, st.integers(1, 4))
def test_sums_in_columns_are_the_sums_of_the_decimals(numbers: list[Any], groups: int) -> None:
    rows = [event("purchase", {"amount": number, "g": str(at % groups)}) for at, number in enumerate(numbers)]
    definitions = same(MetricDefinition("m", "sum", property="amount", dimensions=["g"]))
    assert shown(aggregate(batch(rows), definitions)) == model(rows, definitions)


# ------------------------------------------------------------------------------------------ single rules


def test_nothing_gives_nothing() -> None:
    assert aggregate(batch([]), same(*METRICS)) == {}
    assert aggregate(pa.Table.from_batches([], schema=COLUMNS), same(*METRICS)) == {}
    assert aggregate(batch([event()]), same()) == {}


def test_the_default_metrics_of_a_purchase() -> None:
    deltas = aggregate(
        batch([event("purchase", {"price": 12.9}, user="u", session="s", at_s=61)]), same(*DEFAULT_METRICS)
    )
    start = MINUTE + 60
    assert shown(deltas) == {
        key("events", start=start): (1, None, None, None, None, None),
        key("events", ("eventType", "purchase"), start=start): (1, None, None, None, None, None),
        key("unique_users", start=start): (1, None, None, None, 1, None),
        key("daily_active_users", start=start): (1, None, None, None, 1, None),
        key("sessions", start=start): (1, None, None, None, 1, None),
        key("revenue", start=start): (1, "12.9", 12.9, 12.9, None, None),
    }


def test_sums_are_what_the_json_text_says() -> None:
    texts = ["12.90", "0.1", "0.2", "9007199254740993", '"7.05"', "1e-9", "1E2", "-0"]
    rows = [event("purchase", f'{{"amount":{text}}}') for text in texts]
    total = aggregate(batch(rows), same(*DEFAULT_METRICS))[key("revenue")]
    assert decimal_text(total.total) == "9007199254741113.250000001"
    assert total.count == len(texts)


def test_what_is_no_number_or_too_large_is_left_out_and_told() -> None:
    rows = [event("purchase", f'{{"amount":{text}}}') for text in ("1e300", '"free"', "true", "5", "1" + "0" * 400)]
    rows += [event("purchase"), event("purchase", '{"amount":null}'), event("purchase", '{"amount":[1]}')]
    skipped: Skipped = Counter()
    deltas = aggregate(batch(rows), same(*DEFAULT_METRICS), skipped=skipped)
    assert facts(deltas[key("revenue")])[:2] == (1, "5")
    assert skipped == {("p", "revenue"): 4}
    assert deltas[key("events")].count == len(rows)


def test_metrics_of_the_same_events_share_nothing() -> None:
    deltas = aggregate(batch([event(user="a"), event(user="b")]), same(*DEFAULT_METRICS))
    deltas[key("unique_users")].merge(aggregate(batch([event(user="c")]), same(*DEFAULT_METRICS))[key("unique_users")])
    assert deltas[key("unique_users")].value("unique") == 3
    assert deltas[key("daily_active_users")].value("unique") == 2
    assert deltas[key("daily_active_users")].count == 2


def test_a_later_definition_of_the_same_name_replaces_the_earlier() -> None:
    deltas = aggregate(batch([event()]), same(*DEFAULT_METRICS, MetricDefinition("events", dimensions=["userId"])))
    assert {each.dimensions for each in deltas if each.metric == "events"} == {(), (("userId", ""),)}


def test_long_values_of_a_dimension_are_cut_and_counted_together() -> None:
    rows = [event(properties={"a": "x" * 300 + tail}) for tail in "abc"]
    deltas = aggregate(batch(rows), same(*(MetricDefinition(name, dimensions=["a"]) for name in ("m", "n"))))
    for name in ("m", "n"):
        assert deltas[key(name, ("a", "x" * MAX_VALUE_CHARS))].count == 3


def test_four_dimensions_of_many_values_do_not_overflow() -> None:
    rows = [event(properties={name: f"{name}{number}" for name in "abcd"}, at_s=number) for number in range(3000)]
    deltas = aggregate(batch(rows), same(MetricDefinition("m", dimensions=list("abcd"))))
    tuples = [each for each in deltas if each.dimensions]
    assert len(tuples) == 3000
    assert key("m", ("a", "a61"), ("b", "b61"), ("c", "c61"), ("d", "d61"), start=MINUTE + 60) in deltas


def test_texts_of_all_lengths_are_read_in_pieces() -> None:
    """Long ones beside short ones, in several record batches; a piece has as many texts as fit into the cache."""
    rows = [event("view", {"title": "x" * (1 << number % 20), "a": {"b": number}}, at_s=0) for number in range(100)]
    table = pa.Table.from_batches([batch(rows[:7]), batch([]), batch(rows[7:])], schema=COLUMNS)
    metric = MetricDefinition("m", "sum", property="a.b")
    assert shown(aggregate(table, same(metric))) == model(rows, same(metric))


@given(st.lists(values, max_size=5), st.sampled_from(["gt", "gte", "lt", "lte", "eq"]), scalars)
def test_comparing_in_columns_is_comparing_each(some: list[Any], op: Op, limit: Any) -> None:
    condition = Filter("amount", op, limit)
    holds = compared(some, condition)
    if holds is not None:
        assert holds.tolist() == list(map(predicate(condition), some))


def test_numbers_are_compared_in_columns() -> None:
    """Otherwise the test above compares nothing."""
    holds = compared([1, 2.5, None, -3], Filter("amount", "gte", 1))
    assert holds is not None and holds.tolist() == [True, True, False, False]


@pytest.mark.parametrize("bad", ["{", '{"amount":1} {}', '{"amount":1},{}', ""])
def test_damaged_properties_are_told(bad: str) -> None:
    row = event("purchase")
    row["properties"] = bad
    with pytest.raises(FormatError):
        aggregate(batch([row]), same(*DEFAULT_METRICS))


def test_only_the_wanted_rows_are_read() -> None:
    """What no metric wants is never decoded."""
    deltas = aggregate(batch([event("view", "{not JSON"), event("purchase", {"amount": 1})]), same(*DEFAULT_METRICS))
    assert deltas[key("revenue")].count == 1


@pytest.mark.parametrize(
    ("size", "start"), [("1m", MINUTE), ("5m", MINUTE), ("1h", MINUTE - 1800), ("1d", MINUTE - 45000)]
)
def test_the_coarser_window(size: Any, start: int) -> None:
    assert coarser(key("m", ("a", "b")), size) == WindowKey("p", "m", size, start, (("a", "b"),))
    assert coarser(key("m", start=MINUTE + 240), "5m").start == MINUTE
    assert coarser(key("m", start=-60), "1h").start == -3600


# --------------------------------------------------------------------------------------- five data sets


class Line(msgspec.Struct, rename="camel"):
    event_id: str
    event_type: str
    project_id: str
    timestamp: datetime
    user_id: str | None = None
    session_id: str | None = None
    properties: msgspec.Raw = msgspec.Raw(b"{}")
    context: msgspec.Raw = msgspec.Raw(b"null")


def read_rows(path: Path) -> list[pa.RecordBatch]:
    """Distinct events in batches of 10,000, the first with an id counts."""
    text = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    decoder = msgspec.json.Decoder(Line)
    lines: list[Line] = []
    seen: set[str] = set()
    for line in decoder.decode_lines(text):
        if line.event_id not in seen:
            seen.add(line.event_id)
            lines.append(line)
    rows = [
        {
            "project_id": line.project_id,
            "event_id": line.event_id,
            "event_type": line.event_type,
            "user_id": line.user_id or None,
            "session_id": line.session_id or None,
            "timestamp": line.timestamp,
            "received_at": line.timestamp,
            "properties": bytes(line.properties).decode(),
            "context": bytes(line.context).decode(),
        }
        for line in lines
    ]
    return [batch(rows[start : start + 10_000]) for start in range(0, len(rows), 10_000)]


def hour_text(start: int) -> str:
    return datetime.fromtimestamp(start, UTC).strftime("%Y-%m-%dT%H:00:00Z")


class Answers:
    """The deltas of a data set in the form of its expected answers, of some projects or all of them."""

    def __init__(self, deltas: Deltas, project: str | None) -> None:
        self._deltas = {each: value for each, value in deltas.items() if project in {None, each.project_id}}

    def merged(self, metric: str, size: Any, *, grouped: bool = False) -> dict[tuple[int, str], Aggregate]:
        found: dict[tuple[int, str], Aggregate] = {}
        for each, value in self._deltas.items():
            if each.metric == metric and bool(each.dimensions) == grouped:
                group = each.dimensions[0][1] if grouped else ""
                found.setdefault((coarser(each, size).start, group), Aggregate()).merge(value)
        return found

    def per_type_per_hour(self) -> dict[str, dict[str, int]]:
        shown: dict[str, dict[str, int]] = {}
        for (start, event_type), value in self.merged("events", "1h", grouped=True).items():
            shown.setdefault(hour_text(start), {})[event_type] = value.count
        return shown

    def sums(self, name: str) -> dict[str, dict[str, dict[str, Any]]]:
        shown: dict[str, dict[str, dict[str, Any]]] = {}
        for (start, event_type), value in self.merged(name, "1h", grouped=True).items():
            shown.setdefault(hour_text(start), {})[event_type] = {"n": value.count, "sum": decimal_text(value.total)}
        return shown

    def check_uniques(self, metric: str, size: Any, known: dict[str, int]) -> None:
        found = {
            hour_text(start)[: 10 if size == "1d" else 20]: value
            for (start, _), value in self.merged(metric, size).items()
        }
        assert set(found) == set(known)
        for when, count in known.items():
            unique = found[when].unique
            assert unique is not None
            assert unique.exact == (count <= EXACT_LIMIT)
            error = 0 if unique.exact else 3 * RELATIVE_ERROR
            assert unique.estimate() == pytest.approx(count, rel=error)


@pytest.mark.parametrize("path", sorted(SHARED.glob("*.ndjson.gz")) or [None], ids=lambda path: path and path.name[:12])
def test_real_data_gives_the_known_answers(path: Path | None) -> None:
    if path is None:
        pytest.skip("the data sets do not lie beside the project")
    known = json.loads(path.with_name(path.name.replace(".ndjson.gz", ".expected.json")).read_text())
    sums = {f"sum_{name}": name for name in known["all"]["sumPerHourPerType"]}
    definitions = (
        *DEFAULT_METRICS,
        *(MetricDefinition(name, "sum", property=path, dimensions=["eventType"]) for name, path in sums.items()),
    )
    deltas = merge_all(aggregate(rows, lambda _: definitions) for rows in read_rows(path))
    for project, answers in [(None, known["all"]), *known["largestProjects"].items()]:
        found = Answers(deltas, project)
        assert found.per_type_per_hour() == answers["eventsPerTypePerHour"]
        assert sum(value.count for value in found.merged("events", "1h").values()) == answers["events"]
        for metric, name in sums.items():
            assert found.sums(metric) == answers["sumPerHourPerType"][name]
        found.check_uniques("unique_users", "1h", answers["uniqueUsersPerHour"])
        found.check_uniques("daily_active_users", "1d", answers["uniqueUsersPerDay"])
        found.check_uniques("sessions", "1d", answers.get("uniqueSessionsPerDay", {}))


def test_the_sample_gives_what_is_counted_here() -> None:
    batches = read_rows(SAMPLE)
    rows = [row for each in batches for row in each.to_pylist()]
    definitions = same(*DEFAULT_METRICS, MetricDefinition("m", "p50", property="price", dimensions=["eventType"]))
    assert shown(merge_all(aggregate(each, definitions) for each in batches)) == model(rows, definitions)
