"""Which days rows are too late for; computed in columns, and for next to nothing when none is."""

from typing import NamedTuple

import pyarrow as pa

from storage.window_key import late_mask, microseconds

_DAY_US = 86400 * 1_000_000


class LateDays(NamedTuple):
    """Columns of one length, each project and day once; as mark_late_days.sql takes them."""

    projects: list[str]
    days: list[int]
    """Days of event time since the epoch, UTC."""
    partitions: list[int]


def late_days(rows: pa.RecordBatch, lateness_s: float) -> LateDays | None:
    """The days of the rows (`storage.copy_format.STORED`) that no window counts, None when there is none."""
    mask = late_mask(rows, lateness_s)
    if not mask.any():
        return None
    late = rows.filter(pa.array(mask))
    table = pa.table(
        {
            "project_id": late.column("project_id"),
            "day": pa.array(microseconds(late, "timestamp") // _DAY_US),
            "partition_id": late.column("partition_id"),
        }
    )
    marked = table.group_by(table.column_names).aggregate([])
    return LateDays(*(marked.column(name).to_pylist() for name in table.column_names))
