"""The law of `storage.log_tail`, kept by the tail of the log in memory and of the one in Redis alike."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import NamedTuple

import pytest
import redis.asyncio

from config.settings import LogSettings
from storage.embedded.process import free_port
from storage.errors import Unavailable
from storage.log_tail import LogTail, Tail, TailRead
from storage.memory_log import MemoryLog, MemoryTail
from storage.partition_log import Append, LogState, PartitionLog, Trim
from storage.redis_log import RedisLog

FRESH = LogState(0, 0, 0, 0)
NOTHING = TailRead({}, [])


class Subject(NamedTuple):
    log: PartitionLog
    tail: Tail
    url: str
    """"" for the log in memory."""

    async def append(self, partition: int, *records: bytes) -> None:
        [state] = await self.log.state([partition])
        if state is None:
            state = await self.log.acquire(partition, at_least=FRESH)
        for offset, record in enumerate(records, state.next_offset):
            assert await self.log.append([Append(partition, state.epoch, offset, record, b"")]) == ["appended"]

    async def flush_all(self) -> None:
        if isinstance(self.log, MemoryLog):
            self.log.flush_all()
            return
        async with redis.asyncio.Redis.from_url(self.url) as client:
            await client.flushall()

    async def read(self, block_ms: int = 0, max_records: int = 1000, **wanted: int) -> TailRead:
        """`p7=3` wants partition 7 from offset 3 on."""
        offsets = {int(name[1:]): offset for name, offset in wanted.items()}
        return await self.tail.read(offsets, block_ms=block_ms, max_records=max_records)


@pytest.fixture(params=["memory", "redis"])
async def subject(request: pytest.FixtureRequest) -> AsyncIterator[Subject]:
    if request.param == "memory":
        memory = MemoryLog()
        yield Subject(memory, MemoryTail(memory), "")
        return
    url = str(request.getfixturevalue("valkey_url"))
    made = Subject(RedisLog(url, LogSettings()), LogTail(url, LogSettings()), url)
    yield made
    await made.log.close()
    await made.tail.close()


async def test_records_of_all_partitions_come_from_their_offsets_on(subject: Subject) -> None:
    await subject.append(7, b"a", b"b\x00\r\n", b"c")
    await subject.append(8, b"x", b"y")
    await subject.append(9, b"not wanted")
    expected = {7: [(1, b"b\x00\r\n"), (2, b"c")], 8: [(0, b"x"), (1, b"y")]}
    assert await subject.read(p7=1, p8=0, p10=0) == TailRead(expected, [])
    assert await subject.read(p7=3, p8=2) == NOTHING
    assert await subject.tail.read({}, block_ms=0, max_records=1) == NOTHING


async def test_a_read_is_bounded_and_goes_on_where_it_stopped(subject: Subject) -> None:
    await subject.append(7, *(b"%d" % n for n in range(10)))
    await subject.append(8, b"x")
    first = await subject.read(p7=0, p8=0, max_records=8)
    assert first == TailRead({7: [(n, b"%d" % n) for n in range(4)], 8: [(0, b"x")]}, [])
    assert (await subject.read(p7=4, p8=1, max_records=1)).records == {7: [(4, b"4")]}


async def test_a_read_waits_for_the_next_record_and_no_longer(subject: Subject) -> None:
    await subject.append(7, b"a")
    started = time.monotonic()
    assert await subject.read(p7=1, p8=0, block_ms=200) == NOTHING
    assert 0.15 < time.monotonic() - started < 10
    reading = asyncio.create_task(subject.read(p7=1, p8=0, block_ms=60_000))
    await asyncio.sleep(0.05)
    assert not reading.done()
    await subject.append(8, b"x")
    async with asyncio.timeout(20):
        assert await reading == TailRead({8: [(0, b"x")]}, [])


async def test_what_was_trimmed_is_a_gap(subject: Subject) -> None:
    await subject.append(7, *(b"%d" % n for n in range(10)))
    await subject.append(8, b"x")
    [state] = await subject.log.state([7])
    assert state is not None
    await subject.log.trim([Trim(7, state.epoch, 6, 0)])
    assert await subject.read(p7=5, p8=0) == TailRead({8: [(0, b"x")]}, [7])
    assert (await subject.read(p7=6)).records[7][0] == (6, b"6")
    await subject.log.trim([Trim(7, state.epoch, 10, 0)])
    assert await _gaps_within(subject, p7=9) == [7]
    assert await subject.read(p7=10) == NOTHING


async def test_a_lost_log_is_a_gap_before_and_after_it_begins_anew(subject: Subject) -> None:
    await subject.append(7, b"a", b"b")
    assert (await subject.read(p7=0)).gaps == []
    await subject.flush_all()
    assert await _gaps_within(subject, p7=2) == [7]
    await subject.log.acquire(7, at_least=LogState(20, 1000, 1000, 0))
    assert await _gaps_within(subject, p7=2) == [7]
    await subject.append(7, b"c")
    assert await subject.read(p7=2) == TailRead({}, [7])
    assert await subject.read(p7=1000) == TailRead({7: [(1000, b"c")]}, [])


async def test_a_log_that_is_shorter_than_it_was_is_a_gap(subject: Subject) -> None:
    await subject.append(7, b"a")
    assert await subject.read(p7=5) == TailRead({}, [7])


async def test_offsets_that_jump_within_the_log_are_a_gap_when_it_comes_to_them(subject: Subject) -> None:
    await subject.append(7, b"a", b"b")
    await subject.log.acquire(7, at_least=LogState(20, 0, 10, 0))
    assert await _gaps_within(subject, p7=2) == [7]
    await subject.append(7, b"c")
    assert await subject.read(p7=1) == TailRead({7: [(1, b"b")]}, [])
    assert await subject.read(p7=2) == TailRead({}, [7])
    assert await subject.read(p7=10) == TailRead({7: [(10, b"c")]}, [])


async def _gaps_within(subject: Subject, **wanted: int) -> list[int]:
    """Gaps with nothing behind them are looked for about once a second."""
    async with asyncio.timeout(3):
        while not (read := await subject.read(block_ms=50, **wanted)).gaps:
            assert not read.records
    return read.gaps


async def test_records_that_arrive_meanwhile_are_no_gap(subject: Subject) -> None:
    """Read and append as fast as possible: everything comes once, in order, and nothing is taken for a gap."""
    total = 300
    appending = asyncio.create_task(subject.append(7, *(b"%d" % n for n in range(total))))
    got: list[int] = []
    while len(got) < total:
        read = await subject.read(p7=len(got), p8=0, block_ms=20, max_records=20)
        assert read.gaps == []
        got += [offset for offset, _ in read.records.get(7, [])]
    await appending
    assert got == list(range(total))


async def test_answers_shrink_when_records_are_large(valkey_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("storage.log_tail.READ_BYTES", 8 << 20)
    subject = Subject(RedisLog(valkey_url, LogSettings()), LogTail(valkey_url, LogSettings()), valkey_url)
    await subject.append(7, *(b"x" * (2 << 20) for _ in range(12)))
    counts, at = [], 0
    while at < 12:
        counts.append(len((await subject.read(p7=at, max_records=6)).records[7]))
        at += counts[-1]
    assert counts == [6, 4, 2]
    await subject.log.close()
    await subject.tail.close()


async def test_a_server_that_is_away_is_unavailable_in_time() -> None:
    tail = LogTail(f"redis://127.0.0.1:{free_port()}/0", LogSettings(command_timeout_s=0.5))
    with pytest.raises(Unavailable):
        await tail.read({7: 0}, block_ms=100, max_records=1)
    await tail.close()


async def test_a_cancelled_read_leaves_no_answer_behind(valkey_url: str) -> None:
    subject = Subject(RedisLog(valkey_url, LogSettings()), LogTail(valkey_url, LogSettings()), valkey_url)
    await subject.append(7, b"a")
    reading = asyncio.create_task(subject.read(p8=0, block_ms=2000))
    await asyncio.sleep(0.1)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    await subject.append(8, b"late")
    assert await subject.read(p7=0) == TailRead({7: [(0, b"a")]}, [])
    await subject.log.close()
    await subject.tail.close()
