"""Files of the lake: Parquet, version 1. Events of ONE hour of event time (UTC) in each, of any projects.

**Rows** are sorted by (project_id, event_type, timestamp, event_id), so that statistics prune, in row groups of
`ROW_GROUP_ROWS` at most. The columns are `SCHEMA`'s: first the documented ones, then further ones.
- `properties`: map of the object's members; strings as they are, other values as JSON text, JSON null as null.
- `context`: `ip` and `userAgent` of the context, in the same way.
- `properties_json`, `context_json`: the exact JSON texts, as in `storage.event_batch.COLUMNS`.
- `log_partition`, `log_offset`: where in the log the event stands.

**Note**: the footer's key `analytics_actors` is a JSON object, `FileNote`: which plan made the file, its number in that
plan, the ranges of the log that the plan is of, and what is in it. `id_digest` is the sum of
`storage.fingerprint.fingerprint` over the rows, modulo 2^64: it does not depend on their order. `ranges` are half
open: `[partition, first, next]` each. Manifest rows can be made of the notes alone.

**Key**: `events/year=YYYY/month=MM/day=DD/hour=HH/part-<plan, 12 digits>-<number, 5 digits>.parquet`; a compacted file
is `compact-…`. A plan's id is used once, and so is a name. A cold file has `cold/` before its key.

The same rows make the same bytes, in whatever order they come, as long as the release and its Arrow are the same. A
reader refuses a version that it does not know.
"""

import hashlib
import io
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Literal, NamedTuple, Self

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from xxhash import xxh3_64_digest

from storage.errors import FormatError
from storage.event_batch import COLUMNS
from storage.json_members import members
from storage.lake_manifest import LakeFile, OffsetRange

FILE_VERSION = 1
PREFIX = "events/"
"""Of all keys but those of cold files."""
COLD = "cold/"
"""Before the key of a file that became cold: it keeps the rest of its name."""
ROW_GROUP_ROWS = 128 * 1024
HOUR_S = 3600
_PIECE_ROWS = 8192
"""Converted at a time: positions in JSON texts take more room than the texts, and these stay in the cache."""

_US = 1_000_000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_text = pa.string()
_time = pa.timestamp("us", tz="UTC")

EVENTS = COLUMNS.append(pa.field("partition_id", pa.int16())).append(pa.field("log_offset", pa.int64()))
"""What files are made of: events and where in the log they stand."""

SCHEMA = pa.schema(
    [
        pa.field("event_id", _text),
        pa.field("user_id", _text),
        pa.field("event_type", _text),
        pa.field("project_id", _text),
        pa.field("timestamp", _time),
        pa.field("properties", pa.map_(_text, _text)),
        pa.field("context", pa.struct([pa.field("ip", _text), pa.field("userAgent", _text)])),
        pa.field("anonymous_id", _text),
        pa.field("session_id", _text),
        pa.field("site_id", _text),
        pa.field("received_at", _time),
        pa.field("properties_json", _text),
        pa.field("context_json", _text),
        pa.field("log_partition", pa.int16()),
        pa.field("log_offset", pa.int64()),
    ]
)

Kind = Literal["part", "compact"]
Compression = Literal["snappy", "zstd"]

_NOTE_KEY = b"analytics_actors"
SORTED_BY = ("project_id", "event_type", "timestamp", "event_id")
_ORDER = (*SORTED_BY, "partition_id", "log_offset")
# What repeats; of the others a dictionary would be built and thrown away.
_DICTIONARY_COLUMNS = [
    "user_id",
    "event_type",
    "project_id",
    "properties.key_value.key",
    "properties.key_value.value",
    "context.ip",
    "context.userAgent",
    "anonymous_id",
    "session_id",
    "site_id",
    "received_at",
    "log_partition",
    "log_offset",
]
# Those of texts that nobody compares would only make the footer large.
_STATISTICS_COLUMNS = [
    field.name for field in SCHEMA if field.name not in ("properties", "context", "properties_json", "context_json")
]


class FileNote(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a file says of itself; see the module's head. Times are in microseconds since the epoch, the hour in
    seconds."""

    version: int
    hour: int
    plan: int
    number: int
    ranges: list[OffsetRange]
    rows: int
    id_digest: int
    min_timestamp_us: int
    max_timestamp_us: int
    projects: dict[str, int]
    """Rows by project."""
    destination: str = ""
    """To whom it was delivered (`storage.destinations`); empty in the lake itself."""


class FileSummary(NamedTuple):
    """A file as the manifest needs to know it."""

    note: FileNote
    bytes: int
    checksum: str
    """SHA-256, in hexadecimal digits."""

    def at(self, key: str) -> LakeFile:
        """The file as it becomes live under its key."""
        note = self.note
        return LakeFile(
            key=key,
            hour=_instant(note.hour * _US),
            rows=note.rows,
            bytes=self.bytes,
            checksum=self.checksum,
            id_digest=note.id_digest,
            min_timestamp=_instant(note.min_timestamp_us),
            max_timestamp=_instant(note.max_timestamp_us),
            ranges=tuple(note.ranges),
            projects=note.projects,
        )


_note_decoder = msgspec.json.Decoder(FileNote)


def key_of(hour: int, plan: int, number: int, *, kind: Kind = "part") -> str:
    """The name of a file of the hour that begins at `hour`, in seconds since the epoch."""
    return f"{hour_prefix(_instant(hour * _US))}/{kind}-{plan:012d}-{number:05d}.parquet"


def cold_key(key: str) -> str:
    """The name of the file when it is cold."""
    return f"{COLD}{key}"


def hour_prefix(at: datetime) -> str:
    """Where the files of an hour lie."""
    return f"{PREFIX}year={at.year:04d}/month={at.month:02d}/day={at.day:02d}/hour={at.hour:02d}"


def _instant(us: int) -> datetime:
    return _EPOCH + timedelta(microseconds=us)


def hours_of(events: pa.Table) -> npt.NDArray[np.int64]:
    """By row the beginning of its hour of event time, in seconds since the epoch."""
    us = np.asarray(events.column("timestamp").cast(pa.int64()))
    hours: npt.NDArray[np.int64] = us // (HOUR_S * _US) * HOUR_S
    return hours


def lake_rows(events: pa.Table) -> pa.Table:
    """Events (`EVENTS`) in the columns of the lake, in their order. Raises `FormatError` when a text is no JSON."""
    properties, context = _one_chunk(events, "properties"), _one_chunk(events, "context")
    known = members(context)
    columns = {name: events.column(name) for name in SCHEMA.names if name in events.column_names} | {
        "properties": members(properties).as_maps(),
        "context": pa.StructArray.from_arrays(
            [known.values_of("ip"), known.values_of("userAgent")], names=["ip", "userAgent"]
        ),
        "properties_json": properties,
        "context_json": context,
        "log_partition": events.column("partition_id"),
    }
    return pa.table([columns[name] for name in SCHEMA.names], schema=SCHEMA)


def _one_chunk(events: pa.Table, name: str) -> pa.StringArray:
    column = events.column(name).combine_chunks()
    return column if isinstance(column, pa.Array) else pa.concat_arrays(column.chunks)


class LakeFileWriter:
    """Writes one file, row group by row group: whoever calls `write` keeps the order of rows.

    As a context manager; within the block the file is not complete. `finish` completes it and is the block's last call.
    """

    def __init__(
        self,
        sink: BinaryIO,
        *,
        hour: int,
        plan: int,
        number: int,
        ranges: Sequence[OffsetRange],
        compression: Compression = "snappy",
        destination: str = "",
    ) -> None:
        self._hashing = _HashingSink(sink)
        self._note = FileNote(FILE_VERSION, hour, plan, number, list(ranges), 0, 0, 0, 0, {}, destination)
        self._times: list[tuple[int, int]] = []
        self.rows = 0
        self._digest = 0
        self._projects: dict[str, int] = {}
        self._writer = pq.ParquetWriter(
            pa.PythonFile(self._hashing, mode="w"),
            SCHEMA,
            compression=compression,
            use_dictionary=_DICTIONARY_COLUMNS,
            write_statistics=_STATISTICS_COLUMNS,
            write_page_index=True,
            sorting_columns=[pq.SortingColumn(SCHEMA.names.index(name)) for name in SORTED_BY],
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.close()

    def write(self, rows: pa.Table) -> None:
        """One row group, in `SCHEMA`; no row comes before one that was written already."""
        if not rows.num_rows:
            return
        self._writer.write_table(rows, row_group_size=rows.num_rows)
        self.rows += rows.num_rows
        self._digest = (self._digest + id_digest(rows)) % 2**64
        low_high = pc.min_max(rows.column("timestamp").cast(pa.int64())).as_py()
        self._times.append((low_high["min"], low_high["max"]))
        for counted in pc.value_counts(rows.column("project_id")):
            project_id = counted["values"].as_py()
            self._projects[project_id] = self._projects.get(project_id, 0) + counted["counts"].as_py()

    def finish(self) -> FileSummary:
        """Write the footer. At least one row must have been written."""
        note = msgspec.structs.replace(
            self._note,
            rows=self.rows,
            id_digest=self._digest,
            min_timestamp_us=min(low for low, _ in self._times),
            max_timestamp_us=max(high for _, high in self._times),
            projects=dict(sorted(self._projects.items())),
        )
        self._writer.add_key_value_metadata({_NOTE_KEY: msgspec.json.encode(note)})
        self._writer.close()
        return FileSummary(note, self._hashing.written, self._hashing.digest.hexdigest())


class _HashingSink(io.RawIOBase):
    """Counts and hashes what goes through it."""

    def __init__(self, sink: BinaryIO) -> None:
        self._sink = sink
        self.written = 0
        self.digest = hashlib.sha256()

    def writable(self) -> bool:
        return True

    def write(self, data: "memoryview | bytes") -> int:  # type: ignore[override]
        self._sink.write(data)
        self.digest.update(data)
        self.written += len(data)
        return len(data)

    def tell(self) -> int:
        return self.written


def write_file(
    events: pa.Table,
    sink: BinaryIO,
    *,
    hour: int,
    plan: int,
    number: int,
    ranges: Sequence[OffsetRange],
    compression: Compression = "snappy",
) -> FileSummary:
    """All events (`EVENTS`, at least one, all of the hour, in any order) as one file."""
    order = pc.sort_indices(events, sort_keys=[(name, "ascending") for name in _ORDER])
    with LakeFileWriter(sink, hour=hour, plan=plan, number=number, ranges=ranges, compression=compression) as writer:
        for group in _slices(order, ROW_GROUP_ROWS):
            pieces = [lake_rows(events.take(piece)) for piece in _slices(group, _PIECE_ROWS)]
            writer.write(pa.concat_tables(pieces))
        return writer.finish()


def _slices(order: pa.Array, rows: int) -> Iterator[pa.Array]:
    for first in range(0, len(order), rows):
        yield order.slice(first, rows)


def id_digest(rows: pa.Table) -> int:
    """The sum of the fingerprints of (project_id, event_id), modulo 2^64."""
    names = pc.binary_join_element_wise(rows.column("project_id"), rows.column("event_id"), "\0")
    digests = b"".join(map(xxh3_64_digest, names.cast(pa.binary()).to_pylist()))
    return int(np.frombuffer(digests, ">u8").sum(dtype=np.uint64))


def read_note(source: Path | bytes) -> FileNote:
    """From the footer alone. Raises `FormatError` when it is no file of the lake, or of an unknown version."""
    try:
        metadata = pq.read_metadata(pa.BufferReader(source) if isinstance(source, bytes) else source).metadata
        note = _note_decoder.decode((metadata or {})[_NOTE_KEY])
    except (pa.ArrowException, OSError, KeyError, msgspec.MsgspecError) as error:
        raise FormatError(f"not a file of the lake: {error}") from error
    if note.version != FILE_VERSION:
        raise FormatError(
            f"lake file has version {note.version}; this release reads version {FILE_VERSION}: upgrade or downgrade it"
        )
    return note


def read_summary(source: Path | bytes) -> FileSummary:
    """The footer's note, and size and checksum of the whole file. Raises `FormatError` and `OSError`."""
    note = read_note(source)
    if isinstance(source, bytes):
        return FileSummary(note, len(source), hashlib.sha256(source).hexdigest())
    with source.open("rb") as file:
        return FileSummary(note, source.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest())
