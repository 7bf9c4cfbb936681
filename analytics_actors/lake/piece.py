"""What is taken out of the log, or read back from the event store, and becomes rows of files. For a thread: nothing
here waits or is shared."""

from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from storage.copy_format import STORED, gather
from storage.errors import FormatError
from storage.event_batch import LogRecord
from storage.event_store import PartitionWrite
from storage.lake_file import EVENTS, hours_of
from storage.lake_manifest import OffsetRange

Records = Sequence[tuple[int, LogRecord]]
RowName = tuple[int, int, int]
"""Partition, offset, and number in the record."""

_NAME = ("partition_id", "log_offset", "row_number")


class Piece(NamedTuple):
    """The events of some records of one partition that follow one another."""

    range: OffsetRange
    content: Records | pa.Table
    """Records as the log has them, or stored events (`storage.lake_file.EVENTS`)."""
    plain_bytes: int
    """As columns in memory."""
    held_bytes: int
    """As it is kept now."""


class HourOfEvents(NamedTuple):
    """What becomes one file."""

    hour: int
    events: pa.Table
    ranges: list[OffsetRange]
    """Those of the plan that have an event of the hour."""


def piece_of_records(partition: int, records: Records) -> Piece:
    """Of at least one record."""
    first, last = records[0][0], records[-1][0]
    return Piece(
        OffsetRange(partition, first, last + 1),
        records,
        sum(record.plain_bytes for _, record in records),
        sum(len(batch.rows.block) for _, record in records for batch in record.batches),
    )


def piece_of_events(range_: OffsetRange, events: pa.Table) -> Piece:
    return Piece(range_, events, events.nbytes, events.nbytes)


def ranges_of(pieces: Sequence[Piece]) -> list[OffsetRange]:
    """What the pieces cover: one range a partition, whose pieces follow one another."""
    ranges: dict[int, OffsetRange] = {}
    for piece in pieces:
        known = ranges.get(piece.range.partition, piece.range)
        ranges[piece.range.partition] = known._replace(next_offset=piece.range.next_offset)
    return sorted(ranges.values())


def rows_of_records(pieces: Sequence[Piece]) -> pa.RecordBatch:
    """The rows of all pieces of records without duplicates, in `storage.copy_format.STORED`. Raises `FormatError`."""
    writes = [
        PartitionWrite(piece.range.partition, 0, piece.range.first_offset, piece.range.next_offset, piece.content)
        for piece in pieces
        if not isinstance(piece.content, pa.Table)
    ]
    return gather(writes)


def is_readable(piece: Piece) -> bool:
    """Whether the rows of its records are as they were written."""
    try:
        rows_of_records([piece])
    except FormatError:
        return False
    return True


def without_rows(rows: pa.RecordBatch, names: Collection[RowName]) -> pa.Table:
    """The rows but those that are named, in `storage.lake_file.EVENTS`."""
    assert rows.schema == STORED
    events = pa.Table.from_batches([rows.select(EVENTS.names)])
    if not names:
        return events
    of_rows = zip(*(rows.column(name).to_pylist() for name in _NAME), strict=True)
    return events.filter(pa.array([name not in names for name in of_rows], pa.bool_()))


def by_hour(events: pa.Table, ranges: Sequence[OffsetRange]) -> Iterator[HourOfEvents]:
    """The events hour by hour, in the order of the hours."""
    hours = hours_of(events)
    order = np.argsort(hours, kind="stable")
    found, starts = np.unique(hours[order], return_index=True)
    for hour, rows in zip(found.tolist(), np.split(order, starts[1:]), strict=False):
        of_hour = events if len(found) == 1 else events.take(pa.array(rows))
        present = set(np.unique(np.asarray(of_hour.column("partition_id"))).tolist())
        yield HourOfEvents(hour, of_hour, [each for each in ranges if each.partition in present])
