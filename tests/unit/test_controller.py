"""The controller makes what is wanted, removes what is not, and replaces what does not answer."""

from analytics_actors.batcher import Batcher
from analytics_actors.controller import KEEPER, STARTING_S, Controller, Place
from analytics_actors.messages import BatcherView
from config.settings import Settings
from storage.memory_log import MemoryLog
from storage.memory_store import MemoryStore


class FakeActor:
    def __init__(self, fleet: "FakeFleet", place: Place) -> None:
        self._fleet = fleet
        self._place = place
        self.silent = False
        self.open = True

    def probe(self, *, deadline_s: float) -> BatcherView | None:
        if self.silent:
            raise TimeoutError
        if not self.open:
            return None
        return Batcher(self._place.shard, [], MemoryLog(), MemoryStore(), Settings()).observe()

    def kill(self) -> None:
        self._fleet.killed.append(self._place)
        del self._fleet.actors[self._place]


class FakeFleet:
    def __init__(self, *places: Place) -> None:
        self.killed: list[Place] = []
        self.actors = {place: FakeActor(self, place) for place in places}

    def places(self) -> list[Place]:
        return list(self.actors)

    def get_or_create(self, place: Place) -> FakeActor:
        return self.actors.setdefault(place, FakeActor(self, place))


def batcher(shard: int) -> Place:
    return Place("batcher", shard)


def aggregator(shard: int) -> Place:
    return Place("aggregator", shard)


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def make_controller(fleet: FakeFleet, *, shards: int, clock: Clock) -> Controller:
    return Controller(fleet, shards=shards, probe_deadline_s=1, unresponsive_after_s=10, clock_s=clock)


def test_missing_shards_are_made_and_superfluous_ones_removed() -> None:
    fleet = FakeFleet(batcher(1), batcher(5), aggregator(0))
    controller = make_controller(fleet, shards=3, clock=Clock())
    assert not controller.ready
    controller.step()
    assert sorted(fleet.actors) == [batcher(0), batcher(1), batcher(2)]
    assert sorted(fleet.killed) == [aggregator(0), batcher(5)]
    assert controller.ready


def test_an_opening_shard_is_not_ready_and_is_left_alone() -> None:
    fleet = FakeFleet()
    clock = Clock()
    controller = make_controller(fleet, shards=1, clock=clock)
    fleet.get_or_create(batcher(0)).open = False
    for _ in range(5):
        controller.step()
        clock.now_s += 60
    assert not controller.ready
    assert fleet.killed == []
    assert controller.statuses[batcher(0)].state == "opening"


def test_a_silent_shard_is_replaced_after_its_time_and_not_before() -> None:
    fleet = FakeFleet()
    clock = Clock()
    controller = make_controller(fleet, shards=1, clock=clock)
    controller.step()
    first = fleet.actors[batcher(0)]
    first.silent = True
    clock.now_s += 9
    controller.step()
    assert fleet.actors[batcher(0)] is first
    assert controller.statuses[batcher(0)].state == "silent"
    clock.now_s += 1
    controller.step()
    assert fleet.actors[batcher(0)] is not first
    assert controller.statuses[batcher(0)].replaced == 1
    controller.step()
    assert controller.ready


def test_an_actor_that_is_still_starting_gets_more_time() -> None:
    """Also one that has the place of another that was silent, and one that Ray has restarted."""
    fleet = FakeFleet()
    clock = Clock()
    controller = make_controller(fleet, shards=1, clock=clock)
    for _ in range(2):
        fleet.get_or_create(batcher(0)).silent = True
        controller.step()
        clock.now_s += STARTING_S - 1
        controller.step()
        assert fleet.killed == []
        fleet.actors[batcher(0)].silent = False
        controller.step()
        fleet.actors[batcher(0)].open = False
        controller.step()
    clock.now_s += STARTING_S
    fleet.actors[batcher(0)].silent = True
    controller.step()
    assert fleet.killed == [batcher(0)]
    fleet.actors[batcher(0)].silent = True
    clock.now_s += STARTING_S - 1
    controller.step()
    assert fleet.killed == [batcher(0)]


def test_a_shard_that_answers_again_in_time_is_kept() -> None:
    fleet = FakeFleet()
    clock = Clock()
    controller = make_controller(fleet, shards=1, clock=clock)
    controller.step()
    for silent in (True, False, True, False):
        fleet.actors[batcher(0)].silent = silent
        clock.now_s += 8
        controller.step()
    assert fleet.killed == []


def test_sinks_are_looked_after_and_ingest_does_not_wait_for_them() -> None:
    fleet = FakeFleet()
    clock = Clock()
    controller = Controller(
        fleet,
        shards=2,
        kinds=("batcher", "aggregator", "exporter"),
        single=[KEEPER],
        probe_deadline_s=1,
        unresponsive_after_s=10,
        clock_s=clock,
    )
    controller.step()
    fleet.get_or_create(aggregator(0)).silent = True
    controller.step()
    exporters = [Place("exporter", 0), Place("exporter", 1)]
    assert sorted(fleet.actors) == [aggregator(0), aggregator(1), batcher(0), batcher(1), *exporters, KEEPER]
    assert controller.ready
    clock.now_s += 10
    controller.step()
    assert fleet.killed == [aggregator(0)]
    assert controller.statuses[aggregator(0)].replaced == 1
    assert controller.statuses[batcher(0)].replaced == 0
