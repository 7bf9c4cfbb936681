"""Log records for tests of the event store: `record(batch(event("e1"), …))`."""

from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import groupby
from typing import Any

import numpy as np
import pyarrow as pa

from storage.event_batch import (
    COLUMNS,
    RECORD_VERSION,
    LogRecord,
    PackedRows,
    RecordBatch,
    Segment,
    pack_duplicates,
    pack_rows,
)
from storage.event_store import PartitionWrite

# The ledger's check compares hours whose daily partitions are there: these events are of this hour.
NOW = datetime.now(UTC)


def hour_of(time: datetime) -> int:
    return int(time.timestamp()) // 3600


def event(event_id: str, project_id: str = "shop", **columns: Any) -> dict[str, Any]:
    """One row of the columns, complete."""
    row = dict.fromkeys(COLUMNS.names) | {
        "project_id": project_id,
        "event_id": event_id,
        "event_type": "click",
        "timestamp": NOW,
        "received_at": NOW,
        "properties": "{}",
    }
    return row | columns


def batch(*events: dict[str, Any], duplicates: Sequence[int] = (), rejected: int = 0) -> RecordBatch:
    """Segments follow the rows; refused events are counted to the first of them."""
    segments: list[Segment] = []
    for (project_id, hour), run in groupby(events, key=lambda row: (row["project_id"], hour_of(row["received_at"]))):
        segments.append(Segment(project_id, hour, len(list(run)), 0 if segments else rejected))
    if not events:
        return RecordBatch(b"b" * 16, [Segment("shop", hour_of(NOW), 0, rejected)], b"", PackedRows())
    mask = np.isin(np.arange(len(events)), duplicates)
    rows = pa.RecordBatch.from_pylist(list(events), schema=COLUMNS)
    return RecordBatch(b"b" * 16, segments, pack_duplicates(mask), pack_rows(rows))


def record(*batches: RecordBatch) -> LogRecord:
    return LogRecord(RECORD_VERSION, 0, list(batches))


def write(*records: LogRecord, partition: int = 0, epoch: int = 1, first: int = 0, **fields: Any) -> PartitionWrite:
    """The records at consecutive offsets from `first` on."""
    return PartitionWrite(partition, epoch, first, first + len(records), list(enumerate(records, first)), **fields)
