"""A file of the lake read in full, against what the manifest says of it."""

from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from storage.errors import FormatError
from storage.lake_file import SCHEMA, hours_of, id_digest, read_summary
from storage.lake_manifest import DIGEST_BITS, LakeFile


def contradictions(path: Path, file: LakeFile) -> list[str]:
    """What is not as the manifest has it, in words. Reads a row group at a time. Raises `OSError`."""
    try:
        return list(_contradictions(path, file))
    except (FormatError, pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        return [f"it cannot be read: {error}"]


def _contradictions(path: Path, file: LakeFile) -> Iterator[str]:
    summary = read_summary(path)
    note = summary.note
    if (summary.bytes, summary.checksum) != (file.bytes, file.checksum):
        yield f"it has {summary.bytes:,} bytes and checksum {summary.checksum}, not {file.bytes:,} and {file.checksum}"
    if (note.rows, note.id_digest, note.hour) != (file.rows, file.id_digest, int(file.hour.timestamp())):
        hour = datetime.fromtimestamp(note.hour, UTC)
        yield f"its footer tells of {note.rows:,} rows of {hour:%Y-%m-%dT%HZ} with digest {note.id_digest}"
    with pq.ParquetFile(path) as opened:
        if not opened.schema_arrow.equals(SCHEMA):
            yield "its columns are not those of the lake"
            return
        projects: Counter[str] = Counter()
        digest = outside = elsewhere = 0
        wanted = ["project_id", "event_id", "timestamp", "log_partition", "log_offset"]
        for number in range(opened.num_row_groups):
            rows = opened.read_row_group(number, columns=wanted)
            digest = (digest + id_digest(rows)) % (1 << DIGEST_BITS)
            for counted in pc.value_counts(rows.column("project_id").combine_chunks()).to_pylist():
                projects[counted["values"]] += counted["counts"]
            elsewhere += int((hours_of(rows) != int(file.hour.timestamp())).sum())
            outside += rows.num_rows - _within(rows, file)
    if projects != Counter(file.projects):
        yield f"it has {projects.total():,} rows, of its projects {dict(projects)}, not {dict(file.projects)}"
    if digest != file.id_digest:
        yield f"the digest of its events is {digest}, not {file.id_digest}"
    if elsewhere:
        yield f"{elsewhere:,} of its events are of another hour"
    if outside:
        yield f"{outside:,} of its events stand at offsets that it does not cover"


def _within(rows: pa.Table, file: LakeFile) -> int:
    """How many rows are of the file's ranges."""
    partitions = np.asarray(rows.column("log_partition"))
    offsets = np.asarray(rows.column("log_offset"))
    covered = np.zeros(len(offsets), bool)
    for each in file.ranges:
        covered |= (partitions == each.partition) & (offsets >= each.first_offset) & (offsets < each.next_offset)
    return int(covered.sum())
