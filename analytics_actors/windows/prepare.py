"""From log records or stored rows to what they add to which minutes. For a thread: nothing here waits or is shared."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from analytics_actors.windows.grouping import aggregate
from storage.aggregate import Aggregate
from storage.errors import FormatError
from storage.event_batch import COLUMNS, RecordBatch, decode_record, read_each
from storage.metric_definitions import MetricDefinition
from storage.window_key import WindowKey, late_mask, microseconds

DAY_S = 86400

MAX_PLAIN_BYTES = 64 * 1024 * 1024
"""Of columns at once, and a record of each partition: a read of the log may hold gigabytes of what compresses well."""

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


class _Head(NamedTuple):
    """A record, and which of its batches have rows."""

    partition: int
    offset: int
    batches: Sequence[RecordBatch]


def decode(records: Mapping[int, Sequence[tuple[int, bytes]]]) -> Decoded:
    """A record that cannot be read ends its own partition's part before it."""
    decoded = Decoded()
    heads = list(_heads(records, decoded.unreadable))
    # All at once: most records of many small projects hold an event or two.
    rows = iter(read_each([batch for head in heads for batch in head.batches]))
    partitions: list[int] = []
    ended: set[int] = set()
    for head in heads:
        read = list(zip(head.batches, itertools.islice(rows, len(head.batches)), strict=True))
        error = next((found for _, found in read if isinstance(found, FormatError)), None)
        if head.partition in ended:
            continue
        if error is not None:
            ended.add(head.partition)
            decoded.unreadable[head.partition] = error
            continue
        fresh = [_without_duplicates(batch, found) for batch, found in read]
        decoded.batches += [batch for batch in fresh if batch.num_rows]
        partitions += [head.partition for batch in fresh if batch.num_rows]
        decoded.next_offsets[head.partition] = head.offset + 1
    for partition, watermark_ms in zip(partitions, newest_ms(decoded.batches), strict=True):
        decoded.watermarks_ms[partition] = max(decoded.watermarks_ms.get(partition, 0), watermark_ms)
    return decoded


def _heads(records: Mapping[int, Sequence[tuple[int, bytes]]], unreadable: dict[int, FormatError]) -> Iterator[_Head]:
    for partition, entries in records.items():
        room = max(1, MAX_PLAIN_BYTES // len(records))
        for offset, raw in entries:
            if room <= 0:
                # The next read begins here.
                break
            try:
                record = decode_record(raw)
            except FormatError as error:
                unreadable[partition] = error
                break
            room -= record.plain_bytes
            yield _Head(partition, offset, [batch for batch in record.batches if batch.rows.block])


def _without_duplicates(batch: RecordBatch, rows: pa.RecordBatch) -> pa.RecordBatch:
    mask = batch.duplicate_mask()
    return rows if mask is None else rows.filter(pa.array(~mask))


def newest_ms(batches: Sequence[pa.RecordBatch]) -> list[int]:
    """The latest receipt in each batch; none may be empty."""
    if not batches:
        return []
    received = microseconds(pa.Table.from_batches(batches, COLUMNS), "received_at")
    starts = np.cumsum([0, *(batch.num_rows for batch in batches[:-1])])
    newest: list[int] = (np.maximum.reduceat(received, starts) // 1000).tolist()
    return newest


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
