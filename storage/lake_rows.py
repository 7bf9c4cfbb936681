"""Rows of a lake file in the columns of events (`storage.event_batch.COLUMNS`): of some projects, of a range of time, a
batch at a time.

Rows are sorted by project, and each row group says which projects and times it has: what cannot hold a wanted row is
not read. Of the columns only those that are needed are; the others come as nulls.
"""

from bisect import bisect_left
from collections.abc import Collection, Generator, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from storage.errors import FormatError
from storage.event_batch import COLUMNS
from storage.lake_file import SCHEMA
from storage.window_key import microseconds

BATCH_ROWS = 16 * 1024
BATCH_BYTES = 10 * 1024 * 1024
"""Of rows that are about as large as those of their row group; one row at least."""
READ_BUFFER_BYTES = 1024 * 1024

_NAMES_THERE = {"properties": "properties_json", "context": "context_json"}
_ALWAYS = ("project_id", "timestamp")


class WantedRows(NamedTuple):
    projects: Sequence[str]
    """Ascending."""
    start_us: int
    end_us: int
    columns: Collection[str] | None = None
    """Names in `COLUMNS`; None for all."""


def read_rows(path: Path, wanted: WantedRows) -> Generator[pa.RecordBatch, None, None]:
    """The rows in `COLUMNS`. Raises `FormatError` for what is no file of the lake, or damaged; `OSError`."""
    names = [n for n in COLUMNS.names if wanted.columns is None or n in wanted.columns or n in _ALWAYS]
    try:
        with pq.ParquetFile(path, buffer_size=READ_BUFFER_BYTES, pre_buffer=False) as file:
            if not file.schema_arrow.equals(SCHEMA):
                raise FormatError(f"{path.name} has other columns than a file of the lake")
            groups = [n for n in range(file.num_row_groups) if _may_hold(file.metadata.row_group(n), wanted)]
            there = [_NAMES_THERE.get(name, name) for name in names]
            projects = pa.array(wanted.projects, pa.string())
            for batch in _batches(file, groups, there):
                rows = _chosen(batch, projects, wanted)
                if rows.num_rows:
                    yield _as_events(rows, names)
    except pa.ArrowException as error:
        raise FormatError(f"a file of the lake cannot be read: {error}") from error


def _batches(file: pq.ParquetFile, groups: Sequence[int], columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    for number in groups:
        rows = min(BATCH_ROWS, max(1, BATCH_BYTES // _row_bytes(file.metadata.row_group(number), columns)))
        yield from file.iter_batches(rows, row_groups=[number], columns=columns, use_threads=False)


def _row_bytes(group: pq.RowGroupMetaData, columns: Collection[str]) -> int:
    """As they lie in the file before compression."""
    read = (column for column in map(group.column, range(group.num_columns)) if column.path_in_schema in columns)
    size: int = sum(column.total_uncompressed_size for column in read)
    rows: int = group.num_rows
    return 1 + size // max(rows, 1)


def _may_hold(group: pq.RowGroupMetaData, wanted: WantedRows) -> bool:
    """Whether by its statistics it may have a wanted row; without statistics it may."""
    for column in map(group.column, range(group.num_columns)):
        known = column.statistics
        if known is None or not known.has_min_max:
            continue
        if column.path_in_schema == "project_id":
            at = bisect_left(wanted.projects, known.min)
            if at == len(wanted.projects) or wanted.projects[at] > known.max:
                return False
        elif column.path_in_schema == "timestamp":
            low, high = (pa.scalar(at, SCHEMA.field("timestamp").type).value for at in (known.min, known.max))
            if high < wanted.start_us or low >= wanted.end_us:
                return False
    return True


def _chosen(batch: pa.RecordBatch, projects: pa.Array, wanted: WantedRows) -> pa.RecordBatch:
    us = microseconds(batch, "timestamp")
    in_time = pa.array((us >= wanted.start_us) & (us < wanted.end_us))
    return batch.filter(pc.and_(in_time, pc.is_in(batch.column("project_id"), value_set=projects)))


def _as_events(rows: pa.RecordBatch, names: Sequence[str]) -> pa.RecordBatch:
    columns = [
        rows.column(_NAMES_THERE.get(field.name, field.name))
        if field.name in names
        else pa.nulls(rows.num_rows, field.type)
        for field in COLUMNS
    ]
    return pa.RecordBatch.from_arrays(columns, schema=COLUMNS)
