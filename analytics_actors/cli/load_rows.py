"""Rows of NDJSON files, plain or gzip, read one by one and put into batches: never a whole file in memory.

A row that has no event id gets one from its file's name, its line number and its content. So a batch whose
outcome is unknown can be sent again, and a file can be loaded again within the server's dedupe window
(log.dedupe_window_s, a day by default), without storing anything twice.
"""

import gzip
import hashlib
import io
import os
import stat
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

import msgspec

from analytics_actors.cli.failure import Failure

MAX_LINE_BYTES = 4 * 1024 * 1024
"""Four times the largest event that a gateway takes by default; a longer line is no row."""
MAX_BATCH_BYTES = 8 * 1024 * 1024
"""Well below the largest request that a gateway takes."""
MAX_WAITING_BYTES = 32 * 1024 * 1024
"""Rows of unfinished batches, over all projects. Thousands of projects with a few rows each fit many times."""

STANDARD_INPUT = Path("-")

_GZIP_MAGIC = b"\x1f\x8b"
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class Row(NamedTuple):
    """One event as JSON text. `project_id` is empty when nobody asked for it."""

    project_id: str
    json: bytes


class BadRow(NamedTuple):
    """A line that could not be sent, and why."""

    code: str
    where: str


class Batch(NamedTuple):
    """Rows of one project, to be sent in one request."""

    project_id: str
    rows: list[bytes]


class _Ids(msgspec.Struct):
    """What a loader needs to know of a row; everything else is the gateway's to judge."""

    eventId: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET  # noqa: N815
    event_id: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    projectId: str | None = None  # noqa: N815
    project_id: str | None = None

    @property
    def has_event_id(self) -> bool:
        return any(
            not isinstance(raw, msgspec.UnsetType) and bytes(raw) not in (b"null", b'""')
            for raw in (self.eventId, self.event_id)
        )


_decode = msgspec.json.Decoder(_Ids).decode


def read_rows(paths: Iterable[Path], *, by_project: bool, advance: Callable[[int], None]) -> Iterator[Row | BadRow]:
    """All rows of all files in order. `advance` is told how many bytes of the files were read since the last time.
    Raises `Failure` at the place where a file is damaged."""
    for path in paths:
        with _open(path) as source, io.BufferedReader(source) as raw:
            is_gzip = _is_gzip(raw, path)
            file = cast(IO[bytes], gzip.GzipFile(fileobj=raw)) if is_gzip else raw
            before = 0
            for number, line in enumerate(_lines(file, path), start=1):
                if source.bytes_read != before:
                    advance(source.bytes_read - before)
                    before = source.bytes_read
                if stripped := line.strip():
                    yield _row(stripped, path.name, number, by_project=by_project)


def _is_gzip(raw: "io.BufferedReader[_Counted]", path: Path) -> bool:
    try:
        return raw.peek(2).startswith(_GZIP_MAGIC)
    except OSError as error:
        raise Failure(f"cannot read {path}: {error}") from error


class _Counted(io.FileIO):
    """Counts what is read: a pipe has no position to ask for."""

    bytes_read = 0

    def readinto(self, buffer: Any, /) -> int | None:
        count = super().readinto(buffer)
        self.bytes_read += count or 0
        return count


def _open(path: Path) -> _Counted:
    return _Counted(0, closefd=False) if path == STANDARD_INPUT else _Counted(path)


def total_bytes(paths: Iterable[Path]) -> int | None:
    """None when one of them is a pipe, whose end nobody knows."""
    total = 0
    for path in paths:
        found = os.fstat(0) if path == STANDARD_INPUT else path.stat()
        if not stat.S_ISREG(found.st_mode):
            return None
        total += found.st_size
    return total


def _lines(file: IO[bytes], path: Path) -> Iterator[bytes]:
    """Lines of at most MAX_LINE_BYTES + 1; of a longer one the beginning, the rest is passed over. The first without
    a byte order mark."""
    first = True
    while line := _line(file, path):
        rest = line
        while len(rest) > MAX_LINE_BYTES and not rest.endswith(b"\n"):
            rest = _line(file, path)
        yield line.removeprefix(_BYTE_ORDER_MARK) if first else line
        first = False


def _line(file: IO[bytes], path: Path) -> bytes:
    try:
        return file.readline(MAX_LINE_BYTES + 1)
    except (EOFError, OSError, zlib.error) as error:
        again = "what was read before it may have been posted; a whole one loaded within the server's dedupe window"
        raise Failure(f"cannot read {path} to its end: {error}; {again} stores nothing twice") from error


def _row(line: bytes, file_name: str, number: int, *, by_project: bool) -> Row | BadRow:
    where = f"{file_name}:{number}"
    if len(line) > MAX_LINE_BYTES:
        return BadRow("event_too_large", where)
    try:
        ids = _decode(line)
    except msgspec.ValidationError:
        return BadRow("not_an_object" if not line.startswith(b"{") else "invalid_field", where)
    except (msgspec.DecodeError, RecursionError):
        return BadRow("invalid_json", where)
    except UnicodeDecodeError:
        return BadRow("invalid_unicode", where)
    project_id = (ids.projectId or ids.project_id or "") if by_project else ""
    if by_project and not project_id:
        return BadRow("missing_project", where)
    return Row(project_id, line if ids.has_event_id else with_event_id(line, where))


def with_event_id(line: bytes, where: str) -> bytes:
    """The object with an id that only this line of this file has."""
    digest = hashlib.blake2b(line, digest_size=16, key=where.encode()[-64:]).hexdigest()
    members = line[1:].lstrip()
    comma = b"" if members.startswith(b"}") else b","
    # Last, so that it wins over an empty one that the row has.
    return b"{" + members.rstrip()[:-1] + comma + b'"eventId":"load-' + digest.encode() + b'"}'


class Batcher:
    """Collects rows by project until a batch is full, or too much waits. `flush` gives the rest."""

    def __init__(self, *, batch_rows: int, max_waiting_bytes: int = MAX_WAITING_BYTES) -> None:
        self._batch_rows = batch_rows
        self._max_waiting_bytes = max_waiting_bytes
        self._rows: dict[str, list[bytes]] = {}
        self._bytes: dict[str, int] = {}
        self._waiting_bytes = 0

    def add(self, row: Row) -> Iterator[Batch]:
        """Take the row, give the batches that are to be sent now."""
        project_id, json = row
        if self._bytes.get(project_id, 0) + len(json) > MAX_BATCH_BYTES:
            yield self._take(project_id)
        rows = self._rows.setdefault(project_id, [])
        rows.append(json)
        self._bytes[project_id] = self._bytes.get(project_id, 0) + len(json)
        self._waiting_bytes += len(json)
        if len(rows) >= self._batch_rows:
            yield self._take(project_id)
        elif self._waiting_bytes > self._max_waiting_bytes:
            yield self._take(max(self._bytes, key=self._bytes.__getitem__))

    def flush(self) -> Iterator[Batch]:
        for project_id in list(self._rows):
            yield self._take(project_id)

    def _take(self, project_id: str) -> Batch:
        self._waiting_bytes -= self._bytes.pop(project_id)
        return Batch(project_id, self._rows.pop(project_id))
