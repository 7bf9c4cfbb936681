"""Events that are not stored one by one: of each minute one record, for each event type and group of its metric.

**Aggregate-only** is an event type that a metric declares so (`storage.metric_definitions`, `aggregate_only`). What a
write has of such events is folded into records before it is stored; the records, like rows, are stored by the
transaction that moves the checkpoint. Which declarations hold is told by the `Fold` that a store is given: the store
knows nothing of metrics.

A record is merged into the one of the same key. Events that are too late for any window have records of their own
(`late`), and so have those of another form of the definition (`shape`): what was thrown away cannot be counted anew
when a definition is replaced.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import pyarrow as pa

from storage.aggregate import Aggregate
from storage.ledger_counts import RowKey
from storage.window_key import Dimensions


class RecordKey(NamedTuple):
    project_id: str
    minute: int
    """Of event time: seconds since the epoch, a multiple of 60."""
    metric: str
    event_type: str
    shape: int
    """A digest (64 bits, signed) of what the definition aggregates; see `analytics_actors.windows.aggregate_only`."""
    late: bool
    dimensions: Dimensions


@dataclass(slots=True)
class AggregatedRecord:
    """What a number of events of one key came to."""

    partition: int
    events: int
    """All of them; `aggregate.count` is of those with a usable value that pass the metric's filters."""
    aggregate: Aggregate
    first_offset: int
    next_offset: int
    """The events' log records are within [first_offset, next_offset)."""
    received_ms: int
    """The latest receipt."""

    def merge(self, other: "AggregatedRecord") -> None:
        """Take in the other's events; the other stays as it is."""
        self.events += other.events
        self.aggregate.merge(other.aggregate)
        self.first_offset = min(self.first_offset, other.first_offset)
        self.next_offset = max(self.next_offset, other.next_offset)
        self.received_ms = max(self.received_ms, other.received_ms)


Records = Mapping[RecordKey, AggregatedRecord]


class Folded(NamedTuple):
    """The rows of a write in two parts."""

    rows: pa.RecordBatch
    """To be stored one by one, in the schema `storage.copy_format.STORED`."""
    records: Records
    folded: Sequence[RowKey]
    """The rows that became records."""


Fold = Callable[[pa.RecordBatch], Folded]
"""Folds the rows of a write. Called in a thread; raises `Unavailable` while it does not know what is declared."""


def store_all(rows: pa.RecordBatch) -> Folded:
    """Nothing is aggregate-only."""
    return Folded(rows, {}, ())
