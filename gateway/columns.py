"""Rows of many requests become one batch in columns: the last per-event Python there is."""

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from xxhash import xxh3_64_digest

from gateway.rows import Row
from storage.event_batch import BATCH_VERSION, COLUMNS, EventBatch, PackedRows, Segment, pack_rows

HOUR_S = 3600

_PIECE_BYTES = 1024 * 1024
"""Arrow takes a list of texts under the lock of the interpreter: of so many bytes at a time, some milliseconds."""


class Part(NamedTuple):
    """One request's rows: of one project, received at one time."""

    project_id: str
    received_at: datetime
    rows: Sequence[Row]
    rejected: int


def build_batches(groups: Sequence[tuple[int, Sequence[Part]]], *, new_id: Callable[[], bytes]) -> list[EventBatch]:
    """A batch of each partition's parts, its rows the parts' rows in order. All parts must belong to the partition.

    The columns of all batches are made at once and then cut: a column costs some 8 µs however short it is.
    """
    parts = [part for _, group in groups for part in group]
    rows = [row for part in parts for row in part.rows]
    columns = _columns(parts, rows) if rows else None
    batches, first = [], 0
    for partition, group in groups:
        count = sum(len(part.rows) for part in group)
        packed = pack_rows(columns.slice(first, count)) if columns is not None and count else PackedRows()
        batches.append(EventBatch(BATCH_VERSION, new_id(), partition, _segments(group), _fingerprints(group), packed))
        first += count
    return batches


def build_batch(partition: int, parts: Sequence[Part], *, batch_id: bytes) -> EventBatch:
    [batch] = build_batches([(partition, parts)], new_id=lambda: batch_id)
    return batch


def _segments(parts: Sequence[Part]) -> list[Segment]:
    """Neighbours of the same project and hour are one segment."""
    segments: list[Segment] = []
    for part in parts:
        hour = int(part.received_at.timestamp()) // HOUR_S
        last = segments[-1] if segments else None
        if last is not None and last.project_id == part.project_id and last.hour == hour:
            events, rejected = last.events + len(part.rows), last.rejected + part.rejected
            segments[-1] = Segment(part.project_id, hour, events, rejected)
        else:
            segments.append(Segment(part.project_id, hour, len(part.rows), part.rejected))
    return segments


def _fingerprints(parts: Sequence[Part]) -> bytes:
    """`storage.fingerprint.fingerprint` of every row, in bulk."""
    digests = []
    for part in parts:
        prefix = part.project_id + "\0"
        digests += [xxh3_64_digest((prefix + row.event_id).encode()) for row in part.rows]
    return np.frombuffer(b"".join(digests), dtype=">u8").astype("<u8").tobytes()


def _columns(parts: Sequence[Part], rows: Sequence[Row]) -> pa.RecordBatch:
    project_ids = [part.project_id for part in parts for _ in part.rows]
    lengths = [len(part.rows) for part in parts]
    received = np.repeat([part.received_at.timestamp() for part in parts], lengths)
    text = pa.string()
    return pa.RecordBatch.from_arrays(
        [
            pa.array(project_ids, text),
            pa.array([row.event_id for row in rows], text),
            pa.array([row.event_type for row in rows], text),
            pa.array([row.user_id for row in rows], text),
            pa.array([row.anonymous_id for row in rows], text),
            pa.array([row.session_id for row in rows], text),
            pa.array([row.site_id for row in rows], text),
            _microseconds(np.array([row.timestamp.timestamp() for row in rows])),
            _microseconds(received),
            _json_texts([row.properties for row in rows]),
            _json_texts([row.context for row in rows]),
        ],
        schema=COLUMNS,
    )


def _json_texts(texts: Sequence[bytes | None]) -> pa.Array:
    """In pieces when they are large, so that a thread that does this lets others run in between."""
    if sum(map(len, filter(None, texts))) < _PIECE_BYTES:
        return pa.array(texts, pa.string())
    pieces, first, size = [], 0, 0
    for end, text in enumerate(texts, 1):
        size += len(text or b"")
        if size >= _PIECE_BYTES:
            pieces.append(pa.array(texts[first:end], pa.string()))
            first, size = end, 0
    return pa.concat_arrays([*pieces, pa.array(texts[first:], pa.string())])


def _microseconds(seconds: npt.NDArray[np.float64]) -> pa.Array:
    """A float holds microseconds exactly until the year 2106; a quarter of the cost of Arrow's own conversion."""
    return pa.array(np.rint(seconds * 1e6).astype(np.int64)).view(COLUMNS.field("timestamp").type)
