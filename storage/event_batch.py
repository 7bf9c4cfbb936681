"""Events in columns, and the two binary formats that carry them.

**Columns** (`COLUMNS`): one row an event, in arrival order. `properties` and `context` are JSON
objects as text, already checked and normalised by the gateway, so that PostgreSQL's jsonb takes them.

**Batch, version 1** (`EventBatch`): what a gateway appends, and what it spools. MessagePack array
`[version, batch_id, partition, segments, fingerprints, rows]`.

- `batch_id`: 16 bytes (UUIDv7), made once; the same batch sent again is recognised by it.
- `segments`: `[project_id, hour, events, rejected]` each, in row order: the next `events` rows belong to
  that project and were received in that hour (hours since the Unix epoch); `rejected` events of it were
  refused at the door and have no row. The ledger is computed from these.
- `fingerprints`: 8 bytes little endian a row, `storage.fingerprint.fingerprint(project_id, event_id)`.
- `rows`: `[plain_bytes, LZ4 block of the Arrow IPC record batch message, xxh3-64 of the block (8 bytes)]` in the schema
  `COLUMNS`; empty when no event of the batch was accepted. The digest is made with the columns, in the gateway, and
  looked at whenever they are read: what spool, log or memory changed on the way is told, and never reaches Arrow,
  which takes what it is given for true. Batches that were written before there were digests have none.

**Record, version 1** (`LogRecord`): one entry of a partition's log; the batches that one append carried.
MessagePack array `[version, appended_ms, batches]`, each batch `[batch_id, segments, duplicates, rows]`
with `rows` as above (empty also when every row is a duplicate) and `duplicates` a bitmap of the rows that
the dedupe window already knew (`numpy.packbits`, little endian; empty when there is none). Every sink
leaves those rows out.

A reader refuses a version that it does not know, loudly: it never guesses.
"""

import itertools
from collections.abc import Sequence
from typing import Annotated

import msgspec
import numpy as np

# pyarrow imports it when it meets its first NumPy array: tenths of a second that the first event would wait.
import numpy.ma
import pyarrow as pa
from xxhash import xxh3_64_digest

from storage.errors import FormatError

BATCH_VERSION = 1
RECORD_VERSION = 1

_LAST_HOUR = _MOST_REJECTED = 1 << 31
_MOST_EVENTS = 1 << 24
"""What PostgreSQL's clock has, and far more than a request can hold: beyond them the head is damaged."""

_text = pa.string()
_time = pa.timestamp("us", tz="UTC")

COLUMNS = pa.schema(
    [
        pa.field("project_id", _text),
        pa.field("event_id", _text),
        pa.field("event_type", _text),
        pa.field("user_id", _text),
        pa.field("anonymous_id", _text),
        pa.field("session_id", _text),
        pa.field("site_id", _text),
        pa.field("timestamp", _time),
        pa.field("received_at", _time),
        pa.field("properties", _text),
        pa.field("context", _text),
    ]
)

_codec = pa.Codec("lz4_raw")
_stream_head = COLUMNS.serialize().to_pybytes()

SMALL_BYTES = 16 * 1024
"""Batches up to this size are read together by `read_each`. Copying them to one place is cheap, and reading a message
by itself costs 10 µs however short it is, three times as much as in a stream."""


class Segment(msgspec.Struct, array_like=True, frozen=True):
    """A run of rows of one project received in one hour, and how many more were refused."""

    project_id: str
    hour: Annotated[int, msgspec.Meta(ge=0, le=_LAST_HOUR)]
    events: Annotated[int, msgspec.Meta(ge=0, le=_MOST_EVENTS)]
    rejected: Annotated[int, msgspec.Meta(ge=0, le=_MOST_REJECTED)]


class PackedRows(msgspec.Struct, array_like=True, frozen=True):
    """A compressed Arrow record batch; `plain_bytes` is its size before compression."""

    plain_bytes: int = 0
    block: bytes = b""
    digest: bytes = b""
    """Of the block; empty in what was written before there were digests."""

    @property
    def is_whole(self) -> bool:
        """Whether the block is as it was written, which without a digest nobody knows."""
        return self.digest == xxh3_64_digest(self.block)


class EventBatch(msgspec.Struct, array_like=True, frozen=True):
    """One gateway's append to one partition; see the module's head for the format."""

    version: int
    batch_id: bytes
    partition: int
    segments: list[Segment]
    fingerprints: bytes
    rows: PackedRows

    @property
    def events(self) -> int:
        """Rows in the batch: what was accepted at the door."""
        return len(self.fingerprints) // 8

    @property
    def resident_bytes(self) -> int:
        """What the batch costs while it waits somewhere."""
        return len(self.rows.block) + len(self.fingerprints) + 64


class RecordBatch(msgspec.Struct, array_like=True, frozen=True):
    """One batch inside a log record, with its duplicate rows marked."""

    batch_id: bytes
    segments: list[Segment]
    duplicates: bytes
    rows: PackedRows

    @property
    def events(self) -> int:
        """Rows in the batch, duplicates among them."""
        return sum(segment.events for segment in self.segments)

    def duplicate_mask(self) -> np.ndarray | None:
        """True for each duplicate row, or None when there is none."""
        if not self.duplicates:
            return None
        bits = np.frombuffer(self.duplicates, np.uint8)
        return np.unpackbits(bits, count=self.events, bitorder="little").astype(bool)


class LogRecord(msgspec.Struct, array_like=True, frozen=True):
    """One entry of a partition's log; see the module's head for the format."""

    version: int
    appended_ms: int
    batches: list[RecordBatch]

    @property
    def plain_bytes(self) -> int:
        """Its rows as columns in memory."""
        return sum(batch.rows.plain_bytes for batch in self.batches)


_batch_encoder = msgspec.msgpack.Encoder()
_batches_decoder = msgspec.msgpack.Decoder(list[EventBatch])
_batch_decoder = msgspec.msgpack.Decoder(EventBatch)
_record_decoder = msgspec.msgpack.Decoder(LogRecord)


_DAMAGE = (pa.ArrowException, OSError, ValueError, OverflowError, EOFError)


def pack_rows(rows: pa.RecordBatch) -> PackedRows:
    """Serialise and compress a record batch in the schema `COLUMNS`."""
    plain = rows.serialize()
    block = _codec.compress(plain, asbytes=True)
    return PackedRows(plain.size, block, xxh3_64_digest(block))


def unpack_rows(packed: PackedRows) -> pa.RecordBatch:
    """The inverse of `pack_rows`. Raises `FormatError` when the bytes are damaged."""
    if packed.digest and not packed.is_whole:
        raise FormatError("rows of a batch are not as they were written: their digest differs")
    try:
        plain = _codec.decompress(packed.block, packed.plain_bytes)
        rows = pa.ipc.read_record_batch(plain, COLUMNS)
        if not packed.digest:
            rows.validate(full=True)
    except _DAMAGE as error:
        raise FormatError(f"rows of a batch cannot be read: {error}") from error
    return rows


def read_rows(batch: RecordBatch) -> pa.RecordBatch:
    """The rows of a batch that has some, duplicates among them. Raises `FormatError` when they are damaged, or not as
    many as the segments say."""
    rows = unpack_rows(batch.rows)
    if rows.num_rows != batch.events:
        raise FormatError(f"a batch has {rows.num_rows} rows, and its segments {batch.events} events")
    return rows


def read_each(batches: Sequence[RecordBatch]) -> list[pa.RecordBatch | FormatError]:
    """`read_rows` of each batch, or the error that it raises: one that is damaged spoils no other."""
    small = [batch.rows.plain_bytes <= SMALL_BYTES and batch.rows.is_whole for batch in batches]
    together = iter(_read_together(list(itertools.compress(batches, small))))
    return [
        next(together) if is_small else _read_or_error(batch) for batch, is_small in zip(batches, small, strict=True)
    ]


def _read_together(batches: Sequence[RecordBatch]) -> Sequence[pa.RecordBatch | FormatError]:
    """Their messages one behind the other are an Arrow IPC stream."""
    if not batches:
        return []
    try:
        plain = [_codec.decompress(batch.rows.block, batch.rows.plain_bytes, asbytes=True) for batch in batches]
        rows = list(pa.ipc.open_stream(b"".join((_stream_head, *plain))))
    except _DAMAGE:
        rows = []
    if [each.num_rows for each in rows] == [batch.events for batch in batches]:
        return rows
    return [_read_or_error(batch) for batch in batches]


def _read_or_error(batch: RecordBatch) -> pa.RecordBatch | FormatError:
    try:
        return read_rows(batch)
    except FormatError as error:
        return error


def encode_batches(batches: list[EventBatch]) -> bytes:
    """The body of one append call: several batches, of one partition in their order."""
    return _batch_encoder.encode(batches)


def decode_batches(raw: bytes) -> list[EventBatch]:
    """The inverse of `encode_batches`. Raises `FormatError`."""
    try:
        batches = _batches_decoder.decode(raw)
    except msgspec.MsgspecError as error:
        raise FormatError(f"not a list of event batches: {error}") from error
    for batch in batches:
        _check_version("event batch", batch.version, BATCH_VERSION)
    return batches


def encode_batch(batch: EventBatch) -> bytes:
    return _batch_encoder.encode(batch)


def decode_batch(raw: bytes) -> EventBatch:
    """Raises `FormatError` for damaged bytes and for a version that is not known."""
    try:
        batch = _batch_decoder.decode(raw)
    except msgspec.MsgspecError as error:
        raise FormatError(f"not an event batch: {error}") from error
    _check_version("event batch", batch.version, BATCH_VERSION)
    return batch


def encode_record(record: LogRecord) -> bytes:
    return _batch_encoder.encode(record)


def decode_record(raw: bytes) -> LogRecord:
    """Raises `FormatError` for damaged bytes and for a version that is not known."""
    try:
        record = _record_decoder.decode(raw)
    except msgspec.MsgspecError as error:
        raise FormatError(f"not a log record: {error}") from error
    _check_version("log record", record.version, RECORD_VERSION)
    return record


def require_readable(record: LogRecord) -> None:
    """Raises `FormatError` where a sink would."""
    for batch in record.batches:
        if batch.rows.block:
            read_rows(batch)


def pack_duplicates(mask: np.ndarray) -> bytes:
    """The bitmap of `RecordBatch.duplicates`; empty when no row is marked."""
    return np.packbits(mask, bitorder="little").tobytes() if mask.any() else b""


def _check_version(what: str, found: int, known: int) -> None:
    if found != known:
        raise FormatError(f"{what} has version {found}; this release reads version {known}: upgrade or downgrade it")
