"""The lake keeper over stores in memory, in virtual time: whatever happens between, readers find what was stored."""

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from analytics_actors.lake.compaction import choose
from analytics_actors.lake.keeper import SET_ASIDE_S, LakeKeeper
from analytics_actors.lake.objects import Name, name_of
from config.settings import LakeSettings
from storage.errors import Misconfigured
from storage.lake_file import cold_key, key_of
from storage.lake_manifest import FileEntry
from storage.memory_lake_listing import MemoryLakeListing
from storage.memory_objects import MemoryObjects
from tests.seeds import seeds
from tests.unit import virtual_time
from tests.unit.aggregation import Slow, compute_here
from tests.unit.lake_shard import HOUR_S, Crash, LakeShard

CRASH_POINTS = ("planned", "merged", "put", "swapped")
KEEPER = LakeSettings(
    compact_quiet_s=20,
    compact_max_parts=6,
    keeper_interval_s=2,
    retired_grace_s=100,
    orphan_grace_s=300,
    orphan_interval_s=50,
)


class KeptLake:
    """A shard whose lake has keepers, several at once if a test says so."""

    def __init__(self, shard: LakeShard, folder: Path) -> None:
        self.shard = shard
        self.folder = folder
        self.listing = MemoryLakeListing(shard.manifest)
        self.keepers: list[LakeKeeper] = []
        self.crash_at: str | None = None

    def start_keeper(self, settings: LakeSettings = KEEPER) -> LakeKeeper:
        keeper = LakeKeeper(
            manifest=Slow(self.shard.manifest, self.shard.chance),
            listing=Slow(self.listing, self.shard.chance),
            objects=Slow(self.shard.objects, self.shard.chance),
            settings=settings,
            folder=self.folder,
            clock_s=self.shard.clock_s,
            compute=compute_here,
            reached=self._reached,
        )
        self.keepers.append(keeper)
        keeper.start()
        return keeper

    def _reached(self, point: str) -> None:
        if point == self.crash_at:
            self.crash_at = None
            raise Crash(point)

    @property
    def counters(self) -> Counter[str]:
        """Of all keepers together."""
        totals: Counter[str] = Counter()
        for keeper in self.keepers:
            totals.update({name: int(value) for name, value in keeper.observe().counters.items()})
        return totals

    async def fill(self, exports: int, *, hours: int = 2, events: int = 6) -> None:
        """As many exports, each with a file for each of the hours."""
        for number in range(exports):
            rows = [(f"{number}-{n}-{random.random()}", n % hours * HOUR_S) for n in range(events)]
            await self.shard.send(f"p{number % 5}", rows)
            await self.shard.settle()

    def small_files(self, settings: LakeSettings = KEEPER) -> Counter[datetime]:
        live = self.shard.manifest.live()
        return Counter(kept.file.hour for kept in live if kept.file.bytes < settings.compact_below_bytes)

    async def is_compact(self, settings: LakeSettings = KEEPER) -> None:
        """Wait until no hour has more than one file under the target."""
        async with asyncio.timeout(3000):
            while any(count > 1 for count in self.small_files(settings).values()):
                self.restart_failed(settings)
                await asyncio.sleep(1)

    def restart_failed(self, settings: LakeSettings = KEEPER) -> None:
        if self.keepers[-1].failure is not None:
            self.start_keeper(settings)

    def check(self) -> None:
        self.shard.check()
        assert not [each for each in self.shard.manifest.plans.values() if each.state == "open"]
        assert not list(self.folder.glob("*")), "something is left on the disk"


def in_lake(test: Callable[[KeptLake], Awaitable[None]], folder: Path, **options: Any) -> None:
    async def main() -> None:
        shard = LakeShard(**options)
        lake = KeptLake(shard, folder)
        await shard.start_batcher()
        shard.start_exporter()
        try:
            await test(lake)
        finally:
            for keeper in lake.keepers:
                await keeper.close()
            await shard.close()

    virtual_time.run(main())


def test_a_quiet_hour_becomes_one_file_and_the_old_ones_go_after_their_grace(tmp_path: Path) -> None:
    async def test(lake: KeptLake) -> None:
        await lake.fill(5, hours=3)
        before = set(lake.shard.objects.objects)
        rows = lake.shard.rows()
        lake.start_keeper()
        await lake.is_compact()
        lake.check()
        live = [kept.file.key for kept in lake.shard.manifest.live()]
        assert [key.rsplit("/", 1)[1][:8] for key in live] == ["compact-"] * 3
        assert sorted(map(str, lake.shard.rows())) == sorted(map(str, rows))
        assert before < set(lake.shard.objects.objects), "readers may still hold their names"
        await asyncio.sleep(KEEPER.retired_grace_s + 10)
        assert set(lake.shard.objects.objects) == set(live)
        assert len(lake.shard.manifest.files) == 3
        view = lake.keepers[0].observe()
        assert (view.hours_to_compact, view.hours_set_aside, view.open_plan, view.trouble) == (0, 0, 0, "")
        assert view.counters["files_merged"] == view.counters["files_removed"] == len(before)
        assert view.last_merge_ms > 0

    in_lake(test, tmp_path / "keeper")


def test_a_busy_hour_is_left_until_it_has_many_files(tmp_path: Path) -> None:
    async def test(lake: KeptLake) -> None:
        settings = LakeSettings(compact_quiet_s=100_000, compact_max_parts=6, keeper_interval_s=2)
        lake.start_keeper(settings)
        await lake.fill(6, hours=1)
        await asyncio.sleep(20)
        assert "merges" not in lake.counters
        await lake.fill(1, hours=1)
        await asyncio.sleep(20)
        assert sum(lake.small_files().values()) == 1
        await lake.fill(30, hours=1)
        await asyncio.sleep(20)
        assert sum(lake.small_files().values()) <= 6
        lake.check()

    in_lake(test, tmp_path / "keeper")


def test_files_get_no_larger_than_they_may(tmp_path: Path) -> None:
    async def test(lake: KeptLake) -> None:
        settings = LakeSettings(
            compact_quiet_s=1, compact_below_bytes=30_000, compact_max_bytes=90_000, keeper_interval_s=1
        )
        await lake.fill(20, hours=1, events=300)
        lake.start_keeper(settings)
        await asyncio.sleep(10)
        await lake.is_compact(settings)
        lake.check()
        sizes = [kept.file.bytes for kept in lake.shard.manifest.live()]
        assert len(sizes) >= 3 and max(sizes) < 90_000

    in_lake(test, tmp_path / "keeper")


@pytest.mark.parametrize("point", CRASH_POINTS)
def test_a_crash_at_a_named_point(point: str, tmp_path: Path) -> None:
    async def test(lake: KeptLake) -> None:
        await lake.fill(4, hours=1)
        await asyncio.sleep(30)
        lake.crash_at = point
        dead = lake.start_keeper()
        while not dead.failure:
            await asyncio.sleep(0.1)
        lake.shard.check()
        await lake.is_compact() if point == "swapped" else lake.start_keeper()
        await lake.is_compact()
        lake.check()
        compacted = [key for key in lake.shard.objects.objects if "/compact-" in key]
        assert len(compacted) == 1, "the same name was used again"

    in_lake(test, tmp_path / "keeper")


def test_what_another_release_has_put_is_taken(tmp_path: Path) -> None:
    async def test(lake: KeptLake) -> None:
        await lake.fill(4, hours=1)
        await asyncio.sleep(30)
        lake.crash_at = "put"
        dead = lake.start_keeper()
        while not dead.failure:
            await asyncio.sleep(0.1)
        [key] = [key for key in lake.shard.objects.objects if "/compact-" in key]
        raw = lake.shard.objects.objects[key]
        lake.start_keeper(LakeSettings(compact_quiet_s=20, keeper_interval_s=2, compression="zstd"))
        await lake.is_compact()
        lake.check()
        assert lake.shard.objects.objects[key] == raw

    in_lake(test, tmp_path / "keeper")


def test_a_name_that_is_taken_gets_another_plan(tmp_path: Path) -> None:
    async def test(lake: KeptLake) -> None:
        await lake.fill(4, hours=1)
        [hour] = {kept.file.key.rsplit("/", 1)[0] for kept in lake.shard.manifest.live()}
        taken = max(lake.shard.manifest.plans) + 1
        lake.shard.objects.objects[f"{hour}/compact-{taken:012d}-00000.parquet"] = b"nothing of ours"
        keeper = lake.start_keeper()
        await asyncio.sleep(60)
        assert "cannot be merged" in keeper.observe().trouble
        await lake.is_compact()
        lake.check()
        await asyncio.sleep(20)
        assert keeper.observe().trouble == ""

    in_lake(test, tmp_path / "keeper")


def flipped(raw: bytes) -> bytes:
    """Other properties in the place of some: a file that reads as well as it did, of the same events."""
    assert b"{}" in raw
    return raw.replace(b"{}", b"[]")


@pytest.mark.parametrize("damage", [None, lambda _: b"nothing of ours", flipped])
def test_an_hour_that_cannot_be_merged_does_not_keep_the_others(
    damage: Callable[[bytes], bytes] | None, tmp_path: Path
) -> None:
    async def test(lake: KeptLake) -> None:
        await lake.fill(5, hours=1)
        await lake.shard.send("p", [("other", 2 * HOUR_S)])
        await lake.shard.settle()
        await lake.shard.send("p", [("another", 2 * HOUR_S)])
        await lake.shard.settle()
        broken = min(lake.shard.manifest.live(), key=lambda kept: kept.entry.file_id)
        raw = lake.shard.objects.objects.pop(broken.file.key)
        if damage is not None:
            lake.shard.objects.objects[broken.file.key] = damage(raw)
        keeper = lake.start_keeper()
        await asyncio.sleep(100)
        assert lake.small_files() == {broken.file.hour: 5, broken.file.hour - timedelta(hours=2): 1}
        view = keeper.observe()
        assert view.hours_set_aside == 1 and f"{broken.file.hour:%Y-%m-%dT%H}Z cannot be merged" in view.trouble
        assert view.counters["merges_refused"] == 1, "it does not try again and again"
        lake.shard.objects.objects[broken.file.key] = raw
        await lake.is_compact()
        lake.check()

    in_lake(test, tmp_path / "keeper")


def test_the_object_store_is_waited_for(tmp_path: Path) -> None:
    async def test(lake: KeptLake) -> None:
        await lake.fill(4)
        lake.shard.objects.is_away = True
        keeper = lake.start_keeper()
        await asyncio.sleep(2000)
        view = keeper.observe()
        assert "object store" in view.trouble and view.counters["retries"] < 2000
        assert view.open_plan
        lake.shard.objects.is_away = False
        lake.shard.objects.lose_next_answers(1)
        await lake.is_compact()
        await asyncio.sleep(1000)
        lake.check()
        assert keeper.observe().trouble == ""

    in_lake(test, tmp_path / "keeper")


def test_the_other_hours_do_not_wait_for_an_object_that_the_store_does_not_hand_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test(lake: KeptLake) -> None:
        await lake.fill(4)
        refused = min((kept.file for kept in lake.shard.manifest.live()), key=lambda file: file.hour)
        get = MemoryObjects.get

        async def get_others(objects: MemoryObjects, key: str) -> bytes:
            if key == refused.key:
                raise Misconfigured("the object is in an archive")
            return await get(objects, key)

        with monkeypatch.context() as patched:
            patched.setattr(MemoryObjects, "get", get_others)
            keeper = lake.start_keeper()
            await asyncio.sleep(200)
            assert sorted(lake.small_files().values()) == [1, 4]
            view = keeper.observe()
            assert f"{refused.key} cannot be read: the object is in an archive" in view.trouble
            assert "object store" not in view.trouble
        await asyncio.sleep(SET_ASIDE_S)
        await lake.is_compact()
        assert keeper.observe().trouble == ""
        lake.check()

    in_lake(test, tmp_path / "keeper")


def test_merges_do_not_wait_for_objects_that_cannot_be_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(objects: MemoryObjects, keys: Sequence[str]) -> None:
        raise Misconfigured("these credentials may not do it")

    async def test(lake: KeptLake) -> None:
        await lake.fill(5)
        orphan = key_of(int(lake.shard.clock_s()) // HOUR_S * HOUR_S, 1, 99)
        await lake.shard.objects.put_if_absent(orphan, b"")
        with monkeypatch.context() as refusing:
            refusing.setattr(MemoryObjects, "delete", refuse)
            keeper = lake.start_keeper()
            await lake.is_compact()
            await asyncio.sleep(KEEPER.orphan_grace_s + KEEPER.orphan_interval_s)
            view = keeper.observe()
            assert "retired files: these credentials" in view.trouble
            assert "objects: these credentials" in view.trouble
            await lake.fill(5)
            await lake.is_compact()
        await asyncio.sleep(SET_ASIDE_S + KEEPER.orphan_interval_s)
        assert keeper.observe().trouble == ""
        assert set(lake.shard.objects.objects) == {kept.entry.key for kept in lake.shard.manifest.live()}
        lake.check()

    in_lake(test, tmp_path)


def test_an_idle_keeper_asks_seldom(tmp_path: Path) -> None:
    async def test(lake: KeptLake) -> None:
        await lake.fill(1)
        asked = 0
        hours_to_compact = lake.listing.hours_to_compact

        async def counted(**options: Any) -> Any:
            nonlocal asked
            asked += 1
            return await hours_to_compact(**options)

        lake.listing.hours_to_compact = counted  # type: ignore[method-assign]
        lake.start_keeper(LakeSettings())
        await asyncio.sleep(3600)
        assert 50 <= asked <= 70

    in_lake(test, tmp_path / "keeper")


@pytest.mark.parametrize("number", [0, 99_999, 100_000])
def test_a_files_name_is_known_whatever_its_number(number: int) -> None:
    key = key_of(1_700_000_000 // HOUR_S * HOUR_S, 7, number)
    assert name_of(key) == Name("part", 7, is_cold=False)
    assert name_of(cold_key(key)) == Name("part", 7, is_cold=True)


def test_orphans_are_removed_and_nothing_else_is(tmp_path: Path) -> None:
    async def test(lake: KeptLake) -> None:
        objects = lake.shard.objects
        await lake.fill(2, hours=1)
        [hour] = {kept.file.key.rsplit("/", 1)[0] for kept in lake.shard.manifest.live()}
        live = {kept.file.key for kept in lake.shard.manifest.live()}
        plan_id = await lake.shard.manifest.plan_swap("compact", list(lake.shard.manifest.files))
        assert plan_id is not None
        begun = f"{hour}/compact-{plan_id:012d}-00000.parquet"
        earlier, later = f"{hour}/part-000000000001-00099.parquet", f"{hour}/part-000000999999-00000.parquet"
        for key in (begun, later, f"{hour}/part-1-1.parquet", f"{hour}/notes.txt", "backup/part.parquet"):
            await objects.put_if_absent(key, b"x")
        # There before the plan whose name it has: of a lake that was here before.
        await objects.put_if_absent(earlier, b"x")
        objects._modified_s[earlier] -= 10 * KEEPER.orphan_grace_s
        orphan = f"{hour}/part-000000000001-00098.parquet"
        await objects.put_if_absent(orphan, b"x")
        others = set(objects.objects) - {orphan}
        settings = LakeSettings(compact_quiet_s=1e6, orphan_grace_s=300, orphan_interval_s=50, keeper_interval_s=2)
        await asyncio.sleep(200)
        keeper = lake.start_keeper(settings)
        await lake.shard.manifest.cancel_swap(plan_id)
        await asyncio.sleep(60)
        assert orphan in objects.objects, "it may be of a put that is under way"
        await asyncio.sleep(200)
        assert set(objects.objects) == others - {begun}
        assert live <= set(objects.objects)
        view = keeper.observe()
        assert (view.strangers, view.counters["orphans_removed"]) == (2, 2)

    in_lake(test, tmp_path / "keeper")


@pytest.mark.parametrize("seed", seeds(5, 30))
def test_keepers_crash_exporters_crash_and_readers_see_each_event_once(seed: int, tmp_path: Path) -> None:
    """Two keepers at a time, killed at any moment, and services that fail after and before what they do."""
    chance = random.Random(seed)

    async def test(lake: KeptLake) -> None:
        shard = lake.shard
        lake.start_keeper()
        sent = 0
        for _ in range(chance.randint(8, 20)):
            action = chance.random()
            if action < 0.5:
                events = [(f"e{sent + n}", chance.randint(0, 2) * HOUR_S) for n in range(chance.randint(1, 20))]
                sent += len(events)
                await shard.send(f"p{chance.randint(0, 5)}", events)
            elif action < 0.6:
                shard.manifest.fail_next(committed=chance.random() < 0.5)
            elif action < 0.7:
                shard.objects.lose_next_answers(1)
            elif action < 0.8:
                await chance.choice(lake.keepers).close()
                lake.start_keeper()
            elif action < 0.9:
                lake.crash_at = chance.choice(CRASH_POINTS)
            else:
                lake.start_keeper()
            await asyncio.sleep(chance.choice([0, 1, 10, 30]))
            lake.restart_failed()
            found = Counter((row["project_id"], row["event_id"]) for row in shard.rows())
            assert not found or max(found.values()) == 1
        await shard.settle()
        lake.crash_at = None
        lake.restart_failed()
        await lake.is_compact()
        await asyncio.sleep(1500)
        lake.restart_failed()
        lake.shard.check()
        assert len(shard.rows()) == sent
        assert set(shard.objects.objects) == {kept.file.key for kept in shard.manifest.live()}

    in_lake(test, tmp_path / "keeper", chance=chance)


def test_what_was_merged_waits_while_an_hour_is_busy() -> None:
    def entry(number: int, kind: str, size: int = 100) -> FileEntry:
        time = datetime(2026, 1, 1, tzinfo=UTC)
        return FileEntry(number, 1, f"events/x/{kind}-{number}", time, 1, size, "", 0, time, time, "hot", time)

    settings = LakeSettings(compact_max_parts=4, compact_max_bytes=1000)
    parts = [entry(number, "part") for number in range(3)]
    merged = [entry(number, "compact") for number in range(3, 6)]
    assert choose([*merged, *parts], is_quiet=False, settings=settings) == parts
    assert choose([*merged, *parts], is_quiet=True, settings=settings) == [*merged, *parts]
    assert choose([*merged, *parts[:2]], is_quiet=False, settings=settings) == [*merged, *parts[:2]]
    large = [entry(number, "part", 600) for number in range(3)]
    assert choose(large, is_quiet=True, settings=settings) == large[:2]
