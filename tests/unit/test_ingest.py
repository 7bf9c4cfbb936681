"""Rows are answered when they are safe: in the log, or in the spool while the log cannot be reached."""

import asyncio
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvloop

from analytics_actors.messages import APPENDED, FULL, REPEATED, UNAVAILABLE, AppendReply
from config.settings import ActorSettings, GatewaySettings, LogSettings, Settings
from gateway.columns import build_batches
from gateway.ingest import GatewayIngest, row_bytes
from gateway.rows import Overloaded, Receipt, Row
from gateway.shard_stream import LinkError
from gateway.spooler import Spooler
from storage.errors import SpoolFull
from storage.event_batch import EventBatch, decode_batches, pack_duplicates, unpack_rows
from storage.spool import Spool, SpooledHour

NOW = datetime(2026, 5, 1, 12, 30, tzinfo=UTC)


def rows(*event_ids: str) -> list[Row]:
    return [Row(event_id, "t", None, None, None, None, NOW, b"{}", None) for event_id in event_ids]


class FakeLog:
    """A log behind the link that dedupes as the owner does, and can be made to fail."""

    def __init__(self) -> None:
        self.calls: list[list[EventBatch]] = []
        self.stored: list[str] = []
        self.batch_ids: set[bytes] = set()
        self.failing: Callable[[], int | None] = lambda: None
        self.gate: asyncio.Event | None = None

    async def append(self, shard: int, raw: bytes, *, deadline_s: float) -> list[AppendReply]:
        batches = decode_batches(raw)
        self.calls.append(batches)
        if self.gate is not None:
            await self.gate.wait()
        failure = self.failing()
        if failure == -1:
            raise LinkError("away")
        if failure == -2:
            for batch in batches:
                self._take(batch)
            raise LinkError("answered too late")
        return [AppendReply(failure) if failure is not None else self._take(batch) for batch in batches]

    def _take(self, batch: EventBatch) -> AppendReply:
        if batch.batch_id in self.batch_ids:
            return AppendReply(REPEATED)
        self.batch_ids.add(batch.batch_id)
        ids = unpack_rows(batch.rows).column("event_id").to_pylist() if batch.rows.block else []
        mask = np.array([event_id in self.stored for event_id in ids], dtype=bool)
        self.stored += [event_id for event_id in ids if event_id not in self.stored]
        return AppendReply(APPENDED, len(self.batch_ids), pack_duplicates(mask))

    async def wait_stored(self, shard: int, partition: int, offset: int, *, deadline_s: float) -> bool:
        return True


class System:
    def __init__(self, path: Path, log: FakeLog, settings: Settings, *, spool_bytes: int = 1_000_000) -> None:
        self.log = log
        self.spool = Spool(path / "spool.sqlite", max_bytes=spool_bytes)
        self.spooler = Spooler(settings, self.spool, log)
        self.ingest = GatewayIngest(settings, log, self.spooler)
        shards = range(settings.actors.shards)
        self.drainers = [asyncio.create_task(self.spooler.run(shard)) for shard in shards]

    async def submit(self, *event_ids: str, project: str = "p", rejected: int = 0):  # type: ignore[no-untyped-def]
        return await self.ingest.submit(project, rows(*event_ids), rejected=rejected, received_at=NOW)

    async def settled(self) -> None:
        while set(self.spooler.modes) != {"direct"}:
            await asyncio.sleep(0.01)

    async def close(self) -> None:
        for drainer in self.drainers:
            drainer.cancel()
        await asyncio.gather(*self.drainers, return_exceptions=True)
        self.spooler.close()


SETTINGS = Settings(log=LogSettings(partitions=8), gateway=GatewaySettings(append_deadline_s=0.2))


@pytest.fixture
async def system(tmp_path: Path) -> AsyncIterator[System]:
    made = System(tmp_path, FakeLog(), SETTINGS)
    yield made
    await made.close()


async def test_rows_are_answered_from_the_log_with_their_duplicates(system: System) -> None:
    first = await system.submit("a", "b")
    again = await system.submit("b", "c", "a")
    assert (first.ack, list(first.duplicates)) == ("logged", [])
    assert (again.ack, list(again.duplicates)) == ("logged", [0, 2])
    assert again.offset == 2


async def test_requests_of_one_moment_travel_together_and_get_their_own_duplicates(system: System) -> None:
    await system.submit("a")
    receipts = await asyncio.gather(system.submit("x", "a"), system.submit("y"), system.submit("a", "z"))
    assert [list(receipt.duplicates) for receipt in receipts] == [[1], [], [0]]
    assert len(system.log.calls) == 2


async def test_while_the_columns_of_a_large_request_are_made_the_loop_is_free_and_nothing_overtakes(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_go_on = threading.Event()

    def build(parts: Any, *, new_id: Any) -> list[EventBatch]:
        if threading.current_thread() is not threading.main_thread():
            assert may_go_on.wait(5)
        return build_batches(parts, new_id=new_id)

    monkeypatch.setattr("gateway.ingest.build_batches", build)
    large = [Row(f"e{n}", "t", None, None, None, None, NOW, b'{"a":"%b"}' % (b"x" * 500_000), None) for n in range(40)]
    first = system.ingest.submit("p", large, rejected=0, received_at=NOW)
    await asyncio.sleep(0.02)
    second = asyncio.create_task(system.submit("after"))
    await asyncio.sleep(0.02)
    assert system.log.calls == []
    may_go_on.set()
    await asyncio.gather(first, second)
    assert system.log.stored == [row.event_id for row in large] + ["after"]


async def test_projects_of_one_call_are_one_batch_a_partition_with_segments(system: System) -> None:
    projects = [f"project-{n}" for n in range(40)]
    await asyncio.gather(*(system.submit(f"e-{p}", project=p, rejected=1) for p in projects))
    [call] = system.log.calls
    assert len({batch.partition for batch in call}) == len(call) <= 8
    segments = [segment for batch in call for segment in batch.segments]
    assert sorted(segment.project_id for segment in segments) == sorted(projects)
    assert {(s.events, s.rejected, s.hour) for s in segments} == {(1, 1, int(NOW.timestamp()) // 3600)}


async def test_refused_events_reach_the_ledger_even_alone(system: System) -> None:
    receipt = await system.submit(rejected=3)
    assert receipt.ack == "logged"
    assert [s.rejected for s in system.log.calls[0][0].segments] == [3]


@pytest.mark.parametrize("failure", [-1, -2, UNAVAILABLE])
async def test_a_failed_append_is_spooled_and_arrives_exactly_once(system: System, failure: int) -> None:
    failures = iter([failure] * 3)
    system.log.failing = lambda: next(failures, None)
    receipts = [await system.submit("a"), await system.submit("b")]
    assert [receipt.ack for receipt in receipts] == ["spooled", "spooled"]
    await system.settled()
    assert system.log.stored == ["a", "b"]
    assert system.spool.bytes == 0
    assert (await system.submit("c")).ack == "logged"


async def test_order_is_kept_through_the_spool(system: System) -> None:
    down = True
    system.log.failing = lambda: -1 if down else None
    ids = [f"e{n:03d}" for n in range(60)]
    for event_id in ids[:40]:
        await system.submit(event_id)
    down = False
    for event_id in ids[40:]:
        await system.submit(event_id)
    await system.settled()
    assert system.log.stored == ids


async def test_flights_that_waited_for_a_hand_over_are_appended_in_their_order(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under a steady load some always wait: spooling them would begin all over again."""
    # One batch a call: the second one belongs to the hand-over.
    monkeypatch.setattr("gateway.spooler.DRAIN_CALL_BYTES", 1)
    down = True
    system.log.failing = lambda: -1 if down else None
    await system.submit("a")
    await system.submit("b")
    plain_append, handed_over = system.log.append, system.spooler._handed_over[0]
    plain_set, lane = handed_over.set, system.ingest._lanes[0]
    late: list[asyncio.Task[Receipt]] = []

    async def append(shard: int, raw: bytes, *, deadline_s: float) -> list[AppendReply]:
        if system.spooler.modes == ["handing over"]:
            late.append(asyncio.create_task(system.submit("c")))
            await asyncio.sleep(0.05)
            monkeypatch.setattr("gateway.ingest.FLIGHT_SPACING_S", 10.0)
            late.append(asyncio.create_task(system.submit("d")))
            await asyncio.sleep(0)
        return await plain_append(shard, raw, deadline_s=deadline_s)

    def take_off_and_set() -> None:
        # The worst moment: the flight that waits has not been woken yet, and this one need not wait.
        lane._take_off()
        plain_set()

    monkeypatch.setattr(system.log, "append", append)
    monkeypatch.setattr(handed_over, "set", take_off_and_set)
    down = False
    await system.settled()
    assert [(await task).ack for task in late] == ["logged", "logged"]
    assert system.log.stored == ["a", "b", "c", "d"]
    assert system.spooler.modes == ["direct"]


async def test_what_an_earlier_life_spooled_goes_first(tmp_path: Path) -> None:
    log = FakeLog()
    log.failing = lambda: -1
    first = System(tmp_path, log, SETTINGS)
    assert (await first.submit("a")).ack == "spooled"
    await first.close()
    log.failing = lambda: None
    second = System(tmp_path, log, SETTINGS)
    receipts = await asyncio.gather(second.submit("b"), second.submit("c"))
    await second.settled()
    assert log.stored == ["a", "b", "c"]
    assert {receipt.ack for receipt in receipts} <= {"spooled", "logged"}
    await second.close()


async def test_counts_are_not_read_while_the_spool_changes_them(system: System) -> None:
    system.log.failing = lambda: -1
    await system.submit("a", "b", rejected=1)
    readers = []

    class Watched(Counter[SpooledHour]):
        def copy(self) -> Any:
            readers.append(threading.current_thread().name)
            return Counter(dict(self))

        def items(self) -> Any:
            readers.append(threading.current_thread().name)
            return super().items()

    system.spool.events, system.spool.rejected = Watched(system.spool.events), Watched(system.spool.rejected)
    events, rejected = await system.spooler.counts_of("p")
    assert (events.total(), rejected.total()) == (2, 1)
    assert {name.partition("_")[0] for name in readers} == {"spool"}


async def test_a_full_log_is_told_at_once_and_not_spooled(system: System) -> None:
    system.log.failing = lambda: FULL
    with pytest.raises(Overloaded) as refused:
        await system.submit("a")
    assert refused.value.retry_after_s >= 1
    assert system.spool.bytes == 0


async def test_a_full_spool_refuses(tmp_path: Path) -> None:
    log = FakeLog()
    log.failing = lambda: -1
    system = System(tmp_path, log, SETTINGS, spool_bytes=50)
    with pytest.raises(SpoolFull):
        await system.submit("a")
    await system.close()


async def test_bytes_in_flight_are_bounded(tmp_path: Path) -> None:
    limits = GatewaySettings(append_deadline_s=5, max_inflight_bytes=1000, max_shard_inflight_bytes=1000)
    log = FakeLog()
    log.gate = asyncio.Event()
    system = System(tmp_path, log, Settings(log=LogSettings(partitions=8), gateway=limits))
    taken = [asyncio.create_task(system.submit(f"e{n}")) for n in range(3)]
    await asyncio.sleep(0)
    with pytest.raises(Overloaded):
        await system.submit("one too many")
    log.gate.set()
    assert {(await task).ack for task in taken} == {"logged"}
    assert system.ingest.inflight_bytes == 0
    assert (await system.submit("later")).ack == "logged"
    await system.close()


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_a_full_flight_does_not_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, new_loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    """Under the loop of tests and under that of the gateway, whose timers are of another class."""
    monkeypatch.setattr("gateway.ingest.FLIGHT_SPACING_S", 10.0)
    monkeypatch.setattr("gateway.ingest.FULL_FLIGHT_ROWS", 3)

    async def fly() -> list[int]:
        system = System(tmp_path, FakeLog(), SETTINGS)
        await system.submit("a")
        small = asyncio.create_task(system.submit("b"))
        await asyncio.sleep(0.01)
        assert len(system.log.calls) == 1
        await asyncio.wait_for(system.submit("c", "d"), 5)
        await small
        await system.close()
        return [len(batch.fingerprints) // 8 for call in system.log.calls for batch in call]

    with asyncio.Runner(loop_factory=new_loop) as runner:
        assert runner.run(fly()) == [1, 3]


async def test_a_flight_is_bounded_in_bytes_too(system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    """A frame that the batcher refuses could neither be appended nor drained, ever."""
    one = row_bytes(rows("a"))
    monkeypatch.setattr("gateway.ingest.MAX_FLIGHT_BYTES", 2 * one)
    requests = [("a",), ("b",), ("c",), ("d1", "d2", "d3"), ("e",)]
    receipts = await asyncio.gather(*(system.submit(*ids) for ids in requests))
    assert {receipt.ack for receipt in receipts} == {"logged"}
    flights = [[len(batch.fingerprints) // 8 for batch in call] for call in system.log.calls]
    assert flights == [[2], [1], [3], [1]]
    assert system.log.stored == [event_id for ids in requests for event_id in ids]


async def test_a_stuck_shard_does_not_hold_up_another(tmp_path: Path) -> None:
    settings = Settings(
        log=LogSettings(partitions=8),
        gateway=GatewaySettings(append_deadline_s=0.2),
        actors=ActorSettings(shards=2),
    )
    log = FakeLog()
    system = System(tmp_path, log, settings)
    plain_append = log.append

    async def append(shard: int, raw: bytes, *, deadline_s: float) -> list[AppendReply]:
        if shard == 0:
            raise LinkError("shard 0 is away")
        return await plain_append(shard, raw, deadline_s=deadline_s)

    log.append = append  # type: ignore[method-assign]
    acks = {(await system.submit(f"e{n}", project=f"project-{n}")).ack for n in range(30)}
    assert acks == {"logged", "spooled"}
    assert system.spooler.modes == ["spooling", "direct"]
    await system.close()


async def test_drain_waits_for_everything_under_way(system: System) -> None:
    system.log.gate = asyncio.Event()
    tasks = [asyncio.create_task(system.submit(f"e{n}")) for n in range(5)]
    await asyncio.sleep(0)
    draining = asyncio.create_task(system.ingest.drain(deadline_s=5))
    await asyncio.sleep(0.01)
    assert not draining.done()
    system.log.gate.set()
    assert await draining
    assert all(task.done() for task in tasks)


async def test_drain_gives_up_at_its_deadline(system: System) -> None:
    system.log.gate = asyncio.Event()
    task = asyncio.create_task(system.submit("a"))
    await asyncio.sleep(0)
    assert not await system.ingest.drain(deadline_s=0.05)
    assert not task.done()
    task.cancel()


async def test_newcomers_are_spooled_when_a_hand_over_fails(system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    """The drainer ends, and with it the worker: until then nobody waits for it, and nothing is lost."""
    down = True
    system.log.failing = lambda: -1 if down else None
    await system.submit("a")
    late: list[asyncio.Task[Receipt]] = []

    def fail(done: object) -> None:
        raise RuntimeError("an error that nobody thought of")

    async def append(shard: int, raw: bytes, *, deadline_s: float) -> list[AppendReply]:
        if system.spooler.modes == ["handing over"]:
            late.append(asyncio.create_task(system.submit("late")))
            await asyncio.sleep(0.05)
            monkeypatch.setattr(system.spool, "remove", fail)
        return await plain_append(shard, raw, deadline_s=deadline_s)

    plain_append = system.log.append
    # More than is handed over at once, so that a first call succeeds and another belongs to the hand-over.
    monkeypatch.setattr("gateway.spooler.DRAIN_CALL_BYTES", 1)
    await system.submit("b")
    monkeypatch.setattr(system.log, "append", append)
    down = False
    with pytest.raises(RuntimeError, match="nobody thought of"):
        await system.drainers[0]
    receipts = [await asyncio.wait_for(late[0], 1), await asyncio.wait_for(system.submit("new"), 1)]
    assert [receipt.ack for receipt in receipts] == ["spooled", "spooled"]
    assert system.spooler.modes == ["spooling"]
    assert sum(system.spool.depth.values()) == 3
    assert await system.ingest.drain(deadline_s=1)
