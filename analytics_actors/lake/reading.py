"""The events of ranges that the event store has: from the log as long as it has them, else from the event store."""

import sys
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable, Mapping, Sequence

import numpy as np
import pyarrow as pa

from analytics_actors.counters import Counters
from analytics_actors.lake.piece import Piece, is_readable, piece_of_events, piece_of_records
from storage.errors import FormatError
from storage.event_batch import LogRecord, decode_record
from storage.event_columns import OFFSET_COLUMNS
from storage.lake_file import EVENTS
from storage.lake_listing import PendingExport
from storage.lake_manifest import OffsetRange
from storage.log_tail import Tail
from storage.stored_log import StoredLog, Stretch

MAX_RECORDS = 256
"""Of one read, over all partitions; the tail bounds it in bytes too."""

STRETCH_ROWS = 4000
STRETCH_BYTES = 4 * 1024 * 1024
"""Of one read from the event store; a record more at most."""

Pending = Callable[[], Awaitable[Sequence[PendingExport]]]
"""`storage.lake_listing.LakeListing.pending`: since when what the lake does not have was stored."""


class Reading:
    """One call at a time."""

    def __init__(self, tail: Tail, stored: StoredLog, counters: Counters, *, pending: Pending) -> None:
        self._tail = tail
        self._stored = stored
        self._counters = counters
        self._pending = pending
        self._stretches: defaultdict[int, deque[Stretch]] = defaultdict(deque)

    async def read_all(self, ranges: Sequence[OffsetRange]) -> list[Piece]:
        """All of the ranges."""
        pieces: list[Piece] = []
        missing = {each.partition: each for each in ranges}
        while missing:
            for piece in await self.read(missing, max_bytes=sys.maxsize):
                pieces.append(piece)
                rest = missing[piece.range.partition]._replace(first_offset=piece.range.next_offset)
                missing[piece.range.partition] = rest
            missing = {p: each for p, each in missing.items() if each.first_offset < each.next_offset}
        return pieces

    async def read(self, wanted: Mapping[int, OffsetRange], *, max_bytes: int) -> list[Piece]:
        """Some pieces of the ranges (by partition, none empty), each from its range's beginning on; of about
        `max_bytes` of columns. Raises `Unavailable` and what else the services raise; to be called again then."""
        behind = [partition for partition, each in wanted.items() if self._next_stretch(each) is not None]
        in_log = {partition: each.first_offset for partition, each in wanted.items() if partition not in behind}
        read = await self._tail.read(in_log, block_ms=0, max_records=MAX_RECORDS)
        pieces, unreadable = _pieces(read.records, wanted, max_bytes)
        # What is stored was in the log before: where there is nothing now, it is gone.
        gone = in_log.keys() - read.records.keys()
        for stretch in await self._stretches_of([wanted[partition] for partition in (*gone, *unreadable)]):
            self._stretches[stretch.range.partition].append(stretch)
        if behind:
            pieces.append(await self._read_back(self._stretches[behind[0]][0]))
            self._stretches[behind[0]].popleft()
        return pieces

    async def without_damage(self, pieces: Sequence[Piece]) -> list[Piece]:
        """The same ranges: pieces with records whose rows cannot be read come from the event store instead."""
        found: list[Piece] = []
        for piece in pieces:
            if isinstance(piece.content, pa.Table) or is_readable(piece):
                found.append(piece)
                continue
            found += [await self._read_back(stretch) for stretch in await self._stretches_of([piece.range])]
        return found

    def _next_stretch(self, wanted: OffsetRange) -> Stretch | None:
        """The stretch that the range begins with, if it was cut."""
        stretches = self._stretches[wanted.partition]
        if stretches and stretches[0].range.first_offset != wanted.first_offset:
            stretches.clear()
        return stretches[0] if stretches else None

    async def _stretches_of(self, ranges: Sequence[OffsetRange]) -> list[Stretch]:
        """What the event store has of ranges that the log does not tell."""
        since = {each.partition: each.since for each in await self._pending()} if ranges else {}
        found: list[Stretch] = []
        for each in ranges:
            self._counters.count("log_gaps")
            found += await self._stored.stretches(
                each, since=since.get(each.partition), max_rows=STRETCH_ROWS, max_bytes=STRETCH_BYTES
            )
        return found

    async def _read_back(self, stretch: Stretch) -> Piece:
        rows = pa.Table.from_batches([batch async for batch in self._stored.rows(stretch)], OFFSET_COLUMNS)
        partitions = pa.array(np.full(rows.num_rows, stretch.range.partition, np.int16))
        events = rows.append_column(EVENTS.field("partition_id"), partitions).select(EVENTS.names).cast(EVENTS)
        self._counters.count("events_read_back", events.num_rows)
        return piece_of_events(stretch.range, events)


def _pieces(
    found: Mapping[int, Sequence[tuple[int, bytes]]], wanted: Mapping[int, OffsetRange], max_bytes: int
) -> tuple[list[Piece], list[int]]:
    """What could be read, of `max_bytes` of columns and one record, and the partitions of which nothing could."""
    pieces: list[Piece] = []
    unreadable: list[int] = []
    room = max_bytes
    for partition, entries in found.items():
        records: list[tuple[int, LogRecord]] = []
        for offset, raw in entries:
            if offset >= wanted[partition].next_offset or room <= 0:
                break
            try:
                record = decode_record(raw)
            except FormatError:
                # The event store has it all the same.
                if not records:
                    unreadable.append(partition)
                break
            records.append((offset, record))
            room -= record.plain_bytes
        if records:
            pieces.append(piece_of_records(partition, records))
    return pieces, unreadable
