"""Which of the objects that lie there are the lake, from what they say of themselves alone.

Each file has every event of its hour in its ranges, so two that overlap hold some events both, and one that covers all
that others cover can stand for them: a compacted file for its parts, a newer one for an older of the same ranges. Files
that cross one another come from a plan that was cancelled, or a merge that came too late; of those the choice with the
most events is right, because the files that were live hold them all.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from storage.lake_manifest import LakeFile

MAX_STEPS = 50_000
"""For files that cross one another, by hour: the best choice found in so many steps is taken."""


@dataclass(frozen=True)
class Found:
    """An object under a name of the lake, as its footer describes it."""

    key: str
    kind: str
    """"part" or "compact"."""
    plan_id: int
    file: LakeFile
    modified_s: float


@dataclass(frozen=True)
class Settled:
    live: Sequence[Found]
    superseded: Sequence[Found]


def settle(files: Iterable[Found]) -> Settled:
    """Live ones of an hour cover no offset twice."""
    by_hour: defaultdict[datetime, list[Found]] = defaultdict(list)
    for each in files:
        by_hour[each.file.hour].append(each)
    live: list[Found] = []
    superseded: list[Found] = []
    for _, of_hour in sorted(by_hour.items()):
        chosen = {each.key for each in _Hour(of_hour).choose()}
        live += [each for each in of_hour if each.key in chosen]
        superseded += [each for each in of_hour if each.key not in chosen]
    return Settled(live, superseded)


class _Hour:
    """The files of one hour. What each covers is a number with a bit for each stretch between ends of ranges."""

    def __init__(self, files: Sequence[Found]) -> None:
        self._covers = _covers(files)
        newest_last = sorted(files, key=lambda each: (each.plan_id, each.file.tier == "cold", each.key))
        # Of equal ones the newest: a rewrite has the ranges of what it replaces, and what became cold was hot before.
        self._files = list({self._covers[each.key]: each for each in newest_last}.values())

    def choose(self) -> Iterator[Found]:
        left = sorted(self._files, key=lambda each: (-self._covers[each.key].bit_count(), -each.plan_id, each.key))
        crossing: list[Found] = []
        while left:
            first, *rest = left
            overlapping = self._overlapping(first, rest)
            beyond = {each.key for each in rest if not self._is_within(each, first)}
            if overlapping & beyond or self._overlapping(first, crossing):
                crossing.append(first)
                left = rest
            else:
                yield first
                left = [each for each in rest if each.key not in overlapping]
        yield from _heaviest(crossing, self._covers)

    def _overlapping(self, file: Found, others: Sequence[Found]) -> set[str]:
        covers = self._covers[file.key]
        return {each.key for each in others if self._covers[each.key] & covers}

    def _is_within(self, file: Found, outer: Found) -> bool:
        return self._covers[file.key] | self._covers[outer.key] == self._covers[outer.key]


def _covers(files: Sequence[Found]) -> dict[str, int]:
    ends: defaultdict[int, set[int]] = defaultdict(set)
    for each in files:
        for partition, first, after in each.file.ranges:
            ends[partition] |= {first, after}
    places: dict[tuple[int, int], int] = {}
    for partition in sorted(ends):
        for end in sorted(ends[partition]):
            places[partition, end] = len(places)
    return {
        each.key: sum(
            (1 << places[partition, after]) - (1 << places[partition, first])
            for partition, first, after in each.file.ranges
        )
        for each in files
    }


def _heaviest(files: Sequence[Found], covers: dict[str, int]) -> Sequence[Found]:
    """Those of most rows together that do not overlap; of equal ones those of later plans."""
    best: tuple[int, int] = (-1, -1)
    chosen: Sequence[Found] = ()
    ordered = sorted(files, key=lambda each: (-each.file.rows, -each.plan_id))
    rows_from = [sum(each.file.rows for each in ordered[number:]) for number in range(len(ordered) + 1)]
    waiting: list[tuple[int, int, int, int, tuple[Found, ...]]] = [(0, 0, 0, 0, ())]
    steps = 0
    while waiting and steps < MAX_STEPS:
        steps += 1
        number, covered, rows, plans, taken = waiting.pop()
        if (rows, plans) > best:
            best, chosen = (rows, plans), taken
        if number == len(ordered) or rows + rows_from[number] < best[0]:
            continue
        each = ordered[number]
        waiting.append((number + 1, covered, rows, plans, taken))
        if not covers[each.key] & covered:
            with_it = (number + 1, covered | covers[each.key], rows + each.file.rows, plans + each.plan_id)
            waiting.append((*with_it, (*taken, each)))
    return chosen


def next_offsets(files: Iterable[Found]) -> dict[int, int]:
    """By partition how far the files go."""
    found: dict[int, int] = {}
    for each in files:
        for partition, _, after in each.file.ranges:
            found[partition] = max(after, found.get(partition, 0))
    return found


def last_plans(files: Collection[Found]) -> dict[int, tuple[int, int]]:
    """By partition the plan of its last offsets and where that begins, for partitions whose last file is a part:
    whether all of its files were put cannot be seen from them."""
    ends = next_offsets(files)
    found: dict[int, tuple[int, int]] = {}
    for each in files:
        for partition, first, after in each.file.ranges:
            if after == ends[partition] and each.kind == "part":
                found[partition] = max((each.plan_id, first), found.get(partition, (0, 0)))
    return found
