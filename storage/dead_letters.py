"""Poison rows: those that PostgreSQL can never take. They are set aside, their neighbours are stored.

A COPY fails as a whole and does not say which row it was, so the rows are halved until the bad ones stand
alone, each attempt in a savepoint of the write's transaction. The reason goes with the event into
`dead_letters`, where its payload is the event as JSON: what text cannot hold (NUL, broken UTF-8) is
replaced in the columns that it is found by, and escaped or replaced in the payload.
"""

from collections.abc import Sequence
from typing import NamedTuple

import asyncpg
import msgspec
import pyarrow as pa

from storage.copy_format import COPY_COLUMNS, encode_copy, in_pieces
from storage.errors import Unavailable
from storage.event_batch import COLUMNS
from storage.ledger_counts import RowKey
from storage.postgres import Connection
from storage.statements import statement

_INSERT = statement("insert_dead_letters")

# SQLSTATE classes that blame the data: 22 data exception, 23 constraint violation, 54 limit exceeded.
_POISON_CLASSES = frozenset({"22", "23", "54"})
_MESSAGE_CHARS = 1000
_LAST_INSTANT_US = 253402300799999999  # 9999-12-31T23:59:59.999999Z


class MissingDay(Unavailable):
    """There is no daily partition for the rows: nothing is wrong with them."""


class Poison(NamedTuple):
    """One row, as a batch of one, and why it was refused."""

    row: pa.RecordBatch
    error_code: str
    message: str

    @property
    def key(self) -> RowKey:
        return RowKey(*(self.row.column(name)[0].as_py() for name in ("partition_id", "log_offset", "row_number")))


async def copy_what_can_be_stored(connection: Connection, rows: pa.RecordBatch) -> list[Poison]:
    """COPY the rows into events_log; those that it refuses are returned. Raises `MissingDay` and driver errors."""
    poison: list[Poison] = []
    waiting = [rows] if rows.num_rows else []
    while waiting:
        part = waiting.pop()
        refusal = await _copy(connection, part)
        if refusal is None:
            continue
        if part.num_rows == 1:
            poison.append(Poison(part, *refusal))
            continue
        half = part.num_rows // 2
        waiting += [part.slice(half), part.slice(0, half)]
    return poison


async def _copy(connection: Connection, rows: pa.RecordBatch) -> tuple[str, str] | None:
    """None when all rows were taken, else the code and message of the refusal; then none was."""
    try:
        encoded = encode_copy(rows)
    except ValueError as error:
        return "encode", str(error)[:_MESSAGE_CHARS]
    savepoint = connection.transaction()
    await savepoint.start()
    try:
        status = await connection.copy_to_table(
            "events_log", source=in_pieces(encoded), columns=COPY_COLUMNS, format="binary"
        )
    except asyncpg.PostgresError as error:
        if _is_missing_day(error):
            raise MissingDay(f"no daily partition: {error}") from error
        if (error.sqlstate or "")[:2] not in _POISON_CLASSES:
            raise
        await savepoint.rollback()
        return error.sqlstate or "", str(error)[:_MESSAGE_CHARS]
    if status != f"COPY {rows.num_rows}":
        raise Unavailable(f"{status} instead of {rows.num_rows} rows: has events_log a trigger that drops some?")
    await savepoint.commit()
    return None


def _is_missing_day(error: asyncpg.PostgresError) -> bool:
    """A row that no partition takes is told as a check violation of the table without a constraint's name."""
    return isinstance(error, asyncpg.CheckViolationError) and error.constraint_name is None


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
