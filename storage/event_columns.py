"""Stored events read back as columns (`storage.event_batch.COLUMNS`): what windows are rebuilt and recomputed from.

The law, which `MemoryEventColumns` keeps as well:
- Batches come in no particular order; `properties` and `context` are JSON texts as PostgreSQL writes them.
- One call reads one state of the database. A `snapshot`'s events are exactly those of the records below its
  checkpoint that can be stored, and whose time is not before `since_s`; too late ones are among them.
- Events that are only aggregated have no row: `records` are theirs, a minute each (`storage.aggregated`), also of a
  snapshot, where they come after its batches.
- It reads as far as the caller takes batches, and a few batches ahead; how long the caller takes is its own affair
  (an hour in all). Each batch comes within `storage.copied_rows.CHUNK_DEADLINE_S`, else `Unavailable` is raised.

The index (project_id, "timestamp") finds the rows, so that a read costs what it returns; the projects of a partition
are found in the ledger, which has a row of every project that ever had an event.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import NamedTuple, Protocol

import msgspec
import pyarrow as pa

from storage.aggregated import AggregatedRecord, RecordKey
from storage.copied_rows import READ_DEADLINE_S, copy_rows_out, parse_rows, produced
from storage.errors import Unavailable
from storage.event_batch import COLUMNS
from storage.event_store import Checkpoint
from storage.fingerprint import partition_of
from storage.memory_store import MemoryStore
from storage.postgres import Connection, Postgres
from storage.postgres_aggregated import read_records
from storage.postgres_store import SINK
from storage.statements import statement

_CHECKPOINT = "SELECT partition_id, epoch, next_offset FROM checkpoints WHERE sink = $1 AND partition_id = $2"
_PROJECTS = statement("projects_in_ledger")
_EVENTS = statement("copy_events")
_PLAN = statement("copy_events_plan")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_FIRST, _LAST = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)
# Between the clocks of gateways and the server.
_CLOCKS_APART = timedelta(hours=1)

OFFSET_COLUMNS = COLUMNS.append(pa.field("log_offset", pa.int64()))
"""An event and the offset of its record."""
_JSON = ("properties", "context")

Batches = AsyncIterator[pa.RecordBatch]
RecordChunk = Sequence[tuple[RecordKey, AggregatedRecord]]
RecordChunks = AsyncIterator[RecordChunk]


def parse_stored(block: bytes) -> pa.RecordBatch:
    """Copied rows of `OFFSET_COLUMNS` with compact JSON, as the log has it: PostgreSQL writes spaces, and a list in a
    property is one value wherever its event is read."""
    rows = parse_rows(block, OFFSET_COLUMNS)
    for name in _JSON:
        texts = [text and msgspec.json.format(text, indent=-1) for text in rows.column(name).to_pylist()]
        rows = rows.set_column(rows.schema.get_field_index(name), rows.schema.field(name), pa.array(texts, pa.string()))
    return rows


class Snapshot(NamedTuple):
    """One state of the event store: how far it is in a partition, and the partition's events."""

    checkpoint: Checkpoint
    batches: Batches
    """To be read to their end first."""
    records: RecordChunks
    """Of minutes that begin at `since_s` or later: it is to be the beginning of one."""


_Item = Checkpoint | bytes | RecordChunk
Put = Callable[[_Item], Awaitable[None]]
_ROWS_END = b""


class StoredEvents(Protocol):
    """All stored events of some projects, whatever their age: what a day is counted again from."""

    def rows(
        self,
        project_ids: Sequence[str],
        *,
        start_s: float,
        end_s: float,
        columns: Collection[str] | None = None,
    ) -> Batches:
        """The projects' events with `start_s` <= timestamp < `end_s`. Of the columns beyond `project_id` and
        `timestamp` only those of `columns` need be there, the others may be null."""

    def records(self, project_ids: Sequence[str], *, start_s: float, end_s: float) -> RecordChunks:
        """The projects' records with `start_s` <= minute < `end_s`, which are to be beginnings of minutes."""


class EventColumns(Protocol):
    def snapshot(self, partition: int, *, since_s: float) -> AbstractAsyncContextManager[Snapshot]:
        """The partition's checkpoint and its events with timestamp >= `since_s` (seconds since the epoch). To be used
        as `async with`, whose end lets the transaction go."""

    def rows(
        self,
        project_ids: Sequence[str],
        *,
        start_s: float,
        end_s: float,
        below_offset: int | None = None,
        columns: Collection[str] | None = None,
    ) -> Batches:
        """The projects' events with `start_s` <= timestamp < `end_s`; with `below_offset` only those of records below
        it, which makes sense for projects of one partition. `columns` as in `StoredEvents`."""

    def records(self, project_ids: Sequence[str], *, start_s: float, end_s: float) -> RecordChunks:
        """The projects' records with `start_s` <= minute < `end_s`, which are to be beginnings of minutes."""


class PostgresEventColumns:
    """`EventColumns` over PostgreSQL. No event's time is later than its receipt by more than `max_event_ahead_s`.

    Each read under way holds one connection of the `Postgres`."""

    def __init__(self, postgres: Postgres, *, partitions: int, max_event_ahead_s: float = 86400.0) -> None:
        self._postgres = postgres
        self._partitions = partitions
        self._max_ahead = timedelta(seconds=max_event_ahead_s)

    @asynccontextmanager
    async def snapshot(self, partition: int, *, since_s: float) -> AsyncIterator[Snapshot]:
        async def produce(put: Put) -> None:
            async with self._postgres.transaction(snapshot=True, deadline_s=READ_DEADLINE_S) as connection:
                row = await connection.fetchrow(_CHECKPOINT, SINK, partition)
                await put(Checkpoint(*row) if row else Checkpoint(partition, 0, 0))
                found = [record["project_id"] for record in await connection.fetch(_PROJECTS)]
                projects = [each for each in found if partition_of(each, self._partitions) == partition]
                await self._copy(connection, put, projects, instant(since_s), _LAST, None)
                await put(_ROWS_END)
                async for chunk in read_records(connection, projects, instant(since_s), _LAST):
                    await put(chunk)

        async with aclosing(produced(produce)) as items:
            checkpoint = await anext(items)
            assert isinstance(checkpoint, Checkpoint)
            yield Snapshot(checkpoint, _batches(items), _record_chunks(items))

    async def records(self, project_ids: Sequence[str], *, start_s: float, end_s: float) -> RecordChunks:
        async def produce(put: Put) -> None:
            async with self._postgres.transaction(snapshot=True, deadline_s=READ_DEADLINE_S) as connection:
                async for chunk in read_records(connection, project_ids, instant(start_s), instant(end_s)):
                    await put(chunk)

        async with aclosing(produced(produce)) as items:
            async for chunk in _record_chunks(items):
                yield chunk

    async def rows(
        self,
        project_ids: Sequence[str],
        *,
        start_s: float,
        end_s: float,
        below_offset: int | None = None,
        columns: Collection[str] | None = None,
    ) -> Batches:
        async def produce(put: Put) -> None:
            async with self._postgres.transaction(snapshot=True, deadline_s=READ_DEADLINE_S) as connection:
                await self._copy(connection, put, project_ids, instant(start_s), instant(end_s), below_offset)

        async with aclosing(produced(produce)) as items:
            async for batch in _batches(items):
                yield batch

    async def _copy(
        self,
        connection: Connection,
        put: Put,
        projects: Sequence[str],
        start: datetime,
        end: datetime,
        below_offset: int | None,
    ) -> None:
        """All rows as CSV, in blocks of whole rows."""
        if not projects:
            return
        # Leaves out the days before: what has this time was not stored earlier.
        earliest = max(start, _FIRST + self._max_ahead + _CLOCKS_APART) - self._max_ahead - _CLOCKS_APART
        await connection.execute(_PLAN)
        await copy_rows_out(connection, _EVENTS, (list(projects), start, end, earliest, below_offset), put)


async def _batches(items: AsyncIterator[_Item]) -> Batches:
    async for item in items:
        if item == _ROWS_END:
            return
        assert isinstance(item, bytes)
        yield await asyncio.to_thread(parse_rows, item, COLUMNS)


async def _record_chunks(items: AsyncIterator[_Item]) -> RecordChunks:
    async for item in items:
        assert isinstance(item, list)
        yield item


def instant(second: float) -> datetime:
    """Seconds since the epoch as a time; the calendar's end beyond it."""
    try:
        return _EPOCH + timedelta(seconds=second)
    except OverflowError:
        return _FIRST if second < 0 else _LAST


class MemoryEventColumns:
    """`EventColumns` over a `MemoryStore`, whose rows say themselves which partition they are of."""

    def __init__(self, store: MemoryStore, *, chunk_rows: int = 1000) -> None:
        self._store = store
        self._chunk_rows = chunk_rows
        self.available = True
        """While False every call raises `Unavailable`."""

    @asynccontextmanager
    async def snapshot(self, partition: int, *, since_s: float) -> AsyncIterator[Snapshot]:
        self._require_available()
        [checkpoint] = await self._store.checkpoints([partition])
        found = [
            row
            for row in self._store.rows
            if row["partition_id"] == partition and row["timestamp"].timestamp() >= since_s
        ]
        records = self._records(lambda _, record: record.partition == partition, since_s)
        yield Snapshot(checkpoint, self._chunks(found), records)

    async def records(self, project_ids: Sequence[str], *, start_s: float, end_s: float) -> RecordChunks:
        chosen = self._records(lambda key, _: key.project_id in project_ids and key.minute < end_s, start_s)
        async for chunk in chosen:
            yield chunk

    async def _records(self, chosen: Callable[[RecordKey, AggregatedRecord], bool], start_s: float) -> RecordChunks:
        self._require_available()
        found = [
            (key, replace(record, aggregate=record.aggregate.copy()))
            for key, record in self._store.records.items()
            if key.minute >= start_s and chosen(key, record)
        ]
        for first in range(0, len(found), self._chunk_rows):
            self._require_available()
            yield found[first : first + self._chunk_rows]

    async def rows(
        self,
        project_ids: Sequence[str],
        *,
        start_s: float,
        end_s: float,
        below_offset: int | None = None,
        columns: Collection[str] | None = None,
    ) -> Batches:
        self._require_available()
        found = [
            row
            for row in self._store.rows
            if row["project_id"] in project_ids
            and start_s <= row["timestamp"].timestamp() < end_s
            and (below_offset is None or row["log_offset"] < below_offset)
        ]
        async for chunk in self._chunks(found):
            yield chunk

    async def _chunks(self, rows: Sequence[dict[str, object]]) -> Batches:
        for first in range(0, len(rows), self._chunk_rows):
            self._require_available()
            yield pa.RecordBatch.from_pylist(list(rows[first : first + self._chunk_rows]), schema=COLUMNS)

    def _require_available(self) -> None:
        if not self.available:
            raise Unavailable("made to be away")
