"""The law of `storage.folded_events`, kept over the store in memory and the one in PostgreSQL alike."""

from collections.abc import AsyncIterator, Sequence
from datetime import timedelta
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from config.settings import StoreSettings
from storage.aggregated import Folded
from storage.copy_format import gather
from storage.event_store import EventStore, PartitionWrite
from storage.folded_events import FoldedEvents, MemoryFolded, PostgresFolded
from storage.lake_file import EVENTS
from storage.ledger_counts import RowKey
from storage.memory_store import MemoryStore
from storage.migrate import migrate
from storage.postgres import Postgres
from storage.postgres_store import PostgresStore
from tests.contract.log_records import NOW, batch, event, record, write


def fold(rows: pa.RecordBatch) -> Folded:
    """Events of the type "hit" are only aggregated."""
    is_hit = pc.equal(rows.column("event_type"), "hit")
    names = ("partition_id", "log_offset", "row_number")
    keys = [RowKey(*(row[name] for name in names)) for row in rows.filter(is_hit).to_pylist()]
    return Folded(rows.filter(pc.invert(is_hit)), {}, keys)


class Subject(NamedTuple):
    store: EventStore
    folded: FoldedEvents

    async def kept(self, *records: Sequence[dict[str, Any]]) -> list[str]:
        """Stored, and asked about."""
        await self.store.claim(0, epoch=1)
        written: PartitionWrite = write(*(record(batch(*events)) for events in records))
        await self.store.write([written])
        rows = gather([written]).select(EVENTS.names)
        found = await self.folded.without(pa.Table.from_batches([rows]))
        assert found.schema.equals(EVENTS)
        return sorted(found.column("event_id").to_pylist())


@pytest.fixture
async def subject(url: str) -> AsyncIterator[Subject]:
    if not url:
        memory = MemoryStore(fold=fold)
        yield Subject(memory, MemoryFolded(memory))
        return
    await migrate(url)
    postgres = Postgres(url, owner="test-folded", pool_size=2, deadline_s=10)
    store = PostgresStore(StoreSettings(postgres_url=url), owner="test", fold=fold)
    yield Subject(store, PostgresFolded(postgres))
    await postgres.close()
    await store.close()


async def test_without_folded_events_all_are_kept(subject: Subject) -> None:
    assert await subject.kept([event("a"), event("b", "other")], [event("c")]) == ["a", "b", "c"]


async def test_no_events_at_all(subject: Subject) -> None:
    assert (await subject.folded.without(EVENTS.empty_table())).num_rows == 0


async def test_what_was_only_aggregated_is_left_out(subject: Subject) -> None:
    old = NOW - timedelta(days=400)
    kept = await subject.kept(
        [event("a"), event("b", event_type="hit"), event("ü,\"'\n", timestamp=old)],
        [event("c", event_type="hit", timestamp=old), event("d", "other"), event("e", "other", event_type="hit")],
        [event("f", "third")],
    )
    assert kept == ["a", "d", "f", "ü,\"'\n"]


async def test_the_same_id_stored_and_folded_in_two_records(subject: Subject) -> None:
    """Sent again after the window, when its type had been declared: the first of them is an event."""
    await subject.kept([event("a")], [event("a", event_type="hit")])
    rows = gather([write(record(batch(event("a"))), record(batch(event("a", event_type="hit"))))])
    found = await subject.folded.without(pa.Table.from_batches([rows.select(EVENTS.names)]))
    assert found.column("log_offset").to_pylist() == [0]
