"""Several files of one hour become one: a merge of sorted files in bounded memory.

Of each file a stretch of rows is in memory, of a size in proportion to the file, so that the stretches end at about
the same key. All rows up to the lowest of their last keys are sorted together and go out; what is left waits.
Together the stretches take `MERGE_BYTES`, as far as rows are of about one size, and a row group of the new file
`GROUP_BYTES`, whatever the hour's size. `load_tests/measure_lake_merge.py` shows what that is for a process.

The same files make the same bytes, as long as the release and its Arrow are the same. Files that are not what
`storage.lake_file` says, or are not sorted, are refused (`FormatError`): nothing is put right here.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from storage.errors import FormatError
from storage.lake_file import (
    ROW_GROUP_ROWS,
    SCHEMA,
    SORTED_BY,
    Compression,
    FileSummary,
    LakeFileWriter,
    read_note,
)
from storage.lake_manifest import OffsetRange
from storage.lake_selection import Selection

MERGE_BYTES = 16 * 1024 * 1024
GROUP_BYTES = 32 * 1024 * 1024
MIN_STRETCH_BYTES = 256 * 1024
"""Below this, reading costs more than the memory is worth."""
READ_BUFFER_BYTES = 64 * 1024
"""Of each column of each file."""

_SORT_KEYS = [(name, "ascending") for name in (*SORTED_BY, "log_partition", "log_offset")]


class Key(NamedTuple):
    """What rows are sorted by. Python orders texts by code points, which is the order of their UTF-8 bytes."""

    project_id: str
    event_type: str
    timestamp_us: int
    event_id: str


def merge_files(
    sources: Sequence[Path],
    sink: BinaryIO,
    *,
    hour: int,
    plan: int,
    number: int,
    ranges: Sequence[OffsetRange],
    compression: Compression = "snappy",
) -> FileSummary:
    """All rows of the sources, which are of the hour and at least one. Raises `FormatError` for a file that is no file
    of the lake; `OSError` for a damaged one, and for what else the disk refuses."""
    summary = select_rows(
        sources, sink, None, hour=hour, plan=plan, number=number, ranges=ranges, compression=compression
    )
    if summary is None:
        raise FormatError("files of the lake have no row")
    return summary


def select_rows(
    sources: Sequence[Path],
    sink: BinaryIO,
    selection: Selection | None,
    *,
    hour: int,
    plan: int,
    number: int,
    ranges: Sequence[OffsetRange],
    compression: Compression = "snappy",
    destination: str = "",
) -> FileSummary | None:
    """As `merge_files`, of the selection's rows alone; None when there are none: the sink has no whole file then."""
    for source in sources:
        if (of_source := read_note(source).hour) != hour:
            raise FormatError(f"{source.name} is of the hour {of_source}, not {hour}")
    with ExitStack() as stack:
        stretches = list(_opened(sources, stack, selection))
        with LakeFileWriter(
            sink,
            hour=hour,
            plan=plan,
            number=number,
            ranges=ranges,
            compression=compression,
            destination=destination,
        ) as writer:
            with _translated():
                for group in _row_groups(_in_order(stretches)):
                    writer.write(group)
            return writer.finish() if writer.rows else None


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except pa.ArrowException as error:
        raise FormatError(f"a file of the lake cannot be read: {error}") from error


def _opened(sources: Sequence[Path], stack: ExitStack, selection: Selection | None) -> "Iterator[_Stretch]":
    sizes = [source.stat().st_size for source in sources]
    for source, size in zip(sources, sizes, strict=True):
        with _translated():
            file = stack.enter_context(pq.ParquetFile(source, buffer_size=READ_BUFFER_BYTES, pre_buffer=False))
        if not file.schema_arrow.equals(SCHEMA):
            raise FormatError(f"{source.name} has other columns than a file of the lake")
        stretch_bytes = max(MERGE_BYTES * size // sum(sizes), MIN_STRETCH_BYTES)
        yield _Stretch(file, max(1, stretch_bytes // _row_bytes(file)), selection)


def _row_bytes(file: pq.ParquetFile) -> int:
    """Of the row group whose rows are largest, as they lie in the file before compression."""
    groups = [file.metadata.row_group(number) for number in range(file.metadata.num_row_groups)]
    return max((1 + group.total_byte_size // max(group.num_rows, 1) for group in groups), default=1)


class _Stretch:
    """The next rows of a file that have not gone out."""

    def __init__(self, file: pq.ParquetFile, rows: int, selection: Selection | None) -> None:
        if selection is None:
            self._batches = file.iter_batches(batch_size=rows, use_threads=False)
        else:
            groups = selection.row_groups(file.metadata)
            batches = file.iter_batches(batch_size=rows, row_groups=groups, use_threads=False)
            self._batches = map(selection.of, batches)
        self._rows: pa.RecordBatch | None = None

    def fill(self) -> bool:
        """Read on if everything has gone out; whether there is a row."""
        while self._rows is None or not self._rows.num_rows:
            self._rows = next(self._batches, None)
            if self._rows is None:
                return False
        return True

    @property
    def last(self) -> Key:
        assert self._rows is not None
        return _key(self._rows, self._rows.num_rows - 1)

    def take(self, bound: Key) -> pa.RecordBatch:
        """The rows up to the bound, itself included."""
        assert self._rows is not None
        count = _count_up_to(self._rows, bound)
        taken, self._rows = self._rows.slice(0, count), self._rows.slice(count)
        return taken


def _key(rows: "pa.RecordBatch | pa.Table", at: int) -> Key:
    project_id, event_type, timestamp, event_id = (rows.column(name)[at] for name in SORTED_BY)
    return Key(project_id.as_py(), event_type.as_py(), timestamp.value, event_id.as_py())


def _count_up_to(rows: pa.RecordBatch, bound: Key) -> int:
    low, high = 0, rows.num_rows
    while low < high:
        middle = (low + high) // 2
        if _key(rows, middle) <= bound:
            low = middle + 1
        else:
            high = middle
    return low


def _in_order(stretches: Sequence[_Stretch]) -> Iterator[pa.Table]:
    done: Key | None = None
    while stretches := [each for each in stretches if each.fill()]:
        bound = min(each.last for each in stretches)
        taken = [rows for each in stretches if (rows := each.take(bound)).num_rows]
        rows = pa.Table.from_batches(taken, SCHEMA)
        rows = rows.take(pc.sort_indices(rows, sort_keys=_SORT_KEYS))
        if not rows.num_rows or _key(rows, rows.num_rows - 1) != bound or (done and _key(rows, 0) < done):
            raise FormatError("the rows of a file of the lake are not in their order")
        yield rows
        done = bound


def _row_groups(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    held = SCHEMA.empty_table()
    for table in tables:
        held = pa.concat_tables([held, table])
        while held.num_rows >= ROW_GROUP_ROWS:
            yield held.slice(0, ROW_GROUP_ROWS)
            held = held.slice(ROW_GROUP_ROWS)
        if held.nbytes >= GROUP_BYTES:
            yield held
            held = SCHEMA.empty_table()
    yield held
