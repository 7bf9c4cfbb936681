"""Which events of the log were only aggregated: they are no rows of the event store, so the lake leaves them out too.

The decision is the batcher's and nobody wrote it down, so the event store is asked: of projects of which something was
aggregated in the hours in question (the ledger says so), an event is left out unless it has its row. Other projects,
nearly all, cost nothing more. What is asked about is stored already, and no dead letter.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from typing import Protocol

import pyarrow as pa
import pyarrow.compute as pc

from storage.copied_rows import READ_DEADLINE_S, copy_rows_out, parse_rows, produced
from storage.event_batch import COLUMNS
from storage.memory_store import MemoryStore
from storage.postgres import Postgres
from storage.statements import statement

_FOLDING = statement("projects_that_fold")
_STORED_IDS = statement("stored_ids")
_ISO_DATES = "SELECT set_config('datestyle', 'ISO', true)"
_HOUR = timedelta(hours=1)
_US = timedelta(microseconds=1)
_ID = pa.schema([COLUMNS.field("project_id"), COLUMNS.field("event_id"), pa.field("log_offset", pa.int64())])


class FoldedEvents(Protocol):
    async def without(self, events: pa.Table) -> pa.Table:
        """The events (`storage.lake_file.EVENTS`) but those that were only aggregated."""


class PostgresFolded:
    """`FoldedEvents` over PostgreSQL."""

    def __init__(self, postgres: Postgres) -> None:
        self._postgres = postgres

    async def without(self, events: pa.Table) -> pa.Table:
        if not events.num_rows:
            return events
        projects = await self._that_fold(events)
        if not projects:
            return events
        is_doubtful = pc.is_in(events.column("project_id"), value_set=pa.array(projects, pa.string()))
        doubtful = events.filter(is_doubtful)
        is_stored = pc.is_in(_ids(doubtful), value_set=await self._stored_ids(doubtful, projects))
        return pa.concat_tables([events.filter(pc.invert(is_doubtful)), doubtful.filter(is_stored)])

    async def _that_fold(self, events: pa.Table) -> list[str]:
        first, last = _bounds(events, "received_at")
        projects = pc.unique(events.column("project_id")).to_pylist()
        hour = first.replace(minute=0, second=0, microsecond=0)
        async with self._postgres.session() as connection:
            return [row["project_id"] for row in await connection.fetch(_FOLDING, projects, hour, last + _HOUR)]

    async def _stored_ids(self, events: pa.Table, projects: Sequence[str]) -> pa.Array:
        first, last = _bounds(events, "timestamp")
        offsets = pc.min_max(events.column("log_offset")).as_py()
        arguments = (list(projects), first, last + _US, offsets["min"], offsets["max"] + 1)

        async def produce(put: Callable[[bytes], Awaitable[None]]) -> None:
            async with self._postgres.transaction(snapshot=True, deadline_s=READ_DEADLINE_S) as connection:
                await connection.execute(_ISO_DATES)
                await copy_rows_out(connection, _STORED_IDS, arguments, put)

        async with aclosing(produced(produce)) as blocks:
            batches = [await asyncio.to_thread(parse_rows, block, _ID) async for block in blocks]
        return _ids(pa.Table.from_batches(batches, _ID)).combine_chunks()


def _bounds(events: pa.Table, column: str) -> tuple[datetime, datetime]:
    found = pc.min_max(events.column(column)).as_py()
    return found["min"].astimezone(UTC), found["max"].astimezone(UTC)


def _ids(events: pa.Table) -> pa.ChunkedArray:
    project, event, offset = (events.column(name) for name in _ID.names)
    return pc.binary_join_element_wise(project, event, offset.cast(pa.string()), "\0")


class MemoryFolded:
    """`FoldedEvents` over a `MemoryStore`."""

    def __init__(self, store: MemoryStore) -> None:
        self._store = store

    async def without(self, events: pa.Table) -> pa.Table:
        stored = {tuple(row[name] for name in _ID.names) for row in self._store.rows}
        names = zip(*(events.column(name).to_pylist() for name in _ID.names), strict=True)
        return events.filter(pa.array([name in stored for name in names], pa.bool_()))
