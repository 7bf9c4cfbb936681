"""Events that are not stored one by one: of each minute one record, for each event type and group of its metric.

**Aggregate-only** is an event type that a metric declares so (`storage.metric_definitions`, `aggregate_only`). What a
write has of such events is folded into records before it is stored; the records, like rows, are stored by the
transaction that moves the checkpoint. Which declarations hold is told by the `Fold` that a store is given: the store
knows nothing of metrics.

A record is merged into the one of the same key. Events that are too late for any window have records of their own
(`late`), and so have those of another form of the definition (`shape`): what was thrown away cannot be counted anew
when a definition is replaced.

**Records are bounded** as windows are: of a key's groups (its tuples of dimensions) `max_groups` have records of their
own, the others go into one, `__other__`. Which were admitted is told by the records that are there, so the bound holds
over all writes; of a write's new groups the first in order are admitted. Another cutting of the log into writes may
admit others: what all groups come to together, the totals, is the same (WM-2).
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import pyarrow as pa

from storage.aggregate import Aggregate
from storage.ledger_counts import RowKey
from storage.rollups import dimensions_hash
from storage.window_key import TOTAL, Dimensions, other


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

    @property
    def cell(self) -> "RecordKey":
        """Where groups are admitted: the key without its dimensions."""
        return self._replace(dimensions=TOTAL)


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

    def copy(self) -> "AggregatedRecord":
        """A record of its own: merging into one never changes the other."""
        return replace(self, aggregate=self.aggregate.copy())

    def merge(self, added: "AggregatedRecord") -> None:
        """Take in the other's events; the other stays as it is."""
        self.events += added.events
        self.aggregate.merge(added.aggregate)
        self.first_offset = min(self.first_offset, added.first_offset)
        self.next_offset = max(self.next_offset, added.next_offset)
        self.received_ms = max(self.received_ms, added.received_ms)


Records = Mapping[RecordKey, AggregatedRecord]


class Folded(NamedTuple):
    """The rows of a write in two parts."""

    rows: pa.RecordBatch
    """To be stored one by one, in the schema `storage.copy_format.STORED`."""
    records: Records
    folded: Sequence[RowKey]
    """The rows that became records."""
    max_groups: int = 0
    """Of each key; see the module's head. A fold that makes records says it."""


Fold = Callable[[pa.RecordBatch], Folded]
"""Folds the rows of a write. Called in a thread; raises `Unavailable` while it does not know what is declared."""


class Bounded(NamedTuple):
    """The records of a write, within the bound."""

    records: Records
    overflow_events: int
    """Those that are under `__other__` because their groups were not admitted."""


def bounded(records: Records, admitted: Mapping[RecordKey, Collection[int]], *, max_groups: int) -> Bounded:
    """`admitted`: the `dimensions_hash` of each group that has a record, by the key's `cell`. What is given stays as it
    is."""
    groups = {cell: set(hashes) for cell, hashes in admitted.items()}
    found: dict[RecordKey, AggregatedRecord] = {}
    overflow_events = 0
    for key, record in sorted(records.items(), key=lambda item: item[0]):
        place = _admit(key, groups.setdefault(key.cell, set()), max_groups)
        if place != key:
            overflow_events += record.events
        if place in found:
            found[place].merge(record)
        else:
            # Only the record of the others is merged into.
            found[place] = record.copy() if place == _rest(key) else record
    return Bounded(found, overflow_events)


def _admit(key: RecordKey, groups: set[int], max_groups: int) -> RecordKey:
    """The key that the events are kept under; `groups` takes it in."""
    rest = _rest(key)
    group = dimensions_hash(key.dimensions)
    if key == rest or group in groups:
        return key
    if len(groups) - (dimensions_hash(rest.dimensions) in groups) >= max_groups:
        return rest
    groups.add(group)
    return key


def _rest(key: RecordKey) -> RecordKey:
    return key._replace(dimensions=other(key.dimensions))


def store_all(rows: pa.RecordBatch) -> Folded:
    """Nothing is aggregate-only."""
    return Folded(rows, {}, ())
