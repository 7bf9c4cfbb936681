"""Records of the log that cannot be read: each stops its own partition's way into the event store, and no other.

From time to time such a record is read again, and PostgreSQL is asked whether somebody has set it aside
(`storage.set_aside`). Then its ids are forgotten, first of all, so that its events may be sent again, and the partition
goes on behind it with them counted as lost.
"""

from collections.abc import Callable, Collection
from typing import NamedTuple

import numpy as np

from analytics_actors.counters import Counters
from analytics_actors.owned_partition import OwnedPartition
from analytics_actors.pending import PendingRecord, lost_of
from storage.errors import FormatError
from storage.event_batch import LogRecord, require_readable
from storage.event_store import EventStore, PartitionWrite
from storage.partition_log import PartitionLog

LOOK_AGAIN_S = 2.0
"""The partition waits for a person, so this need not be often."""


class _Stop(NamedTuple):
    offset: int
    look_at_ms: int


class Unreadable:
    """What the store sink knows of such records in its partitions."""

    def __init__(
        self, log: PartitionLog, store: EventStore, counters: Counters, *, clock_ms: Callable[[], int]
    ) -> None:
        self._log = log
        self._store = store
        self._counters = counters
        self._clock_ms = clock_ms
        # Partitions of a write that met such a record: which one it is, the next write finds out.
        self._doubted: set[int] = set()
        self._stops: dict[int, _Stop] = {}

    def holds(self, owner: OwnedPartition) -> bool:
        """Whether the partition stands before such a record, and it is not time to look again."""
        stop = self._stops.get(owner.partition)
        return stop is not None and 0 < stop.look_at_ms - self._clock_ms() <= LOOK_AGAIN_S * 1000

    def doubt(self, partitions: Collection[int]) -> bool:
        """Look at each record of these partitions before it is written. False when that was done already."""
        known = self._doubted.issuperset(partitions)
        self._doubted.update(partitions)
        return not known

    def check(self, owner: OwnedPartition, pending: PendingRecord, record: LogRecord) -> None:
        """Raises `FormatError` for a record of a doubted partition that cannot be read."""
        if owner.partition not in self._doubted:
            return
        try:
            require_readable(record)
        except FormatError:
            # The next time the log is asked.
            owner.pending.let_go(pending)
            raise

    async def step_over(
        self, owner: OwnedPartition, pending: PendingRecord, error: FormatError
    ) -> PartitionWrite | None:
        """The write that goes over a record that was set aside; None, and trouble is shown, for any other."""
        partition, offset = owner.partition, pending.offset
        if not await self._store.is_set_aside(partition, offset):
            self._stops[partition] = _Stop(offset, self._clock_ms() + int(LOOK_AGAIN_S * 1000))
            self._counters.trouble(_name(owner), f"record {offset} cannot be read, see `log check`: {error}")
            return None
        # Should the write fail, the record is met again, and its ids are gone already.
        fingerprints = await self._log.ids_of(partition, offset)
        owner.window.remove(np.frombuffer(fingerprints, "<u8"))
        await self._log.forget_ids(partition, range(offset, offset + 1), epoch=owner.epoch)
        self._counters.count("records_set_aside")
        self._counters.count("events_lost", pending.events)
        assert owner.store_epoch is not None
        return PartitionWrite(partition, owner.store_epoch, offset, offset + 1, (), lost=lost_of([pending]))

    def advanced(self, owner: OwnedPartition) -> None:
        """The event store's checkpoint has moved, or is known anew."""
        self._doubted.discard(owner.partition)
        stop = self._stops.get(owner.partition)
        if stop is not None and owner.checkpoint > stop.offset:
            del self._stops[owner.partition]
            self._counters.clear_trouble(_name(owner))


def _name(owner: OwnedPartition) -> str:
    return f"partition {owner.partition}"
