"""The life of the lake's files, from export to deletion, played at random: keepers killed at any moment, days that
pass, late imports, files that cannot be read. What the manifest names is there, each event once; what is over goes."""

import asyncio
import random
from collections import Counter
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Literal

import pytest

from analytics_actors.lake.keeper import SET_ASIDE_S, LakeKeeper, Retention
from config.settings import LakeSettings, RetentionSettings, Settings
from storage.errors import Missing, Unavailable
from storage.lake_manifest import LakeFile
from storage.memory_objects import MemoryObjects
from storage.object_store import checked_key
from storage.retention import ProjectLimits
from tests.seeds import seeds
from tests.unit import virtual_time
from tests.unit.aggregation import Slow, compute_here
from tests.unit.lake_shard import HOUR_S
from tests.unit.test_retention import DAY_S, DatedShard, Kept

SETTINGS = Settings(
    lake=LakeSettings(
        compact_quiet_s=20,
        compact_max_parts=6,
        keeper_interval_s=10,
        retired_grace_s=100,
        orphan_grace_s=300,
        orphan_interval_s=50,
    ),
    retention=RetentionSettings(raw_days=7, raw_max_days=30, lake_hot_days=10, lake_cold_days=20),
)
LAKE_DAYS = {"p0": 30, "p1": 15, "p2": 30}
Fault = Literal["damaged", "missing", "away"]


class FaultyObjects(MemoryObjects):
    """Some objects cannot be read as they are, and none may go that a reader may still have the name of."""

    def __init__(self, shard: DatedShard) -> None:
        super().__init__(clock_s=shard.clock_s)
        self.shard = shard
        self.faults: dict[str, Fault] = {}

    async def get(self, key: str) -> bytes:
        match self.faults.get(key):
            case "missing":
                raise Missing(key)
            case "away":
                raise Unavailable(f"{key} cannot be read")
            case "damaged":
                return b"x" + (await super().get(key))[1:]
        return await super().get(key)

    async def copy(self, source: str, target: str, *, storage_class: str = "") -> None:
        fault = self.faults.get(source)
        if fault != "damaged":
            await self.get(source)
        else:
            self.faults[target] = fault
        self._set(checked_key(target), self.objects[source])

    async def delete(self, keys: Sequence[str]) -> None:
        before = self.shard.now() - timedelta(seconds=SETTINGS.lake.retired_grace_s)
        needed = {
            kept.file.key
            for kept in self.shard.manifest.files.values()
            if kept.retired_at is None or kept.retired_at > before
        }
        assert not needed & set(keys), "a file that readers need is deleted"
        await super().delete(keys)
        for key in keys:
            self.faults.pop(key, None)


class Life:
    """One lake, and what must be in it."""

    def __init__(self, chance: random.Random, folder: Path) -> None:
        self.chance = chance
        self.shard = DatedShard(chance=chance)
        self.objects = self.shard.objects = FaultyObjects(self.shard)
        self.kept = Kept(self.shard, folder)
        self.sent: dict[str, tuple[str, datetime]] = {}
        self.keeper = self.new_keeper()

    def new_keeper(self) -> LakeKeeper:
        return LakeKeeper(
            manifest=Slow(self.shard.manifest, self.chance),
            listing=Slow(self.kept.lake.listing, self.chance),
            objects=Slow(self.objects, self.chance),
            settings=SETTINGS.lake,
            folder=self.kept.lake.folder,
            retention=Retention(Slow(self.kept.store, self.chance), SETTINGS),
            clock_s=self.shard.clock_s,
            compute=compute_here,
        )

    async def restart(self) -> None:
        """Killed wherever it is."""
        await self.keeper.close()
        self.keeper = self.new_keeper()
        self.keeper.start()

    async def export(self) -> None:
        for _ in range(self.chance.randint(1, 4)):
            project = self.chance.choice(list(LAKE_DAYS))
            ages_s = [self.chance.choice([0, HOUR_S, 3 * DAY_S, 12 * DAY_S]) for _ in range(self.chance.randint(1, 5))]
            rows = [(f"e{len(self.sent) + number}", age_s) for number, age_s in enumerate(ages_s)]
            self.sent |= {event_id: (project, self.shard.now()) for event_id, _ in rows}
            await self.shard.send(project, rows)
            await self.shard.settle()

    def live(self) -> list[LakeFile]:
        return [kept.file for kept in self.shard.manifest.live()]

    def break_one(self) -> None:
        if files := self.live():
            faults: list[Fault] = ["damaged", "missing", "away"]
            self.objects.faults[self.chance.choice(files).key] = self.chance.choice(faults)

    async def play(self) -> None:
        match self.chance.randrange(9):
            case 0 | 1 | 2 | 3:
                await self.export()
            case 4 | 5:
                await self.restart()
            case 6:
                self.break_one()
            case 7:
                self.shard.manifest.fail_next(committed=self.chance.random() < 0.5)
            case 8:
                await self.kept.pass_days(self.chance.choice([1, 4]))
        await asyncio.sleep(self.chance.choice([0, 0.5, 5, 60]))

    def check(self) -> None:
        assert self.keeper.failure is None
        found = Counter(row["event_id"] for row in self.shard.rows())
        assert max(found.values(), default=1) == 1
        assert found.keys() <= self.sent.keys()
        needed = {event_id for event_id, (project, at) in self.sent.items() if self.is_needed(project, at)}
        assert needed <= found.keys()

    def is_needed(self, project: str, at: datetime) -> bool:
        return self.shard.now() - at < timedelta(days=LAKE_DAYS[project])

    async def is_quiet(self) -> None:
        """No hour without a broken file has more than one small file, and nothing is there but what is live."""
        async with asyncio.timeout(4 * SET_ASIDE_S):
            while True:
                files = self.live()
                broken = {file.hour for file in files if file.key in self.objects.faults}
                hot = Counter(file.hour for file in files if file.tier == "hot" and file.hour not in broken)
                if max(hot.values(), default=1) == 1 and set(self.objects.objects) == {file.key for file in files}:
                    return
                await asyncio.sleep(10)

    async def run(self) -> None:
        await self.kept.store.set_limits("p1", ProjectLimits(lake_days=LAKE_DAYS["p1"]))
        await self.shard.start_batcher()
        self.shard.start_exporter()
        self.keeper.start()
        try:
            for _ in range(20):
                await self.play()
                self.check()
            # What writers ask for each second takes its time.
            await self.shard.close()
            await self.is_quiet()
            self.check()
            self.objects.faults.clear()
            await asyncio.sleep(2 * SET_ASIDE_S)
            await self.is_quiet()
            self.check()
            for _ in range(3):
                await self.kept.pass_days(20)
                await asyncio.sleep(2 * SET_ASIDE_S)
                self.check()
            assert (self.live(), self.shard.manifest.files, self.objects.objects) == ([], {}, {})
            assert not [plan for plan in self.shard.manifest.plans.values() if plan.state == "open"]
            assert self.keeper.observe().trouble == ""
        finally:
            await self.keeper.close()
            await self.shard.close()


@pytest.mark.parametrize("seed", seeds(2, 60))
def test_a_files_life(seed: int, tmp_path: Path) -> None:
    async def main() -> None:
        await Life(random.Random(seed), tmp_path / "keeper").run()

    virtual_time.run(main())
