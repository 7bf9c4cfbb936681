"""The watch: what it makes of closed windows, absent ones, restarts, and services that are away."""

from dataclasses import dataclass, field

import numpy as np
import pytest

from analytics_actors.patterns import watch as watch_module
from analytics_actors.patterns.watch import PatternWatch, pattern_settings
from storage.aggregate import Aggregate
from storage.memory_patterns import MemoryPatterns
from storage.memory_rollups import MemoryRollups
from storage.metric_definitions import MetricDefinition
from storage.patterns import Detection
from storage.window_key import Size, WindowKey
from tests.unit.pattern_series import BEGIN, poisson

CLOSE_AFTER_S = 60.0


@dataclass
class World:
    """A shard that counts `events` of "shop" by the minute, with its clock."""

    definition: MetricDefinition = field(default_factory=lambda: MetricDefinition("events"))
    store: MemoryPatterns = field(default_factory=MemoryPatterns)
    rollups: MemoryRollups = field(default_factory=MemoryRollups)
    minute: int = 0
    is_owner: bool = True
    told: list[Detection] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.restart()

    @property
    def now_s(self) -> float:
        """The minutes before `minute` have closed."""
        return BEGIN + 60 * self.minute + CLOSE_AFTER_S

    def restart(self) -> None:
        self.watch = PatternWatch(
            self.store,
            self.rollups,
            lambda _project, name: self.definition if name == self.definition.name else None,
            owns=lambda _: self.is_owner,
            close_after_s=CLOSE_AFTER_S,
            on_found=self.told.extend,
            clock=lambda: self.now_s,
            settle_s=0,
        )

    def key(self, minute: int, size: Size = "1m") -> WindowKey:
        return WindowKey("shop", self.definition.name, size, BEGIN + 60 * minute, ())

    async def count(self, events: float, *, handed_over: bool = True, rolled_up: bool = True) -> None:
        """The next minute, with so many events (or none: no window)."""
        key = self.key(self.minute)
        self.minute += 1
        if not events:
            return
        aggregate = Aggregate(int(events))
        if handed_over:
            await self.watch.closed("shop", self.definition, key, aggregate)
        if rolled_up:
            await self.rollups.upsert([(key, aggregate)], epoch=1, next_offset=self.minute)

    async def run(self, *counts: float) -> None:
        for events in counts:
            await self.count(events)
            await self.watch.tick(self.now_s)

    @property
    def found(self) -> list[tuple[str, int]]:
        ordered = sorted(self.store.detections, key=lambda one: one.start)
        return [(one.kind, (one.start - BEGIN) // 60) for one in ordered]


def steady(minutes: int) -> list[float]:
    return [float(count) for count in poisson(np.full(minutes, 100.0))]


async def test_a_spike_is_stored_with_its_numbers_and_told() -> None:
    world = World()
    await world.run(*steady(60), 500, *steady(5))
    [detection] = world.store.detections
    assert (detection.kind, detection.project_id, detection.metric, detection.size) == ("spike", "shop", "events", "1m")
    assert (detection.start, detection.value, detection.events) == (world.key(60).start, 500, 500)
    assert detection.mean == pytest.approx(100, rel=0.05)
    assert world.told == [detection]
    assert world.watch.observe()["detections"] == 1


async def test_a_webhook_is_queued_when_there_is_one() -> None:
    patterns = {"webhookUrl": "https://hooks.example.com/x"}
    world = World(MetricDefinition("events", patterns=patterns))
    await world.run(*steady(60), 500)
    [webhook] = await world.store.due(limit=9, lease_s=60)
    assert (webhook.url, webhook.detection) == ("https://hooks.example.com/x", world.store.detections[0])


async def test_windows_that_never_come_are_zero() -> None:
    world = World()
    await world.run(*steady(60), *[0] * 200)
    assert world.found == [("drop", 60)]
    assert world.watch.observe()["metrics"] == 0
    assert world.store.kept == {}


async def test_a_gap_is_judged_as_zeros() -> None:
    world = World()
    await world.run(*steady(60), 0, 0, *steady(60))
    assert world.found == [("drop", 60)]
    assert world.store.detections[0].value == 0


async def test_a_window_that_was_not_handed_over_is_looked_up() -> None:
    world = World()
    await world.run(*steady(60))
    await world.count(100, handed_over=False)
    await world.run(*steady(3))
    await world.count(400, handed_over=False)
    await world.watch.tick(world.now_s)
    assert world.found == [("spike", 64)]


async def test_a_late_change_is_not_judged_again() -> None:
    world = World()
    await world.run(*steady(60), 20, *steady(5))
    assert world.found == [("drop", 60)]
    await world.watch.closed("shop", world.definition, world.key(60), Aggregate(900))
    await world.watch.closed("shop", world.definition, world.key(40), Aggregate(900))
    await world.run(*steady(5))
    assert world.found == [("drop", 60)]


async def test_other_sizes_and_groups_are_not_judged() -> None:
    world = World()
    for minute in range(0, 600, 5):
        await world.watch.closed("shop", world.definition, world.key(minute, "5m"), Aggregate(100))
        key = world.key(minute)._replace(dimensions=(("eventType", "a"),))
        await world.watch.closed("shop", world.definition, key, Aggregate(100))
    assert world.watch.observe()["metrics"] <= 1
    world.minute = 600
    await world.watch.tick(world.now_s)
    assert world.found == []


@pytest.mark.parametrize("at", [59, 60, 61, 62, 70])
async def test_a_restart_neither_repeats_nor_loses_an_alarm(at: int) -> None:
    counts = [*steady(60), *[500] * 10, *steady(30), 0, 0, 0, *steady(20)]
    world = World()
    await world.run(*counts[:at])
    world.restart()
    await world.run(*counts[at:])
    assert world.found == [("spike", 60), ("drop", 100)]
    assert [one.kind for one in world.told] == ["spike", "drop"]


async def test_what_closed_while_nobody_watched_is_judged_from_the_rollups() -> None:
    world = World()
    await world.run(*steady(60))
    for count in (100, 500, 100, 100):
        await world.count(count, handed_over=False)
    world.restart()
    await world.run(*steady(5))
    assert world.found == [("spike", 61)]


async def test_a_pause_of_the_system_is_no_drop_but_a_metric_that_stays_away_is() -> None:
    world = World()
    await world.run(*steady(60))
    world.minute += 10
    world.restart()
    await world.run(*steady(30))
    assert world.found == []
    world.minute += 10
    world.restart()
    await world.run(0, 0, 0)
    assert [kind for kind, _ in world.found] == ["drop"]


async def test_after_a_long_absence_judging_begins_with_what_closes_now() -> None:
    world = World()
    await world.run(*steady(60))
    for count in [900.0] * 300:
        await world.count(count, handed_over=False)
    world.restart()
    await world.run(*[900.0] * 5, 90)
    assert world.found == [("drop", 365)]


async def test_what_could_not_be_stored_is_stored_later() -> None:
    world = World()
    await world.run(*steady(60))
    world.store.away = True
    await world.run(500, *steady(10))
    assert "away" in world.watch.observe()["trouble"]
    assert world.watch.observe()["unsaved"] == 1
    world.store.away = False
    await world.run(*steady(2))
    assert world.found == [("spike", 60)]
    assert world.watch.observe()["trouble"] == ""


async def test_a_crash_before_it_was_stored_finds_it_again_once() -> None:
    world = World()
    await world.run(*steady(60))
    world.store.away = True
    await world.run(500, 100)
    world.store.away = False
    world.restart()
    await world.run(*steady(5))
    assert world.found == [("spike", 60)]


async def test_long_trouble_forgets_nothing() -> None:
    world = World()
    await world.run(*steady(60))
    world.rollups.available, world.store.away = False, True
    for count in [*steady(20), 500, *steady(20)]:
        await world.count(count, rolled_up=False)
        await world.watch.tick(world.now_s)
    world.rollups.available, world.store.away = True, False
    await world.run(*steady(2))
    assert world.found == [("spike", 80)]


async def test_two_owners_at_once_store_it_once() -> None:
    world = World()
    await world.run(*steady(60))
    stale = world.watch
    world.restart()
    await world.run(*steady(3))
    key = world.key(world.minute)
    await stale.closed("shop", world.definition, key, Aggregate(500))
    await world.run(500)
    await stale.tick(world.now_s)
    assert world.found == [("spike", 63)]


async def test_a_project_that_went_elsewhere_is_dropped() -> None:
    world = World()
    await world.run(*steady(60))
    world.is_owner = False
    await world.run(*[0] * 10)
    assert world.watch.observe()["metrics"] == 0
    assert world.found == []


async def test_settings_say_whether_and_what() -> None:
    world = World(MetricDefinition("events", patterns={"enabled": False}))
    await world.run(*steady(60), 500)
    assert world.found == []
    five = World(MetricDefinition("events", patterns={"window": "5m"}))
    for minute in range(0, 300, 5):
        five.minute = minute + 5
        await five.watch.closed("shop", five.definition, five.key(minute, "5m"), Aggregate(500))
        await five.watch.tick(five.now_s)
    five.minute = 305
    await five.watch.closed("shop", five.definition, five.key(300, "5m"), Aggregate(2500))
    await five.watch.tick(five.now_s)
    assert five.found == [("spike", 300)]


async def test_other_thresholds_take_the_history_over_another_metric_begins_anew() -> None:
    world = World()
    await world.run(*steady(60))
    world.definition = MetricDefinition("events", patterns={"spikeFactor": 4})
    await world.run(300)
    assert world.found == [("anomaly", 60)]
    world.definition = MetricDefinition("events", event_types=["purchase"])
    await world.run(*[10] * 15, 100)
    assert world.found == [("anomaly", 60)]


async def test_unusable_settings_watch_nothing() -> None:
    for patterns in ({"sigma": 0}, {"x": 1}, {"minimumWindows": 200}, {"webhookUrl": "ftp://x"}):
        assert not pattern_settings(MetricDefinition("m", patterns=patterns)).enabled
    assert pattern_settings(MetricDefinition("m")).enabled


async def test_no_more_metrics_than_fit_are_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch_module, "MAX_METRICS", 1)
    world = World()
    await world.run(*steady(3))
    await world.watch.closed("shop", MetricDefinition("other"), world.key(3), Aggregate(1))
    assert world.watch.observe()["metrics"] == 1
    assert world.watch.observe()["unwatchedWindows"] == 1


async def test_two_weeks_of_hours_make_the_curve_of_the_week_usual() -> None:
    """Every day the metric falls to a fifth at the 60th minute of the test."""
    for weeks, expected in ((1, [("drop", 60)]), (3, [])):
        world = World()
        hours = []
        for hour in range(-weeks * 168, 0):
            busy = hour % 24 == 0
            key = WindowKey("shop", "events", "1h", BEGIN + 3600 * hour, ())
            hours.append((key, Aggregate(6000 if busy else 1200)))
        await world.rollups.upsert(hours, epoch=1, next_offset=0)
        await world.run(*steady(60), *(count / 5 for count in steady(30)))
        assert world.found == expected
