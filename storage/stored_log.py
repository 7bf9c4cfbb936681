"""A partition's offsets read back from the event store: for a sink that the log has left behind.

The law, which `PostgresStoredLog` and `MemoryStoredLog` both keep:
- What is asked for lies below the event store's checkpoint; it does not change any more.
- `rows` are all stored events of the records, in no order. Duplicates, dead letters and events that were only
  aggregated have no row: what the log holds and is not here is one of these.
- `stretches` cuts a range into pieces of whole records, so that each can be held in memory. Every row of the range
  is in one of them. They also say how many rows were stored, which is what an export of the range must come to.
- It costs a look at what was stored since `since` in all partitions (of a stretch: while it was stored), so the whole
  of a large range is cut once and then read stretch by stretch.
- Each batch comes within `storage.copied_rows.CHUNK_DEADLINE_S`, else `Unavailable` is raised.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from datetime import UTC, datetime
from itertools import groupby
from typing import Any, NamedTuple, Protocol

import pyarrow as pa

from storage.copied_rows import READ_DEADLINE_S, copy_rows_out, produced
from storage.errors import Unavailable
from storage.event_columns import OFFSET_COLUMNS, Batches, parse_stored
from storage.lake_manifest import OffsetRange
from storage.memory_store import MemoryStore
from storage.postgres import Postgres
from storage.statements import statement

_STRETCHES = statement("stretches")
_ROWS = statement("copy_stretch")
_PLAN = statement("copy_recent_plan")
_DEAD_ROWS = statement("dead_rows")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Stretch(NamedTuple):
    """The stored rows of some records that follow one another."""

    range: OffsetRange
    rows: int
    stored_from: datetime
    stored_to: datetime
    """Earliest and latest created_at."""


class DeadRow(NamedTuple):
    """A row of a record that was set aside. `row_number` counts from 0 within the record, duplicates among them."""

    partition: int
    log_offset: int
    row_number: int
    project_id: str
    event_id: str
    """As text that PostgreSQL takes: NUL is replaced. The row's number is what names it."""


class StoredLog(Protocol):
    async def stretches(
        self, within: OffsetRange, *, since: datetime | None, max_rows: int, max_bytes: int
    ) -> list[Stretch]:
        """The range in pieces of about `max_rows` rows, and of `max_bytes` of properties and context and a record more
        at most, in the order of offsets; together they cover all of it, also where nothing was stored. `since`: nothing
        of it was stored earlier (`StoredMark.since`), None if not known."""

    def rows(self, stretch: Stretch) -> Batches:
        """The stored events in the schema `storage.event_columns.OFFSET_COLUMNS`, their JSON compact."""

    async def dead_rows(self, ranges: Sequence[OffsetRange]) -> list[DeadRow]:
        """What was set aside, in the order of partition, offset and row."""


class PostgresStoredLog:
    """`StoredLog` over PostgreSQL. Each read under way holds one connection of the `Postgres`."""

    def __init__(self, postgres: Postgres) -> None:
        self._postgres = postgres

    async def stretches(
        self, within: OffsetRange, *, since: datetime | None, max_rows: int, max_bytes: int
    ) -> list[Stretch]:
        async with self._postgres.transaction(snapshot=True, deadline_s=READ_DEADLINE_S) as connection:
            await connection.execute(_PLAN)
            found = await connection.fetch(_STRETCHES, *within, since or _EPOCH, max_rows, max_bytes)
        return _covering(within, [(row[0], row[1], row[2], row[3]) for row in found])

    async def rows(self, stretch: Stretch) -> AsyncIterator[pa.RecordBatch]:
        async def produce(put: Callable[[bytes], Awaitable[None]]) -> None:
            async with self._postgres.transaction(snapshot=True, deadline_s=READ_DEADLINE_S) as connection:
                await connection.execute(_PLAN)
                wanted = (*stretch.range, stretch.stored_from, stretch.stored_to)
                await copy_rows_out(connection, _ROWS, wanted, put)

        if not stretch.rows:
            return
        async with aclosing(produced(produce)) as blocks:
            async for block in blocks:
                yield await asyncio.to_thread(parse_stored, block)

    async def dead_rows(self, ranges: Sequence[OffsetRange]) -> list[DeadRow]:
        if not ranges:
            return []
        async with self._postgres.session() as connection:
            rows = await connection.fetch(_DEAD_ROWS, *map(list, zip(*ranges, strict=True)))
        return [DeadRow(*row) for row in rows]


_Piece = tuple[int, int, datetime, datetime]


def _covering(within: OffsetRange, pieces: Sequence[_Piece]) -> list[Stretch]:
    """Pieces, told by their first offset with a row, that leave no offset out."""
    if not pieces:
        return [Stretch(within, 0, _EPOCH, _EPOCH)]
    firsts = [within.first_offset, *(piece[0] for piece in pieces[1:]), within.next_offset]
    return [
        Stretch(OffsetRange(within.partition, first, after), *piece[1:])
        for piece, first, after in zip(pieces, firsts, firsts[1:], strict=False)
    ]


class MemoryStoredLog:
    """`StoredLog` over a `MemoryStore`."""

    def __init__(self, store: MemoryStore, *, chunk_rows: int = 1000) -> None:
        self._store = store
        self._chunk_rows = chunk_rows
        self.available = True
        """While False every call raises `Unavailable`."""

    async def stretches(
        self, within: OffsetRange, *, since: datetime | None, max_rows: int, max_bytes: int
    ) -> list[Stretch]:
        self._require_available()
        rows = sorted(self._rows(within), key=_offset_of)
        pieces: dict[tuple[int, int], _Piece] = {}
        rows_before = bytes_before = 0
        for offset, record in groupby(rows, key=_offset_of):
            of_record = list(record)
            stored = [datetime.fromtimestamp(row["stored_ms"] / 1000, UTC) for row in of_record]
            piece = rows_before // max_rows, bytes_before // max_bytes
            first, count, earliest, latest = pieces.get(piece, (offset, 0, stored[0], stored[0]))
            times = [*stored, earliest, latest]
            pieces[piece] = first, count + len(stored), min(times), max(times)
            rows_before += len(stored)
            bytes_before += sum(len(row["properties"]) + len(row["context"] or "") for row in of_record)
        return _covering(within, list(pieces.values()))

    async def rows(self, stretch: Stretch) -> AsyncIterator[pa.RecordBatch]:
        rows = self._rows(stretch.range)
        for first in range(0, len(rows), self._chunk_rows):
            self._require_available()
            yield pa.RecordBatch.from_pylist(rows[first : first + self._chunk_rows], schema=OFFSET_COLUMNS)

    async def dead_rows(self, ranges: Sequence[OffsetRange]) -> list[DeadRow]:
        self._require_available()
        return sorted(
            DeadRow(*key, row["project_id"].replace("\0", "\ufffd"), row["event_id"].replace("\0", "\ufffd"))
            for key, row in self._store.dead_letters.items()
            if any(_covers(each, key.partition, key.offset) for each in ranges)
        )

    def _rows(self, within: OffsetRange) -> list[dict[str, Any]]:
        return [row for row in self._store.rows if _covers(within, row["partition_id"], row["log_offset"])]

    def _require_available(self) -> None:
        if not self.available:
            raise Unavailable("made to be away")


def _offset_of(row: dict[str, Any]) -> int:
    return int(row["log_offset"])


def _covers(each: OffsetRange, partition: int, offset: int) -> bool:
    return each.partition == partition and each.first_offset <= offset < each.next_offset
