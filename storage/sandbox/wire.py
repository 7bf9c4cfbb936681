"""What the query service and a sandbox process say to each other, over the process's stdin and stdout.

A frame is its length (8 bytes, little endian) and so many bytes. One process answers one question:

    service → Question    the SQL and the limits
    process → Checked     it may be run, and over which event times     | Refused
    service → Sources     the files and the tail that it is run over
    process → Result      columns and counts, then a frame with the body | Refused

`Refused` ends the talk. The messages are MessagePack; both ends are of the same release, so they have no version.
"""

from datetime import datetime
from typing import BinaryIO, Literal

import msgspec

Format = Literal["json", "ndjson", "csv", "arrow"]

LENGTH_BYTES = 8


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """`time_zone` and the rest of the session are the process's own affair: UTC."""

    project_id: str
    sql: str
    format: Format
    max_rows: int
    max_bytes: int
    memory_bytes: int
    cpu_s: int
    threads: int
    folder: str
    """Of this query alone, and empty: for what does not fit into memory. Whoever asks removes it."""


class Checked(msgspec.Struct, frozen=True, tag="checked"):
    """Events with a timestamp outside of [start, end) cannot matter to the query; None: unbounded."""

    start: datetime | None = None
    end: datetime | None = None


class Refused(msgspec.Struct, frozen=True, tag="refused", kw_only=True):
    """Why there is no result. `position` is in characters of the SQL."""

    code: str
    message: str
    hint: str | None = None
    position: int | None = None


class Sources(msgspec.Struct, frozen=True, kw_only=True):
    """What `events` consists of: Parquet files (`storage.lake_file`), and rows of the event store (an Arrow IPC stream
    of `storage.event_columns.OFFSET_COLUMNS`), all of one partition."""

    files: list[str]
    tail: str | None = None
    partition: int = 0


class Column(msgspec.Struct, frozen=True):
    name: str
    type: str


class Result(msgspec.Struct, frozen=True, tag="result", kw_only=True):
    """`body` follows in a frame of its own. `truncated`: there would have been more rows. `is_offline`, `is_confined`:
    the kernel has taken the network and the other files away (`storage.sandbox.confine`)."""

    columns: list[Column]
    rows: int
    truncated: bool
    bytes_read: int
    is_offline: bool
    is_confined: bool


Outcome = Result | Refused


def write_frame(stream: BinaryIO, content: bytes) -> None:
    stream.write(len(content).to_bytes(LENGTH_BYTES, "little"))
    stream.write(content)
    stream.flush()


def read_frame(stream: BinaryIO) -> bytes:
    """Raises `EOFError` when the other end is gone."""
    length = int.from_bytes(_exactly(stream, LENGTH_BYTES), "little")
    return _exactly(stream, length)


def _exactly(stream: BinaryIO, count: int) -> bytes:
    content = stream.read(count)
    if len(content) < count:
        raise EOFError
    return content
