"""The aggregator over stores in memory, in virtual time: whatever happens between, the windows are what was stored."""

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable

import msgspec
import pytest

from analytics_actors.log_repair import LogRepair
from analytics_actors.messages import APPENDED
from config.settings import Settings
from storage.errors import Conflict, NotFound
from storage.event_batch import PackedRows
from storage.memory_rollups import MemoryRollups
from storage.memory_windows import MemoryWindows
from storage.partition_log import Trim
from storage.window_key import OTHER
from tests.seeds import seeds
from tests.unit import virtual_time
from tests.unit.aggregation import PARTITIONS, SETTINGS, Event, System, default_settings

DAY_S = 86400


def in_system(test: Callable[[System], Awaitable[None]], settings: Settings = SETTINGS) -> None:
    async def main() -> None:
        system = System(settings)
        await system.start_batcher()
        system.start_aggregator()
        try:
            while not system.current.ready:
                await asyncio.sleep(0.1)
            await test(system)
        finally:
            await system.close()

    virtual_time.run(main())


def events(system: System, *ages_s: float, prefix: str = "e", event_type: str = "page_view") -> list[Event]:
    now_s = system.clock_s()
    return [Event(f"{prefix}{n}", now_s - age, event_type, f"user-{n % 3}") for n, age in enumerate(ages_s)]


def test_events_are_counted_once_and_rolled_up_when_their_windows_close() -> None:
    async def test(system: System) -> None:
        batch = [*events(system, 0, 1, 61), Event("p", system.clock_s(), "purchase", "", '{"amount": "0.10"}')]
        assert await system.send("p", [*batch, *batch]) == [APPENDED]
        await system.settle(200)
        system.check()
        assert system.current.observe().counters["events_counted"] == 4
        assert {key.size for key in system.rollups.rows} == {"1m"}
        system.skipped_s += 3600
        await system.settle(200)
        system.check()
        assert {key.size for key in system.rollups.rows} == {"1m", "1h"}

    in_system(test)


def test_what_patterns_and_webhooks_wait_for_is_seen_in_the_view(monkeypatch: pytest.MonkeyPatch) -> None:
    webhooks = {"delivered": 5, "retried": 2, "given_up": 1, "trouble": "PostgreSQL is away"}

    async def test(system: System) -> None:
        patterns = {"detections": 3, "webhooks": webhooks, "trouble": "roll-ups are away"}
        monkeypatch.setattr(system.current._watch, "observe", lambda: patterns)
        view = system.current.observe()
        counts = ("patterns_detected", "webhooks_delivered", "webhooks_retried", "webhooks_given_up")
        assert [view.counters[name] for name in counts] == [3, 5, 2, 1]
        assert view.trouble == "patterns: roll-ups are away; webhooks: PostgreSQL is away"
        monkeypatch.setattr(system.current._watch, "observe", dict)
        assert system.current.observe().trouble == ""

    in_system(test)


def test_late_events_change_their_windows_and_later_ones_their_days() -> None:
    async def test(system: System) -> None:
        await system.send("p", events(system, 0, 3600, 20 * 3600))
        await system.settle(100)
        await system.send("p", events(system, 3601, 20 * 3600 + 1, 23 * 3600, 5 * DAY_S, 400 * DAY_S, prefix="late"))
        await system.settle(100)
        system.check()
        view = system.current.observe()
        assert view.late_events == 3
        assert view.counters["days_recomputed"] >= 3
        assert view.late_days_left == 0

    in_system(test)


def test_a_whole_day_passes_and_roll_ups_take_over_with_nothing_lost() -> None:
    async def test(system: System) -> None:
        for hour in range(36):
            await system.send("p", events(system, 0, 1800, 7 * 3600, prefix=f"h{hour}-"))
            await system.settle(100)
            system.check()
            system.skipped_s += 3600
        assert "1d" in {key.size for key in system.rollups.rows}

    in_system(test)


def test_a_new_definition_counts_from_then_on_and_the_live_hours_before() -> None:
    async def test(system: System) -> None:
        await system.send("p", events(system, 0, 600, 7200, event_type="click"))
        await system.settle(5)
        await system.define("p", "click")
        await system.send("p", events(system, 0, prefix="next", event_type="click"))
        await system.settle(100)
        system.check()
        hours = {key: value.count for key, value in system.windows.windows.items() if key[1:3] == ("own", "1h")}
        assert sum(count for key, count in hours.items() if not key.dimensions) == 4
        # What the old definition counted and the new one does not is gone.
        await system.define("p", "purchase")
        await system.settle(100)
        system.check()
        assert not [key for found in (system.windows.windows, system.rollups.rows) for key in found if key[1] == "own"]
        # A new life knows what was built.
        await system.current.close()
        system.start_aggregator()
        await system.settle(20)
        assert system.current.observe().counters.get("definitions_built", 0) == 0
        system.check()

    in_system(test)


def test_a_definition_of_a_project_without_events_needs_no_building() -> None:
    async def test(system: System) -> None:
        await system.define("p", "click")
        await system.settle(10)
        await system.send("p", events(system, 0, 60, event_type="click"))
        await system.settle(10)
        system.check()
        assert system.current.observe().counters.get("definitions_built", 0) == 0

    in_system(test)


def test_a_flushed_redis_is_noticed_without_traffic_and_rebuilt() -> None:
    async def test(system: System) -> None:
        await system.send("p", events(system, 0, 60, 3600, 20 * 3600))
        await system.settle(100)
        system.windows.flush_all()
        await asyncio.sleep(10)
        assert system.current.ready
        system.check()
        assert system.current.observe().counters["rebuilds"] > PARTITIONS

    in_system(test)


def test_windows_that_outlive_their_checkpoint_are_not_counted_on() -> None:
    async def test(system: System) -> None:
        for _ in range(4):
            system.store.fail_next(committed=False)
        await system.send("p", events(system, 0, 60, 3600))
        await asyncio.sleep(0.5)
        # Counted, not stored yet, and nobody knows any more how far.
        assert system.windows.windows
        assert not system.store.rows
        system.windows._data.checkpoints.clear()
        await system.settle(10)
        system.check()

    in_system(test)


def test_a_mark_stays_while_its_late_events_are_in_an_hour_of_windows() -> None:
    async def test(system: System) -> None:
        # A minute after its hour's time was over, while the hour is still answered from windows.
        system.skipped_s += 3660 - (system.clock_s() - system.lateness_s) % 3600
        await system.send("p", events(system, system.lateness_s + 120))
        await system.settle(30)
        assert await system.rollups.days_left("p") == 1
        assert system.current.observe().late_days_left == 0
        system.check()
        system.skipped_s += 2 * 3600
        await system.settle(30)
        assert await system.rollups.days_left("p") == 0
        system.check()

    in_system(test)


@pytest.mark.parametrize("max_resident_bytes", [1, 100_000, 10_000_000])
def test_imported_years_are_recomputed_within_memory(max_resident_bytes: int) -> None:
    async def test(system: System) -> None:
        ages = [DAY_S * day + 977 * n for day in range(3, 40) for n in range(5)] + [DAY_S * 700]
        for project in ("p", "q"):
            for start in range(0, len(ages), 50):
                await system.send(project, events(system, *ages[start : start + 50], prefix=f"{start}-"))
        await system.settle(100)
        system.check()
        view = system.current.observe()
        assert view.counters["days_recomputed"] >= 2 * 38
        assert view.late_days_left == 0

    in_system(test, default_settings(max_resident_bytes=max_resident_bytes))


def test_groups_beyond_the_bound_are_other_in_windows_and_days() -> None:
    async def test(system: System) -> None:
        for number in range(20):
            await system.send("p", events(system, 0, 3 * DAY_S, prefix=f"{number}-", event_type=f"type-{number}"))
        await system.settle(100)
        for found in (system.windows.windows, system.rollups.rows):
            hours = [
                (key, value) for key, value in found.items() if key.metric == "events" and key.size in ("1h", "1d")
            ]
            total = sum(value.count for key, value in hours if not key.dimensions)
            grouped = [(key.dimensions[0][1], value.count) for key, value in hours if key.dimensions]
            assert sum(count for _, count in grouped) == total > 0
            assert OTHER in dict(grouped)
            assert len({name for name, _ in grouped}) == 6
        assert system.current.observe().counters["overflow_events"] == 15

    in_system(test, default_settings(max_groups=5))


def test_a_record_that_cannot_be_read_stops_its_own_partition_only() -> None:
    async def test(system: System) -> None:
        assert system.batcher is not None
        damaged = msgspec.structs.replace(system.make_batch("q", events(system, 0)), rows=PackedRows(1000, b"not LZ4"))
        await system.batcher.append([damaged])
        await system.send("p", events(system, 0))
        await asyncio.sleep(5)
        view = system.current.observe()
        assert [p.partition for p in view.partitions if p.state == "unreadable"] == [damaged.partition]
        assert f"partition {damaged.partition}" in view.trouble
        assert view.counters["events_counted"] == 1
        assert system.current.failure is None

    in_system(test)


def test_what_is_read_at_once_is_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A record of each partition at a time here; what is left is read next."""
    monkeypatch.setattr("analytics_actors.windows.prepare.MAX_PLAIN_BYTES", 1)

    async def test(system: System) -> None:
        for number in range(5):
            await system.send("p", events(system, number, prefix=f"p{number}"))
            await system.send("q", events(system, number, prefix=f"q{number}"))
        await system.settle(60)
        system.check()
        assert system.current.observe().counters["events_counted"] == 10
        assert system.current.observe().counters["publications"] >= 5

    in_system(test)


def test_the_windows_go_on_behind_a_record_that_was_set_aside() -> None:
    async def test(system: System) -> None:
        assert system.batcher is not None
        await system.send("q", events(system, 0, 1, prefix="before"))
        damaged = msgspec.structs.replace(system.make_batch("q", events(system, 0)), rows=PackedRows(1000, b"not LZ4"))
        [reply] = await system.batcher.append([damaged])
        await system.send("q", events(system, 0, 1, 2, prefix="after"))
        await asyncio.sleep(10)
        assert "cannot be read" in system.current.observe().trouble
        repair = LogRepair(system.log, system.store.checkpoints, system.store.set_aside, partitions=PARTITIONS)
        await repair.set_aside(damaged.partition, reply.offset)
        await asyncio.sleep(10)
        assert system.current.observe().trouble == system.batcher.observe().trouble == ""
        await system.settle(200)
        system.check()
        assert len(system.store.rows) == 5
        assert system.current.failure is None

    in_system(test)


@pytest.mark.parametrize("has_head", [True, False])
@pytest.mark.parametrize(("skipped_s", "flushes"), [(0, False), (23 * 3600, False), (0, True)])
def test_what_windows_had_counted_of_a_record_that_was_set_aside_is_taken_back(
    has_head: bool, skipped_s: int, flushes: bool
) -> None:
    """It could be read when the aggregator came by. Later it could not, maybe when its hours had been rolled up, or
    when nothing but roll-ups knew of it."""

    async def test(system: System) -> None:
        assert system.batcher is not None
        await system.send("q", events(system, 0, 100, prefix="before"))
        await system.settle()
        for _ in range(10_000):
            system.store.fail_next(committed=False)
        await system.send("q", events(system, 0, 100, 4000, prefix="lost"))
        alone = [Event("lost alone", system.clock_s() - 9000, "purchase", "", '{"amount": "2.5"}')]
        partition = system.make_batch("q", []).partition
        other = next(name for name in map(str, range(100)) if system.make_batch(name, []).partition == partition)
        for project in ("q", "q" if flushes else other):
            await system.send(project, alone)
            alone = [alone[0]._replace(event_id="lost as well")]
        await asyncio.sleep(10)
        assert system.current.observe().counters["events_counted"] == 7
        await system.batcher.close()
        records = system.log._partitions[partition].records
        for offset in (1, 2, 3):
            records[offset] = records[offset][:-20] + bytes(20) if has_head else bytes(3)
        system.skipped_s += skipped_s
        if flushes:
            system.windows.flush_all()
            # As if the owner before had been killed between its writes: what tells that there are others comes last.
            counts = [key for key in system.rollups.rows if key[1] == "events" and not key.dimensions]
            for key in [key for key in counts if key.start < system.clock_s() - 8000]:
                del system.rollups._rows[key]
        batcher = await system.start_batcher()
        # An owner that was away for long would have its days counted again in any case.
        await system.send("q", events(system, 0, prefix="since"))
        await asyncio.sleep(10)
        system.store._failures.clear()
        repair = LogRepair(system.log, system.store.checkpoints, system.store.set_aside, partitions=PARTITIONS)
        for offset in (1, 2, 3):
            await repair.set_aside(partition, offset)
        await asyncio.sleep(30)
        assert batcher.observe().trouble == system.current.observe().trouble == ""
        # As the client's own copy has them.
        await system.send("q", events(system, 0, 100, 4000, prefix="lost"))
        await system.settle(200)
        system.check()
        assert len(system.store.rows) == 6
        assert len(system.store.set_aside.are_recounted) == 3
        assert not [key for found in (system.windows.windows, system.rollups.rows) for key in found if key[0] == other]

    in_system(test)


@pytest.mark.parametrize("has_head", [True, False])
def test_a_record_that_is_damaged_after_it_was_stored_is_counted_from_the_event_store(has_head: bool) -> None:
    async def test(system: System) -> None:
        assert system.batcher is not None
        partition = system.make_batch("q", []).partition
        while system.current.observe().partitions[partition].next_offset < 1:
            await system.send("q", events(system, 0, prefix="first"))
            await asyncio.sleep(0.5)
        await system.current.close()
        await system.send("q", events(system, 0, 1, 2))
        await asyncio.sleep(1)
        assert system.batcher.observe().lag_events == 0
        records = system.log._partitions[partition].records
        for offset, raw in records.items():
            records[offset] = raw[:-20] + bytes(20) if has_head else bytes(len(raw))
        system.start_aggregator()
        await system.settle(200)
        system.check()
        assert system.current.observe().trouble == ""

    in_system(test)


def test_lost_windows_take_no_roll_ups_away() -> None:
    async def test(system: System) -> None:
        await system.send("p", events(system, 600, 7200))
        await system.settle(100)
        rows = system.rollups.rows
        hour = min(key.start for key in rows if key.size == "1h")
        system.windows.flush_all()
        # Before anybody has noticed.
        assert not await system.current._roll_up.renew("p", system.current._book.applied("p").metrics, hour)
        await system.current._roll_up._audit("p", range(hour, hour + 3600, 3600), system.clock_s(), doubt=True)
        assert system.rollups.rows.keys() == rows.keys()
        await system.settle(200)
        system.check()

    in_system(test, default_settings(max_resident_bytes=1))


class Model:
    """Everything that may happen to a shard, at any time."""

    def __init__(self, seed: int, *, flushes: bool, settings: Settings) -> None:
        self.random = random.Random(seed)
        self.system = System(settings, chance=random.Random(seed + 1))
        self.flushes = flushes
        self.sent = 0

    async def step(self) -> None:
        system = self.system
        if system.current.failure is not None:
            # As Ray does when the controller has asked.
            await self.crash()
        actions = (
            [self.send] * 10 + [self.breathe] * 4 + [self.crash, self.replace, self.publish_fails, self.write_fails]
        )
        actions += [self.redis_away, self.postgres_away, self.trim, self.jump, self.define, self.damage]
        if self.flushes:
            actions += [self.flush]
        await self.random.choice(actions)()

    async def send(self) -> None:
        project = f"project-{self.random.randrange(3)}"
        made = [self.event() for _ in range(self.random.randrange(1, 8))]
        # Some are sent again: duplicates are no events.
        await self.system.send(project, made + made[: self.random.randrange(2)])

    def event(self) -> Event:
        self.sent += 1
        age_s = self.random.choice([0, 0, 0, 1, 59, 61, 300, 3700, 7 * 3600, 21 * 3600, 79_100, 79_300, 30 * 3600, -90])
        kind = self.random.choice(["page_view", "click", "purchase"])
        amount = f'{{"amount": {self.random.randrange(1, 10_000) / 100}}}' if kind == "purchase" else "{}"
        user = f"user-{self.random.randrange(20)}"
        return Event(f"e{self.sent}", self.system.clock_s() - age_s, kind, user, amount)

    async def crash(self) -> None:
        """The process is gone in the middle of whatever it did."""
        await self.system.current.close()
        self.system.start_aggregator()

    async def replace(self) -> None:
        """A new owner while the old one still runs."""
        self.system.start_aggregator()

    async def publish_fails(self) -> None:
        owner = self.system.views[len(self.system.aggregators) - 1]
        owner.fail_next(applied=self.random.random() < 0.5)

    async def write_fails(self) -> None:
        self.system.store.fail_next(committed=self.random.random() < 0.5)

    async def redis_away(self) -> None:
        await self.away(self.system.views[len(self.system.aggregators) - 1])

    async def postgres_away(self) -> None:
        await self.away(self.system.rollups)

    async def away(self, service: MemoryWindows | MemoryRollups) -> None:
        service.available = False
        await asyncio.sleep(self.random.choice([0.1, 3]))
        service.available = True

    async def flush(self) -> None:
        """Redis has lost everything, and the log with it."""
        self.system.windows.flush_all()
        if self.random.random() < 0.5:
            self.system.log.flush_all()

    async def trim(self) -> None:
        """The batcher had to make room."""
        for partition, checkpoint in enumerate(await self.system.store.checkpoints(range(PARTITIONS))):
            [state] = await self.system.log.state([partition])
            if state is not None:
                await self.system.log.trim([Trim(partition, state.epoch, checkpoint.next_offset, 0)])

    async def jump(self) -> None:
        self.system.skipped_s += self.random.choice([30, 600, 3600])

    async def define(self) -> None:
        await self.system.define(f"project-{self.random.randrange(3)}", self.random.choice(["click", "page_view"]))

    async def damage(self) -> None:
        """Records that windows have counted, maybe, cannot be read when they are to be stored; they are set aside."""
        system = self.system
        assert system.batcher is not None
        for _ in range(1000):
            system.store.fail_next(committed=False)
        for act in (self.send, self.send, self.breathe):
            await act()
        await system.batcher.close()
        system.store._failures.clear()
        damaged = []
        for partition, checkpoint in enumerate(await system.store.checkpoints(range(PARTITIONS))):
            records = system.log._partitions[partition].records if partition in system.log._partitions else {}
            for offset in [each for each in records if each >= checkpoint.next_offset]:
                if self.random.random() < 0.7:
                    records[offset] = self.random.choice([bytes(3), records[offset][:-20] + bytes(20)])
                    damaged.append((partition, offset))
        await system.start_batcher()
        await self.breathe()
        repair = LogRepair(system.log, system.store.checkpoints, system.store.set_aside, partitions=PARTITIONS)
        for partition, offset in damaged:
            # Nothing but duplicates has no rows that could be damaged.
            with contextlib.suppress(Conflict, NotFound):
                await repair.set_aside(partition, offset)

    async def breathe(self) -> None:
        await asyncio.sleep(self.random.choice([0, 0.02, 0.3, 2, 10]))


@pytest.mark.parametrize("flushes", [False, True])
@pytest.mark.parametrize("seed", seeds(4, 20))
def test_model_with_crashes(seed: int, flushes: bool) -> None:
    """WM-1, WM-2, FN-1, CK-1: any batching, any crash point, zombies, outcomes nobody knows, lost and trimmed logs."""

    async def main() -> None:
        # Every other time nothing stays in memory.
        settings = SETTINGS if seed % 2 else default_settings(max_resident_bytes=5000)
        model = Model(seed, flushes=flushes, settings=settings)
        system = model.system
        await system.start_batcher()
        system.start_aggregator()
        try:
            for _ in range(70):
                await model.step()
            # Stale processes do not live for ever.
            for stale in system.aggregators[:-1]:
                await stale.close()
            if system.current.failure is not None:
                await model.crash()
            await system.settle(180)
            assert system.current.failure is None
            system.check()
            # What was open has closed.
            system.skipped_s += 3600
            await system.settle(180)
            system.check()
        finally:
            await system.close()

    virtual_time.run(main())
