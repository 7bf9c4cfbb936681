"""Poison rows: those that PostgreSQL can never take. They are set aside, their neighbours are stored.

A COPY fails as a whole. Its error says in which line it failed, so the search goes on behind that line; where
it does not say, the rows are halved until the bad one stands alone. Every attempt of the search is a short
transaction that is rolled back: savepoints inside the write would hold a lock each until its end, and some
thousands of bad rows (one client is enough) would use up the server's lock table and stop the partition.

The reason goes with the event into `dead_letters`, whose payload is the event as JSON: what text cannot hold
(NUL, broken UTF-8) is replaced in the columns that it is found by, and escaped or replaced in the payload.
"""

import asyncio
import re
from collections.abc import Sequence
from typing import NamedTuple

import asyncpg
import msgspec
import numpy as np
import pyarrow as pa

from storage.copy_format import COPY_COLUMNS, encode_copy, in_pieces
from storage.errors import StorageError, Unavailable
from storage.event_batch import COLUMNS
from storage.ledger_counts import RowKey
from storage.postgres import Connection, Postgres
from storage.statements import statement

_INSERT = statement("insert_dead_letters")

# SQLSTATE classes that blame the data: 22 data exception, 23 constraint violation, 54 limit exceeded.
_POISON_CLASSES = frozenset({"22", "23", "54"})
_LINE = re.compile(r"^COPY events_log\w*, \S+ (\d+)", re.MULTILINE)
# Bad rows come together: behind one a few rows are tried, and more with every success.
_FEW_ROWS = 16
_GROWTH = 4
_MESSAGE_CHARS = 1000
_LAST_INSTANT_US = 253402300799999999  # 9999-12-31T23:59:59.999999Z


class MissingDay(Unavailable):
    """There is no daily partition for the rows: nothing is wrong with them."""


class Refusal(NamedTuple):
    """What PostgreSQL (or the encoding) says of rows that it does not take. `row` counts from 0, where known."""

    error_code: str
    message: str
    row: int | None


class RowsRefused(StorageError):
    """A COPY failed because of what is in its rows; nothing of it is there."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal


class Poison(NamedTuple):
    """One row, as a batch of one, and why it was refused."""

    row: pa.RecordBatch
    error_code: str
    message: str

    @property
    def key(self) -> RowKey:
        return RowKey(*(self.row.column(name)[0].as_py() for name in ("partition_id", "log_offset", "row_number")))


async def copy_rows(connection: Connection, rows: pa.RecordBatch) -> None:
    """COPY the rows into events_log. Raises `RowsRefused`, `MissingDay` and driver errors."""
    if not rows.num_rows:
        return
    try:
        encoded = await asyncio.to_thread(encode_copy, rows)
    except ValueError as error:
        raise RowsRefused(Refusal("encode", str(error), None)) from error
    try:
        status = await connection.copy_to_table(
            "events_log", source=in_pieces(encoded), columns=COPY_COLUMNS, format="binary"
        )
    except asyncpg.PostgresError as error:
        if _is_missing_day(error):
            raise MissingDay(f"no daily partition: {error}") from error
        if (error.sqlstate or "")[:2] in _POISON_CLASSES:
            raise RowsRefused(Refusal(error.sqlstate or "", str(error), _failed_row(error, rows.num_rows))) from error
        raise
    if status != f"COPY {rows.num_rows}":
        raise Unavailable(f"{status} instead of {rows.num_rows} rows: has events_log a trigger that drops some?")


def _is_missing_day(error: asyncpg.PostgresError) -> bool:
    """A row that no partition takes is told as a check violation of the table without a constraint's name."""
    return isinstance(error, asyncpg.CheckViolationError) and error.constraint_name is None


def _failed_row(error: asyncpg.PostgresError, rows: int) -> int | None:
    found = _LINE.search(error.context or "")
    return int(found[1]) - 1 if found and 0 < int(found[1]) <= rows else None


async def split_poison(
    postgres: Postgres, rows: pa.RecordBatch, refusal: Refusal
) -> tuple[pa.RecordBatch, list[Poison]]:
    """The rows that a COPY takes, and the others; at least one, as `refusal` told of all of them. Stores nothing."""
    poison: dict[int, Poison] = {}
    start, length = 0, rows.num_rows
    found: Refusal | None = refusal
    while True:
        if found is None:
            start, length = start + length, length * _GROWTH
        elif found.row is None and length > 1:
            length //= 2
        else:
            bad = start + (found.row or 0)
            poison[bad] = Poison(rows.slice(bad, 1), found.error_code, found.message[:_MESSAGE_CHARS])
            start, length = bad + 1, _FEW_ROWS
        length = min(length, rows.num_rows - start)
        if not length:
            break
        found = await _attempt(postgres, rows.slice(start, length))
    good = np.ones(rows.num_rows, bool)
    good[list(poison)] = False
    return rows.filter(pa.array(good)), list(poison.values())


async def _attempt(postgres: Postgres, rows: pa.RecordBatch) -> Refusal | None:
    """What a COPY of these rows is refused for, None when it is not; it is undone."""
    try:
        async with postgres.transaction() as connection:
            await copy_rows(connection, rows)
            raise _Undo
    except _Undo:
        return None
    except RowsRefused as error:
        return error.refusal


class _Undo(StorageError):
    """Leaves a transaction's block without a commit."""


async def insert_dead_letters(connection: Connection, poison: Sequence[Poison]) -> None:
    if poison:
        await connection.execute(_INSERT, *zip(*map(_columns, poison), strict=True))


def _columns(poison: Poison) -> tuple[object, ...]:
    """In the order of insert_dead_letters.sql."""
    event = _readable(poison.row)
    return (
        *poison.key,
        _as_text(event["project_id"]),
        _as_text(event["event_id"]),
        min(max(_integer(event["received_at"]), 0), _LAST_INSTANT_US),
        poison.error_code,
        _as_text(poison.message),
        msgspec.json.encode(event),
    )


def _readable(row: pa.RecordBatch) -> dict[str, object]:
    """The event's columns; times as microseconds since the epoch, because they may be what is wrong."""
    event: dict[str, object] = {}
    for name in COLUMNS.names:
        column = row.column(name)
        if pa.types.is_timestamp(column.type):
            event[name] = column.cast(pa.int64())[0].as_py()
        else:
            raw = column.cast(pa.binary())[0].as_py()
            event[name] = None if raw is None else raw.decode("utf-8", "replace")
    return event


def _integer(value: object) -> int:
    return value if isinstance(value, int) else 0


def _as_text(value: object) -> str:
    return str(value).replace("\0", "\ufffd")
