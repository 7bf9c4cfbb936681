"""A lake for tests of SQL: files of `storage.lake_file` in a folder, rows that are in no file yet, and who asks."""

import json
import tempfile
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa

from config.settings import QuerySettings
from gateway.metrics import Metrics
from gateway.sql_queries import SqlAnswer, SqlQueries
from storage.fingerprint import partition_of
from storage.folder_objects import FolderObjects
from storage.lake_file import EVENTS, key_of, write_file
from storage.lake_manifest import FileEntry, OffsetRange
from storage.memory_manifest import KeptFile, MemoryManifest
from storage.memory_store import MemoryStore
from storage.object_store import ObjectStore

PARTITIONS = 64
Event = dict[str, Any]


def event(event_id: str, at: str, *, project: str = "shop", kind: str = "view", **fields: Any) -> Event:
    return {"eventId": event_id, "projectId": project, "eventType": kind, "timestamp": at} | fields


def row_of(event: Event, offset: int) -> dict[str, Any]:
    """As the event store has it."""
    context = event.get("context")
    at = datetime.fromisoformat(event["timestamp"])
    return {
        "project_id": event["projectId"],
        "event_id": event["eventId"],
        "event_type": event["eventType"],
        "user_id": event.get("userId"),
        "anonymous_id": event.get("anonymousId"),
        "session_id": event.get("sessionId"),
        "site_id": event.get("siteId"),
        "timestamp": at,
        "received_at": at + timedelta(seconds=1),
        "properties": json.dumps(event.get("properties", {}), ensure_ascii=False),
        "context": None if context is None else json.dumps(context, ensure_ascii=False),
        "partition_id": partition_of(event["projectId"], PARTITIONS),
        "log_offset": offset,
    }


class SqlLake:
    """`objects` lie in the folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.objects: ObjectStore = FolderObjects(folder / "lake")
        self.store = MemoryStore()
        self.manifest = MemoryManifest(self.store, partitions=PARTITIONS)
        self._number = 0

    def add_files(self, events: Iterable[Event]) -> list[Path]:
        """A file for each of their hours."""
        by_hour: defaultdict[datetime, list[Event]] = defaultdict(list)
        for each in events:
            at = datetime.fromisoformat(each["timestamp"])
            by_hour[at.replace(minute=0, second=0, microsecond=0)].append(each)
        return [self._add_file(hour, found) for hour, found in sorted(by_hour.items())]

    def _add_file(self, hour: datetime, events: list[Event]) -> Path:
        self._number += 1
        rows = [row_of(each, offset) for offset, each in enumerate(events)]
        ranges = [OffsetRange(partition, 0, len(rows)) for partition in sorted({row["partition_id"] for row in rows})]
        key = key_of(int(hour.timestamp()), 1, self._number)
        path = self.folder / "lake" / key
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as sink:
            table = pa.Table.from_pylist(rows, schema=EVENTS)
            written = write_file(table, sink, hour=int(hour.timestamp()), plan=1, number=self._number, ranges=ranges)
        file = written.at(key)
        entry = FileEntry(
            self._number,
            1,
            key,
            file.hour,
            file.rows,
            file.bytes,
            file.checksum,
            file.id_digest,
            file.min_timestamp,
            file.max_timestamp,
            "hot",
            datetime.now(UTC),
        )
        self.manifest.files[self._number] = KeptFile(entry, file)
        return path

    def add_tail(self, events: Iterable[Event]) -> None:
        """Stored, and in no file yet."""
        self.store.rows += [row_of(each, 1_000_000 + offset) for offset, each in enumerate(events)]


class Asker:
    """Asks as the route does."""

    def __init__(self, queries: SqlQueries) -> None:
        self.queries = queries

    async def answer(self, project: str, sql: str, **options: Any) -> SqlAnswer:
        return await self.queries.run(project, sql, "json", **options)

    async def rows(self, project: str, sql: str, **options: Any) -> list[tuple[Any, ...]]:
        answer = await self.answer(project, sql, **options)
        return [tuple(row) for row in msgspec.json.decode(answer.body)]

    async def value(self, project: str, sql: str) -> Any:
        [(value,)] = await self.rows(project, sql)
        return value


@asynccontextmanager
async def asking(
    lake: SqlLake, settings: QuerySettings | None = None, *, objects: ObjectStore | None = None
) -> AsyncIterator[Asker]:
    with tempfile.TemporaryDirectory(dir=lake.folder) as folder:
        queries = SqlQueries(
            # A process that waits for another query would be started for most of them, and asked nothing.
            settings or QuerySettings(warm_processes=0),
            lake.manifest,
            lambda: objects or lake.objects,
            Metrics(),
            cache=lake.folder / "cache",
            folder=Path(folder) / "queries",
        )
        try:
            yield Asker(queries)
        finally:
            await queries.close()
