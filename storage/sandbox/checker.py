"""Whether a query may be run: one SELECT over `events`, made of functions that are known.

It judges the syntax tree of DuckDB's own parser (`json_serialize_sql`), never the text, and by what is allowed:
a node, a function or a table that nobody has thought of is refused. Allowed are

- tables: `events`, and the query's own CTEs, by plain names. What stands for a file ('x.parquet'), for a schema's
  table (information_schema.tables) or for one of DuckDB's own (duckdb_settings) is none of these;
- table functions: `TABLE_FUNCTIONS`, which make rows of their arguments alone;
- scalar functions, aggregates and window functions: those of functions.txt.

A CTE may have no name that DuckDB resolves to something else where the CTE is out of scope: only words, and none
that the catalogue knows already.
"""

import re
from collections.abc import Iterator
from importlib.resources import files
from typing import Any

EVENTS = "events"

TABLE_FUNCTIONS = frozenset({"unnest", "range", "generate_series", "json_each", "json_tree"})

_EXPRESSIONS = frozenset(
    [
        "BETWEEN",
        "CASE",
        "CAST",
        "COLLATE",
        "COLUMN_REF",
        "COMPARISON",
        "CONJUNCTION",
        "CONSTANT",
        "FUNCTION",
        "LAMBDA",
        "OPERATOR",
        "POSITIONAL_REFERENCE",
        "STAR",
        "SUBQUERY",
        "WINDOW",
    ]
)
_QUERIES = frozenset({"SELECT_NODE", "SET_OPERATION_NODE", "RECURSIVE_CTE_NODE", "CTE_NODE"})
_TABLES = frozenset({"BASE_TABLE", "JOIN", "SUBQUERY", "TABLE_FUNCTION", "EXPRESSION_LIST", "EMPTY", "PIVOT"})
_MODIFIERS = frozenset({"ORDER_MODIFIER", "LIMIT_MODIFIER", "LIMIT_PERCENT_MODIFIER", "DISTINCT_MODIFIER"})
_ORDERS = frozenset({"ORDER_DEFAULT", "ASCENDING", "DESCENDING"})
_OTHERS = _QUERIES | _TABLES | _MODIFIERS | _ORDERS
_OF_A_TYPE = "_TYPE_INFO"
_WORD = re.compile(r"\w{1,128}")
_MAX_NODES = 200_000

Node = dict[str, Any]


class NotAllowed(Exception):
    """What is wrong with the query; `position` is where, in bytes, as DuckDB counts."""

    code = "sql_not_allowed"

    def __init__(self, message: str, *, hint: str | None = None, position: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.position = position


class NotSql(NotAllowed):
    """DuckDB's parser does not take it."""

    code = "sql_invalid"


def load_functions() -> frozenset[str]:
    """The names in functions.txt, in lower case."""
    text = files("storage.sandbox").joinpath("functions.txt").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    return frozenset(" ".join(lines).lower().split())


class Checker:
    """`catalogue` has the names of all relations that DuckDB knows before the query."""

    def __init__(self, functions: frozenset[str], catalogue: frozenset[str]) -> None:
        self._functions = functions
        self._catalogue = catalogue

    def check(self, statements: list[Node]) -> Node:
        """The one query node of what `json_serialize_sql` gave. Raises `NotAllowed`."""
        if len(statements) != 1:
            raise NotAllowed("There must be exactly one statement.", hint="Send one SELECT a request.")
        nodes = list(walk(statements[0]["node"]))
        ctes = frozenset(self._cte(name) for node in nodes for name in _ctes(node))
        called = {id(node["function"]) for node in nodes if node.get("type") == "TABLE_FUNCTION"}
        for node in nodes:
            if "class" in node:
                self._check_expression(node, of_a_table=id(node) in called)
            else:
                self._check_other(node, ctes)
        root: Node = statements[0]["node"]
        return root

    def _cte(self, name: str) -> str:
        folded = name.lower()
        if not _WORD.fullmatch(name) or (folded in self._catalogue and folded != EVENTS):
            raise NotAllowed(f"A CTE cannot be called {_quoted(name)}.", hint="Use a plain word of your own.")
        return folded

    def _check_expression(self, node: Node, *, of_a_table: bool) -> None:
        kind = node["class"]
        position = node.get("query_location")
        if kind == "PARAMETER":
            message = "There are no parameters: nothing would give them values."
            raise NotAllowed(message, hint="Write the value into the SQL.", position=position)
        if kind not in _EXPRESSIONS:
            raise NotAllowed(f"An expression of the kind {kind} is not allowed.", position=position)
        if kind in ("FUNCTION", "WINDOW"):
            self._check_function(node, TABLE_FUNCTIONS if of_a_table else self._functions)

    def _check_function(self, node: Node, allowed: frozenset[str]) -> None:
        name, position = str(node["function_name"]), node.get("query_location")
        if node.get("catalog") or node.get("schema") not in (None, "", "main"):
            raise NotAllowed(f"The function {_quoted(name)} is named with a schema.", position=position)
        if name.lower() not in allowed:
            what = "table function" if allowed is TABLE_FUNCTIONS else "function"
            hint = f"Those that are: {', '.join(sorted(allowed))}." if allowed is TABLE_FUNCTIONS else _FUNCTIONS_HINT
            raise NotAllowed(f"The {what} {_quoted(name)} is not allowed.", hint=hint, position=position)

    def _check_other(self, node: Node, ctes: frozenset[str]) -> None:
        kind = node.get("type")
        if not isinstance(kind, str):
            return
        position = node.get("query_location")
        if kind == "SHOW_REF":
            message = "SHOW, DESCRIBE and SUMMARIZE are not allowed."
            raise NotAllowed(message, hint="SELECT * FROM events LIMIT 0 tells the columns.", position=position)
        if kind not in _OTHERS and not kind.endswith(_OF_A_TYPE):
            raise NotAllowed(f"A query with {kind} is not allowed.", position=position)
        if kind == "BASE_TABLE":
            _check_table(node, ctes, position)


def _check_table(node: Node, ctes: frozenset[str], position: int | None) -> None:
    name = str(node.get("table_name", ""))
    if node.get("schema_name") or node.get("catalog_name") or node.get("at_clause"):
        raise NotAllowed(f"The table {_quoted(name)} is named with more than its name.", hint=_ONLY, position=position)
    if name.lower() != EVENTS and name.lower() not in ctes:
        raise NotAllowed(f"There is no table {_quoted(name)}.", hint=_ONLY, position=position)


_ONLY = "There is one table, events, besides the query's own CTEs."
_FUNCTIONS_HINT = "Functions that compute a value from their arguments are; those that look elsewhere are not."


def walk(root: Any) -> Iterator[Node]:
    """Every node of the tree that is an object, without recursion; constants are not entered."""
    waiting = [root]
    seen = 0
    while waiting:
        value = waiting.pop()
        if isinstance(value, list):
            waiting.extend(value)
        elif isinstance(value, dict):
            seen += 1
            if seen > _MAX_NODES:
                raise NotAllowed("The query is too large.", hint="Write it with fewer expressions.")
            yield value
            if value.get("class") != "CONSTANT":
                waiting.extend(part for part in value.values() if isinstance(part, dict | list))


def _ctes(node: Node) -> Iterator[str]:
    found = node.get("cte_map")
    if isinstance(found, dict):
        for entry in found.get("map", ()):
            yield str(entry["key"])
    if node.get("type") in ("RECURSIVE_CTE_NODE", "CTE_NODE"):
        yield str(node.get("cte_name", node.get("ctename", "")))


def _quoted(name: str) -> str:
    return repr(name if len(name) <= 100 else name[:100] + "…")
