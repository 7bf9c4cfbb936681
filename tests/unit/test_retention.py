"""Retention over stores in memory, in virtual time: what is due goes, and what is needed stays."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from analytics_actors.lake.keeper import LakeKeeper, Retention
from analytics_actors.retention.policy import Policy, RawLimit, least_raw_days, policy_of
from analytics_actors.retention.report import Report
from analytics_actors.retention.run import RetentionRun
from config.settings import LakeSettings, LogSettings, RetentionSettings, Settings, WindowSettings
from storage.memory_retention import MemoryRetention
from storage.retention import Group, ProjectLimits
from tests.unit import virtual_time
from tests.unit.aggregation import compute_here
from tests.unit.lake_shard import LakeShard
from tests.unit.test_lake_keeper import KeptLake

DAY_S = 86400.0
SETTINGS = Settings(
    lake=LakeSettings(
        compact_quiet_s=1e9,
        compact_max_parts=1000,
        keeper_interval_s=200,
        retired_grace_s=3600,
        orphan_grace_s=2e9,
        orphan_interval_s=1e9,
    ),
    retention=RetentionSettings(raw_days=7, raw_max_days=30, lake_hot_days=30, lake_cold_days=100, run_at="03:30"),
)
READY = Settings(
    lake=LakeSettings(
        compact_quiet_s=1, keeper_interval_s=10, retired_grace_s=100, orphan_grace_s=300, orphan_interval_s=100
    ),
    retention=SETTINGS.retention,
)
"""With files that may become cold at once."""


class DatedShard(LakeShard):
    """Its clocks can be put forward."""

    ahead_s = 0.0

    def clock_s(self) -> float:
        return super().clock_s() + self.ahead_s


class Kept:
    """A shard's lake with retention."""

    def __init__(self, shard: DatedShard, folder: Path) -> None:
        self.lake = KeptLake(shard, folder)
        self.shard = shard
        self.store = MemoryRetention(self.shard.manifest, projects={"p0", "p1", "p2"})

    async def pass_days(self, days: float) -> None:
        self.shard.ahead_s += days * DAY_S
        await asyncio.sleep(1)

    async def never_had_a_lake(self) -> None:
        await self.shard.current.close()
        self.shard.manifest.checkpoints.clear()

    async def end_writers(self) -> None:
        """What they ask for each second takes its time in days."""
        await self.shard.close()

    def keeper(self, settings: Settings = SETTINGS, **changed: Any) -> LakeKeeper:
        keeper = LakeKeeper(
            manifest=self.shard.manifest,
            listing=self.lake.listing,
            objects=self.shard.objects,
            settings=settings.lake,
            folder=self.lake.folder,
            retention=Retention(self.store, settings),
            clock_s=self.shard.clock_s,
            compute=compute_here,
            reached=self.lake._reached,
            **changed,
        )
        self.lake.keepers.append(keeper)
        return keeper

    async def run(self, settings: Settings = SETTINGS, *, dry_run: bool = False) -> Report:
        """One whole run, as by command."""
        keeper = self.keeper(settings)
        made = RetentionRun(
            self.store,
            self.lake.listing,
            settings,
            ageing=keeper._ageing if settings.lake.enabled else None,
            clock=self.shard.now,
        )
        return await made.all(dry_run=dry_run)

    async def send(self, project: str, *ids: str, age_s: float = 0) -> None:
        await self.shard.send(project, [(each, age_s) for each in ids])
        await self.shard.settle()

    @property
    def stored(self) -> list[str]:
        return sorted(row["event_id"] for row in self.shard.store.rows)

    @property
    def in_lake(self) -> list[str]:
        return sorted(row["event_id"] for row in self.shard.rows())

    def tiers(self) -> Counter[str]:
        return Counter(kept.file.tier for kept in self.shard.manifest.live())


def in_lake(test: Callable[[Kept], Awaitable[None]], folder: Path) -> None:
    async def main() -> None:
        shard = DatedShard()
        kept = Kept(shard, folder)
        await shard.start_batcher()
        shard.start_exporter()
        try:
            await test(kept)
        finally:
            for keeper in kept.lake.keepers:
                await keeper.close()
            await shard.close()

    virtual_time.run(main())


def kinds(report: Report) -> dict[str, tuple[int, int]]:
    """Files and rows by kind."""
    return {each.kind: (each.files, each.rows) for each in report.totals()}


def test_raw_events_go_seven_days_after_their_export(tmp_path: Path) -> None:
    async def test(kept: Kept) -> None:
        await kept.send("p0", "a", "b")
        await kept.send("p1", "c")
        await kept.pass_days(2)
        await kept.send("p0", "d")
        await kept.pass_days(4.9)
        assert kinds(await kept.run()) == {}
        await kept.pass_days(1.2)
        dry = await kept.run(dry_run=True)
        assert kinds(dry) == {"partitions": (0, 3)} and kept.stored == ["a", "b", "c", "d"]
        done = await kept.run()
        assert done.removals == dry.removals and kept.stored == ["d"]
        assert kept.in_lake == ["a", "b", "c", "d"]
        assert sum(kept.store.expired.values()) == 3
        [run, *_] = await kept.store.runs(limit=1)
        assert list(run.removals) == done.removals and run.finished_at is not None
        assert kinds(await kept.run()) == {}, "it is done"

    in_lake(test, tmp_path / "keeper")


def test_what_is_not_in_the_lake_stays_however_old_it_is(tmp_path: Path) -> None:
    async def test(kept: Kept) -> None:
        await kept.send("p0", "a")
        kept.shard.objects.is_away = True
        await kept.shard.send("p0", [("late", 0)])
        await asyncio.sleep(2)
        await kept.pass_days(50)
        report = await kept.run()
        assert kept.stored == ["a", "late"] and kinds(report).get("partitions") is None
        assert len(report.kept) == 1 and "the lake has not all that was stored" in report.kept[0]
        kept.shard.objects.is_away = False
        await kept.shard.settle()
        # Exported a moment ago, and stored more than thirty days ago.
        assert kinds(await kept.run())["partitions"] == (0, 2) and kept.stored == []

    in_lake(test, tmp_path / "keeper")


def test_an_export_that_came_late_is_waited_for_too(tmp_path: Path) -> None:
    async def test(kept: Kept) -> None:
        kept.shard.objects.is_away = True
        await kept.shard.send("p0", [("a", 0)])
        await asyncio.sleep(2)
        await kept.pass_days(10)
        kept.shard.objects.is_away = False
        await kept.shard.settle()
        await kept.pass_days(1)
        report = await kept.run()
        assert kept.stored == ["a"] and len(report.kept) == 1
        assert "1 rows of p0 are not in the lake, or not for long enough" in report.kept[0]
        await kept.pass_days(6.5)
        await kept.run()
        assert kept.stored == []

    in_lake(test, tmp_path / "keeper")


def test_without_a_lake_thirty_days_after_storing(tmp_path: Path) -> None:
    async def test(kept: Kept) -> None:
        alone = Settings(lake=LakeSettings(enabled=False), retention=SETTINGS.retention)
        await kept.never_had_a_lake()
        await kept.shard.send("p0", [("a", 0)])
        await asyncio.sleep(2)
        await kept.pass_days(29)
        assert kinds(await kept.run(alone)) == {}
        await kept.pass_days(2)
        assert kinds(await kept.run(alone)) == {"partitions": (0, 1)} and kept.stored == []

    in_lake(test, tmp_path / "keeper")


def test_a_lake_that_is_switched_off_still_counts(tmp_path: Path) -> None:
    async def test(kept: Kept) -> None:
        await kept.send("p0", "a")
        await kept.shard.current.close()
        await kept.shard.send("p0", [("b", 0)])
        await asyncio.sleep(2)
        await kept.pass_days(40)
        off = Settings(lake=LakeSettings(enabled=False), retention=SETTINGS.retention)
        report = await kept.run(off)
        assert kept.stored == ["a", "b"] and len(report.kept) == 1
        kept.shard.start_exporter()
        await kept.shard.settle()
        await kept.run(off)
        assert kept.stored == [] and kept.in_lake == ["a", "b"]

    in_lake(test, tmp_path / "keeper")


def test_projects_with_limits_of_their_own(tmp_path: Path) -> None:
    async def test(kept: Kept) -> None:
        await kept.store.set_limits("p1", ProjectLimits(raw_days=4))
        await kept.store.set_limits("p2", ProjectLimits(raw_days=40))
        await kept.send("p0", "a0")
        await kept.send("p1", "a1", "b1")
        await kept.send("p2", "a2")
        await kept.pass_days(5.1)
        dry = await kept.run(dry_run=True)
        assert kinds(dry) == {"events": (0, 2)}
        assert kinds(await kept.run()) == {"events": (0, 2)} and kept.stored == ["a0", "a2"]
        await kept.pass_days(3)
        assert kinds(await kept.run()) == {"events": (0, 1)} and kept.stored == ["a2"], "its day stays for it"
        assert await kept.store.stored_before("p2") is None and await kept.store.stored_before("p0") is not None
        await kept.pass_days(31)
        assert "partitions" not in kinds(await kept.run())
        await kept.pass_days(3)
        assert kinds(await kept.run())["partitions"] == (0, 1) and kept.stored == []

    in_lake(test, tmp_path / "keeper")


def test_a_day_in_use_is_tried_again(tmp_path: Path) -> None:
    async def test(kept: Kept) -> None:
        await kept.send("p0", "a")
        await kept.pass_days(9)
        kept.store.in_use = 3
        assert kinds(await kept.run()) == {"partitions": (0, 1)}
        await kept.send("p0", "b")
        await kept.pass_days(9)
        kept.store.in_use = 1000
        report = await kept.run()
        assert report.busy and kept.stored == ["b"] and "being read" in report.kept[0]
        assert kept.store.in_use > 900, "not for ever"

    in_lake(test, tmp_path / "keeper")


def test_files_become_cold_and_go(tmp_path: Path) -> None:
    async def test(kept: Kept) -> None:
        await kept.send("p0", "a")
        await kept.pass_days(20)
        await kept.send("p0", "b")
        await kept.pass_days(10.2)
        dry = await kept.run(READY, dry_run=True)
        assert kinds(dry)["moved_files"] == (1, 1) and kept.tiers() == {"hot": 2}
        assert kinds(await kept.run(READY))["moved_files"] == (1, 1)
        assert kept.tiers() == {"hot": 1, "cold": 1} and kept.in_lake == ["a", "b"]
        [cold] = [each.file for each in kept.shard.manifest.live() if each.file.tier == "cold"]
        assert cold.key.startswith("cold/events/year=")
        assert cold.key.removeprefix("cold/") in kept.shard.objects.objects, "readers may still hold its name"
        await kept.pass_days(90)
        await kept.run(READY)
        assert kept.tiers() == {"cold": 2}
        await kept.pass_days(10)
        assert kinds(await kept.run(READY))["expired_files"] == (1, 1) and kept.in_lake == ["b"]
        await kept.pass_days(20)
        await kept.run(READY)
        assert kept.in_lake == []
        kept.keeper(READY).start()
        await asyncio.sleep(300)
        assert kept.shard.objects.objects == {}, "replaced ones and what has expired, after their grace"

    in_lake(test, tmp_path / "keeper")


def test_what_is_imported_is_kept_from_its_import_on(tmp_path: Path) -> None:
    async def test(kept: Kept) -> None:
        await kept.send("p0", "old", age_s=1000 * DAY_S)
        await kept.pass_days(129)
        await kept.run(READY)
        assert kept.tiers() == {"cold": 1} and kept.in_lake == ["old"]
        await kept.pass_days(2)
        await kept.run(READY)
        assert kept.in_lake == []

    in_lake(test, tmp_path / "keeper")


@pytest.mark.parametrize(("raw", "lake"), [(7, 7), (7, 5), (1, 1)])
def test_raw_events_go_also_when_the_lakes_file_went_first(tmp_path: Path, raw: int, lake: int) -> None:
    """Limits that are accepted no more, or the settings' own."""

    async def test(kept: Kept) -> None:
        await kept.store.set_limits("p0", ProjectLimits(raw_days=raw, lake_days=lake))
        # From 12:53 to 00:30: the hour is over long before the day is.
        await kept.pass_days(0.484)
        await kept.send("p0", "a")
        await kept.pass_days(3 / 24)
        for _ in range(max(raw, lake) + 4):
            await kept.pass_days(1)
            report = await kept.run(READY)
        assert (kept.stored, kept.in_lake, report.kept) == ([], [], [])

    in_lake(test, tmp_path / "keeper")


def test_a_fresh_file_of_an_old_hour_is_not_moved_before_it_may_be_merged(tmp_path: Path) -> None:
    async def test(kept: Kept) -> None:
        await kept.send("p0", "old", age_s=1000 * DAY_S)
        await kept.run(Settings(lake=LakeSettings(compact_quiet_s=600), retention=SETTINGS.retention))
        assert kept.tiers() == {"hot": 1}

    in_lake(test, tmp_path / "keeper")


@pytest.mark.parametrize("days", [5, 60], ids=["hot", "cold"])
def test_files_are_rewritten_without_projects_whose_time_is_over(days: int, tmp_path: Path) -> None:
    async def test(kept: Kept) -> None:
        # Three projects in one file of one hour.
        await asyncio.gather(*(kept.shard.send(f"p{n}", [(f"a{n}", 0), (f"b{n}", 0)]) for n in range(3)))
        await kept.shard.settle()
        await kept.store.set_limits("p1", ProjectLimits(lake_days=days))
        await kept.store.set_limits("p2", ProjectLimits(lake_days=0))
        files = len(kept.shard.manifest.live())
        await kept.pass_days(days - 1)
        await kept.run(READY)
        assert len(kept.in_lake) == 6
        tiers = kept.tiers()
        await kept.pass_days(2)
        dry = await kept.run(READY, dry_run=True)
        rows = sum(each.rows for each in dry.removals if each.kind in ("rewritten_files", "expired_files"))
        assert rows == 2 and len(kept.in_lake) == 6
        await kept.run(READY)
        assert kept.in_lake == ["a0", "a2", "b0", "b2"]
        assert kept.tiers().keys() == tiers.keys() and len(kept.shard.manifest.live()) <= files
        for each in kept.shard.manifest.live():
            assert (each.file.tier == "cold") == each.file.key.startswith("cold/")
            assert "p1" not in each.file.projects
        await kept.pass_days(200)
        await kept.run(READY)
        assert kept.in_lake == ["a2", "b2"], "one project keeps its own rows for ever"

    in_lake(test, tmp_path / "keeper")


@pytest.mark.parametrize(
    "point",
    [
        *("day due", "day dropped"),
        *("move planned", "move copied", "move committed", "expire planned", "expire committed"),
        *("planned", "merged", "put", "swapped"),
    ],
)
def test_a_keeper_that_is_killed_within_a_change(point: str, tmp_path: Path) -> None:
    async def test(kept: Kept) -> None:
        await asyncio.gather(*(kept.shard.send(f"p{n}", [(f"a{n}", 0)]) for n in range(3)))
        await kept.shard.settle()
        if point.startswith("move"):
            await kept.pass_days(31)
        else:
            await kept.pass_days(140)
            if not point.startswith("expire"):
                await kept.store.set_limits("p0", ProjectLimits(lake_days=0))
                await kept.store.set_limits("p1", ProjectLimits(lake_days=0))
        wanted = {"move": ["a0", "a1", "a2"], "expi": []}.get(point[:4], ["a0", "a1"])
        kept.lake.crash_at = point
        dead = kept.keeper(READY)
        dead.start()
        while not dead.failure and kept.lake.crash_at:
            await asyncio.sleep(1)
            assert not dead.observe().last_retention_ms, "the point was not reached"
        assert set(wanted) <= set(kept.in_lake)
        assert Counter(kept.in_lake).most_common(1)[0][1] == 1 if kept.in_lake else not wanted
        heir = kept.keeper(READY)
        heir.start()
        # A run that did not come to its end is made again.
        while not heir.observe().last_retention_ms:
            await asyncio.sleep(10)
        await asyncio.sleep(1200)
        assert kept.in_lake == wanted
        assert not [plan for plan in kept.shard.manifest.plans.values() if plan.state == "open"]
        assert {each.file.key for each in kept.shard.manifest.live()} == set(kept.shard.objects.objects)
        assert heir.observe().trouble == "" and not list(kept.lake.folder.glob("*"))

    in_lake(test, tmp_path / "keeper")


def test_the_keeper_runs_it_once_a_day_and_makes_up_for_what_was_missed(tmp_path: Path) -> None:
    async def test(kept: Kept) -> None:
        await kept.send("p0", "a")
        await kept.end_writers()
        keeper = kept.keeper()
        keeper.start()
        await asyncio.sleep(300)
        assert len(await kept.store.runs(limit=99)) == 1, "the first one at once"
        await asyncio.sleep(10 * DAY_S)
        found = await kept.store.runs(limit=99)
        assert len(found) == 11
        assert {(run.started_at.hour, run.started_at.minute // 5) for run in found[:10]} == {(3, 6)}
        assert kept.stored == [] and kept.tiers() == {"hot": 1}
        view = keeper.observe()
        assert (view.counters["retention_runs"], view.counters["days_dropped"]) == (11, 1)
        assert view.counters["events_expired"] == 1 and view.last_retention_ms > 0 and view.trouble == ""
        await keeper.close()
        await kept.pass_days(2.3)
        kept.keeper().start()
        await asyncio.sleep(900)
        assert len(await kept.store.runs(limit=99)) == 12

    in_lake(test, tmp_path / "keeper")


def test_a_service_away_is_a_trouble_and_the_run_comes_later(tmp_path: Path) -> None:
    async def test(kept: Kept) -> None:
        kept.store.available = False
        keeper = kept.keeper()
        keeper.start()
        await asyncio.sleep(3600)
        view = keeper.observe()
        assert "retention: made to be away" in view.trouble and 1 <= view.counters["retention_failures"] <= 8
        kept.store.available = True
        await asyncio.sleep(1300)
        view = keeper.observe()
        assert view.trouble == "" and view.counters["retention_runs"] == 1 and keeper.failure is None

    in_lake(test, tmp_path / "keeper")


def test_it_can_be_switched_off(tmp_path: Path) -> None:
    async def test(kept: Kept) -> None:
        off = Settings(lake=SETTINGS.lake, retention=RetentionSettings(enabled=False))
        kept.keeper(off).start()
        await kept.end_writers()
        await asyncio.sleep(2 * DAY_S)
        assert await kept.store.runs(limit=9) == []

    in_lake(test, tmp_path / "keeper")


def test_without_a_lake_the_keeper_only_does_this(tmp_path: Path) -> None:
    async def test(kept: Kept) -> None:
        alone = Settings(
            lake=LakeSettings(enabled=False, keeper_interval_s=60),
            retention=RetentionSettings(raw_max_days=5),
        )
        await kept.send("p0", "a")
        await kept.never_had_a_lake()
        await kept.end_writers()
        kept.shard.manifest.available = False
        await kept.pass_days(8)
        keeper = kept.keeper(alone)
        keeper.start()
        await asyncio.sleep(600)
        assert kept.stored == [] and keeper.observe().trouble == "" and keeper.failure is None

    in_lake(test, tmp_path / "keeper")


OF_PROJECTS = ("rollups", "counted_days")


def test_records_go_by_their_own_limits(tmp_path: Path) -> None:
    async def test(kept: Kept) -> None:
        now = kept.shard.now()
        days = {"patterns": 365, "dead_letters": 90, "recomputed_days": 90, "runs": 1826, "rollups": 1826}
        days |= {"counted_days": 1826}
        groups = {kind: Group(kind, "p0" if kind in OF_PROJECTS else "") for kind in days}  # type: ignore[arg-type]
        own = Group("rollups", "p1", "events", "hour")
        for kind, limit in days.items():
            kept.store.records[groups[kind]] += [now - timedelta(days=limit + 1)] * 2 + [
                now - timedelta(days=limit - 1)
            ]
        kept.store.records[own] += [now - timedelta(days=11), now - timedelta(days=9)]
        await kept.store.set_limits("p1", ProjectLimits(rollup_days=10))
        dry = await kept.run(dry_run=True)
        assert kinds(dry) == dict.fromkeys(sorted(days), (0, 2)) | {"rollups": (0, 3)}
        assert kinds(await kept.run()) == kinds(dry)
        assert {group.kind for group in await kept.store.groups()} == set(days)
        assert kept.store.records[own] == [now - timedelta(days=9)]
        assert kinds(await kept.run()) == {}

    in_lake(test, tmp_path / "keeper")


NOW = datetime(2026, 11, 21, 3, 30, tzinfo=UTC)


def policy(settings: RetentionSettings | None = None, *, with_lake: bool = True) -> Policy:
    return Policy(settings or RetentionSettings(), with_lake, 3)


def ended(days: float) -> datetime:
    return NOW - timedelta(days=days)


@pytest.mark.parametrize(
    ("limits", "with_lake", "ended_before", "exported_before"),
    [
        (RawLimit(7, 30), True, 6.9, "stays"),
        (RawLimit(7, 30), True, 7.0, 7.0),
        (RawLimit(7, 30), True, 29.9, 7.0),
        (RawLimit(7, 30), True, 30.0, 0.0),
        (RawLimit(7, 0), True, 900.0, 7.0),
        (RawLimit(0, 30), True, 29.0, "stays"),
        (RawLimit(0, 30), True, 30.0, 0.0),
        (RawLimit(0, 0), True, 9000.0, "stays"),
        (RawLimit(1, 30), True, 2.9, "stays"),
        (RawLimit(1, 30), True, 3.0, 1.0),
        (RawLimit(7, 30), False, 29.9, "stays"),
        (RawLimit(7, 30), False, 30.0, None),
        (RawLimit(7, 0), False, 900.0, "stays"),
        (RawLimit(1, 1), False, 2.0, "stays"),
    ],
)
def test_when_a_days_rows_are_due(
    limits: RawLimit, with_lake: bool, ended_before: float, exported_before: float | str | None
) -> None:
    due = policy(with_lake=with_lake).raw_due(limits, ended(ended_before), NOW)
    if exported_before == "stays":
        assert due is None
    else:
        assert due is not None
        wanted = None if exported_before is None else ended(float(exported_before))
        assert due.exported_before == wanted


def test_the_system_keeps_what_it_needs_itself() -> None:
    assert least_raw_days(Settings()) == 3
    assert least_raw_days(Settings(log=LogSettings(dedupe_window_s=10 * DAY_S))) == 11
    assert least_raw_days(Settings(windows=WindowSettings(ttl_s=5 * 86400))) == 7


def test_limits_that_contradict_one_another_are_told() -> None:
    asked: Sequence[tuple[ProjectLimits, bool]] = [
        (ProjectLimits(), True),
        (ProjectLimits(raw_days=700), True),
        (ProjectLimits(raw_days=800), False),
        (ProjectLimits(raw_days=0), False),
        (ProjectLimits(raw_days=0, lake_days=0), True),
        (ProjectLimits(lake_days=6), False),
        (ProjectLimits(raw_days=6, lake_days=6), False),
        (ProjectLimits(raw_days=6, lake_days=7), True),
        (ProjectLimits(raw_days=1, lake_days=3), False),
        (ProjectLimits(raw_days=1, lake_days=4), True),
    ]
    for limits, is_right in asked:
        assert (policy().contradictions("shop", limits) == []) is is_right, limits
    assert policy(with_lake=False).contradictions("shop", ProjectLimits(raw_days=0)) == []


def test_a_cold_limit_of_none_is_for_ever() -> None:
    assert policy_of(Settings(), {}).lake_days == 760
    assert policy(RetentionSettings(lake_cold_days=0)).lake_before(NOW) is None
    assert policy(RetentionSettings(lake_hot_days=0)).hot_before(NOW) is None
    assert policy(RetentionSettings(lake_hot_days=0)).lake_before(NOW) is None
    assert date(2026, 11, 21) - timedelta(days=760) == (policy().lake_before(NOW) or NOW).date()
