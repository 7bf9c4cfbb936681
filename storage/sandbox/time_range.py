"""Over which event times a query can matter, read from its syntax tree, so that files of other hours stay closed.

The law: an event outside of the range cannot change the result. What is not read with certainty is unbounded; DuckDB
still leaves out what the statistics of the files say. Every reference to `events` has a range, that of the comparisons
of its `timestamp` with constants which its own WHERE joins by AND; the query's is the hull of all of them. Constants
are evaluated by DuckDB, in the transaction in which the query runs then: now() is the same for both.
"""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from storage.sandbox.checker import EVENTS, Node, walk

TIMESTAMP = "timestamp"
_RESOLUTION = timedelta(microseconds=1)

Names = set[tuple[str, ...]]
"""How a column is written."""
Evaluate = Callable[[Node], datetime | None]
"""The value of a constant expression as a time, None when it has none."""

# Within a transaction these give the same for the same arguments.
_STEADY = frozenset(
    [
        "+",
        "-",
        "now",
        "get_current_timestamp",
        "transaction_timestamp",
        "current_date",
        "today",
        "trunc",
        "date_trunc",
        "datetrunc",
        "make_date",
        "make_timestamp",
        "make_timestamptz",
        "make_timestamp_ms",
        "to_timestamp",
        "epoch_ms",
        "strptime",
        "timezone",
        "to_years",
        "to_months",
        "to_weeks",
        "to_days",
        "to_hours",
        "to_minutes",
        "to_seconds",
        "to_milliseconds",
        "to_microseconds",
    ]
)
_CONSTANT_CLASSES = frozenset({"CONSTANT", "CAST", "FUNCTION"})
# What has one time at most, or none, where an outer join found no event.
_JOINS = frozenset({("REGULAR", "INNER"), ("REGULAR", "LEFT"), ("CROSS", "INNER")})
_SWAPPED = {
    "COMPARE_LESSTHAN": "COMPARE_GREATERTHAN",
    "COMPARE_GREATERTHAN": "COMPARE_LESSTHAN",
    "COMPARE_LESSTHANOREQUALTO": "COMPARE_GREATERTHANOREQUALTO",
    "COMPARE_GREATERTHANOREQUALTO": "COMPARE_LESSTHANOREQUALTO",
    "COMPARE_EQUAL": "COMPARE_EQUAL",
}
_LOWER = frozenset({"COMPARE_GREATERTHAN", "COMPARE_GREATERTHANOREQUALTO", "COMPARE_EQUAL"})
_UPPER = frozenset({"COMPARE_LESSTHAN", "COMPARE_LESSTHANOREQUALTO", "COMPARE_EQUAL"})


class TimeRange(NamedTuple):
    """[start, end); None is unbounded."""

    start: datetime | None = None
    end: datetime | None = None


def time_range(root: Node, evaluate: Evaluate) -> TimeRange:
    """The range of a query that the checker has passed."""
    nodes = list(walk(root))
    references = sum(_is_events(node) for node in nodes)
    ranges = []
    for node in nodes:
        if node.get("type") == "SELECT_NODE" and "class" not in node:
            found = _of_select(node, evaluate)
            references -= len(found)
            ranges += found
    if references or not ranges:
        return TimeRange()
    starts, ends = [found.start for found in ranges], [found.end for found in ranges]
    return TimeRange(
        None if None in starts else min(filter(None, starts)),
        None if None in ends else max(filter(None, ends)),
    )


def _is_events(node: Node) -> bool:
    return node.get("type") == "BASE_TABLE" and str(node.get("table_name")).lower() == EVENTS


def _of_select(select: Node, evaluate: Evaluate) -> list[TimeRange]:
    """The ranges of those references that stand in the FROM of this SELECT, and can be told apart there."""
    tables = _tables_of(select.get("from_table") or {})
    if tables is None or _is_sampled(select):
        return []
    conditions = list(_conjunction(select.get("where_clause")))
    is_alone = len(tables) == 1
    found = []
    for table in tables:
        if _is_events(table):
            names: Names = {(str(table.get("alias") or EVENTS).lower(), TIMESTAMP)}
            names |= {(TIMESTAMP,)} if is_alone else set()
            renamed = bool(table.get("column_name_alias"))
            found.append(TimeRange() if renamed else _bounds(conditions, names, evaluate))
    return found


def _tables_of(source: Node) -> list[Node] | None:
    """What a FROM joins, or None when rows that a WHERE leaves out may still matter to it."""
    if _is_sampled(source):
        return None
    if source.get("type") != "JOIN":
        return [source]
    if (source.get("ref_type"), source.get("join_type")) not in _JOINS:
        return None
    left, right = _tables_of(source["left"]), _tables_of(source["right"])
    return None if left is None or right is None else [*left, *right]


def _is_sampled(node: Node) -> bool:
    """A sample is taken before WHERE: with fewer rows to take it of, another share of it would be left."""
    return "sample" in node


def _conjunction(where: Node | None) -> list[Node]:
    if where is None:
        return []
    if where.get("type") != "CONJUNCTION_AND":
        return [where]
    return [part for child in where["children"] for part in _conjunction(child)]


def _bounds(conditions: list[Node], names: Names, evaluate: Evaluate) -> TimeRange:
    starts: list[datetime] = []
    ends: list[datetime] = []
    for kind, constant in (pair for condition in conditions for pair in _comparisons(condition, names)):
        at = evaluate(constant) if _is_constant(constant) else None
        if at is None:
            continue
        if kind in _LOWER:
            starts.append(at)
        if kind in _UPPER:
            ends.append(at if kind == "COMPARE_LESSTHAN" else _after(at))
    return TimeRange(max(starts, default=None), min(ends, default=None))


def _comparisons(condition: Node, names: Names) -> list[tuple[str, Node]]:
    """Comparisons of the timestamp with something else, as if the timestamp stood on the left."""
    kind = str(condition.get("type"))
    if condition.get("class") == "BETWEEN" and kind == "COMPARE_BETWEEN" and _is_column(condition["input"], names):
        return [
            ("COMPARE_GREATERTHANOREQUALTO", condition["lower"]),
            ("COMPARE_LESSTHANOREQUALTO", condition["upper"]),
        ]
    if condition.get("class") != "COMPARISON" or kind not in _SWAPPED:
        return []
    if _is_column(condition["left"], names):
        return [(kind, condition["right"])]
    return [(_SWAPPED[kind], condition["left"])] if _is_column(condition["right"], names) else []


def _is_column(node: Node, names: Names) -> bool:
    if node.get("class") != "COLUMN_REF":
        return False
    return tuple(str(name).lower() for name in node["column_names"]) in names


def _is_constant(expression: Node) -> bool:
    """Whether the expression has the same value for every row."""
    for node in walk(expression):
        kind = node.get("class")
        if kind is not None and kind not in _CONSTANT_CLASSES:
            return False
        if kind == "FUNCTION" and str(node["function_name"]).lower() not in _STEADY:
            return False
    return True


def _after(at: datetime) -> datetime:
    """The end is not in a range, while <= and = have it."""
    return at if at == datetime.max.replace(tzinfo=UTC) else at + _RESOLUTION
