"""Records of the partition log that cannot be read, and that somebody has decided to go without.

The law, which `PostgresSetAside` and `MemorySetAside` both keep:
- To set a record aside is to keep its bytes here, and nothing else: log, ledger and checkpoints are left alone. The
  owner of the partition, whose way into the event store the record stops, finds it here (`EventStore.is_set_aside`),
  and steps over it in the one transaction that counts its events as lost and moves the checkpoint (CK-1, LG-1).
- Windows may have counted the record while it could be read. When it is stepped over, whoever keeps them counts the
  partition again from what is stored, and notes that (`recounted`).
- So a crash anywhere leaves the record either waiting or stepped over, and doing it again changes nothing.
- A record that the event store has passed is not set aside: its events are stored, or were counted.
"""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Literal, NamedTuple, Protocol

import asyncpg
import msgspec

from storage.event_store import LostEvents
from storage.postgres import Postgres
from storage.statements import statement

_SET_ASIDE = statement("set_record_aside")
_ALL = statement("set_aside_records")
_TO_RECOUNT = statement("records_to_recount")
_RECOUNTED = "UPDATE set_aside_records SET recounted_at = now() WHERE partition_id = $1 AND log_offset = $2"
_LOCK = "SELECT next_offset FROM checkpoints WHERE sink = 'event_store' AND partition_id = $1 FOR SHARE"
IS_SET_ASIDE = "SELECT EXISTS (SELECT FROM set_aside_records WHERE partition_id = $1 AND log_offset = $2)"


class UnreadableRecord(NamedTuple):
    partition: int
    offset: int
    reason: str
    """Why it cannot be read."""
    counts: Sequence[LostEvents] | None
    """Its events by project and hour, if the record still tells them."""
    raw: bytes


class SetAsideRecord(NamedTuple):
    partition: int
    offset: int
    reason: str
    counts: Sequence[LostEvents] | None
    bytes: int
    set_aside_at: datetime
    stepped_over_at: datetime | None
    """When the event store went on behind it."""


Added = Literal["added", "known", "passed"]


class SetAside(Protocol):
    async def add(self, record: UnreadableRecord) -> Added:
        """Keep a record: "known" if it was kept before, "passed" if the event store needs nothing of it any more."""

    async def all(self) -> list[SetAsideRecord]:
        """What was set aside, oldest first."""

    async def to_recount(self, partitions: Sequence[int]) -> list[SetAsideRecord]:
        """What was stepped over in these partitions, and may be in windows."""

    async def recounted(self, partition: int, offset: int) -> None:
        """No window holds anything of the record."""


class PostgresSetAside:
    def __init__(self, postgres: Postgres) -> None:
        self._postgres = postgres

    async def add(self, record: UnreadableRecord) -> Added:
        counts = None if record.counts is None else msgspec.json.encode(record.counts).decode()
        async with self._postgres.transaction() as connection:
            # Locked: no write can pass it before this one is decided.
            checkpoint = await connection.fetchval(_LOCK, record.partition)
            if await connection.fetchval(IS_SET_ASIDE, record.partition, record.offset):
                return "known"
            if checkpoint is not None and checkpoint > record.offset:
                return "passed"
            fields = (record.partition, record.offset, record.reason, counts, record.raw)
            return "added" if await connection.fetchval(_SET_ASIDE, *fields) else "known"

    async def all(self) -> list[SetAsideRecord]:
        async with self._postgres.session() as connection:
            rows = await connection.fetch(_ALL)
        return [_record(row) for row in rows]

    async def to_recount(self, partitions: Sequence[int]) -> list[SetAsideRecord]:
        async with self._postgres.session() as connection:
            rows = await connection.fetch(_TO_RECOUNT, partitions)
        return [_record(row) for row in rows]

    async def recounted(self, partition: int, offset: int) -> None:
        async with self._postgres.session() as connection:
            await connection.execute(_RECOUNTED, partition, offset)


class MemorySetAside:
    """Of a `MemoryStore`, which moves the checkpoints."""

    def __init__(self, clock_ms: Callable[[], int]) -> None:
        self._clock_ms = clock_ms
        self.records: dict[tuple[int, int], SetAsideRecord] = {}
        self.raw: dict[tuple[int, int], bytes] = {}
        self.checkpoints: dict[int, int] = {}
        self.are_recounted: set[tuple[int, int]] = set()

    async def add(self, record: UnreadableRecord) -> Added:
        key = record.partition, record.offset
        if key in self.records:
            return "known"
        if self.checkpoints.get(record.partition, 0) > record.offset:
            return "passed"
        self.raw[key] = record.raw
        self.records[key] = SetAsideRecord(*key, record.reason, record.counts, len(record.raw), self._now, None)
        return "added"

    async def all(self) -> list[SetAsideRecord]:
        return sorted(self.records.values(), key=lambda record: (record.set_aside_at, record.partition, record.offset))

    async def to_recount(self, partitions: Sequence[int]) -> list[SetAsideRecord]:
        return [
            record
            for key, record in self.records.items()
            if key[0] in partitions and record.stepped_over_at is not None and key not in self.are_recounted
        ]

    async def recounted(self, partition: int, offset: int) -> None:
        self.are_recounted.add((partition, offset))

    def step_over(self, partition: int, first_offset: int, next_offset: int) -> None:
        for key, record in self.records.items():
            if key[0] == partition and first_offset <= key[1] < next_offset and record.stepped_over_at is None:
                self.records[key] = record._replace(stepped_over_at=self._now)

    @property
    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._clock_ms() / 1000, UTC)


def _record(row: asyncpg.Record) -> SetAsideRecord:
    return SetAsideRecord(row[0], row[1], row[2], _counts(row[3]), row[4], row[5], row[6])


def _counts(text: str | None) -> Sequence[LostEvents] | None:
    return None if text is None else msgspec.json.decode(text, type=list[LostEvents])
