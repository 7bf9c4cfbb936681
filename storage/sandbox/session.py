"""DuckDB as a sandbox process has it: one connection in memory, `events` as its one relation, and nothing to be opened.

The order is what matters. First the SQL is parsed and checked, by a function of DuckDB's that does nothing else: its
parser for statements to be run reads files, for IMPORT. Then the tail becomes a table, the files become allowed, and
the doors are closed for good: no other file, no extension, no setting. Only then is the SQL bound and run. All of it
is one transaction, so that now() is one time.

`events` shows the rows of one project. Its columns are those of the lake's files (`storage.lake_file.SCHEMA`), the
JSON texts as JSON. The names of what it is made of are random: nobody can ask for them, were they ever asked for.
"""

import json
import re
import secrets
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import duckdb
import msgspec
import pyarrow as pa

# DuckDB's `register` would import it when the question is there.
import pyarrow.dataset

from storage.lake_file import SCHEMA, lake_rows
from storage.sandbox.checker import EVENTS, Checker, NotAllowed, NotSql, load_functions
from storage.sandbox.time_range import TimeRange, time_range
from storage.sandbox.wire import Refused

_SERIALISED = "SELECT json_serialize_sql(?::VARCHAR, skip_null := true, skip_empty := true, skip_default := true)"
_CATALOGUE = "SELECT lower(view_name) FROM duckdb_views() WHERE schema_name <> 'information_schema'"
_JSON_COLUMNS = ("properties_json", "context_json")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# Of the memory that the process may have; Arrow, the answer and what DuckDB does not count need the rest.
_DUCKDB_SHARE = 0.7
_BATCH_ROWS = 1024

# Types that Arrow has not, or not exactly, wherever in a column's type they stand.
_AS_TEXT = (
    "BIGNUM",
    "BIT",
    "INTERVAL",
    "TIME WITH TIME ZONE",
    "TIME_NS",
    "TIMESTAMP_NS",
    "UHUGEINT",
    "UNION",
    "VARIANT",
)


class Answered(NamedTuple):
    """Columns, with DuckDB's names of their types, and rows: one more than was asked for when there are more."""

    names: Sequence[str]
    types: Sequence[str]
    reader: pa.RecordBatchReader


class Session:
    """One question's. Any call may raise `NotAllowed` or `duckdb.Error`, which `explained` tells."""

    def __init__(self) -> None:
        self._connection = duckdb.connect(":memory:", config={"threads": 1})
        self._run("SET TimeZone = 'UTC'")
        self._run("SET python_enable_replacements = false")
        self._run("SET autoload_known_extensions = false")
        self._run("SET autoinstall_known_extensions = false")
        self._checker = Checker(load_functions(), frozenset(name for (name,) in self._run(_CATALOGUE).fetchall()))
        self._sql = ""
        self._tail = f"tail_{secrets.token_hex(16)}"
        self._files: Sequence[str] = ()
        self._is_opening = False
        self._run(_SERIALISED, ["SELECT 1"]).fetchall()

    def check(self, sql: str) -> TimeRange:
        """The times that the query asks about."""
        self._sql = sql
        root = self._checker.check(self._tree(sql))
        self._sql = _without_separators(sql)
        self._run("BEGIN")
        try:
            return time_range(root, self._evaluate)
        except duckdb.Error:
            # A constant without a value: the query itself will say so. It gets a transaction that has not failed.
            self._run("ROLLBACK")
            self._run("BEGIN")
            return TimeRange()

    def _tree(self, sql: str) -> list[dict[str, Any]]:
        [(text,)] = self._run(_SERIALISED, [sql]).fetchall()
        try:
            tree = json.loads(text)
        except RecursionError as error:
            raise NotAllowed("The query is nested too deeply.") from error
        if not tree["error"]:
            statements: list[dict[str, Any]] = tree["statements"]
            return statements
        if tree["error_type"] == "not implemented":
            raise NotAllowed(
                "Only SELECT is allowed.",
                hint="PIVOT names its values: ON event_type IN ('a', 'b'). Nothing can be written or set.",
            )
        place, words = tree.get("position"), _ADVICE.sub("", tree["error_message"]).rstrip(".")
        raise NotSql(f"{words}.", position=None if place is None else int(place))

    def _evaluate(self, expression: dict[str, Any]) -> datetime | None:
        node = {
            "type": "SELECT_NODE",
            "modifiers": [],
            "cte_map": {"map": []},
            "select_list": [expression],
            "from_table": {"type": "EMPTY"},
            "group_expressions": [],
            "group_sets": [],
            "aggregate_handling": "STANDARD_HANDLING",
        }
        tree = json.dumps({"error": False, "statements": [{"node": node}]})
        [(sql,)] = self._run("SELECT json_deserialize_sql(?::JSON)", [tree]).fetchall()
        [(found,)] = self._run(f"SELECT epoch_us(CAST(({sql}) AS TIMESTAMPTZ))").fetchall()
        try:
            return None if found is None else _EPOCH + timedelta(microseconds=found)
        except OverflowError:
            return None

    def load(self, tail: pa.Table) -> None:
        """The rows (`storage.lake_file.EVENTS`) that `events` has besides those of files. Nothing is opened yet."""
        rows = f"{self._tail}_rows"
        self._connection.register(rows, lake_rows(tail))
        self._run(f"CREATE TABLE {self._tail} AS SELECT * FROM {rows}")
        self._connection.unregister(rows)

    def open(self, project_id: str, files: Sequence[str], *, folder: str, memory_bytes: int) -> None:
        """Make `events` of the files and what was loaded, and close the doors."""
        self._files = files
        self._is_opening = True
        duckdb_bytes = int(memory_bytes * _DUCKDB_SHARE)
        self._run(f"SET memory_limit = '{duckdb_bytes}B'")
        self._run(f"SET temp_directory = {_literal(folder)}")
        self._run(f"SET max_temp_directory_size = '{memory_bytes}B'")
        self._run(f"SET allowed_paths = [{', '.join(map(_literal, files))}]")
        self._run("SET enable_external_access = false")
        self._run(_events_view(self._tail, files, project_id))
        self._is_opening = False

    def lock(self, *, threads: int) -> None:
        """The last step before the SQL is bound. Threads are started here: they have the restrictions of this one."""
        self._run(f"SET threads = {threads}")
        self._run("SET lock_configuration = true")

    def run(self, *, max_rows: int) -> Answered:
        described = self._run(f"DESCRIBE\n{self._sql}").fetchall()
        names, types = [row[0] for row in described], [row[1] for row in described]
        inner = [f"c{number}" for number in range(len(names))]
        columns = ", ".join(_as_arrow_has_it(column, type_) for column, type_ in zip(inner, types, strict=True))
        wrapped = f"SELECT {columns} FROM (\n{self._sql}\n) AS q({', '.join(inner)}) LIMIT {max_rows + 1}"
        # What is run is what was checked.
        self._checker.check(self._tree(wrapped))
        reader = self._run(wrapped).to_arrow_reader(_BATCH_ROWS)
        return Answered(names, types, reader)

    def explained(self, error: Exception) -> Refused:
        """A failure in the API's words."""
        is_duckdbs = isinstance(error, duckdb.Error) and not isinstance(error, duckdb.OutOfMemoryException)
        if is_duckdbs and (self._is_opening or any(path in str(error) for path in self._files)):
            return Refused(code="unavailable", message="A file of the lake cannot be read.")
        refused = _explained(error)
        if refused.position is None:
            return refused
        # DuckDB counts bytes.
        before = self._sql.encode()[: refused.position].decode(errors="ignore")
        return msgspec.structs.replace(refused, position=len(before))

    def _run(self, sql: str, parameters: Sequence[object] = ()) -> duckdb.DuckDBPyConnection:
        return self._connection.execute(sql, list(parameters))


def _events_view(tail: str, files: Sequence[str], project_id: str) -> str:
    columns = ", ".join(
        f"CAST({name} AS JSON) AS {name}" if name in _JSON_COLUMNS else _identifier(name) for name in SCHEMA.names
    )
    where = f"WHERE project_id = {_literal(project_id)}"
    parts = [f"SELECT {columns} FROM {tail} {where}"]
    if files:
        paths = ", ".join(map(_literal, files))
        parts.insert(0, f"SELECT {columns} FROM read_parquet([{paths}], hive_partitioning = false) {where}")
    return f"CREATE VIEW {EVENTS} AS {' UNION ALL '.join(parts)}"


def _as_arrow_has_it(column: str, type_: str) -> str:
    return f"CAST({column} AS VARCHAR)" if any(name in type_ for name in _AS_TEXT) else column


def _without_separators(sql: str) -> str:
    """Of one statement: without the semicolons around it."""
    raw = sql.encode()
    places = [place for place, _ in duckdb.tokenize(sql) if raw[place : place + 1] == b";"]
    for place in places:
        raw = raw[:place] + b" " + raw[place + 1 :]
    return raw.decode()


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _identifier(name: str) -> str:
    return f'"{name}"'


# Of DuckDB's messages: no query can follow it.
_ADVICE = re.compile(r'\s*(\* |Use "?)SET .*')
_INVALID = (duckdb.ParserException, duckdb.SyntaxException, duckdb.BinderException, duckdb.CatalogException)
_FAILED = (
    duckdb.ConversionException,
    duckdb.InvalidInputException,
    duckdb.OutOfRangeException,
    duckdb.TypeMismatchException,
    duckdb.InvalidTypeException,
    duckdb.ConstraintException,
    duckdb.NotImplementedException,
    duckdb.SequenceException,
)


def _explained(error: Exception) -> Refused:
    """The query's own failures are told as DuckDB tells them, others by their kind alone."""
    match error:
        case NotAllowed():
            return Refused(code=error.code, message=error.message, hint=error.hint, position=error.position)
        case duckdb.OutOfMemoryException() | MemoryError():
            return Refused(code="query_out_of_memory", message="The query needs more memory than it may have.")
        case duckdb.PermissionException():
            return Refused(code="sql_not_allowed", message="The query reaches for something that is closed to it.")
        case duckdb.IOException():
            return Refused(code="unavailable", message="A file of the lake could not be read.")
    if isinstance(error, _INVALID):
        return Refused(code="sql_invalid", message=_words(error))
    if isinstance(error, _FAILED):
        return Refused(code="sql_failed", message=_words(error))
    return Refused(code="sql_failed", message="The query ended with an error of DuckDB's own.")


def _words(error: Exception) -> str:
    """Without the kind, which the code says; lines are those of the SQL that was sent."""
    kind, colon, words = str(error).partition(": ")
    told = _ADVICE.sub("", words if colon and kind.endswith("Error") else str(error)).strip()
    # There is a line of ours before it.
    return re.sub(r"^LINE (\d+):", lambda found: f"LINE {int(found[1]) - 1}:", told, flags=re.MULTILINE)
