"""Records of aggregate-only events in PostgreSQL: the table aggregated_events. See `storage.aggregated`."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from datetime import datetime

import asyncpg
import msgspec

from storage.aggregate import Aggregate, Aggregation, decode_aggregate, encode_aggregate
from storage.aggregated import AggregatedRecord, RecordKey, Records, bounded
from storage.postgres import Connection
from storage.rollups import dimensions_hash
from storage.statements import statement

RECORDS_A_STATEMENT = 2000
"""Some 50 ms."""

_ADMITTED = statement("admitted_groups")
_LOCK = statement("lock_aggregated")
_UPSERT = statement("upsert_aggregated")
_READ = statement("read_aggregated")
_STATISTICS: tuple[Aggregation, ...] = ("sum", "min", "max", "mean", "unique", "p50", "p90", "p95", "p99")


async def merge_records(connection: Connection, records: Records, *, max_groups: int) -> int:
    """Within a transaction that nobody else adds records to these projects in: add the records to those that are there.
    How many events are in records of `__other__` because there were too many groups."""
    overflow_events = 0
    ordered = sorted(records.items(), key=lambda item: item[0])
    for first in range(0, len(ordered), RECORDS_A_STATEMENT):
        some = dict(ordered[first : first + RECORDS_A_STATEMENT])
        found = bounded(some, await _admitted(connection, some), max_groups=max_groups)
        overflow_events += found.overflow_events
        await _merge(connection, sorted(found.records.items(), key=lambda item: item[0]))
    return overflow_events


async def _admitted(connection: Connection, records: Records) -> dict[RecordKey, set[int]]:
    """The groups that have records, those of earlier statements of the transaction too."""
    cells = list(dict.fromkeys(key.cell for key in records))
    admitted: dict[RecordKey, set[int]] = {cell: set() for cell in cells}
    for number, group in await connection.fetch(_ADMITTED, *zip(*(cell[:-1] for cell in cells), strict=True)):
        admitted[cells[number - 1]].add(group)
    return admitted


async def _merge(connection: Connection, some: Sequence[tuple[RecordKey, AggregatedRecord]]) -> None:
    keys = [_key_columns(key) for key, _ in some]
    known = await connection.fetch(_LOCK, *zip(*keys, strict=True))
    # Beside the event loop: sketches are merged and written.
    rows = await asyncio.to_thread(_merged, some, known)
    await connection.execute(_UPSERT, *zip(*rows, strict=True))


def _merged(
    some: Sequence[tuple[RecordKey, AggregatedRecord]], known: Sequence[asyncpg.Record]
) -> list[tuple[object, ...]]:
    found = {row["number"]: row for row in known}
    rows = []
    for number, (key, added) in enumerate(some, 1):
        record = added
        if number in found:
            # Into the one that was read: what is to be added stays as it is for another attempt.
            record = _record(found[number])
            record.merge(added)
        rows.append(_columns(key, record))
    return rows


def _key_columns(key: RecordKey) -> tuple[object, ...]:
    """In the order of lock_aggregated.sql."""
    return (*key[:-1], dimensions_hash(key.dimensions))


def _columns(key: RecordKey, record: AggregatedRecord) -> tuple[object, ...]:
    """In the order of upsert_aggregated.sql."""
    aggregate = record.aggregate
    return (
        *_key_columns(key),
        record.partition,
        record.events,
        record.first_offset,
        record.next_offset,
        record.received_ms,
        msgspec.json.encode(dict(key.dimensions)).decode(),
        msgspec.json.encode([name for name, _ in key.dimensions]).decode(),
        aggregate.count,
        *(aggregate.value(name) for name in _STATISTICS),
        encode_aggregate(aggregate),
    )


async def read_records(
    connection: Connection, projects: Sequence[str], start: datetime, end: datetime
) -> AsyncIterator[Sequence[tuple[RecordKey, AggregatedRecord]]]:
    """Within a transaction: the records of the projects with `start` <= minute < `end`, in chunks."""
    cursor = await connection.cursor(_READ, list(projects), start, end)
    while rows := await cursor.fetch(RECORDS_A_STATEMENT):
        yield await asyncio.to_thread(_decoded, rows)


def _decoded(rows: Sequence[asyncpg.Record]) -> list[tuple[RecordKey, AggregatedRecord]]:
    return [(_key(row), _record(row)) for row in rows]


def _key(row: asyncpg.Record) -> RecordKey:
    values: dict[str, str] = msgspec.json.decode(row["dimensions"])
    return RecordKey(
        row["project_id"],
        row["minute"],
        row["metric_name"],
        row["event_type"],
        row["shape"],
        row["late"],
        tuple((name, values[name]) for name in row["dimension_names"]),
    )


def _record(row: asyncpg.Record) -> AggregatedRecord:
    aggregate: Aggregate = decode_aggregate(row["state"])
    return AggregatedRecord(
        row["partition_id"],
        row["events"],
        aggregate,
        row["first_offset"],
        row["next_offset"],
        row["received_ms"],
    )
