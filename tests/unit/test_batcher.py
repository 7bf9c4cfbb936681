"""The batcher over the in-memory log and store: what is acknowledged is stored once, whatever fails between."""

import asyncio
import copy
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence

import msgspec
import numpy as np
import pytest

from analytics_actors import appender, store_sink, takeover, unreadable
from analytics_actors.batcher import Batcher, wall_clock_ms
from analytics_actors.log_repair import LogRepair
from analytics_actors.messages import APPENDED, FULL, NOT_OWNER, REPEATED, UNAVAILABLE, AppendReply
from config.settings import LogSettings, Settings, StoreSettings
from storage.copy_format import gather
from storage.errors import Misconfigured, StorageError, Unavailable
from storage.event_batch import EventBatch, PackedRows, decode_record, encode_record
from storage.event_store import Checkpoint, PartitionWrite, WriteResult
from storage.fingerprint import partition_of
from storage.memory_log import MemoryLog
from storage.memory_store import MemoryStore
from storage.partition_log import OFFSET_BLOCK, Append, LogState
from storage.set_aside import SetAsideRecord
from tests.unit import virtual_time
from tests.unit.batches import HOUR, make_batch

PARTITIONS = 8
SETTINGS = Settings(log=LogSettings(partitions=PARTITIONS), store=StoreSettings(batch_interval_ms=100, batch_size=10))


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries pause for milliseconds."""
    monkeypatch.setattr(store_sink, "TRIM_INTERVAL_S", 0.05)
    monkeypatch.setattr(unreadable, "LOOK_AGAIN_S", 0.01)
    for module in (appender, store_sink, takeover):
        pauses = "RESOLVE_PAUSES_S" if module is appender else "RETRY_PAUSES_S"
        monkeypatch.setattr(module, pauses, (0.002, 0.005, 0.01))


class Shard:
    """One log and one store, and the batchers that own them one after the other."""

    def __init__(self, settings: Settings = SETTINGS) -> None:
        self.settings = settings
        self.log = MemoryLog(owner="first")
        self.store = MemoryStore()
        self.lives = 0
        self.batchers: list[Batcher] = []

    async def start(self) -> Batcher:
        """A new incarnation; the one before it is not told."""
        self.lives += 1
        log = MemoryLog(owner=f"life {self.lives}", sharing=self.log)
        log.available = self.log.available
        batcher = Batcher(0, range(PARTITIONS), log, self.store, self.settings)
        self.batchers.append(batcher)
        await batcher.open()
        return batcher

    def stored(self) -> Counter[str]:
        return Counter(row["event_id"] for row in self.store.rows)

    def ledger(self) -> dict[str, int]:
        fields = ("received", "stored", "duplicate", "dead_lettered", "rejected", "lost")
        return {name: sum(getattr(counts, name) for counts in self.store.ledger.values()) for name in fields}


@pytest.fixture
async def shard() -> AsyncIterator[Shard]:
    made = Shard()
    yield made
    for batcher in made.batchers:
        await batcher.close()


async def eventually(holds: Callable[[], bool], *, deadline_s: float = 5.0) -> None:
    async with asyncio.timeout(deadline_s):
        while not holds():
            await asyncio.sleep(0.002)


async def statuses(batcher: Batcher, *batches: EventBatch) -> list[int]:
    return [reply.status for reply in await batcher.append(batches)]


async def test_events_are_stored_once_with_their_duplicates_told(shard: Shard) -> None:
    batcher = await shard.start()
    [first] = await batcher.append([make_batch("a", "b", "a")])
    [second] = await batcher.append([make_batch("b", "c")])
    assert first.status == second.status == APPENDED
    assert (first.duplicates, second.duplicates) == (b"\x04", b"\x01")
    await eventually(lambda: shard.stored() == {"a": 1, "b": 1, "c": 1})
    assert shard.ledger() | {"received": 5, "stored": 3, "duplicate": 2} == shard.ledger()


async def test_the_ledger_counts_what_was_refused_at_the_door(shard: Shard) -> None:
    batcher = await shard.start()
    await batcher.append([make_batch("a", rejected=3), make_batch(rejected=2)])
    assert [(c.hour, c.received, c.rejected) for c in batcher.pending_of("p")] == [(HOUR, 6, 5)]
    await eventually(lambda: shard.ledger()["received"] == 6)
    assert shard.ledger()["rejected"] == 5
    assert batcher.pending_of("p") == []


async def test_a_batch_that_is_sent_again_is_recognised_as_a_whole(shard: Shard) -> None:
    batcher = await shard.start()
    batch = make_batch("a", "b")
    assert await statuses(batcher, batch) == [APPENDED]
    assert await statuses(batcher, batch) == [REPEATED]
    assert await statuses(batcher, batch, batch) == [REPEATED, REPEATED]
    await eventually(lambda: shard.ledger()["stored"] == 2)
    assert shard.ledger()["received"] == 2


@pytest.mark.parametrize("refusal", ["full", "fenced", "lost", "unavailable"])
async def test_a_copy_of_a_batch_is_not_told_before_its_append_has_succeeded(
    shard: Shard, monkeypatch: pytest.MonkeyPatch, refusal: str
) -> None:
    """NL-1: as when a gateway gave up waiting and sends it again, and both come into one round."""
    batcher = await shard.start()
    log = batcher._log
    assert isinstance(log, MemoryLog)
    append = log.append

    async def refuse(appends: Sequence[Append]) -> list[str]:
        monkeypatch.setattr(log, "append", append)
        if refusal == "unavailable":
            raise Unavailable("made to fail")
        return [refusal] * len(appends)

    monkeypatch.setattr(log, "append", refuse)
    batch = make_batch("a")
    first, copy = await statuses(batcher, batch, batch)
    assert first in (FULL, NOT_OWNER, UNAVAILABLE)
    assert copy != REPEATED
    if copy == APPENDED:
        await eventually(lambda: shard.stored() == {"a": 1})


async def test_rows_of_a_batch_that_was_sent_again_make_no_duplicate(shard: Shard) -> None:
    batcher = await shard.start()
    batch = make_batch("a", "b")
    await batcher.append([batch])
    # As when the record of `a` was set aside.
    batcher._owned[batch.partition].window.remove(np.frombuffer(batch.fingerprints, np.uint64))
    again, new = await batcher.append([batch, make_batch("a")])
    assert (again.status, new.status, new.duplicates) == (REPEATED, APPENDED, b"")


class GatedLog(MemoryLog):
    """An append of unknown outcome is settled when the test says so."""

    def __init__(self) -> None:
        super().__init__(owner="gated")
        self.gate = asyncio.Event()

    async def renew(self, partition: int, *, epoch: int) -> LogState:
        await self.gate.wait()
        return await super().renew(partition, epoch=epoch)


async def test_a_log_that_is_lost_while_an_append_is_settled_is_taken_over_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The sink finds a record missing, and the appender the state. Two takeovers at once would fence each other."""
    log, store = GatedLog(), MemoryStore()
    batcher = Batcher(
        0,
        range(PARTITIONS),
        log,
        store,
        Settings(log=SETTINGS.log, store=StoreSettings(batch_interval_ms=100, max_resident_bytes=1)),
    )
    await batcher.open()
    store.fail_next(committed=False)
    assert await statuses(batcher, make_batch("a")) == [APPENDED]
    log.fail_next(applied=False)
    assert await statuses(batcher, make_batch("b")) == [UNAVAILABLE]
    log.flush_all()
    # The sink looks for the record meanwhile.
    await asyncio.sleep(0.1)
    assert batcher._counters.totals["log_losses"] == 0
    log.gate.set()
    await eventually(lambda: batcher.observe().open_partitions == PARTITIONS)
    assert await statuses(batcher, make_batch("c")) == [APPENDED]
    await eventually(lambda: Counter(row["event_id"] for row in store.rows) == {"c": 1})
    assert batcher._counters.totals["log_losses"] == 1
    assert batcher.failure is None
    await batcher.close()


async def test_a_clock_that_is_set_back_stops_no_write(shard: Shard) -> None:
    behind_ms = 0
    batcher = Batcher(
        0, range(PARTITIONS), shard.log, shard.store, SETTINGS, clock_ms=lambda: wall_clock_ms() - behind_ms
    )
    await batcher.open()
    shard.store.fail_next(committed=False)
    await batcher.append([make_batch("a")])
    await asyncio.sleep(0.02)
    behind_ms = 3_600_000
    await batcher.append([make_batch("b")])
    await eventually(lambda: shard.stored() == {"a": 1, "b": 1})
    await batcher.close()


async def test_a_write_is_bounded_in_bytes(shard: Shard, monkeypatch: pytest.MonkeyPatch) -> None:
    """What compresses well is gigabytes as columns."""
    monkeypatch.setattr(store_sink, "MAX_WRITE_BYTES", 1)
    monkeypatch.setattr(appender, "MAX_RECORD_PLAIN_BYTES", 1)
    sizes = []
    write = shard.store.write

    async def counted(writes: Sequence[PartitionWrite]) -> WriteResult:
        sizes.append(sum(len(one.records) for one in writes))
        return await write(writes)

    monkeypatch.setattr(shard.store, "write", counted)
    batcher = await shard.start()
    await batcher.append([make_batch(f"e{n}") for n in range(5)])
    await eventually(lambda: len(shard.stored()) == 5)
    assert sizes == [1] * 5
    assert batcher._counters.totals["records_appended"] == 5


class HeldStore(MemoryStore):
    """Its writes begin, and end when `go` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.begun: list[int] = []
        """The events of each."""
        self.go = asyncio.Event()

    async def write(self, writes: Sequence[PartitionWrite]) -> WriteResult:
        self.begun.append(gather(writes).num_rows)
        await self.go.wait()
        return await super().write(writes)


async def test_while_a_write_is_under_way_only_a_full_one_starts_beside_it(shard: Shard) -> None:
    shard.settings = Settings(
        log=LogSettings(partitions=PARTITIONS),
        store=StoreSettings(batch_interval_ms=60_000, batch_size=2, max_write_events=4),
    )
    store = shard.store = HeldStore()
    batcher = await shard.start()
    of_partition = {partition_of(name, PARTITIONS): name for name in (f"p{n}" for n in range(100))}
    projects = list(of_partition.values())[:4]

    async def send(project: int, *event_ids: str) -> None:
        assert await statuses(batcher, make_batch(*event_ids, project=projects[project])) == [APPENDED]
        await asyncio.sleep(0.02)

    await send(0, "a", "b")
    await eventually(lambda: store.begun == [2])
    await send(1, "c", "d")
    await send(2, "e")
    assert store.begun == [2]
    await send(3, "f")
    await eventually(lambda: store.begun == [2, 4])
    await send(0, "g")
    await send(0, "h")
    store.go.set()
    await eventually(lambda: sum(shard.stored().values()) == 8)
    assert store.begun == [2, 4, 2]


class TimedStore(MemoryStore):
    """Tells when each write began, in seconds of the loop, and of how many events."""

    def __init__(self) -> None:
        super().__init__()
        self.begun: list[tuple[float, int]] = []

    async def write(self, writes: Sequence[PartitionWrite]) -> WriteResult:
        self.begun.append((asyncio.get_running_loop().time(), gather(writes).num_rows))
        return await super().write(writes)


def test_a_few_events_wait_for_more_only_while_more_come() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        store = TimedStore()
        settings = Settings(log=LogSettings(partitions=PARTITIONS), store=StoreSettings(batch_interval_ms=1000))
        batcher = Batcher(
            0, range(PARTITIONS), MemoryLog(owner="a"), store, settings, clock_ms=lambda: int(loop.time() * 1000)
        )
        await batcher.open()
        await asyncio.sleep(5)
        alone = loop.time()
        await batcher.append([make_batch("alone")])
        await asyncio.sleep(5)
        stream = loop.time()
        for number in range(30):
            await batcher.append([make_batch(f"one of a stream, {number}")])
            await asyncio.sleep(0.05)
        await asyncio.sleep(5)
        await batcher.close()
        waits = [began - alone for began, _ in store.begun[:1]] + [began - stream for began, _ in store.begun[1:]]
        assert waits == pytest.approx([0.1, 1.0, 1.55], abs=0.02)
        assert sum(events for _, events in store.begun) == 31

    virtual_time.run(main())


async def test_only_its_own_partitions_are_taken(shard: Shard) -> None:
    shard.batchers.append(batcher := Batcher(0, [1], shard.log, shard.store, SETTINGS))
    await batcher.open()
    other = next(p for p in (f"project-{n}" for n in range(100)) if partition_of(p, PARTITIONS) != 1)
    assert await statuses(batcher, make_batch("a", project=other)) == [NOT_OWNER]


async def test_a_new_owner_knows_what_the_old_one_accepted_and_stores_what_it_left(shard: Shard) -> None:
    first = await shard.start()
    batch = make_batch("a", "b")
    for _ in range(3):
        shard.store.fail_next(committed=False)
    await first.append([batch])
    second = await shard.start()
    assert await statuses(second, batch) == [REPEATED]
    [reply] = await second.append([make_batch("b", "c")])
    assert reply.duplicates == b"\x01"
    await eventually(lambda: shard.stored() == {"a": 1, "b": 1, "c": 1}, deadline_s=30)
    # The old owner did not know; it can neither append nor commit (FN-1).
    assert await statuses(first, make_batch("x")) == [NOT_OWNER]
    assert await statuses(first, make_batch("y")) == [NOT_OWNER]
    assert "x" not in shard.stored()


@pytest.mark.parametrize("applied", [True, False])
async def test_an_append_of_unknown_outcome_is_settled(shard: Shard, applied: bool) -> None:
    batcher = await shard.start()
    log = batcher._log
    assert isinstance(log, MemoryLog)
    log.fail_next(applied=applied)
    batch = make_batch("a", "b")
    assert await statuses(batcher, batch) == [UNAVAILABLE]
    # The gateway sends it again from its spool until it is taken.
    outcome = UNAVAILABLE
    while outcome == UNAVAILABLE:
        await asyncio.sleep(0.01)
        [outcome] = await statuses(batcher, batch)
    assert outcome == (REPEATED if applied else APPENDED)
    await eventually(lambda: shard.stored() == {"a": 1, "b": 1})
    assert shard.ledger()["received"] == 2


@pytest.mark.parametrize("committed", [True, False])
async def test_a_write_of_unknown_outcome_is_settled_by_the_checkpoint(shard: Shard, committed: bool) -> None:
    batcher = await shard.start()
    shard.store.fail_next(committed=committed)
    await batcher.append([make_batch("a")])
    await batcher.append([make_batch("b")])
    await eventually(lambda: shard.stored() == {"a": 1, "b": 1})
    assert shard.ledger()["stored"] == 2


async def test_while_the_log_is_away_callers_are_told_at_once(shard: Shard) -> None:
    batcher = await shard.start()
    log = batcher._log
    assert isinstance(log, MemoryLog)
    log.available = False
    async with asyncio.timeout(1):
        assert await statuses(batcher, make_batch("a")) == [UNAVAILABLE]
        assert await statuses(batcher, make_batch("b")) == [UNAVAILABLE]
    assert "log" in batcher.observe().trouble
    log.available = True
    await eventually(lambda: batcher.observe().open_partitions == PARTITIONS)
    assert await statuses(batcher, make_batch("a")) == [APPENDED]
    assert batcher.observe().trouble == ""


async def test_a_flushed_log_loses_nothing_that_its_owner_still_has(shard: Shard) -> None:
    batcher = await shard.start()
    for _ in range(3):
        shard.store.fail_next(committed=False)
    await batcher.append([make_batch("a", "b")])
    shard.log.flush_all()
    while await statuses(batcher, again := make_batch("b", "c")) != [APPENDED]:
        await asyncio.sleep(0.005)
    await eventually(lambda: shard.stored() == {"a": 1, "b": 1, "c": 1})
    assert shard.ledger()["lost"] == 0
    view = next(v for v in batcher.observe().partitions if v.partition == again.partition)
    assert view.next_offset > OFFSET_BLOCK, "offsets go on in a fresh block"


async def test_a_flushed_log_with_records_out_of_memory_names_what_is_lost() -> None:
    settings = Settings(
        log=LogSettings(partitions=PARTITIONS),
        store=StoreSettings(batch_interval_ms=100, batch_size=10, max_resident_bytes=1),
    )
    shard = Shard(settings)
    batcher = await shard.start()
    for _ in range(3):
        shard.store.fail_next(committed=False)
    await batcher.append([make_batch("a", "b", rejected=1)])
    await batcher.append([make_batch("b", "c")])
    shard.log.flush_all()
    # A retry of what was lost is new: nobody has it.
    while await statuses(batcher, make_batch("c", "d")) != [APPENDED]:
        await asyncio.sleep(0.005)
    await eventually(lambda: shard.stored() == {"c": 1, "d": 1})
    await eventually(lambda: shard.ledger()["lost"] == 3)
    counts = shard.ledger()
    assert counts["received"] == sum(counts.values()) - counts["received"]
    await batcher.close()


@pytest.mark.parametrize(("behind", "fresh"), [(5, 3), (3, 5), (1, 1)])
async def test_a_log_that_was_set_back_and_a_new_owner(shard: Shard, behind: int, fresh: int) -> None:
    """As when a replica is promoted that had not got everything: what PostgreSQL has is known, nothing is overtaken."""
    first = await shard.start()
    await first.append([make_batch("old")])
    kept = copy.deepcopy(shard.log._partitions)
    # One record each.
    for number in range(behind):
        await first.append([make_batch(f"tail{number}")])
    await first.drain(deadline_s=1)
    await first.close()
    shard.log._partitions.clear()
    shard.log._partitions.update(kept)
    second = await shard.start()
    for number in range(fresh):
        assert await statuses(second, make_batch(f"new{number}")) == [APPENDED]
    [again] = await second.append([make_batch("tail0")])
    assert (again.status, again.duplicates) == (APPENDED, b"\x01")
    wanted = ["old", *(f"tail{n}" for n in range(behind)), *(f"new{n}" for n in range(fresh))]
    await eventually(lambda: shard.stored() == dict.fromkeys(wanted, 1))
    assert second.failure is None
    assert shard.ledger()["lost"] == 0


class Backup:
    """What an event store had, to be restored."""

    def __init__(self, store: MemoryStore) -> None:
        self._names = ("rows", "ledger", "_checkpoints")
        self._kept = {name: copy.deepcopy(getattr(store, name)) for name in self._names}

    def restore(self, store: MemoryStore) -> None:
        for name in self._names:
            setattr(store, name, copy.deepcopy(self._kept[name]))


async def trimmed(shard: Shard, batch: EventBatch) -> None:
    """Until the log of the batch's partition is empty."""
    async with asyncio.timeout(5):
        while True:
            [state] = await shard.log.state([batch.partition])
            if state is not None and state.first_offset == state.next_offset > 0:
                return
            await asyncio.sleep(0.01)


async def test_what_a_restored_event_store_has_forgotten_is_taken_again(shard: Shard) -> None:
    first = await shard.start()
    await first.append([make_batch("a")])
    await eventually(lambda: shard.stored() == {"a": 1})
    backup = Backup(shard.store)
    await first.append([forgotten := make_batch("b", "c")])
    await eventually(lambda: shard.stored() == {"a": 1, "b": 1, "c": 1})
    await trimmed(shard, forgotten)
    await first.close()
    backup.restore(shard.store)
    second = await shard.start()
    assert shard.store._checkpoint(forgotten.partition).next_offset == OFFSET_BLOCK, (
        "windows are counted again from there"
    )
    replies = await second.append([make_batch("a", "b"), forgotten])
    assert [(reply.status, reply.duplicates) for reply in replies] == [(APPENDED, b"\x01"), (APPENDED, b"\x01")]
    await eventually(lambda: shard.stored() == {"a": 1, "b": 1, "c": 1})
    await second.close()
    third = await shard.start()
    [reply] = await third.append([make_batch("a", "b", "c", "d")])
    assert reply.duplicates == b"\x07"
    await eventually(lambda: shard.stored() == {"a": 1, "b": 1, "c": 1, "d": 1})
    assert second.failure is third.failure is None
    assert [batcher._counters.totals["store_losses"] for batcher in (second, third)] == [1, 0]
    assert shard.ledger()["received"] == sum(shard.ledger().values()) - shard.ledger()["received"]


@pytest.mark.parametrize("max_resident_bytes", [1, 1 << 20])
async def test_an_event_store_that_is_restored_under_its_owner_ends_its_life(max_resident_bytes: int) -> None:
    """What the log still has is stored, and its ids are known, also of records that memory has no room for."""
    store = StoreSettings(batch_interval_ms=100, batch_size=10, max_resident_bytes=max_resident_bytes)
    shard = Shard(Settings(log=SETTINGS.log, store=store))
    first = await shard.start()
    backup = Backup(shard.store)
    await first.append([forgotten := make_batch("a")])
    await trimmed(shard, forgotten)
    for _ in range(1000):
        shard.store.fail_next(committed=False)
    await first.append([make_batch("b")])
    await first.append([make_batch("c")])
    backup.restore(shard.store)
    shard.store._failures.clear()
    await eventually(lambda: first.failure is not None)
    assert "set back" in str(first.failure)
    await first.close()
    second = await shard.start()
    [reply] = await second.append([make_batch("a", "b", "c")])
    assert (reply.status, reply.duplicates) == (APPENDED, b"\x06")
    await eventually(lambda: shard.stored() == {"a": 1, "b": 1, "c": 1})
    assert second.failure is None
    await second.close()


@pytest.mark.parametrize("error", [Unavailable, Misconfigured])
async def test_a_new_owner_opens_without_the_event_store(
    shard: Shard, monkeypatch: pytest.MonkeyPatch, error: type[StorageError]
) -> None:
    first = await shard.start()
    await first.append([make_batch("a")])
    await eventually(lambda: shard.stored() == {"a": 1})
    await first.close()

    async def refuse(_partitions: Sequence[int]) -> list[Checkpoint]:
        raise error("made to fail")

    monkeypatch.setattr(shard.store, "checkpoints", refuse)
    second = await shard.start()
    assert "made to fail" in second.observe().trouble
    [reply] = await second.append([make_batch("a", "b")])
    assert (reply.status, reply.duplicates) == (APPENDED, b"\x01")
    await eventually(lambda: shard.stored() == {"a": 1, "b": 1})
    await eventually(lambda: second.observe().trouble == "")


async def test_a_log_of_the_time_before_it_was_lost_once_is_gone_on_with(shard: Shard) -> None:
    """PostgreSQL has epochs of a fresh block then, and would refuse each owner for a million lives."""
    first = await shard.start()
    await first.append([make_batch("a")])
    await eventually(lambda: shard.stored() == {"a": 1})
    kept = copy.deepcopy(shard.log._partitions)
    shard.log.flush_all()
    while await statuses(first, make_batch("b")) != [APPENDED]:
        await asyncio.sleep(0.005)
    await first.drain(deadline_s=1)
    await first.close()
    shard.log._partitions.clear()
    shard.log._partitions.update(kept)
    second = await shard.start()
    assert await statuses(second, make_batch("c")) == [APPENDED]
    await eventually(lambda: shard.stored() == {"a": 1, "b": 1, "c": 1})
    assert second.failure is None


async def test_a_flushed_log_and_a_new_owner(shard: Shard) -> None:
    first = await shard.start()
    await first.append([make_batch("a", "b")])
    await eventually(lambda: shard.stored() == {"a": 1, "b": 1})
    await first.close()
    shard.log.flush_all()
    second = await shard.start()
    [reply] = await second.append([make_batch("b", "c")])
    assert (reply.status, reply.duplicates) == (APPENDED, b"\x01")
    assert reply.offset >= OFFSET_BLOCK
    await eventually(lambda: shard.stored() == {"a": 1, "b": 1, "c": 1})


async def test_the_log_is_bounded_and_takes_again_when_it_was_stored() -> None:
    settings = Settings(
        log=LogSettings(partitions=PARTITIONS, max_bytes=1000), store=StoreSettings(batch_interval_ms=100)
    )
    shard = Shard(settings)
    batcher = await shard.start()
    for _ in range(4):
        shard.store.fail_next(committed=False)
    outcomes = [(await statuses(batcher, make_batch(f"e{n}")))[0] for n in range(20)]
    assert outcomes[0] == APPENDED
    assert outcomes[-1] == FULL
    accepted = {f"e{n}": 1 for n, outcome in enumerate(outcomes) if outcome == APPENDED}
    await eventually(lambda: shard.stored() == accepted)
    assert await statuses(batcher, make_batch("later")) == [APPENDED]
    await batcher.close()


async def test_stored_records_are_trimmed_from_the_log(shard: Shard) -> None:
    batcher = await shard.start()
    batch = make_batch("a")
    await batcher.append([batch])

    async def trimmed() -> bool:
        [state] = await shard.log.state([batch.partition])
        return state is not None and state.first_offset == 1

    async with asyncio.timeout(5):
        while not await trimmed():
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("max_bytes", [1024 * 1024, 100])
async def test_records_stay_for_another_sink_while_there_is_room(shard: Shard, max_bytes: int) -> None:
    batch = make_batch("a")
    reached = {batch.partition: 0}

    async def other_sinks(partitions: Sequence[int]) -> dict[int, int]:
        return {partition: reached[partition] for partition in partitions if partition in reached}

    settings = Settings(log=LogSettings(partitions=PARTITIONS, max_bytes=max_bytes), store=SETTINGS.store)
    batcher = Batcher(0, range(PARTITIONS), shard.log, shard.store, settings, other_sinks=other_sinks)
    shard.batchers.append(batcher)
    await batcher.open()
    await batcher.append([batch])
    await eventually(lambda: shard.stored() == {"a": 1})

    async def first_offset() -> int:
        [state] = await shard.log.state([batch.partition])
        assert state is not None
        return state.first_offset

    await asyncio.sleep(1.5 * store_sink.TRIM_INTERVAL_S)
    assert await first_offset() == (0 if max_bytes > 1000 else 1)
    reached[batch.partition] = 1
    await asyncio.sleep(1.5 * store_sink.TRIM_INTERVAL_S)
    assert await first_offset() == 1


async def test_a_record_that_cannot_be_read_stops_its_own_partition_only(shard: Shard) -> None:
    batcher = await shard.start()
    good, damaged = make_batch("a", project="p"), make_batch("b", project="project-1")
    assert good.partition != damaged.partition
    damaged = msgspec.structs.replace(damaged, rows=PackedRows(1000, b"not LZ4"))
    assert await statuses(batcher, good, damaged) == [APPENDED, APPENDED]
    await eventually(lambda: shard.stored() == {"a": 1})
    await batcher.append([make_batch("c")])
    await eventually(lambda: shard.stored() == {"a": 1, "c": 1})
    assert f"partition {damaged.partition}" in batcher.observe().trouble
    assert batcher.failure is None
    assert batcher.observe().lag_events == 1


async def test_a_new_owner_opens_although_a_record_cannot_be_read(shard: Shard) -> None:
    """Not even its head: how many events it has is not known. What is before it is stored, and other partitions."""
    batcher = await shard.start()
    for _ in range(1000):
        shard.store.fail_next(committed=False)
    before, damaged, other = make_batch("a"), make_batch("b"), make_batch("c", project="project-1")
    assert before.partition == damaged.partition != other.partition
    for batch in (before, damaged, other):
        assert await statuses(batcher, batch) == [APPENDED]
    records = shard.log._partitions[damaged.partition].records
    last = max(records)
    records[last] = b"\x00" + records[last][1:]
    # It has all three in memory.
    await batcher.close()
    batcher = await shard.start()
    shard.store._failures.clear()
    await eventually(lambda: shard.stored() == {"a": 1, "c": 1})
    await eventually(lambda: f"partition {damaged.partition}" in batcher.observe().trouble)
    assert await statuses(batcher, make_batch("d", project="project-1")) == [APPENDED]
    await eventually(lambda: shard.stored() == {"a": 1, "c": 1, "d": 1})


async def set_aside(shard: Shard, partition: int, offset: int) -> SetAsideRecord:
    """As the command does it."""
    repair = LogRepair(shard.log, shard.store.checkpoints, shard.store.set_aside, partitions=PARTITIONS)
    return await repair.set_aside(partition, offset)


def damaged_batch(*event_ids: str, project: str = "p", rejected: int = 0) -> EventBatch:
    batch = make_batch(*event_ids, project=project, rejected=rejected)
    return msgspec.structs.replace(batch, rows=PackedRows(1000, b"not LZ4"))


async def test_a_record_that_was_set_aside_is_stepped_over(shard: Shard) -> None:
    batcher = await shard.start()
    await batcher.append([make_batch("a")])
    [reply] = await batcher.append([damaged_batch("b", "a", "c", rejected=2)])
    await batcher.append([make_batch("d", "b")])
    partition = make_batch("a").partition
    await eventually(lambda: f"partition {partition}: record {reply.offset}" in batcher.observe().trouble)
    assert shard.stored() == {"a": 1}
    waiting = asyncio.create_task(batcher.wait_stored(partition, reply.offset, deadline_s=30))
    kept = await set_aside(shard, partition, reply.offset)
    assert not await waiting, "it was stepped over, not stored"
    assert [tuple(count)[2:] for count in kept.counts or ()] == [(5, 1, 2, 2)]
    await eventually(lambda: shard.stored() == {"a": 1, "d": 1})
    await eventually(lambda: batcher.observe().trouble == "")
    assert shard.ledger() == {"received": 8, "stored": 2, "duplicate": 2, "dead_lettered": 0, "rejected": 2, "lost": 2}
    assert batcher.observe().lag_events == 0
    assert batcher.observe().counters["records_set_aside"] == 1
    [record] = await shard.store.set_aside.all()
    assert record.stepped_over_at is not None
    # What was lost may be sent again, what was stored may not.
    [again] = await batcher.append([make_batch("a", "b", "c", "d")])
    assert (again.status, again.duplicates) == (APPENDED, b"\x09")
    await eventually(lambda: shard.stored() == {"a": 1, "b": 1, "c": 1, "d": 1})
    # Another life knows the same ids.
    batcher = await shard.start()
    [again] = await batcher.append([make_batch("a", "b", "c", "d")])
    assert again.duplicates == b"\x0f"


async def test_a_batch_that_was_lost_may_be_sent_again_under_its_id(shard: Shard) -> None:
    batcher = await shard.start()
    batch = make_batch("a", "b")
    [reply] = await batcher.append([msgspec.structs.replace(batch, rows=PackedRows(1000, b"not LZ4"))])
    assert await statuses(batcher, batch) == [REPEATED]
    await set_aside(shard, batch.partition, reply.offset)
    await eventually(lambda: shard.ledger()["lost"] == 2)
    assert await statuses(batcher, batch) == [APPENDED]
    await eventually(lambda: shard.stored() == {"a": 1, "b": 1})
    assert await statuses(batcher, batch) == [REPEATED]


@pytest.mark.parametrize("committed", [True, False])
async def test_stepping_over_is_done_once_whatever_fails(shard: Shard, committed: bool) -> None:
    """A write of unknown outcome, and another life in the midst of it."""
    batcher = await shard.start()
    damaged = damaged_batch("a", "b")
    await batcher.append([damaged])
    await eventually(lambda: batcher.observe().trouble != "")
    for _ in range(2):
        shard.store.fail_next(committed=committed)
    await set_aside(shard, damaged.partition, 0)
    await set_aside(shard, damaged.partition, 0)
    await eventually(lambda: batcher.observe().counters.get("write_failures", 0) > 0)
    batcher = await shard.start()
    await eventually(lambda: shard.ledger()["lost"] == 2)
    await eventually(lambda: batcher.observe().lag_events == 0)
    assert await statuses(batcher, make_batch("a")) == [APPENDED]
    await eventually(lambda: shard.stored() == {"a": 1})
    assert shard.ledger() | {"received": 3, "stored": 1, "lost": 2} == shard.ledger()


@pytest.mark.parametrize("same_life", [True, False])
async def test_a_record_that_does_not_tell_its_events_is_stepped_over(same_life: bool) -> None:
    """The life that appended it knows them still; another one cannot count them."""
    # Nothing is kept in memory.
    shard = Shard(Settings(log=SETTINGS.log, store=StoreSettings(batch_interval_ms=100, max_resident_bytes=0)))
    batcher = await shard.start()
    for _ in range(1000):
        shard.store.fail_next(committed=False)
    batch = make_batch("a", "b")
    assert await statuses(batcher, batch) == [APPENDED]
    shard.log._partitions[batch.partition].records[0] = b"\x00"
    if not same_life:
        await batcher.close()
        batcher = await shard.start()
    shard.store._failures.clear()
    await eventually(lambda: f"partition {batch.partition}" in batcher.observe().trouble)
    assert (await set_aside(shard, batch.partition, 0)).counts is None
    await eventually(lambda: batcher.observe().trouble == "")
    assert shard.ledger()["received"] == shard.ledger()["lost"] == (2 if same_life else 0)
    assert await statuses(batcher, batch) == [APPENDED]
    await eventually(lambda: shard.stored() == {"a": 1, "b": 1})
    await batcher.close()


async def test_a_record_that_can_be_read_again_is_stored(shard: Shard) -> None:
    """Its bytes were put back, and nobody has set it aside."""
    batcher = await shard.start()
    batch = make_batch("a")
    await batcher.append([msgspec.structs.replace(batch, rows=PackedRows(1000, b"not LZ4"))])
    await eventually(lambda: batcher.observe().trouble != "")
    records = shard.log._partitions[batch.partition].records
    record = decode_record(records[0])
    whole = msgspec.structs.replace(record.batches[0], rows=batch.rows)
    records[0] = encode_record(msgspec.structs.replace(record, batches=[whole]))
    await eventually(lambda: shard.stored() == {"a": 1})
    await eventually(lambda: batcher.observe().trouble == "")


async def test_several_partitions_stop_and_go_on_by_themselves(shard: Shard) -> None:
    batcher = await shard.start()
    projects = ("p", "project-1", "q")
    damaged = [damaged_batch("lost", project=project) for project in projects]
    partitions = {batch.partition for batch in damaged}
    assert len(partitions) == 3
    await batcher.append(damaged)
    await batcher.append([make_batch(project, project=project) for project in projects])
    await eventually(lambda: all(f"partition {p}:" in batcher.observe().trouble for p in partitions))
    await set_aside(shard, damaged[1].partition, 0)
    await eventually(lambda: shard.stored() == {"project-1": 1})
    await set_aside(shard, damaged[0].partition, 0)
    await set_aside(shard, damaged[2].partition, 0)
    await eventually(lambda: shard.stored() == dict.fromkeys(projects, 1))
    assert shard.ledger()["lost"] == 3


async def test_wait_stored_and_drain(shard: Shard) -> None:
    slow = Shard(Settings(log=LogSettings(partitions=PARTITIONS), store=StoreSettings(batch_interval_ms=60_000)))
    batcher = await slow.start()
    [reply] = await batcher.append([make_batch("a")])
    partition = partition_of("p", PARTITIONS)
    assert await batcher.wait_stored(partition, reply.offset, deadline_s=2)
    assert slow.stored() == {"a": 1}
    assert not await batcher.wait_stored(partition, reply.offset + 1, deadline_s=0.01)
    await batcher.append([make_batch("b")])
    assert await batcher.drain(deadline_s=2)
    assert slow.stored() == {"a": 1, "b": 1}
    assert await statuses(batcher, make_batch("c")) == [UNAVAILABLE]
    await batcher.close()


class Model:
    """A gateway that keeps batches until they are taken, over a shard to which anything may happen."""

    def __init__(self, seed: int, *, flushes: bool) -> None:
        self.random = random.Random(seed)
        self.flushes = flushes
        self.shard = Shard()
        self.spooled: list[EventBatch] = []
        self.sent: set[str] = set()
        self.rows_sent = 0
        self.current: Batcher | None = None

    async def step(self) -> None:
        actions = [self.send] * 8 + [self.retry] * 3 + [self.crash, self.replace, self.flush]
        actions += [self.fail_append, self.fail_write, self.breathe]
        await self.random.choice(actions)()

    async def send(self) -> None:
        ids = [f"e{self.random.randrange(60)}" for _ in range(self.random.randrange(1, 6))]
        project = f"project-{self.random.randrange(3)}"
        self.sent |= {f"{project}/{event_id}" for event_id in ids}
        self.rows_sent += len(ids)
        await self.deliver(make_batch(*ids, project=project))

    async def deliver(self, batch: EventBatch) -> None:
        """As a gateway does: acknowledged from the log, or from the spool."""
        assert self.current is not None
        if self.current.failure is not None:
            # As Ray does when the controller has asked.
            await self.crash()
        [reply] = await self.call(batch)
        if reply.status not in (APPENDED, REPEATED):
            self.spooled.append(batch)

    async def call(self, batch: EventBatch) -> list[AppendReply]:
        assert self.current is not None
        # Now and then the copy of a gateway that had given up comes with it.
        copies = self.random.choice([1, 1, 1, 2])
        try:
            async with asyncio.timeout(0.2):
                return (await self.current.append([batch] * copies))[-1:]
        except TimeoutError:
            return [AppendReply(UNAVAILABLE)]

    async def retry(self) -> None:
        waiting, self.spooled = self.spooled, []
        for batch in waiting:
            await self.deliver(batch)

    async def crash(self) -> None:
        """The process is gone in the middle of whatever it did."""
        assert self.current is not None
        await self.current._background.close()
        self.current = await self.shard.start()

    async def replace(self) -> None:
        """A new owner while the old one still runs."""
        self.current = await self.shard.start()

    async def flush(self) -> None:
        if self.flushes and self.random.random() < 0.5:
            self.shard.log.flush_all()

    async def fail_append(self) -> None:
        assert self.current is not None
        log = self.current._log
        assert isinstance(log, MemoryLog)
        log.fail_next(applied=self.random.random() < 0.5)

    async def fail_write(self) -> None:
        self.shard.store.fail_next(committed=self.random.random() < 0.5)

    async def breathe(self) -> None:
        await asyncio.sleep(self.random.choice([0, 0.001, 0.01]))


@pytest.mark.parametrize("flushes", [False, True])
@pytest.mark.parametrize("seed", range(25))
async def test_model_with_crashes(seed: int, flushes: bool) -> None:
    """NL-1, ND-1, FN-1, LG-1 under random crashes, zombies and failures of unknown outcome.

    With flushes of the log beside crashes of its owner, acknowledged events may be gone; none may be there twice.
    """
    model = Model(seed, flushes=flushes)
    model.current = await model.shard.start()
    for _ in range(60):
        await model.step()
    # Stale processes do not live for ever.
    for stale in model.shard.batchers:
        if stale is not model.current:
            await stale.close()
    async with asyncio.timeout(20):
        while model.spooled:
            await model.retry()
            await asyncio.sleep(0.01)
        while not await model.current.drain(deadline_s=1):
            pass
    counts = model.shard.ledger()
    stored = Counter(f"{row['project_id']}/{row['event_id']}" for row in model.shard.store.rows)
    assert not [key for key, times in stored.items() if times > 1]
    assert counts["received"] == counts["stored"] + counts["duplicate"] + counts["lost"]
    assert stored.keys() <= model.sent
    if not flushes:
        assert stored.keys() == model.sent
        assert counts["received"] == model.rows_sent
    for batcher in model.shard.batchers:
        await batcher.close()
