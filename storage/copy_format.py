"""From log records to what COPY takes: events_log rows in one Arrow batch, and its binary form.

`gather` puts the rows of all records of a write into one batch in the schema `STORED`: the columns of an
event, where it stood in the log, and its row number in its log record (over the record's batches, duplicates
counted), which names it when it becomes a dead letter. Rows marked as duplicates are left out.

`encode_copy` is PostgreSQL's binary COPY format by pgpq. Everything here is done in columns; nothing runs
per event in Python.
"""

from collections.abc import AsyncIterator, Iterator, Sequence

import numpy as np
import pyarrow as pa
from pgpq import ArrowToPostgresBinaryEncoder
from pgpq.encoders import StringEncoderBuilder
from pgpq.schema import Jsonb

from storage.errors import FormatError
from storage.event_batch import COLUMNS, LogRecord, RecordBatch, read_each
from storage.event_store import PartitionWrite

_ROW_NUMBER = pa.field("row_number", pa.int32())
_COPIED = COLUMNS.append(pa.field("partition_id", pa.int16())).append(pa.field("log_offset", pa.int64()))
STORED = _COPIED.append(_ROW_NUMBER)
COPY_COLUMNS = tuple(_COPIED.names)
"""The columns that a COPY of `encode_copy` names; the table's other columns are the database's own."""

_PIECE_BYTES = 4 * 1024 * 1024
_JSON = ("properties", "context")
_encoders = {
    field.name: StringEncoderBuilder.new_with_output(field, Jsonb())
    if field.name in _JSON
    else ArrowToPostgresBinaryEncoder.infer_encoder(field)
    for field in _COPIED
}


def gather(writes: Sequence[PartitionWrite]) -> pa.RecordBatch:
    """All rows that a write stores, in the schema `STORED`. Raises `FormatError` for damaged records."""
    batches: list[RecordBatch] = []
    partitions: list[int] = []
    offsets: list[int] = []
    starts: list[int] = []
    for partition, offset, record in _records(writes):
        start = 0
        for batch in record.batches:
            # One without rows: nothing was accepted of it, or every row is a duplicate.
            if batch.rows.block:
                batches.append(batch)
                partitions.append(partition)
                offsets.append(offset)
                starts.append(start)
            start += batch.events
    return _assemble(_rows_of(batches), _kept(batches), partitions, offsets, starts)


def _records(writes: Sequence[PartitionWrite]) -> Iterator[tuple[int, int, LogRecord]]:
    for write in writes:
        for offset, record in write.records:
            yield write.partition, offset, record


def _rows_of(batches: Sequence[RecordBatch]) -> list[pa.RecordBatch]:
    read: list[pa.RecordBatch] = []
    for rows in read_each(batches):
        if isinstance(rows, FormatError):
            raise rows
        read.append(rows)
    return read


def _kept(batches: Sequence[RecordBatch]) -> np.ndarray | None:
    """True for each row that is no duplicate; None when there is no duplicate."""
    if not any(batch.duplicates for batch in batches):
        return None
    masks = [(batch.duplicate_mask(), batch.events) for batch in batches]
    return np.concatenate([np.ones(events, bool) if mask is None else ~mask for mask, events in masks])


def _assemble(
    batches: list[pa.RecordBatch],
    kept: np.ndarray | None,
    partitions: list[int],
    offsets: list[int],
    starts: list[int],
) -> pa.RecordBatch:
    if not batches:
        return pa.RecordBatch.from_pylist([], schema=STORED)
    rows = pa.concat_batches(batches)
    counts = [batch.num_rows for batch in batches]
    ends = np.cumsum(counts)
    row_numbers = np.arange(rows.num_rows) + np.repeat(np.array(starts) - (ends - counts), counts)
    added = [
        np.repeat(np.array(partitions, np.int16), counts),
        np.repeat(np.array(offsets, np.int64), counts),
        row_numbers.astype(np.int32),
    ]
    stored = pa.RecordBatch.from_arrays([*rows.columns, *(pa.array(column) for column in added)], schema=STORED)
    return stored if kept is None else stored.filter(pa.array(kept))


def encode_copy(rows: pa.RecordBatch) -> bytes:
    """The rows in COPY's binary format, in the order of `COPY_COLUMNS`.

    Raises `ValueError` for a value that the format cannot express.
    """
    encoder = ArrowToPostgresBinaryEncoder.new_with_encoders(_COPIED, _encoders)
    copied = rows.select(_COPIED.names)
    return b"".join((encoder.write_header(), encoder.write_batch(copied), encoder.finish()))


async def in_pieces(encoded: bytes) -> AsyncIterator[bytes]:
    """For the driver to send: one protocol message is limited to 1 GB, and a piece is sent before the next."""
    for start in range(0, len(encoded), _PIECE_BYTES):
        yield encoded[start : start + _PIECE_BYTES]
