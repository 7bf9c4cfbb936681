"""Rows that PostgreSQL sends as CSV, as Arrow batches: no Python for each of them.

A task of its own reads; the reader takes batches at its own pace, and a few blocks are ahead of it. The database's
deadlines hold for that task and must not cancel whoever happens to work on a batch. Each item comes within
`CHUNK_DEADLINE_S`, else `Unavailable` is raised.
"""

import asyncio
import io
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any, TypeVar

import pyarrow as pa
from pyarrow import csv

from storage.errors import Unavailable
from storage.postgres import Connection

CHUNK_BYTES = 4 * 1024 * 1024
"""Of CSV: some 10,000 events. Three such blocks are in memory at most."""

CHUNK_DEADLINE_S = 30.0
READ_DEADLINE_S = 3600.0

_Item = TypeVar("_Item")


async def copy_rows_out(
    connection: Connection, query: str, arguments: tuple[Any, ...], put: Callable[[bytes], Awaitable[None]]
) -> None:
    """All rows of the query as CSV, in blocks of whole rows. The session's datestyle must be ISO."""
    rows: list[bytes] = []
    size = 0

    async def take(data: bytes) -> None:
        # The protocol sends each row in a message of its own; the driver hands over all that one read brought.
        nonlocal size
        rows.append(data)
        size += len(data)
        if size >= CHUNK_BYTES:
            block = b"".join(rows)
            rows.clear()
            size = 0
            await put(block)

    await connection.copy_from_query(query, *arguments, output=take, format="csv", timeout=READ_DEADLINE_S)
    if rows:
        await put(b"".join(rows))


async def produced(
    produce: Callable[[Callable[[_Item], Awaitable[None]]], Awaitable[None]],
) -> AsyncGenerator[_Item, None]:
    """What a task of its own puts, one item ahead; ends with the task."""
    queue: asyncio.Queue[_Item | Exception | None] = asyncio.Queue(1)

    async def run() -> None:
        try:
            await produce(queue.put)
        except Exception as error:
            await queue.put(error)
        else:
            await queue.put(None)

    task = asyncio.create_task(run())
    try:
        while True:
            try:
                async with asyncio.timeout(CHUNK_DEADLINE_S):
                    item = await queue.get()
            except TimeoutError as error:
                raise Unavailable(f"PostgreSQL: no events within {CHUNK_DEADLINE_S} s") from error
            if item is None:
                return
            if isinstance(item, Exception):
                raise item
            yield item
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def parse_rows(block: bytes, schema: pa.Schema) -> pa.RecordBatch:
    # One block of the reader's: it takes no row that is larger than its block.
    read = csv.ReadOptions(column_names=schema.names, use_threads=False, block_size=len(block) + 1)
    parse = csv.ParseOptions(newlines_in_values=True)
    convert = csv.ConvertOptions(
        column_types=schema, strings_can_be_null=True, quoted_strings_can_be_null=False, null_values=[""]
    )
    table = csv.read_csv(io.BytesIO(block), read_options=read, parse_options=parse, convert_options=convert)
    [batch] = table.combine_chunks().to_batches()
    return batch
