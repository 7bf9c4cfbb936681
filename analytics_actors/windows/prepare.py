"""From log records or stored rows to what they add to which minutes. For a thread: nothing here waits or is shared."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from analytics_actors.windows.grouping import aggregate
from storage.aggregate import Aggregate
from storage.errors import FormatError
from storage.event_batch import COLUMNS, decode_record, read_rows
from storage.metric_definitions import MetricDefinition
from storage.window_key import WindowKey, late_mask, microseconds

DAY_S = 86400
_US = 1_000_000

DefinitionsOf = Callable[[str], Sequence[MetricDefinition]]


@dataclass
class Prepared:
    """What some rows add to the windows, and what of them adds nothing."""

    deltas: dict[WindowKey, Aggregate] = field(default_factory=dict)
    """By 1-minute window."""
    events: int = 0
    """Rows that were counted."""
    late_events: int = 0
    """Too late for any window; the event store marks their days."""
    frozen_days: set[tuple[str, int]] = field(default_factory=set)
    """(project, start of the day) of rows that were in time, and whose hour does not change any more."""


@dataclass
class Decoded:
    """Rows of several partitions, without duplicates, as far as they could be read."""

    batches: list[pa.RecordBatch] = field(default_factory=list)
    next_offsets: dict[int, int] = field(default_factory=dict)
    watermarks_ms: dict[int, int] = field(default_factory=dict)
    unreadable: dict[int, FormatError] = field(default_factory=dict)


def decode(records: Mapping[int, Sequence[tuple[int, bytes]]]) -> Decoded:
    """A record that cannot be read ends its own partition's part before it."""
    decoded = Decoded()
    for partition, entries in records.items():
        for offset, raw in entries:
            try:
                batches = _rows_of(raw)
            except FormatError as error:
                decoded.unreadable[partition] = error
                break
            decoded.batches += batches
            decoded.next_offsets[partition] = offset + 1
            for batch in batches:
                decoded.watermarks_ms[partition] = max(decoded.watermarks_ms.get(partition, 0), newest_ms(batch))
    return decoded


def _rows_of(raw: bytes) -> list[pa.RecordBatch]:
    found = []
    for batch in decode_record(raw).batches:
        if not batch.rows.block:
            continue
        rows = read_rows(batch)
        mask = batch.duplicate_mask()
        if mask is not None:
            rows = rows.filter(pa.array(~mask))
        if rows.num_rows:
            found.append(rows)
    return found


def newest_ms(rows: pa.RecordBatch) -> int:
    """The latest receipt among some rows, at least one."""
    return int(microseconds(rows, "received_at").max()) // 1000


def prepare(
    batches: Iterable[pa.RecordBatch], definitions: DefinitionsOf, *, lateness_s: float | None, frozen_below: int
) -> Prepared:
    """Group the rows that belong into windows; with `lateness_s` None none is too late."""
    table = pa.Table.from_batches(list(batches), COLUMNS)
    if not table.num_rows:
        return Prepared()
    late = np.zeros(table.num_rows, bool) if lateness_s is None else late_mask(table, lateness_s)
    frozen = ~late & (microseconds(table, "timestamp") < frozen_below * _US)
    counted = ~(late | frozen)
    prepared = Prepared(events=int(np.count_nonzero(counted)), late_events=int(np.count_nonzero(late)))
    if frozen.any():
        prepared.frozen_days = _days_of(table.filter(pa.array(frozen)))
    if prepared.events:
        rows = table if prepared.events == table.num_rows else table.filter(pa.array(counted))
        prepared.deltas = aggregate(rows, definitions)
    return prepared


def _days_of(rows: pa.Table) -> set[tuple[str, int]]:
    days = microseconds(rows, "timestamp") // (DAY_S * _US) * DAY_S
    pairs = pa.table({"project": rows.column("project_id"), "day": pa.array(days)}).group_by(["project", "day"])
    found = pairs.aggregate([])
    return set(zip(found.column("project").to_pylist(), found.column("day").to_pylist(), strict=True))


def projects_of(rows: pa.RecordBatch | pa.Table) -> list[str]:
    found: list[str] = pc.unique(rows.column("project_id")).to_pylist()
    return found
