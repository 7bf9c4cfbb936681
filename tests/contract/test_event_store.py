"""The law of `storage.event_store`, kept by the store in memory and by the one in PostgreSQL alike."""

from collections.abc import AsyncIterator
from typing import NamedTuple, Protocol

import asyncpg
import pytest

from config.settings import StoreSettings
from storage.errors import Fenced, FormatError, Unavailable
from storage.event_batch import LogRecord, PackedRows, RecordBatch, Segment
from storage.event_store import Checkpoint, EventStore, LostEvents, WriteResult
from storage.memory_store import MemoryStore
from storage.migrate import migrate
from storage.postgres_store import PostgresStore
from tests.contract.cut_proxy import CutProxy
from tests.contract.log_records import NOW, batch, event, hour_of, record, write

HOUR = hour_of(NOW)
NUL_IN_JSON = '{"a":"\\u0000"}'


class LedgerRow(NamedTuple):
    project_id: str
    received: int
    stored: int = 0
    duplicate: int = 0
    dead_lettered: int = 0
    rejected: int = 0
    lost: int = 0


class Subject(Protocol):
    """A store, and what a look at its data shows."""

    store: EventStore

    async def lose_next_commit(self, *, committed: bool) -> None: ...

    async def ledger(self) -> list[LedgerRow]: ...

    async def dead_letters(self) -> list[tuple[str, str, int, int, int]]: ...

    async def close(self) -> None: ...


class MemorySubject:
    def __init__(self) -> None:
        self.memory = MemoryStore()
        self.store: EventStore = self.memory

    async def lose_next_commit(self, *, committed: bool) -> None:
        self.memory.fail_next(committed=committed)

    async def ledger(self) -> list[LedgerRow]:
        rows = self.memory.ledger.items()
        return sorted(
            LedgerRow(key.project_id, c.received, c.stored, c.duplicate, c.dead_lettered, c.rejected, c.lost)
            for key, c in rows
        )

    async def dead_letters(self) -> list[tuple[str, str, int, int, int]]:
        return sorted((row["project_id"], row["event_id"], *key) for key, row in self.memory.dead_letters.items())

    async def close(self) -> None:
        await self.store.close()


class PostgresSubject:
    def __init__(self, proxy: CutProxy, connection: "asyncpg.Connection[asyncpg.Record]") -> None:
        self._proxy = proxy
        self._connection = connection
        settings = StoreSettings(postgres_url=proxy.url, write_timeout_seconds=20.0)
        self.store: EventStore = PostgresStore(settings, owner="test")

    async def lose_next_commit(self, *, committed: bool) -> None:
        self._proxy.cut_next("reply" if committed else "request", b"COMMIT;")

    async def ledger(self) -> list[LedgerRow]:
        sql = "SELECT project_id, received, stored, duplicate, dead_lettered, rejected, lost FROM ledger ORDER BY 1"
        return [LedgerRow(*row) for row in await self._connection.fetch(sql)]

    async def dead_letters(self) -> list[tuple[str, str, int, int, int]]:
        sql = "SELECT project_id, event_id, partition_id, log_offset, row_number FROM dead_letters ORDER BY 1, 2"
        return [(row[0], row[1], row[2], row[3], row[4]) for row in await self._connection.fetch(sql)]

    async def close(self) -> None:
        await self.store.close()
        await self._connection.close()
        await self._proxy.stop()


@pytest.fixture
async def subject(url: str) -> AsyncIterator[Subject]:
    if not url:
        yield MemorySubject()
        return
    await migrate(url)
    proxy = CutProxy(url)
    await proxy.start()
    made = PostgresSubject(proxy, await asyncpg.connect(url))
    yield made
    await made.close()


async def stored_ids(store: EventStore, *partitions: int, since_ms: int = 0) -> list[tuple[str, str]]:
    chunks = [chunk async for chunk in store.recent_ids(partitions or (0,), since_ms=since_ms)]
    return sorted((stored.project_id, stored.event_id) for chunk in chunks for stored in chunk)


async def test_a_partition_that_was_never_claimed_is_at_its_beginning(subject: Subject) -> None:
    assert await subject.store.checkpoints([3, 1]) == [Checkpoint(3, 0, 0), Checkpoint(1, 0, 0)]


async def test_a_claim_keeps_the_offset_and_can_be_repeated(subject: Subject) -> None:
    store = subject.store
    await store.claim(0, epoch=1)
    await store.write([write(record(batch(event("a"))), record(batch(event("b"))))])
    assert await store.claim(0, epoch=5) == Checkpoint(0, 5, 2)
    assert await store.claim(0, epoch=5) == Checkpoint(0, 5, 2)
    assert await store.checkpoints([0]) == [Checkpoint(0, 5, 2)]


async def test_an_older_epoch_can_neither_claim_nor_write(subject: Subject) -> None:
    store = subject.store
    await store.claim(0, epoch=2)
    with pytest.raises(Fenced):
        await store.claim(0, epoch=1)
    with pytest.raises(Fenced):
        await store.write([write(record(batch(event("a"))), epoch=1)])
    assert await stored_ids(store) == []
    assert await subject.ledger() == []


@pytest.mark.parametrize("first", [0, 2])
async def test_a_write_begins_where_the_checkpoint_stands(subject: Subject, first: int) -> None:
    store = subject.store
    await store.claim(0, epoch=1)
    await store.write([write(record(batch(event("a"))))])
    with pytest.raises(Fenced):
        await store.write([write(record(batch(event("b"))), first=first)])
    assert await store.checkpoints([0]) == [Checkpoint(0, 1, 1)]
    assert await stored_ids(store) == [("shop", "a")]


async def test_nothing_is_written_to_a_partition_that_was_not_claimed(subject: Subject) -> None:
    with pytest.raises(Fenced):
        await subject.store.write([write(record(batch(event("a"))))])


async def test_one_fenced_partition_keeps_all_of_the_write_out(subject: Subject) -> None:
    store = subject.store
    await store.claim(0, epoch=1)
    await store.claim(1, epoch=2)
    with pytest.raises(Fenced):
        await store.write([write(record(batch(event("a")))), write(record(batch(event("b"))), partition=1, epoch=1)])
    assert await store.checkpoints([0, 1]) == [Checkpoint(0, 1, 0), Checkpoint(1, 2, 0)]
    assert await stored_ids(store, 0, 1) == []


async def test_several_partitions_are_written_at_once(subject: Subject) -> None:
    store = subject.store
    for partition in (4, 2):
        await store.claim(partition, epoch=1)
    result = await store.write(
        [
            write(record(batch(event("a"))), record(batch(event("b"))), partition=4),
            write(record(batch(event("c", "blog"))), partition=2),
        ]
    )
    assert result == WriteResult(stored=3, duplicate=0, dead_lettered=0)
    assert await store.checkpoints([2, 4]) == [Checkpoint(2, 1, 1), Checkpoint(4, 1, 2)]
    assert await stored_ids(store, 4) == [("shop", "a"), ("shop", "b")]
    assert await stored_ids(store, 2, 4) == [("blog", "c"), ("shop", "a"), ("shop", "b")]


async def test_duplicates_and_refused_events_are_counted_and_not_stored(subject: Subject) -> None:
    store = subject.store
    await store.claim(0, epoch=1)
    first = batch(event("a"), event("b"), event("c", "blog"), event("d", "blog"), duplicates=[1, 3], rejected=5)
    result = await store.write([write(record(first, batch(rejected=2)), record(batch(event("e"), duplicates=[0])))])
    assert result == WriteResult(stored=2, duplicate=3, dead_lettered=0)
    assert await stored_ids(store) == [("blog", "c"), ("shop", "a")]
    assert await subject.ledger() == [
        LedgerRow("blog", received=2, stored=1, duplicate=1),
        LedgerRow("shop", received=10, stored=1, duplicate=2, rejected=7),
    ]


async def test_counts_of_an_hour_add_up_over_writes(subject: Subject) -> None:
    store = subject.store
    await store.claim(0, epoch=1)
    for offset in range(3):
        await store.write([write(record(batch(event(str(offset)), rejected=1)), first=offset)])
    assert await subject.ledger() == [LedgerRow("shop", received=6, stored=3, rejected=3)]


async def test_a_gap_moves_the_checkpoint_and_says_what_was_lost(subject: Subject) -> None:
    store = subject.store
    await store.claim(0, epoch=1)
    gap = write(lost=[LostEvents("shop", HOUR, received=9, duplicate=2, rejected=3, lost=4)])
    assert await store.write([gap._replace(next_offset=40)]) == WriteResult(stored=0, duplicate=2, dead_lettered=0)
    assert await store.checkpoints([0]) == [Checkpoint(0, 1, 40)]
    assert await subject.ledger() == [LedgerRow("shop", received=9, duplicate=2, rejected=3, lost=4)]


POISON = {
    "NUL in JSON": {"properties": NUL_IN_JSON},
    "NUL in text": {"user_id": "a\0b"},
    "no JSON": {"context": "{"},
}


@pytest.mark.parametrize("columns", POISON.values(), ids=POISON)
async def test_a_poison_row_becomes_a_dead_letter_and_its_neighbours_are_stored(
    subject: Subject, columns: dict[str, str]
) -> None:
    store = subject.store
    await store.claim(0, epoch=1)
    events = [event(f"e{number}") for number in range(40)]
    events[17] |= columns
    records = [record(batch(event("first"), duplicates=[0]), batch(*events, duplicates=[3])), record(batch(event("z")))]
    assert await store.write([write(*records)]) == WriteResult(stored=39, duplicate=2, dead_lettered=1)
    assert ("shop", "e16") in (found := await stored_ids(store)) and ("shop", "e18") in found
    assert ("shop", "e17") not in found and len(found) == 39
    # Row 18 of the record: its second batch begins with row 1.
    assert await subject.dead_letters() == [("shop", "e17", 0, 0, 18)]
    assert await subject.ledger() == [LedgerRow("shop", received=42, stored=39, duplicate=2, dead_lettered=1)]
    assert await store.checkpoints([0]) == [Checkpoint(0, 1, 2)]


async def test_poison_everywhere_leaves_nothing_behind_but_dead_letters(subject: Subject) -> None:
    store = subject.store
    await store.claim(0, epoch=1)
    events = [event(f"e{number:02}", f"p{number // 10}", properties=NUL_IN_JSON) for number in range(30)]
    assert await store.write([write(record(batch(*events)))]) == WriteResult(stored=0, duplicate=0, dead_lettered=30)
    assert [letter[1] for letter in await subject.dead_letters()] == [f"e{number:02}" for number in range(30)]
    assert await subject.ledger() == [LedgerRow(f"p{number}", received=10, dead_lettered=10) for number in range(3)]


@pytest.mark.parametrize("committed", [True, False])
async def test_a_claim_settles_a_write_of_unknown_outcome(subject: Subject, committed: bool) -> None:
    store, attempt = subject.store, [write(record(batch(event("a"), event("b"))))]
    await store.claim(0, epoch=1)
    await subject.lose_next_commit(committed=committed)
    with pytest.raises(Unavailable):
        await store.write(attempt)
    checkpoint = await store.claim(0, epoch=1)
    assert checkpoint.next_offset == (1 if committed else 0)
    if not committed:
        await store.write(attempt)
    with pytest.raises(Fenced):
        await store.write(attempt)
    assert await stored_ids(store) == [("shop", "a"), ("shop", "b")]
    assert await subject.ledger() == [LedgerRow("shop", received=2, stored=2)]


async def test_damaged_rows_are_told_and_change_nothing(subject: Subject) -> None:
    await subject.store.claim(0, epoch=1)
    damaged = RecordBatch(b"b" * 16, [Segment("shop", HOUR, 1, 0)], b"", PackedRows(100, b"\xff" * 20))
    with pytest.raises(FormatError):
        await subject.store.write([write(LogRecord(1, 0, [damaged]))])
    assert await subject.store.checkpoints([0]) == [Checkpoint(0, 1, 0)]


async def test_recent_ids_begin_at_a_time(subject: Subject) -> None:
    store = subject.store
    await store.claim(0, epoch=1)
    await store.write([write(record(batch(event("a"))))])
    chunks = [chunk async for chunk in store.recent_ids([0], since_ms=0)]
    stored_ms = chunks[0][0].stored_ms
    assert abs(stored_ms - NOW.timestamp() * 1000) < 600_000
    assert await stored_ids(store, since_ms=stored_ms - 60_000) == [("shop", "a")]
    assert await stored_ids(store, since_ms=stored_ms + 60_000) == []
    assert await stored_ids(store, 5) == []
