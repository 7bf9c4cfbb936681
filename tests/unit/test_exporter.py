"""The exporter over stores in memory, in virtual time: whatever happens between, the lake is what was stored."""

import asyncio
import io
import logging
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pyarrow.parquet as pq
import pytest

from analytics_actors.lake.progress import all_sinks, lake_progress
from config.settings import LakeSettings
from storage.lake_file import LakeFileWriter, read_note
from tests.seeds import seeds
from tests.unit import virtual_time
from tests.unit.lake_shard import FOLDED_TYPE, HOUR_S, POISON, LakeShard

CRASH_POINTS = ("planned", "one put", "put", "committed")


def in_shard(test: Callable[[LakeShard], Awaitable[None]], **options: Any) -> None:
    async def main() -> None:
        shard = LakeShard(**options)
        await shard.start_batcher()
        shard.start_exporter()
        try:
            await test(shard)
        finally:
            await shard.close()

    virtual_time.run(main())


def some(count: int, *, prefix: str = "e", hours: int = 1) -> list[tuple[str, float]]:
    return [(f"{prefix}{number}", number % hours * HOUR_S) for number in range(count)]


def test_stored_events_are_in_files_of_their_hours_within_the_interval() -> None:
    async def test(shard: LakeShard) -> None:
        await shard.send("p", some(30, hours=3))
        await asyncio.sleep(8)
        shard.check()
        assert len(shard.rows()) == 30
        keys = sorted(shard.objects.objects)
        assert [key.rsplit("/", 1)[1] for key in keys] == [f"part-000000000001-{n:05d}.parquet" for n in range(3)]
        assert len({key.rsplit("/", 1)[0] for key in keys}) == 3
        view = shard.current.observe()
        assert view.counters["events_exported"] == 30
        assert (view.lag_records, view.open_plan, view.trouble) == (0, 0, "")

    in_shard(test)


def test_what_is_no_stored_event_is_left_out() -> None:
    async def test(shard: LakeShard) -> None:
        await shard.send("p", [*some(5), *some(5)])
        await shard.send("p", some(3))
        await shard.send("p", some(2, prefix="poison"), text=POISON)
        await shard.send("p", some(2, prefix="folded"), kind=FOLDED_TYPE)
        await shard.send("p", some(1, prefix="good"))
        await shard.settle()
        shard.check()
        assert len(shard.store.dead_letters) == 2
        assert len(shard.rows()) == 6

    in_shard(test)


def test_records_without_events_move_the_checkpoint_alone() -> None:
    async def test(shard: LakeShard) -> None:
        await shard.send("p", some(2, prefix="folded"), kind=FOLDED_TYPE)
        await shard.settle()
        assert not shard.objects.objects
        assert not shard.manifest.live()

    in_shard(test)


def test_a_part_goes_out_as_soon_as_it_is_large_enough() -> None:
    async def test(shard: LakeShard) -> None:
        await shard.current.close()
        shard.start_exporter(lake=LakeSettings(part_interval_s=1000, part_bytes=50_000))
        for number in range(30):
            await shard.send("p", some(20, prefix=f"{number}-"), text=f'{{"pad":"{"x" * 200}"}}')
        await asyncio.sleep(10)
        view = shard.current.observe()
        assert view.counters["plans_committed"] >= 2
        assert view.resident_bytes < 50_000
        assert len(shard.rows()) < 600

    in_shard(test)


@pytest.mark.parametrize("point", CRASH_POINTS)
def test_a_crash_at_a_named_point(point: str) -> None:
    async def test(shard: LakeShard) -> None:
        shard.crash_at = point
        await shard.send("p", some(40, hours=4))
        await shard.settle()
        while not shard.exporters[0].failure:
            await asyncio.sleep(0.1)
        shard.restart_failed()
        await asyncio.sleep(10)
        shard.check()
        assert len(shard.exporters) == 2
        assert len({kept.entry.plan_id for kept in shard.manifest.live()}) == 1
        assert len(shard.objects.objects) == 4, "the same names were used again"

    in_shard(test)


def test_a_plan_is_finished_from_the_event_store_and_takes_what_lies_there() -> None:
    """The second exporter makes other bytes of the same events."""

    async def test(shard: LakeShard) -> None:
        shard.crash_at = "put"
        await shard.send("p", some(10))
        while not shard.current.failure:
            await asyncio.sleep(0.1)
        [key] = shard.objects.objects
        before = shard.objects.objects[key]
        shard.log.flush_all()
        # As another release would write it.
        shard.start_exporter(lake=LakeSettings(part_interval_s=5, compression="zstd"))
        await shard.settle()
        shard.check()
        assert shard.objects.objects == {key: before}
        assert shard.current.observe().counters["files_adopted"] == 1

    in_shard(test)


def test_a_name_that_is_taken_by_something_else_renews_the_plan() -> None:
    async def test(shard: LakeShard) -> None:
        await shard.send("p", some(10))
        await shard.settle()
        [key] = shard.objects.objects
        await shard.send("p", some(10, prefix="f"))
        shard.objects.objects[key.replace("000000000001", "000000000002")] = b"nothing of ours"
        shard.objects.objects[key.replace("000000000001", "000000000003")] = shard.objects.objects[key]
        await shard.settle()
        shard.check()
        assert shard.current.observe().counters["names_taken"] == 2
        assert {kept.entry.plan_id for kept in shard.manifest.live()} == {1, 4}

    in_shard(test)


def test_a_file_of_the_same_events_at_other_offsets_is_something_else() -> None:
    """As when the database was set back: the plan's number comes again, and clients have sent their events again."""

    async def test(shard: LakeShard) -> None:
        shard.crash_at = "put"
        await shard.send("p", some(10))
        while not shard.current.failure:
            await asyncio.sleep(0.1)
        [(key, raw)] = shard.objects.objects.items()
        rows, note, sink = pq.read_table(io.BytesIO(raw)), read_note(raw), io.BytesIO()
        ranges = [each._replace(next_offset=each.next_offset + 7) for each in note.ranges]
        with LakeFileWriter(sink, hour=note.hour, plan=note.plan, number=note.number, ranges=ranges) as writer:
            writer.write(rows)
            writer.finish()
        shard.objects.objects[key] = sink.getvalue()
        shard.restart_failed()
        await shard.settle()
        shard.check()
        assert shard.current.observe().counters["names_taken"] == 1

    in_shard(test)


def test_offsets_that_a_lost_log_left_out_are_no_records_behind() -> None:
    async def test(shard: LakeShard) -> None:
        await shard.send("p", some(10))
        await shard.settle()
        shard.objects.is_away = True
        await shard.send("p", some(10, prefix="f"))
        await asyncio.sleep(5)
        shard.log.flush_all()
        for number in range(3):
            await shard.send("p", some(10, prefix=f"g{number}-"))
            await asyncio.sleep(5)
        assert 2 <= shard.current.observe().lag_records <= 10
        shard.objects.is_away = False
        await shard.settle()
        shard.check()
        assert shard.current.observe().lag_records == 0

    in_shard(test)


def test_while_the_object_store_is_away_one_part_waits_and_ingest_goes_on() -> None:
    async def test(shard: LakeShard) -> None:
        shard.objects.is_away = True
        for number in range(200):
            await shard.send("p", some(20, prefix=f"{number}-"), text=f'{{"pad":"{"x" * 200}"}}')
            await asyncio.sleep(1)
        view = shard.current.observe()
        assert "object store" in view.trouble
        assert view.resident_bytes < 100_000
        assert view.lag_records > 100
        assert len(shard.store.rows) > 3900
        shard.objects.is_away = False
        await shard.settle()
        shard.check()
        assert shard.current.observe().trouble == ""

    in_shard(test)


def test_an_object_store_that_is_away_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)

    async def test(shard: LakeShard) -> None:
        shard.objects.is_away = True
        await shard.send("p", some(10, hours=2))
        await asyncio.sleep(300)
        shard.objects.is_away = False
        await shard.settle()

    in_shard(test)
    told = [(vars(r)["action"], vars(r)["service"]) for r in caplog.records if "service" in vars(r)]
    assert told == [("trouble", "object store"), ("trouble_over", "object store")]


def test_the_log_does_not_wait_for_the_lake_for_ever() -> None:
    """Trimmed beyond the lake's checkpoint: the event store has what is missing."""

    async def test(shard: LakeShard) -> None:
        shard.objects.is_away = True
        for number in range(20):
            await shard.send(f"p{number % 5}", some(20, prefix=f"{number}-", hours=2))
            await asyncio.sleep(2)
        assert not any(shard.log._partitions[p].records for p in shard.log._partitions)
        shard.objects.is_away = False
        await shard.settle()
        shard.check()
        assert shard.current.observe().counters["events_read_back"] > 0

    in_shard(test, keeps_log=False)


def test_the_log_is_kept_for_the_lake() -> None:
    async def test(shard: LakeShard) -> None:
        shard.objects.is_away = True
        for number in range(20):
            await shard.send(f"p{number % 5}", some(20, prefix=f"{number}-", hours=2))
            await asyncio.sleep(2)
        shard.objects.is_away = False
        await shard.settle()
        await asyncio.sleep(3)
        shard.check()
        assert "events_read_back" not in shard.current.observe().counters
        assert not any(shard.log._partitions[p].records for p in shard.log._partitions)

    in_shard(test)


@pytest.mark.parametrize("has_head", [True, False])
def test_records_that_cannot_be_read_come_from_the_event_store(has_head: bool) -> None:
    """They were damaged after they were stored: the lake has their events all the same."""

    async def test(shard: LakeShard) -> None:
        shard.objects.is_away = True
        for number in range(6):
            await shard.send(f"p{number % 3}", some(20, prefix=f"{number}-", hours=2))
            await asyncio.sleep(1)
        await shard.current.close()
        for held in shard.log._partitions.values():
            for offset, raw in held.records.items():
                if offset != 1:
                    held.records[offset] = raw[:-20] + bytes(20) if has_head else bytes(len(raw))
        shard.objects.is_away = False
        shard.start_exporter()
        await shard.settle()
        shard.check()
        assert shard.current.observe().counters["events_read_back"] > 0
        assert shard.current.observe().trouble == ""

    in_shard(test)


def test_a_stale_exporter_commits_nothing() -> None:
    async def test(shard: LakeShard) -> None:
        zombie = shard.current
        await shard.send("p", some(10))
        await asyncio.sleep(1)
        shard.start_exporter()
        await shard.settle()
        await asyncio.sleep(20)
        shard.check()
        assert zombie.observe().counters.get("plans_committed", 0) == 0

    in_shard(test)


def test_a_drain_finishes_the_plan_and_begins_no_other() -> None:
    async def test(shard: LakeShard) -> None:
        shard.objects.is_away = True
        await shard.send("p", some(10))
        while not shard.current.observe().open_plan:
            await asyncio.sleep(0.1)
        assert not await shard.current.drain(deadline_s=3)
        shard.objects.is_away = False
        assert await shard.current.drain(deadline_s=20)
        assert len(shard.rows()) == 10
        await shard.send("p", some(10, prefix="f"))
        await asyncio.sleep(20)
        assert len(shard.rows()) == 10

    in_shard(test)


def test_notes_name_the_partitions_of_their_events_only() -> None:
    async def test(shard: LakeShard) -> None:
        for project in ("a", "b", "c", "d", "e", "f"):
            await shard.send(project, [(project, ord(project) % 3 * HOUR_S)])
        await shard.settle()
        shard.check()
        for raw in shard.objects.objects.values():
            note = read_note(raw)
            assert len(note.ranges) <= note.rows

    in_shard(test)


@pytest.mark.parametrize("seed", seeds(12, 60))
def test_whatever_happens_the_lake_is_what_was_stored(seed: int) -> None:
    rng = random.Random(seed)

    async def test(shard: LakeShard) -> None:
        for step in range(60):
            await act(shard, rng, step)
            shard.restart_failed()
            await asyncio.sleep(rng.choice([0, 0.05, 0.5, 3]))
        shard.objects.is_away = False
        shard.log.available = shard.manifest.available = True
        shard.crash_at = None
        await shard.settle()
        shard.check()

    in_shard(test, chance=rng, keeps_log=seed % 3 > 0)


async def act(shard: LakeShard, rng: random.Random, step: int) -> None:
    action = rng.random()
    if action < 0.6:
        ids = [(f"{rng.randrange(200)}", rng.choice([0, 0, HOUR_S, 5 * HOUR_S])) for _ in range(rng.randrange(1, 30))]
        kind = rng.choice(["t", "u", FOLDED_TYPE])
        text = rng.choice(['{"a":1}', POISON, f'{{"pad":"{"x" * rng.randrange(1000)}"}}'])
        await shard.send(f"p{rng.randrange(6)}", ids, kind=kind, text=text)
    elif action < 0.7:
        shard.crash_at = rng.choice(CRASH_POINTS)
    elif action < 0.75:
        if rng.random() < 0.5:
            await shard.current.close()
        shard.start_exporter()
    elif action < 0.8:
        shard.objects.is_away = not shard.objects.is_away
    elif action < 0.85:
        shard.objects.lose_next_answers(rng.randrange(3))
    elif action < 0.95:
        shard.manifest.fail_next(committed=rng.random() < 0.5)
    elif action < 0.97:
        shard.manifest.available = not shard.manifest.available
    else:
        shard.log.available = not shard.log.available


async def test_the_lowest_sink_holds_the_log() -> None:
    async def first(_: Sequence[int]) -> dict[int, int]:
        return {1: 5, 2: 9}

    async def second(_: Sequence[int]) -> dict[int, int]:
        return {1: 7}

    assert await all_sinks(lake_progress(first), lake_progress(second))([1, 2]) == {1: 5, 2: 0}
    assert await all_sinks()([1, 2]) == {}
