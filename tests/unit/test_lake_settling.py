"""Which objects are the lake: of every history that exporters and keepers can leave behind, each event is live once."""

import random
from collections import Counter
from collections.abc import Sequence
from datetime import timedelta
from typing import NamedTuple

import pytest

from analytics_actors.lake.objects import Name, name_of
from analytics_actors.lake.settling import Found, last_plans, next_offsets, settle
from storage.lake_manifest import LakeFile, OffsetRange, joined
from tests.unit.fake_services import NOW

HOURS = [NOW - timedelta(hours=ago) for ago in range(3)]


def found(
    key: str, *ranges: tuple[int, int, int], plan: int = 1, rows: int = 1, hour: int = 0, kind: str = ""
) -> Found:
    file = LakeFile(
        key=key,
        hour=HOURS[hour],
        rows=rows,
        bytes=1,
        checksum="",
        id_digest=0,
        min_timestamp=HOURS[hour],
        max_timestamp=HOURS[hour],
        ranges=[OffsetRange(*each) for each in ranges],
        projects={"p": rows},
    )
    return Found(key, kind or ("compact" if key.startswith("c") else "part"), plan, file, 0.0)


def live(*files: Found) -> list[str]:
    settled = settle(files)
    assert sorted([*settled.live, *settled.superseded], key=id) == sorted(files, key=id)
    return sorted(each.key for each in settled.live)


def test_what_does_not_overlap_is_live() -> None:
    other_hour = found("d", (0, 0, 5), hour=1)
    assert live(found("a", (0, 0, 5)), found("b", (0, 5, 9)), found("e", (1, 0, 5)), other_hour) == ["a", "b", "d", "e"]


def test_a_merged_file_stands_for_its_parts_and_for_what_was_merged_before() -> None:
    parts = [found(f"p{n}", (0, n, n + 1), (1, n, n + 1), plan=n) for n in range(4)]
    first = found("c1", (0, 0, 2), (1, 0, 2), plan=10, rows=2)
    second = found("c2", (0, 0, 3), (1, 0, 3), plan=11, rows=3)
    assert live(*parts, first, second) == ["c2", "p3"]
    assert live(parts[2], parts[3], first) == ["c1", "p2", "p3"]


def test_a_rewritten_file_takes_the_place_of_the_one_before() -> None:
    assert live(found("c1", (0, 0, 9), plan=4, rows=9), found("c2", (0, 0, 9), plan=5, rows=7)) == ["c2"]


def test_a_merge_that_came_too_late_does_not_win_over_what_was_committed() -> None:
    late = found("c14", (0, 5, 12), plan=14, rows=7)
    merged = found("c13", (0, 1, 10), plan=13, rows=9)
    rest = [found(f"p{n}", (0, n, n + 1), plan=n) for n in (10, 11)]
    assert live(late, merged, *rest) == ["c13", "p10", "p11"]
    before = [found(f"p{n}", (0, n, n + 1), plan=n) for n in range(1, 5)]
    assert live(late, *before) == ["c14", "p1", "p2", "p3", "p4"]


def test_of_files_that_cross_those_with_the_most_events_are_live() -> None:
    """Plan 5 was cancelled; in [0, 6) the hour has no event."""
    cancelled, committed = found("p5", (0, 0, 10), plan=5, rows=4), found("p7", (0, 6, 14), plan=7, rows=8)
    assert live(cancelled, committed) == ["p7"]


def test_how_far_and_the_last_plan() -> None:
    files = [
        found("p3", (0, 0, 5), (1, 0, 7), plan=3),
        found("p4", (0, 5, 9), plan=4),
        found("q4", (0, 5, 9), plan=4, hour=1),
        found("c9", (2, 0, 4), plan=9),
    ]
    assert next_offsets(files) == {0: 9, 1: 7, 2: 4}
    assert last_plans(files) == {0: (4, 5), 1: (3, 0)}


def test_names() -> None:
    key = "events/year=2026/month=11/day=21/hour=07/part-000000000012-00003.parquet"
    assert name_of(key) == Name("part", 12, is_cold=False)
    assert name_of("cold/" + key.replace("part", "compact")) == Name("compact", 12, is_cold=True)
    for other in ("", "x/" + key, key + "x", key.replace("part-", "pant-"), key.replace("00003", "3")):
        assert name_of(other) is None


class Event(NamedTuple):
    hour: int
    partition: int
    offset: int


class History:
    """Exports of some partitions at random, cancelled ones, merges, merges that came too late, deleted objects."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.events = [
            Event(hour, partition, offset)
            for partition in range(3)
            for offset in range(60)
            for hour in range(3)
            if self.random.random() < 0.4
        ]
        self.exported = [0, 0, 0]
        self.plans = 0
        self.live: dict[str, Found] = {}
        self.orphans: dict[str, Found] = {}

    def export(self) -> None:
        chosen = self.random.sample(range(3), self.random.randint(1, 3))
        ends = {each: min(60, self.exported[each] + self.random.randint(1, 9)) for each in chosen}
        ranges = [(each, self.exported[each], end) for each, end in ends.items() if end > self.exported[each]]
        self.plans += 1
        files = []
        for hour in range(3):
            held = [each for each in ranges if self.within(hour, [each])]
            if held:
                files.append(self.make("part", hour, held))
        if self.random.random() < 0.3:
            put = self.random.sample(files, self.random.randint(0, len(files)))
            self.orphans |= {each.key: each for each in put}
            return
        self.live |= {each.key: each for each in files}
        for partition, _, end in ranges:
            self.exported[partition] = end

    def within(self, hour: int, ranges: Sequence[tuple[int, int, int]]) -> list[Event]:
        return [
            each
            for each in self.events
            if each.hour == hour and any(p == each.partition and a <= each.offset < b for p, a, b in ranges)
        ]

    def make(self, kind: str, hour: int, ranges: Sequence[tuple[int, int, int]]) -> Found:
        rows = len(self.within(hour, ranges))
        return found(f"{kind}-{self.plans}-{hour}", *ranges, plan=self.plans, rows=rows, hour=hour, kind=kind)

    def merge(self) -> None:
        hour = self.random.randrange(3)
        here = [each for each in self.live.values() if each.file.hour == HOURS[hour]]
        if len(here) < 2:
            return
        chosen = self.random.sample(here, self.random.randint(2, min(len(here), 6)))
        self.plans += 1
        ranges = joined([each for file in chosen for each in file.file.ranges])
        merged = self.make("compact", hour, ranges)
        if self.random.random() < 0.3:
            self.orphans[merged.key] = merged
            return
        for each in chosen:
            del self.live[each.key]
            if self.random.random() < 0.5:
                self.orphans[each.key] = each
        self.live[merged.key] = merged

    def run(self) -> None:
        for _ in range(60):
            self.random.choice([self.export, self.export, self.merge])()
            if self.orphans and self.random.random() < 0.1:
                del self.orphans[self.random.choice(list(self.orphans))]


@pytest.mark.parametrize("seed", range(150))
def test_any_history(seed: int) -> None:
    """Up to the committed offsets each event is in a live file, and none is in two."""
    history = History(seed)
    history.run()
    files = [*history.live.values(), *history.orphans.values()]
    history.random.shuffle(files)
    chosen = settle(files).live
    held = Counter(event for each in chosen for event in history.within(HOURS.index(each.file.hour), each.file.ranges))
    committed = {each for each in history.events if each.offset < history.exported[each.partition]}
    assert max(held.values(), default=1) == 1
    assert committed <= held.keys()
