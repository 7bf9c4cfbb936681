"""All stored events of some projects, whatever their age: out of PostgreSQL as long as it surely has all of them, else
out of the lake and of what is not in it yet. The law is `storage.event_columns.StoredEvents`'s, and:

- Each event comes once, or the read ends with `Unavailable`: never is a part of the events taken for all of them. Of a
  file that is missing or damaged nothing is left out; who reads tries again, and says so.
- PostgreSQL **surely has all** of a range when what was removed of the projects was stored before any event of the
  range can have been (`expired_events`). It is asked before the read and after it: what was removed meanwhile makes the
  read `Unavailable`. There an index finds the rows, for what they are; a file of the lake is read for one project as
  for a hundred, and may have to be fetched.
- The lake's snapshot is one moment: live files and, from the checkpoints on, rows (`storage.lake_manifest`). Events
  that are not exported yet are never removed from PostgreSQL.
- What is in memory is a batch of one file.
- Records of aggregate-only events are in PostgreSQL alone.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Iterator, Sequence
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal, Protocol

import pyarrow as pa

from config.settings import Settings
from storage.errors import FileUnavailable, FormatError, Unavailable
from storage.event_batch import COLUMNS
from storage.event_columns import EventColumns, PostgresEventColumns, RecordChunks, instant
from storage.lake_cache import CACHE
from storage.lake_files import LakeFiles
from storage.lake_manifest import FileEntry, LakeSnapshots
from storage.lake_rows import WantedRows, read_rows
from storage.object_store import open_object_store
from storage.postgres import Postgres
from storage.postgres_lake_snapshots import PostgresLakeSnapshots
from storage.statements import statement

Place = Literal["postgres", "lake"]

_EXPIRED_BEFORE = statement("expired_before")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# Between the clocks of gateways and the server.
_CLOCKS_APART = timedelta(hours=1)


class EventHorizon(Protocol):
    """What PostgreSQL has removed."""

    async def has_all(self, project_ids: Sequence[str], *, start_s: float) -> bool:
        """Whether all events of the projects with timestamp >= `start_s` are there for sure."""


class PostgresHorizon:
    """`EventHorizon` by what the retention has noted. No event's time is later than its receipt by more than
    `max_event_ahead_s`."""

    def __init__(self, postgres: Postgres, *, max_event_ahead_s: float) -> None:
        self._postgres = postgres
        self._margin = timedelta(seconds=max_event_ahead_s) + _CLOCKS_APART

    async def has_all(self, project_ids: Sequence[str], *, start_s: float) -> bool:
        async with self._postgres.session() as connection:
            before: datetime | None = await connection.fetchval(_EXPIRED_BEFORE, list(project_ids))
        return before is None or instant(start_s) >= before + self._margin


class PastEvents:
    """`StoredEvents`. Without a lake (`snapshots` and `files` None) PostgreSQL is all there is."""

    def __init__(
        self,
        events: EventColumns,
        horizon: EventHorizon,
        *,
        snapshots: LakeSnapshots | None = None,
        files: LakeFiles | None = None,
        prefer: Place = "postgres",
    ) -> None:
        """With `prefer` "lake" PostgreSQL is asked only for what is not in files: for who reads many projects' whole
        days, one after the other."""
        self._events = events
        self._horizon = horizon
        self._snapshots = snapshots
        self._files = files
        self._prefer = prefer

    async def place_of(self, project_ids: Sequence[str], *, start_s: float) -> Place:
        """Where a range that begins there is read from."""
        if self._snapshots is None:
            return "postgres"
        if self._prefer == "postgres" and await self._horizon.has_all(project_ids, start_s=start_s):
            return "postgres"
        return "lake"

    async def rows(
        self,
        project_ids: Sequence[str],
        *,
        start_s: float,
        end_s: float,
        columns: Collection[str] | None = None,
    ) -> AsyncIterator[pa.RecordBatch]:
        if not project_ids:
            return
        place = await self.place_of(project_ids, start_s=start_s)
        read = self._stored if place == "postgres" else self._exported
        async with aclosing(read(project_ids, start_s, end_s, columns)) as batches:
            async for batch in batches:
                yield batch

    def records(self, project_ids: Sequence[str], *, start_s: float, end_s: float) -> RecordChunks:
        return self._events.records(project_ids, start_s=start_s, end_s=end_s)

    async def _stored(
        self, projects: Sequence[str], start_s: float, end_s: float, columns: Collection[str] | None
    ) -> AsyncGenerator[pa.RecordBatch, None]:
        # With a lake PostgreSQL was chosen because it had all, and must have it to the end. Without one it is read
        # whatever it has.
        had_all = self._snapshots is not None or await self._horizon.has_all(projects, start_s=start_s)
        async for batch in self._events.rows(projects, start_s=start_s, end_s=end_s, columns=columns):
            yield batch
        if had_all and not await self._horizon.has_all(projects, start_s=start_s):
            raise Unavailable("events were removed from PostgreSQL while they were read")

    async def _exported(
        self, projects: Sequence[str], start_s: float, end_s: float, columns: Collection[str] | None
    ) -> AsyncGenerator[pa.RecordBatch, None]:
        assert self._snapshots is not None
        start, end = instant(start_s), instant(end_s)
        async with self._snapshots.snapshot(projects, start=start, end=end) as snapshot:
            async for batch in snapshot.tail:
                yield batch.select(COLUMNS.names)
            files = snapshot.files
        wanted = WantedRows(sorted(set(projects)), _microseconds(start), _microseconds(end), columns)
        for file in files:
            async for batch in self._of_file(file, wanted):
                yield batch

    async def _of_file(self, file: FileEntry, wanted: WantedRows) -> AsyncGenerator[pa.RecordBatch, None]:
        assert self._files is not None
        async with self._files.path(file) as path:
            rows = read_rows(path, wanted)
            try:
                while (batch := await asyncio.to_thread(_next_of, file, rows)) is not None:
                    yield batch
            finally:
                await asyncio.to_thread(rows.close)


def _next_of(file: FileEntry, rows: Iterator[pa.RecordBatch]) -> pa.RecordBatch | None:
    try:
        return next(rows, None)
    except (FormatError, OSError) as error:
        raise FileUnavailable(f"{file.key} of the lake: cannot be read") from error


def _microseconds(at: datetime) -> int:
    return (at - _EPOCH) // timedelta(microseconds=1)


def open_past_events(
    settings: Settings, postgres: Postgres, *, prefer: Place = "postgres"
) -> "tuple[PastEvents, LakeFiles | None]":
    """With the files, to be closed by whoever has opened them. Connects to nothing yet."""
    partitions = settings.log.partitions
    ahead_s = settings.gateway.max_event_ahead_s
    events = PostgresEventColumns(postgres, partitions=partitions, max_event_ahead_s=ahead_s)
    horizon = PostgresHorizon(postgres, max_event_ahead_s=ahead_s)
    if not settings.lake.enabled:
        return PastEvents(events, horizon), None
    data = Path(settings.data).absolute()
    files = LakeFiles(
        lambda: open_object_store(settings.lake, data=data),
        cache=data / CACHE,
        folder=data / "recounts",
        max_cache_bytes=settings.query.cache_bytes,
    )
    snapshots = PostgresLakeSnapshots(postgres, partitions=partitions)
    return PastEvents(events, horizon, snapshots=snapshots, files=files, prefer=prefer), files
