"""The controller makes what is wanted, removes what is not, and replaces what does not answer."""

from analytics_actors.batcher import Batcher
from analytics_actors.controller import Controller
from analytics_actors.messages import BatcherView
from config.settings import Settings
from storage.memory_log import MemoryLog
from storage.memory_store import MemoryStore


class FakeBatcher:
    def __init__(self, fleet: "FakeFleet", shard: int) -> None:
        self._fleet = fleet
        self._shard = shard
        self.silent = False
        self.open = True

    def probe(self, *, deadline_s: float) -> BatcherView | None:
        if self.silent:
            raise TimeoutError
        if not self.open:
            return None
        return Batcher(self._shard, [], MemoryLog(), MemoryStore(), Settings()).observe()

    def kill(self) -> None:
        self._fleet.killed.append(self._shard)
        del self._fleet.batchers[self._shard]


class FakeFleet:
    def __init__(self, *shards: int) -> None:
        self.killed: list[int] = []
        self.batchers = {shard: FakeBatcher(self, shard) for shard in shards}

    def shards(self) -> list[int]:
        return list(self.batchers)

    def get_or_create(self, shard: int) -> FakeBatcher:
        return self.batchers.setdefault(shard, FakeBatcher(self, shard))


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def make_controller(fleet: FakeFleet, *, shards: int, clock: Clock) -> Controller:
    return Controller(fleet, shards=shards, probe_deadline_s=1, unresponsive_after_s=10, clock_s=clock)


def test_missing_shards_are_made_and_superfluous_ones_removed() -> None:
    fleet = FakeFleet(1, 5)
    controller = make_controller(fleet, shards=3, clock=Clock())
    assert not controller.ready
    controller.step()
    assert sorted(fleet.batchers) == [0, 1, 2]
    assert fleet.killed == [5]
    assert controller.ready


def test_an_opening_shard_is_not_ready_and_is_left_alone() -> None:
    fleet = FakeFleet()
    clock = Clock()
    controller = make_controller(fleet, shards=1, clock=clock)
    fleet.get_or_create(0).open = False
    for _ in range(5):
        controller.step()
        clock.now_s += 60
    assert not controller.ready
    assert fleet.killed == []
    assert controller.statuses[0].state == "opening"


def test_a_silent_shard_is_replaced_after_its_time_and_not_before() -> None:
    fleet = FakeFleet()
    clock = Clock()
    controller = make_controller(fleet, shards=1, clock=clock)
    controller.step()
    first = fleet.batchers[0]
    first.silent = True
    clock.now_s += 9
    controller.step()
    assert fleet.batchers[0] is first
    assert controller.statuses[0].state == "silent"
    clock.now_s += 1
    controller.step()
    assert fleet.batchers[0] is not first
    assert controller.statuses[0].replaced == 1
    controller.step()
    assert controller.ready


def test_a_shard_that_answers_again_in_time_is_kept() -> None:
    fleet = FakeFleet()
    clock = Clock()
    controller = make_controller(fleet, shards=1, clock=clock)
    controller.step()
    for silent in (True, False, True, False):
        fleet.batchers[0].silent = silent
        clock.now_s += 8
        controller.step()
    assert fleet.killed == []
