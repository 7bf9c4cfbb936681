"""The law of `storage.partition_log`, kept by the log in memory and by the one in Redis alike."""

from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Protocol

import pytest
import redis.asyncio

from config.settings import LogSettings
from storage import redis_log
from storage.embedded.valkey import EmbeddedValkey
from storage.errors import Fenced, LogLost, Unavailable
from storage.memory_log import MemoryLog
from storage.partition_log import Append, LogState, PartitionLog, Trim
from storage.redis_log import RedisLog
from tests.contract.cut_proxy import CutProxy

FRESH = LogState(0, 0, 0, 0)
CAPACITY_BYTES = 12 * 1024 * 1024


class Subject(Protocol):
    """A log, a second writer on the same data, and what can happen to them."""

    log: PartitionLog
    other: PartitionLog

    async def lose_next_append(self, *, applied: bool) -> None: ...

    async def flush_all(self) -> None: ...

    async def close(self) -> None: ...


class MemorySubject:
    def __init__(self, *, capacity_bytes: int | None = None) -> None:
        self.memory = MemoryLog(capacity_bytes=capacity_bytes, owner="one")
        self.log: PartitionLog = self.memory
        self.other: PartitionLog = MemoryLog(owner="two", sharing=self.memory)

    async def lose_next_append(self, *, applied: bool) -> None:
        self.memory.fail_next(applied=applied)

    async def flush_all(self) -> None:
        self.memory.flush_all()

    async def close(self) -> None:
        await self.log.close()


class RedisSubject:
    def __init__(self, url: str, proxy: CutProxy) -> None:
        self._url = url
        self._proxy = proxy
        self.log: PartitionLog = RedisLog(proxy.url, LogSettings(), owner="one")
        self.other: PartitionLog = RedisLog(url, LogSettings(), owner="two")

    async def lose_next_append(self, *, applied: bool) -> None:
        self._proxy.cut_next("reply" if applied else "request", b"EVALSHA")

    async def flush_all(self) -> None:
        async with redis.asyncio.Redis.from_url(self._url) as client:
            await client.flushall()

    async def close(self) -> None:
        await self.log.close()
        await self.other.close()
        await self._proxy.stop()


async def _redis_subject(url: str) -> RedisSubject:
    proxy = CutProxy(url)
    await proxy.start()
    return RedisSubject(url, proxy)


@pytest.fixture(params=["memory", "redis"])
async def subject(request: pytest.FixtureRequest) -> AsyncIterator[Subject]:
    if request.param == "memory":
        yield MemorySubject()
        return
    made = await _redis_subject(request.getfixturevalue("valkey_url"))
    yield made
    await made.close()


@pytest.fixture(params=["memory", "redis"])
async def small_subject(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Subject]:
    """One whose memory ends at `CAPACITY_BYTES`."""
    if request.param == "memory":
        yield MemorySubject(capacity_bytes=CAPACITY_BYTES)
        return
    server = EmbeddedValkey(tmp_path / "valkey", max_memory_bytes=CAPACITY_BYTES)
    server.start()
    made = await _redis_subject(server.url)
    yield made
    await made.close()
    server.stop()


def ids(*values: int) -> bytes:
    return b"".join(value.to_bytes(8, "little") for value in values)


async def append(
    log: PartitionLog, state: LogState, records: Sequence[bytes], *, partition: int = 7
) -> tuple[LogState, list[str]]:
    """Append records one after the other; the state as the writer then knows it, and the outcomes."""
    outcomes = []
    for record in records:
        [outcome] = await log.append([Append(partition, state.epoch, state.next_offset, record, b"")])
        outcomes.append(str(outcome))
        if outcome == "appended":
            state = state._replace(next_offset=state.next_offset + 1)
    return state, outcomes


async def all_ids(log: PartitionLog, partition: int = 7) -> list[bytes]:
    return [entry.fingerprints async for entry in log.read_ids(partition)]


async def test_the_server_of_the_tests_is_fit(subject: Subject) -> None:
    await subject.log.check()


async def test_a_new_partition_begins_at_offset_zero_under_epoch_one(subject: Subject) -> None:
    assert await subject.log.state([7, 8]) == [None, None]
    assert await subject.log.acquire(7, at_least=FRESH) == LogState(1, 0, 0, 0)
    assert await subject.log.state([8, 7]) == [None, LogState(1, 0, 0, 0)]


async def test_without_state_nothing_can_be_acquired_blindly(subject: Subject) -> None:
    with pytest.raises(LogLost):
        await subject.log.acquire(7, at_least=None)
    assert await subject.log.state([7]) == [None]


async def test_records_get_consecutive_offsets_and_are_read_in_order(subject: Subject) -> None:
    state = await subject.log.acquire(7, at_least=FRESH)
    records = [b"a", b"\x00\r\n\xff", b"", b"d" * 100_000]
    state, outcomes = await append(subject.log, state, records)
    assert outcomes == ["appended"] * 4
    assert await subject.log.state([7]) == [LogState(1, 0, 4, 0)]
    assert await subject.log.read(7, 0, max_records=10) == list(enumerate(records))


async def test_reading_in_pages(subject: Subject) -> None:
    state = await subject.log.acquire(7, at_least=FRESH)
    await append(subject.log, state, [b"a", b"b", b"c"])
    assert await subject.log.read(7, 0, max_records=2) == [(0, b"a"), (1, b"b")]
    assert await subject.log.read(7, 2, max_records=2) == [(2, b"c")]
    assert await subject.log.read(7, 3, max_records=2) == []
    assert await subject.log.read(8, 0, max_records=2) == []


async def test_an_older_epoch_cannot_append(subject: Subject) -> None:
    """FN-1."""
    old = await subject.log.acquire(7, at_least=FRESH)
    new = await subject.other.acquire(7, at_least=None)
    assert new.epoch == old.epoch + 1
    assert (await append(subject.log, old, [b"stale"]))[1] == ["fenced"]
    assert (await append(subject.other, new, [b"good"]))[1] == ["appended"]
    assert (await append(subject.log, old, [b"stale"]))[1] == ["fenced"]
    assert await subject.log.read(7, 0, max_records=9) == [(0, b"good")]


async def test_an_offset_is_given_once(subject: Subject) -> None:
    state = await subject.log.acquire(7, at_least=FRESH)
    await append(subject.log, state, [b"a"])
    assert (await append(subject.log, state, [b"again"]))[1] == ["fenced"]
    assert (await append(subject.log, state._replace(next_offset=5), [b"ahead"]))[1] == ["lost"]
    assert await subject.log.read(7, 0, max_records=9) == [(0, b"a")]


async def test_an_epoch_that_the_log_has_not_reached_is_a_lost_log(subject: Subject) -> None:
    state = await subject.log.acquire(7, at_least=FRESH)
    assert (await append(subject.log, state._replace(epoch=9), [b"a"]))[1] == ["lost"]


async def test_each_partition_of_a_call_has_its_own_outcome(subject: Subject) -> None:
    good = await subject.log.acquire(1, at_least=FRESH)
    stale = await subject.log.acquire(2, at_least=FRESH)
    await subject.other.acquire(2, at_least=None)
    also_good = await subject.log.acquire(4, at_least=LogState(6, 50, 50, 0))
    outcomes = await subject.log.append(
        [
            Append(1, good.epoch, 0, b"one", ids(11)),
            Append(2, stale.epoch, 0, b"two", ids(12)),
            Append(3, 1, 0, b"three", ids(13)),
            Append(4, also_good.epoch, 50, b"four", ids(14)),
        ]
    )
    assert outcomes == ["appended", "fenced", "lost", "appended"]
    assert [await subject.log.read(p, 0, max_records=9) for p in (1, 2, 3, 4)] == [
        [(0, b"one")],
        [],
        [],
        [(50, b"four")],
    ]
    assert [await all_ids(subject.log, p) for p in (1, 2, 3, 4)] == [[ids(11)], [], [], [ids(14)]]


async def test_nothing_to_append(subject: Subject) -> None:
    assert await subject.log.append([]) == []
    assert await subject.log.state([]) == []


@pytest.mark.parametrize("applied", [True, False])
async def test_an_unknown_outcome_is_settled_by_a_new_epoch(subject: Subject, applied: bool) -> None:
    state = await subject.log.acquire(7, at_least=FRESH)
    state, _ = await append(subject.log, state, [b"before"])
    await subject.lose_next_append(applied=applied)
    with pytest.raises(Unavailable):
        await subject.log.append([Append(7, state.epoch, state.next_offset, b"unknown", ids(1))])
    renewed = await subject.log.renew(7, epoch=state.epoch)
    assert renewed == LogState(state.epoch + 1, 0, 2 if applied else 1, 0)
    assert (await append(subject.log, state, [b"unknown"]))[1] == ["fenced"]
    assert await all_ids(subject.log) == ([ids(1)] if applied else [])
    assert (await append(subject.log, renewed, [b"after"]))[1] == ["appended"]
    records = [record for _, record in await subject.log.read(7, 0, max_records=9)]
    assert records == [b"before", *([b"unknown"] if applied else []), b"after"]


async def test_renewing_is_for_the_writer_that_has_the_partition(subject: Subject) -> None:
    with pytest.raises(LogLost):
        await subject.log.renew(7, epoch=1)
    mine = await subject.log.acquire(7, at_least=FRESH)
    again = await subject.log.renew(7, epoch=mine.epoch)
    # As if the answer had been lost: the epoch is higher than the caller knows, and it is still the caller's.
    assert (await subject.log.renew(7, epoch=mine.epoch)).epoch == again.epoch + 1
    with pytest.raises(LogLost):
        await subject.log.renew(7, epoch=99)
    await subject.other.acquire(7, at_least=None)
    with pytest.raises(Fenced):
        await subject.log.renew(7, epoch=again.epoch + 1)


async def test_after_the_log_was_lost_it_goes_on_above_everything_known(subject: Subject) -> None:
    state = await subject.log.acquire(7, at_least=FRESH)
    state, _ = await append(subject.log, state, [b"a", b"b"])
    await subject.flush_all()
    assert (await append(subject.log, state, [b"c"]))[1] == ["lost"]
    with pytest.raises(LogLost):
        await subject.log.acquire(7, at_least=None)
    anew = await subject.log.acquire(7, at_least=LogState(state.epoch, 100, 100, ids_since_ms=5000))
    assert anew == LogState(state.epoch + 1, 100, 100, 5000)
    assert (await append(subject.log, anew, [b"c"]))[1] == ["appended"]
    assert await subject.log.read(7, 0, max_records=9) == [(100, b"c")]


async def test_state_that_has_lost_its_tail_is_lifted(subject: Subject) -> None:
    state = await subject.log.acquire(7, at_least=FRESH)
    await append(subject.log, state, [b"a"])
    ahead = await subject.log.acquire(7, at_least=LogState(20, 0, 10, ids_since_ms=5000))
    assert ahead == LogState(21, 0, 10, 5000)
    assert (await append(subject.log, ahead, [b"b"]))[1] == ["appended"]
    assert await subject.log.read(7, 0, max_records=9) == [(0, b"a"), (10, b"b")]


async def test_what_is_known_elsewhere_never_moves_a_log_back(subject: Subject) -> None:
    state = await subject.log.acquire(7, at_least=FRESH)
    await append(subject.log, state, [b"a", b"b", b"c"])
    assert await subject.log.acquire(7, at_least=LogState(1, 1, 1, ids_since_ms=9)) == LogState(2, 0, 3, 0)


async def test_ids_come_back_in_order_with_their_times(subject: Subject) -> None:
    state = await subject.log.acquire(7, at_least=FRESH)
    expected = [ids(*range(n * 100, n * 100 + 1 + n % 5)) for n in range(500)]
    for offset, fingerprints in enumerate(expected):
        await subject.log.append([Append(7, state.epoch, offset, b"r", fingerprints)])
    entries = [entry async for entry in subject.log.read_ids(7)]
    assert [entry.fingerprints for entry in entries] == expected
    times = [entry.appended_ms for entry in entries]
    assert times == sorted(times)
    assert await all_ids(subject.log, 8) == []


async def test_the_ids_of_one_record_are_forgotten_and_no_others(subject: Subject) -> None:
    """Many come within a millisecond, and some records bring none."""
    state = await subject.log.acquire(7, at_least=FRESH)
    brought = [ids(*range(n * 100, n * 100 + n % 3)) for n in range(200)]
    calls = [Append(7, state.epoch, offset, b"r", fingerprints) for offset, fingerprints in enumerate(brought)]
    for call in calls:
        await subject.log.append([call])
    assert [await subject.log.ids_of(7, offset) for offset in range(200)] == brought
    assert await subject.log.ids_of(7, 200) == await subject.log.ids_of(8, 0) == b""
    for offset in (0, 1, 2, 100, 199, 200):
        for _ in range(2):
            await subject.log.forget_ids(7, range(offset, offset + 1), epoch=state.epoch)
        if offset < 200:
            brought[offset] = b""
    assert await all_ids(subject.log) == [fingerprints for fingerprints in brought if fingerprints]
    assert [await subject.log.ids_of(7, offset) for offset in range(200)] == brought
    assert await subject.log.state([7]) == [LogState(1, 0, 200, 0)]
    assert len(await subject.log.read(7, 0, max_records=999)) == 200
    assert await subject.log.append([Append(7, state.epoch, 200, b"r", ids(1))]) == ["appended"]
    assert await subject.log.ids_of(7, 200) == ids(1)


@pytest.mark.parametrize("forgotten", [range(70), range(3, 150), range(199, 1 << 32), range(200, 300), range(9, 9)])
async def test_the_ids_of_a_range_of_records_are_forgotten(
    subject: Subject, forgotten: range, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_log, "FORGOTTEN_AT_ONCE", 20)
    state = await subject.log.acquire(7, at_least=FRESH)
    brought = [ids(*range(n * 100, n * 100 + n % 3)) for n in range(200)]
    for offset, fingerprints in enumerate(brought):
        await subject.log.append([Append(7, state.epoch, offset, b"r", fingerprints)])
    for _ in range(2):
        await subject.log.forget_ids(7, forgotten, epoch=state.epoch)
        left = [fingerprints for offset, fingerprints in enumerate(brought) if offset not in forgotten]
        assert await all_ids(subject.log) == [fingerprints for fingerprints in left if fingerprints]


async def test_a_stale_epoch_forgets_no_ids(subject: Subject) -> None:
    """FN-1."""
    old = await subject.log.acquire(7, at_least=FRESH)
    await subject.log.append([Append(7, old.epoch, 0, b"r", ids(1, 2))])
    await subject.other.acquire(7, at_least=None)
    await subject.log.forget_ids(7, range(1), epoch=old.epoch)
    assert await subject.log.ids_of(7, 0) == ids(1, 2)


async def test_trimming_records_is_exact(subject: Subject) -> None:
    """TR-1: what is at or above the offset stays."""
    state = await subject.log.acquire(7, at_least=FRESH)
    state, _ = await append(subject.log, state, [b"%d" % n for n in range(300)])
    await subject.log.trim([Trim(7, state.epoch, 257, 0)])
    assert await subject.log.state([7]) == [LogState(1, 257, 300, 0)]
    assert (await subject.log.read(7, 0, max_records=1000))[0] == (257, b"257")
    await subject.log.trim([Trim(7, state.epoch, 100, 0)])
    assert await subject.log.state([7]) == [LogState(1, 257, 300, 0)]


async def test_a_log_that_was_trimmed_empty_goes_on(subject: Subject) -> None:
    state = await subject.log.acquire(7, at_least=FRESH)
    state, _ = await append(subject.log, state, [b"a", b"b"])
    await subject.log.trim([Trim(7, state.epoch, 99, 0)])
    assert await subject.log.state([7]) == [LogState(1, 2, 2, 0)]
    assert (await append(subject.log, state, [b"c"]))[1] == ["appended"]
    assert await subject.log.read(7, 0, max_records=9) == [(2, b"c")]


async def test_trimmed_ids_are_old_and_the_state_says_since_when_they_are_complete(subject: Subject) -> None:
    state = await subject.log.acquire(7, at_least=FRESH)
    for offset in range(1000):
        await subject.log.append([Append(7, state.epoch, offset, b"r", ids(*range(offset * 100, offset * 100 + 100)))])
    entries = [entry async for entry in subject.log.read_ids(7)]
    middle_ms = entries[500].appended_ms
    await subject.log.trim([Trim(7, state.epoch, 0, middle_ms)])
    kept = [entry async for entry in subject.log.read_ids(7)]
    recent = [entry for entry in entries if entry.appended_ms >= middle_ms]
    assert kept[-len(recent) :] == recent
    assert len(kept) < len(entries)
    assert await subject.log.state([7]) == [LogState(1, 0, 1000, middle_ms)]


async def test_a_stale_epoch_trims_nothing(subject: Subject) -> None:
    """FN-1."""
    old = await subject.log.acquire(7, at_least=FRESH)
    old, _ = await append(subject.log, old, [b"a", b"b"])
    new = await subject.other.acquire(7, at_least=None)
    await subject.log.trim([Trim(7, old.epoch, 2, 1 << 50)])
    assert await subject.log.state([7]) == [new]
    assert len(await subject.log.read(7, 0, max_records=9)) == 2


async def test_partitions_are_trimmed_together_each_under_its_own_epoch(subject: Subject) -> None:
    states = [await subject.log.acquire(partition, at_least=FRESH) for partition in (1, 2, 3)]
    for partition, state in zip((1, 2, 3), states, strict=True):
        await subject.log.append([Append(partition, state.epoch, 0, b"r", ids(partition))])
    await subject.other.acquire(2, at_least=None)
    await subject.log.trim(
        [Trim(partition, state.epoch, 1, 0) for partition, state in zip((1, 2, 3), states, strict=True)]
    )
    assert [len(await subject.log.read(partition, 0, max_records=9)) for partition in (1, 2, 3)] == [0, 1, 0]


async def test_a_full_log_takes_nothing_and_recovers_by_trimming(small_subject: Subject) -> None:
    log = small_subject.log
    state = await log.acquire(7, at_least=FRESH)
    record = b"x" * 1_000_000
    outcomes: list[str] = []
    while "full" not in outcomes:
        assert len(outcomes) < 30
        [outcome] = await log.append([Append(7, state.epoch, len(outcomes), record, ids(len(outcomes)))])
        outcomes.append(outcome)
    appended = len(outcomes) - 1
    assert appended > 3
    # Nothing half done: neither the record nor its ids nor the offset.
    assert await log.state([7]) == [LogState(1, 0, appended, 0)]
    assert await all_ids(log) == [ids(offset) for offset in range(appended)]
    assert [offset for offset, _ in await log.read(7, 0, max_records=1000)] == list(range(appended))
    # A full log can still be taken over and trimmed.
    state = await log.renew(7, epoch=state.epoch)
    state = await log.acquire(7, at_least=None)
    await log.trim([Trim(7, state.epoch, appended - 1, 0)])
    assert (await append(log, state, [record]))[1] == ["appended"]
    assert [offset for offset, _ in await log.read(7, 0, max_records=9)] == [appended - 1, appended]
