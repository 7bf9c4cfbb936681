"""One moment of the lake and of what is not in it yet, out of PostgreSQL. The law is `storage.lake_manifest`'s.

Manifest, checkpoints and rows are read in one REPEATABLE READ transaction, which lasts until the tail is read."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from datetime import datetime

import pyarrow as pa

from storage.copied_rows import READ_DEADLINE_S, copy_rows_out, produced
from storage.event_columns import parse_stored
from storage.event_store import Checkpoint
from storage.fingerprint import partition_of
from storage.lake_manifest import FileEntry, LakePosition, LakeSnapshot
from storage.postgres import Postgres
from storage.postgres_lake_files import entry_of
from storage.statements import statement

_CHECKPOINT = statement("snapshot_checkpoint")
_FILES = statement("snapshot_files")
_TAIL = statement("copy_tail")
_PLAN = statement("copy_recent_plan")

_Head = tuple[list[FileEntry], list[LakePosition]]
_Item = _Head | bytes


class PostgresLakeSnapshots:
    """`storage.lake_manifest.LakeSnapshots`. Each snapshot under way holds one connection of the `Postgres`, until
    its tail is read or its block ends."""

    def __init__(self, postgres: Postgres, *, partitions: int) -> None:
        self._postgres = postgres
        self._partitions = partitions

    @asynccontextmanager
    async def snapshot(
        self, project_ids: Sequence[str], *, start: datetime | None = None, end: datetime | None = None
    ) -> AsyncIterator[LakeSnapshot]:
        projects = sorted(set(project_ids))
        partitions = {each: partition_of(each, self._partitions) for each in projects}

        async def produce(put: Callable[[_Item], Awaitable[None]]) -> None:
            async with self._postgres.transaction(snapshot=True, deadline_s=READ_DEADLINE_S) as connection:
                rows = await connection.fetch(_CHECKPOINT, sorted(set(partitions.values())))
                positions = [LakePosition(Checkpoint(*row[:3]), row[3]) for row in rows]
                files = [entry_of(row) for row in await connection.fetch(_FILES, projects, start, end)]
                await put((files, positions))
                tails = {row[0]: (row[2], row[4]) for row in rows if row[3] > row[2]}
                behind = [each for each in projects if partitions[each] in tails]
                if behind:
                    offsets, sinces = zip(*(tails[partitions[each]] for each in behind), strict=True)
                    await connection.execute(_PLAN)
                    wanted = (behind, start, end, list(offsets), list(sinces), min(sinces))
                    await copy_rows_out(connection, _TAIL, wanted, put)

        async with aclosing(produced(produce)) as items:
            head = await anext(items)
            assert isinstance(head, tuple)
            yield LakeSnapshot(*head, _batches(items))


async def _batches(items: AsyncIterator[_Item]) -> AsyncIterator[pa.RecordBatch]:
    async for item in items:
        assert isinstance(item, bytes)
        yield await asyncio.to_thread(parse_stored, item)
