"""Records of the partition log that cannot be read: found, and set aside, by an operator's command.

It reads the log beside its owners and writes to PostgreSQL alone (`storage.set_aside`), so it may run at any time, by
anybody, and be killed anywhere.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import Literal, NamedTuple

from analytics_actors.pending import count_hours
from storage.errors import Conflict, FormatError, NotFound
from storage.event_batch import decode_record, require_readable
from storage.event_store import Checkpoint, LostEvents
from storage.partition_log import LogState, PartitionLog
from storage.set_aside import SetAside, SetAsideRecord, UnreadableRecord

READ_RECORDS = 64
"""At a time, as a partition's owner reads them."""

State = Literal["stored", "set aside", "stops"]
"""Of a record that cannot be read: the event store has passed it, it will be passed, or it stops its partition."""

StoredCheckpoints = Callable[[Sequence[int]], Awaitable[Sequence[Checkpoint]]]
"""`storage.event_store.EventStore.checkpoints`."""


class Finding(NamedTuple):
    partition: int
    offset: int
    bytes: int
    reason: str
    counts: Sequence[LostEvents] | None
    """Its events by project and hour; None where the record does not tell."""
    state: State


class Checked(NamedTuple):
    records: int
    bytes: int
    unreadable: list[Finding]
    set_aside: list[SetAsideRecord]
    """All that ever were."""


class LogRepair:
    def __init__(self, log: PartitionLog, checkpoints: StoredCheckpoints, kept: SetAside, *, partitions: int) -> None:
        self._log = log
        self._checkpoints = checkpoints
        self._kept = kept
        self._partitions = range(partitions)

    async def check(self) -> Checked:
        """Read every record of the log."""
        # Asked first: what is below was passed, whatever is stored while the log is read.
        checkpoints = await self._checkpoints(self._partitions)
        set_aside = await self._kept.all()
        known = {(record.partition, record.offset) for record in set_aside}
        records, size = 0, 0
        unreadable: list[Finding] = []
        for partition, state in zip(self._partitions, await self._log.state(self._partitions), strict=True):
            offset, end = (state.first_offset, state.next_offset) if state else (0, 0)
            while offset < end:
                chunk = await self._log.read(partition, offset, max_records=READ_RECORDS)
                for at, raw in chunk:
                    records, size = records + 1, size + len(raw)
                    if (found := _examine(partition, at, raw)) is not None:
                        passed = checkpoints[partition].next_offset > at
                        what: State = "stored" if passed else "set aside" if (partition, at) in known else "stops"
                        unreadable.append(Finding(partition, at, len(raw), found.reason, found.counts, what))
                offset = chunk[-1][0] + 1 if chunk else end
        return Checked(records, size, unreadable, set_aside)

    async def set_aside(self, partition: int, offset: int) -> SetAsideRecord:
        """Keep a record that cannot be read, so that its partition goes on without it; again changes nothing. Raises
        `NotFound` and `Conflict` for what is no such record."""
        if partition not in self._partitions:
            raise NotFound(f"there is no partition {partition}: there are {len(self._partitions)}, from 0 on")
        # The log lets it go as soon as the event store has stepped over it.
        if (known := await self._known(partition, offset)) is not None:
            return known
        found = await self._log.read(partition, offset, max_records=1) if offset >= 0 else []
        if not found or found[0][0] != offset:
            [state] = await self._log.state([partition])
            raise NotFound(f"the log of partition {partition} has no record {offset}: {_extent(state)}")
        record = _examine(partition, offset, found[0][1])
        if record is None:
            raise Conflict(f"record {offset} of partition {partition} can be read: nothing was changed")
        if await self._kept.add(record) == "passed":
            raise Conflict(f"the event store has passed record {offset} of partition {partition}: it stops nothing")
        added = await self._known(partition, offset)
        assert added is not None
        return added

    async def _known(self, partition: int, offset: int) -> SetAsideRecord | None:
        kept = await self._kept.all()
        return next((each for each in kept if (each.partition, each.offset) == (partition, offset)), None)


def _extent(state: LogState | None) -> str:
    if state is None or state.first_offset == state.next_offset:
        return "it is empty"
    return f"it has {state.first_offset} to {state.next_offset - 1}"


def _examine(partition: int, offset: int, raw: bytes) -> UnreadableRecord | None:
    """None for a record that can be read."""
    try:
        record = decode_record(raw)
    except FormatError as error:
        return UnreadableRecord(partition, offset, str(error), None, raw)
    try:
        require_readable(record)
    except FormatError as error:
        counts = [count.as_lost() for count in count_hours(record)]
        return UnreadableRecord(partition, offset, str(error), counts, raw)
    return None
