"""The law of `storage.set_aside`, with the event store that steps over it: in memory and in PostgreSQL."""

from collections.abc import AsyncIterator
from typing import NamedTuple

import asyncpg
import pytest

from config.settings import StoreSettings
from storage.errors import Fenced
from storage.event_store import Checkpoint, EventStore, LostEvents
from storage.ledger import Ledger
from storage.memory_store import MemoryStore
from storage.migrate import migrate
from storage.postgres import Postgres
from storage.postgres_store import PostgresStore
from storage.set_aside import PostgresSetAside, SetAside, UnreadableRecord
from tests.contract.log_records import NOW, batch, event, hour_of, record, write

LOST = [LostEvents("shop", hour_of(NOW), received=9, duplicate=2, rejected=3, lost=4)]
RECORD = UnreadableRecord(0, 1, "not a log record", LOST, b"\x00\xff damaged")


class Subject(NamedTuple):
    store: EventStore
    kept: SetAside


@pytest.fixture
async def subject(url: str) -> AsyncIterator[Subject]:
    if not url:
        memory = MemoryStore()
        yield Subject(memory, memory.set_aside)
        return
    await migrate(url)
    postgres = Postgres(url, owner="test", pool_size=2, deadline_s=20)
    store = PostgresStore(StoreSettings(postgres_url=url), owner="test")
    yield Subject(store, PostgresSetAside(postgres))
    await store.close()
    await postgres.close()


async def test_a_record_is_set_aside_once(subject: Subject) -> None:
    assert not await subject.store.is_set_aside(0, 1)
    assert await subject.kept.add(RECORD) == "added"
    assert await subject.kept.add(RECORD) == "known"
    assert await subject.kept.add(RECORD._replace(raw=b"other", counts=None)) == "known"
    assert await subject.kept.add(RECORD._replace(partition=3, counts=None)) == "added"
    assert await subject.store.is_set_aside(0, 1)
    assert not await subject.store.is_set_aside(0, 2)
    first, second = await subject.kept.all()
    assert first[:5] == (0, 1, "not a log record", LOST, len(RECORD.raw))
    assert (second.partition, second.counts, second.stepped_over_at) == (3, None, None)
    # Nothing else was touched.
    assert await subject.store.checkpoints([0, 3]) == [Checkpoint(0, 0, 0), Checkpoint(3, 0, 0)]


async def test_the_write_over_it_tells_when(subject: Subject) -> None:
    store = subject.store
    await store.claim(0, epoch=1)
    await store.claim(1, epoch=1)
    for partition, offset in ((0, 1), (0, 2), (1, 1)):
        await subject.kept.add(RECORD._replace(partition=partition, offset=offset))
    over = write(first=1, lost=LOST)._replace(next_offset=2)
    with pytest.raises(Fenced):
        await store.write([over])
    assert [kept.stepped_over_at for kept in await subject.kept.all()] == [None] * 3
    # Beside a partition that has records.
    await store.write([write(record(batch(event("a")))), write(record(batch(event("b"))), partition=1)])
    await store.write([over, write(record(batch(event("c"))), partition=1, first=1)])
    stepped_over = {kept[:2]: kept.stepped_over_at for kept in await subject.kept.all()}
    assert {key for key, at in stepped_over.items() if at} == {(0, 1)}
    assert await store.checkpoints([0]) == [Checkpoint(0, 1, 2)]
    assert await subject.kept.add(RECORD) == "known"


async def test_windows_are_told_until_they_have_recounted(subject: Subject) -> None:
    store, kept = subject
    for partition in (0, 1):
        await store.claim(partition, epoch=1)
        await kept.add(RECORD._replace(partition=partition, offset=0))
    assert await kept.to_recount([0, 1]) == []
    await store.write([write(lost=LOST, partition=partition)._replace(next_offset=1) for partition in (0, 1)])
    assert [(each.partition, each.offset, each.counts) for each in await kept.to_recount([0, 5])] == [(0, 0, LOST)]
    await kept.recounted(0, 0)
    await kept.recounted(0, 0)
    assert [each.partition for each in await kept.to_recount([0, 1])] == [1]
    assert len(await kept.all()) == 2


async def test_what_the_event_store_has_passed_is_not_set_aside(subject: Subject) -> None:
    await subject.store.claim(0, epoch=1)
    await subject.store.write([write(record(batch(event("a"))), record(batch(event("b"))))])
    assert await subject.kept.add(RECORD) == "passed"
    assert await subject.kept.all() == []
    assert await subject.kept.add(RECORD._replace(offset=2)) == "added"


async def test_the_record_is_kept_as_it_was_and_the_ledger_balances(postgres_url: str) -> None:
    await migrate(postgres_url)
    postgres = Postgres(postgres_url, owner="test", pool_size=2, deadline_s=20)
    store = PostgresStore(StoreSettings(postgres_url=postgres_url), owner="test")
    connection = await asyncpg.connect(postgres_url)
    try:
        await PostgresSetAside(postgres).add(RECORD._replace(offset=0))
        assert await connection.fetchval("SELECT raw FROM set_aside_records") == RECORD.raw
        await store.claim(0, epoch=1)
        await store.write([write(lost=LOST)._replace(next_offset=1)])
        assert await connection.fetchval("SELECT lost FROM ledger") == 4
        assert await Ledger(postgres).check() == []
    finally:
        await connection.close()
        await store.close()
        await postgres.close()
