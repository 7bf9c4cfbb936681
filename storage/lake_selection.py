"""Some rows of the lake's files: those of some projects, or of all, in ranges of the log."""

from bisect import bisect_left
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from storage.destinations import ALL_PROJECTS, Stretch
from storage.lake_manifest import OffsetRange


class Selection:
    """The rows of the stretches, each once."""

    def __init__(self, stretches: Sequence[Stretch]) -> None:
        self._names = sorted({each.project_id for each in stretches})
        projects: dict[OffsetRange, list[str]] = {}
        for each in stretches:
            projects.setdefault(OffsetRange(*each[1:]), []).append(each.project_id)
        self._wanted = {
            range_: None if ALL_PROJECTS in names else pa.array(names, pa.string())
            for range_, names in projects.items()
        }

    def row_groups(self, metadata: pq.FileMetaData) -> list[int]:
        """Those that may hold a row of the selection, by their statistics."""
        return [number for number in range(metadata.num_row_groups) if self._may_hold(metadata.row_group(number))]

    def _may_hold(self, group: pq.RowGroupMetaData) -> bool:
        if ALL_PROJECTS in self._names:
            return True
        columns = (group.column(number) for number in range(group.num_columns))
        statistics = next(column.statistics for column in columns if column.path_in_schema == "project_id")
        if statistics is None or not statistics.has_min_max:
            return True
        at = bisect_left(self._names, statistics.min)
        return at < len(self._names) and self._names[at] <= statistics.max

    def of(self, rows: pa.RecordBatch) -> pa.RecordBatch:
        """In their order."""
        partitions, offsets = np.asarray(rows.column("log_partition")), np.asarray(rows.column("log_offset"))
        chosen = np.zeros(rows.num_rows, bool)
        for range_, names in self._wanted.items():
            within = (
                (partitions == range_.partition) & (offsets >= range_.first_offset) & (offsets < range_.next_offset)
            )
            if names is not None and within.any():
                within &= np.asarray(pc.is_in(rows.column("project_id"), names))
            chosen |= within
        return rows if chosen.all() else rows.filter(pa.array(chosen))
