"""The law of `storage.lake_manifest`, kept by the manifest in memory and by the one in PostgreSQL alike."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from storage.errors import Fenced, FormatError, Unavailable
from storage.event_store import Checkpoint
from storage.lake_manifest import LakeFile, OffsetRange, StoredMark
from tests.contract.lake_subject import (
    BLOG,
    ELSEWHERE,
    HOUR,
    SHOP,
    TIME,
    LakeSubject,
    epochs_of,
    lake_file,
    merged,
    named,
)
from tests.contract.log_records import event

BOTH = sorted([SHOP, ELSEWHERE])


@pytest.fixture
def subject(lake_subject: LakeSubject) -> LakeSubject:
    return lake_subject


async def stored_on_both(subject: LakeSubject, count: int = 2) -> list[OffsetRange]:
    await subject.store_numbered(count)
    await subject.store_numbered(count, project=BLOG)
    return [OffsetRange(partition, 0, count) for partition in BOTH]


async def test_every_claim_has_an_epoch_of_its_own(subject: LakeSubject) -> None:
    manifest = subject.manifest
    assert await manifest.claim([1]) == {1: Checkpoint(1, 1, 0)}
    assert await manifest.claim([0, 1]) == {0: Checkpoint(0, 1, 0), 1: Checkpoint(1, 2, 0)}


async def test_how_far_the_event_store_is(subject: LakeSubject) -> None:
    await subject.store_numbered(3)
    marks = await subject.manifest.stored([SHOP])
    assert [(mark.partition, mark.next_offset) for mark in marks.values()] == [(SHOP, 3)]


async def test_a_commit_makes_files_live_and_moves_the_checkpoints(subject: LakeSubject) -> None:
    manifest = subject.manifest
    ranges = await stored_on_both(subject)
    epochs = epochs_of(await manifest.claim(BOTH))
    plan = await manifest.plan(list(reversed(ranges)), epochs)
    assert plan.ranges == tuple(ranges)
    assert await manifest.open_plans([SHOP]) == [plan]
    file = lake_file(plan, [*named(0, 2), *named(0, 2, BLOG)])
    assert await manifest.commit(plan.plan_id, epochs, [file]) == "committed"
    assert await manifest.open_plans(BOTH) == []
    [entry] = await subject.listing.files()
    assert await subject.listing.load([entry.file_id]) == {entry.file_id: file}
    assert entry[1:11] == (
        plan.plan_id,
        *(file.key, HOUR, 4, file.bytes, file.checksum, file.id_digest, file.min_timestamp, file.max_timestamp),
        "hot",
    )
    claimed = await manifest.claim(BOTH)
    assert [checkpoint.next_offset for checkpoint in claimed.values()] == [2, 2]
    assert await subject.listing.gaps() == []


async def test_a_commit_without_files_moves_the_checkpoints_too(subject: LakeSubject) -> None:
    await subject.store_numbered(2)
    epochs = epochs_of(await subject.manifest.claim([SHOP]))
    plan = await subject.manifest.plan([OffsetRange(SHOP, 0, 2)], epochs)
    assert await subject.manifest.commit(plan.plan_id, epochs, []) == "committed"
    assert (await subject.manifest.claim([SHOP]))[SHOP].next_offset == 2
    assert await subject.found() == ([], [])


async def test_a_plan_begins_at_the_checkpoints_and_ends_in_what_is_stored(subject: LakeSubject) -> None:
    await subject.store_numbered(3)
    epochs = epochs_of(await subject.manifest.claim([SHOP, ELSEWHERE]))
    for wrong in (OffsetRange(SHOP, 1, 3), OffsetRange(SHOP, 0, 4), OffsetRange(SHOP, 0, 0), OffsetRange(9, 0, 1)):
        with pytest.raises(Fenced):
            await subject.manifest.plan([wrong], epochs)
    with pytest.raises(Fenced):
        await subject.manifest.plan([OffsetRange(SHOP, 0, 3), OffsetRange(ELSEWHERE, 0, 1)], epochs)
    assert await subject.manifest.open_plans(BOTH) == []


async def test_a_partition_is_in_one_open_plan(subject: LakeSubject) -> None:
    manifest, [shop, elsewhere] = subject.manifest, await stored_on_both(subject)
    epochs = epochs_of(await manifest.claim(BOTH))
    plan = await manifest.plan([shop], epochs)
    assert await manifest.plan([shop], epochs) == plan
    for other in ([shop._replace(next_offset=1)], [shop, elsewhere]):
        with pytest.raises(Fenced):
            await manifest.plan(other, epochs)
    assert (await manifest.plan([elsewhere], epochs)).plan_id != plan.plan_id


async def test_a_cancelled_plan_is_not_committed_and_its_ranges_are_planned_anew(subject: LakeSubject) -> None:
    manifest, [shop, _] = subject.manifest, await stored_on_both(subject)
    epochs = epochs_of(await manifest.claim(BOTH))
    plan = await manifest.plan([shop], epochs)
    with pytest.raises(Fenced):
        await manifest.cancel(plan.plan_id, {shop.partition: epochs[shop.partition] - 1})
    for _ in range(2):
        await manifest.cancel(plan.plan_id, epochs)
    with pytest.raises(Fenced):
        await manifest.commit(plan.plan_id, epochs, [])
    again = await manifest.plan([shop], epochs)
    assert again.plan_id != plan.plan_id
    assert await manifest.commit(again.plan_id, epochs, []) == "committed"
    await manifest.cancel(again.plan_id, epochs)
    assert await manifest.commit(again.plan_id, epochs, []) == "repeated"


async def test_an_older_epoch_can_do_nothing(subject: LakeSubject) -> None:
    """FN-1, and the new owner finishes what the old one began."""
    manifest, ranges = subject.manifest, await stored_on_both(subject)
    stale = epochs_of(await manifest.claim(BOTH))
    plan = await manifest.plan(ranges, stale)
    epochs = epochs_of(await manifest.claim(BOTH))
    file = lake_file(plan, [*named(0, 2), *named(0, 2, BLOG)])
    for attempt in (
        manifest.plan(ranges, stale),
        manifest.commit(plan.plan_id, stale, [file]),
        manifest.cancel(plan.plan_id, stale),
        manifest.commit(plan.plan_id, {SHOP: epochs[SHOP]}, [file]),
    ):
        with pytest.raises(Fenced):
            await attempt
    assert await subject.listing.files() == []
    assert await manifest.open_plans(BOTH) == [plan]
    assert await manifest.commit(plan.plan_id, epochs, [file]) == "committed"
    assert await manifest.commit(plan.plan_id, stale, [file]) == "repeated"
    assert len(await subject.listing.files()) == 1


async def test_a_claim_of_a_part_of_a_plan_cancels_it(subject: LakeSubject) -> None:
    """Another number of shards: the plan's partitions have two owners now."""
    manifest, ranges = subject.manifest, await stored_on_both(subject)
    before = epochs_of(await manifest.claim(BOTH))
    plan = await manifest.plan(ranges, before)
    first = epochs_of(await manifest.claim(BOTH[:1]))
    assert await manifest.open_plans(BOTH) == []
    second = epochs_of(await manifest.claim(BOTH[1:]))
    for epochs in (before, first, second, first | second):
        with pytest.raises(Fenced):
            await manifest.commit(plan.plan_id, epochs, [])
    for epochs, each in ((first, ranges[0]), (second, ranges[1])):
        own = await manifest.plan([each], epochs)
        assert own.plan_id > plan.plan_id
        assert await manifest.commit(own.plan_id, epochs, []) == "committed"
    assert await subject.listing.gaps() == []


@pytest.mark.parametrize("committed", [True, False])
async def test_what_lost_its_answer_is_repeated(subject: LakeSubject, committed: bool) -> None:
    manifest = subject.manifest
    await subject.store_numbered(2)
    subject.lose_next_commit(committed=committed)
    with pytest.raises(Unavailable):
        await manifest.claim([SHOP])
    claimed = await manifest.claim([SHOP])
    epochs = epochs_of(claimed)
    assert epochs == {SHOP: 2 if committed else 1}

    shop = OffsetRange(SHOP, 0, 2)
    subject.lose_next_commit(committed=committed)
    with pytest.raises(Unavailable):
        await manifest.plan([shop], epochs)
    assert len(await manifest.open_plans([SHOP])) == committed
    plan = await manifest.plan([shop], epochs)
    assert await manifest.open_plans([SHOP]) == [plan]

    file = lake_file(plan, named(0, 2))
    subject.lose_next_commit(committed=committed)
    with pytest.raises(Unavailable):
        await manifest.commit(plan.plan_id, epochs, [file])
    again = await manifest.commit(plan.plan_id, epochs, [file])
    assert again == ("repeated" if committed else "committed")
    [entry] = await subject.listing.files()
    assert [volume.rows for volume in await subject.listing.volumes()] == [2]

    swap = await manifest.plan_swap("compact", [entry.file_id])
    assert swap is not None
    subject.lose_next_commit(committed=committed)
    with pytest.raises(Unavailable):
        await manifest.swap(swap, [merged("compacted", file)])
    assert await manifest.swap(swap, [merged("compacted", file)]) == ("repeated" if committed else "committed")
    assert [entry.key for entry in await subject.listing.files()] == ["compacted"]


def _of_two_hours(file: LakeFile) -> dict[str, Any]:
    return {"max_timestamp": file.hour + timedelta(hours=1)}


WRONG: dict[str, Callable[[LakeFile], dict[str, Any]]] = {
    "an event of another hour": _of_two_hours,
    "no hour": lambda _: {"hour": TIME},
    "offsets that were not planned": lambda _: {"ranges": [OffsetRange(SHOP, 0, 3)]},
    "a partition that was not planned": lambda _: {"ranges": [OffsetRange(ELSEWHERE, 0, 1)]},
    "no offsets": lambda _: {"ranges": []},
    "rows of nobody": lambda _: {"rows": 3},
    "no rows": lambda _: {"rows": 0, "projects": {}},
}


@pytest.mark.parametrize("change", WRONG.values(), ids=WRONG)
async def test_files_that_cannot_be_are_refused(
    subject: LakeSubject, change: Callable[[LakeFile], dict[str, Any]]
) -> None:
    await subject.store_numbered(3)
    epochs = epochs_of(await subject.manifest.claim([SHOP]))
    plan = await subject.manifest.plan([OffsetRange(SHOP, 0, 2)], epochs)
    good = lake_file(plan, named(0, 2))
    with pytest.raises(FormatError):
        await subject.manifest.commit(plan.plan_id, epochs, [lake_file(plan, named(0, 2), **change(good))])
    with pytest.raises(FormatError):
        await subject.manifest.commit(plan.plan_id, epochs, [good, lake_file(plan, named(0, 1), number=1)])
    assert await subject.listing.files() == []
    assert await subject.manifest.commit(plan.plan_id, epochs, [good]) == "committed"


async def test_a_plan_makes_files_of_several_hours(subject: LakeSubject) -> None:
    await subject.store_numbered(2)
    epochs = epochs_of(await subject.manifest.claim([SHOP]))
    plan = await subject.manifest.plan([OffsetRange(SHOP, 0, 2)], epochs)
    earlier = HOUR - timedelta(hours=30)
    files = [lake_file(plan, named(0, 1)), lake_file(plan, named(1, 2), number=1, hour=earlier)]
    await subject.manifest.commit(plan.plan_id, epochs, files)
    assert [entry.hour for entry in await subject.listing.files()] == [earlier, HOUR]


async def test_a_swap_retires_files_and_adds_their_events_in_others(subject: LakeSubject) -> None:
    await subject.store_numbered(4)
    claimed = await subject.manifest.claim([SHOP])
    first = await subject.export(claimed, OffsetRange(SHOP, 0, 2), events=named(0, 2))
    second = await subject.export(claimed, OffsetRange(SHOP, 2, 4), events=named(2, 4))
    ids = [entry.file_id for entry in await subject.listing.files()]
    swap = await subject.manifest.plan_swap("compact", ids)
    assert swap is not None
    for wrong in (
        [],
        [merged("c", first)],
        [merged("c", first, second, id_digest=1)],
        [merged("c", first, second, hour=HOUR - timedelta(hours=1))],
        [merged("c", first, second, ranges=[OffsetRange(SHOP, 0, 3)])],
    ):
        with pytest.raises(FormatError):
            await subject.manifest.swap(swap, wrong)
    whole = merged("c", first, second, ranges=[OffsetRange(SHOP, 0, 4)])
    assert await subject.manifest.swap(swap, [whole]) == "committed"
    assert await subject.manifest.swap(swap, [whole]) == "repeated"
    assert await subject.found() == (["c"], [])
    assert await subject.manifest.plan_swap("compact", ids) is None
    totals = await subject.listing.totals()
    assert (totals.files, totals.rows, totals.retired_files, totals.open_plans) == (1, 4, 2, 0)
    assert await subject.listing.gaps() == []


async def test_of_two_swaps_of_a_file_one_is_outdated(subject: LakeSubject) -> None:
    """The second was planned when the first was taken for dead."""
    await subject.store_numbered(2)
    claimed = await subject.manifest.claim([SHOP])
    file = await subject.export(claimed, OffsetRange(SHOP, 0, 2), events=named(0, 2))
    [entry] = await subject.listing.files()
    slow = await subject.manifest.plan_swap("compact", [entry.file_id])
    assert slow is not None
    assert await subject.manifest.plan_swap("rewrite", [entry.file_id]) is None
    await subject.age_plans()
    quick = await subject.manifest.plan_swap("rewrite", [entry.file_id])
    assert quick is not None
    left = merged("without e1", file, rows=1, projects={"shop": 1}, id_digest=7)
    assert await subject.manifest.swap(quick, [left]) == "committed"
    for _ in range(2):
        assert await subject.manifest.swap(slow, [merged("compacted", file)]) == "outdated"
    assert [entry.key for entry in await subject.listing.files()] == ["without e1"]


async def test_files_move_and_expire(subject: LakeSubject) -> None:
    await subject.store_numbered(2)
    claimed = await subject.manifest.claim([SHOP])
    file = await subject.export(claimed, OffsetRange(SHOP, 0, 2), events=named(0, 2))
    [entry] = await subject.listing.files()
    move = await subject.manifest.plan_swap("move", [entry.file_id])
    assert move is not None
    assert await subject.manifest.swap(move, [merged("cold/x", file, tier="cold")]) == "committed"
    [entry] = await subject.listing.files()
    assert (entry.key, entry.tier) == ("cold/x", "cold")
    expire = await subject.manifest.plan_swap("expire", [entry.file_id])
    assert expire is not None
    with pytest.raises(FormatError):
        await subject.manifest.swap(expire, [merged("y", file)])
    assert await subject.manifest.swap(expire, []) == "committed"
    assert await subject.found() == ([], [])


async def test_an_export_and_a_swap_do_not_disturb_each_other(subject: LakeSubject) -> None:
    await subject.store_numbered(4)
    claimed = await subject.manifest.claim([SHOP])
    epochs = epochs_of(claimed)
    first = await subject.export(claimed, OffsetRange(SHOP, 0, 2), events=named(0, 2))
    [entry] = await subject.listing.files()
    swap = await subject.manifest.plan_swap("compact", [entry.file_id])
    plan = await subject.manifest.plan([OffsetRange(SHOP, 2, 4)], epochs)
    assert swap is not None and swap != plan.plan_id
    for kind in ("export", "swap"):
        with pytest.raises(Fenced):
            await subject.manifest.commit(swap if kind == "export" else -1, epochs, [])
    assert await subject.manifest.swap(plan.plan_id, []) == "outdated"
    await subject.manifest.commit(plan.plan_id, epochs, [lake_file(plan, named(2, 4))])
    assert await subject.manifest.swap(swap, [merged("c", first)]) == "committed"
    keys, tail = await subject.found()
    assert (len(keys), "c" in keys, tail) == (2, True, [])


async def test_a_snapshot_is_files_and_what_is_not_in_them(subject: LakeSubject) -> None:
    await subject.store_numbered(3)
    claimed = await subject.manifest.claim([SHOP])
    assert await subject.found() == ([], ["e0", "e1", "e2"])
    file = await subject.export(claimed, OffsetRange(SHOP, 0, 2), events=named(0, 2))
    assert await subject.found() == ([file.key], ["e2"])
    assert await subject.found("other project") == ([], [])
    assert await subject.found(start=HOUR + timedelta(hours=1)) == ([], [])
    async with subject.snapshots.snapshot(["shop"], end=TIME) as snapshot:
        assert [rows async for rows in snapshot.tail] == []
        assert snapshot.positions == [(Checkpoint(SHOP, 1, 2), 3)]
        assert [entry.rows for entry in snapshot.files] == [2]
    async with subject.snapshots.snapshot(["shop"], start=TIME, end=TIME + timedelta(seconds=1)) as snapshot:
        [rows] = [rows async for rows in snapshot.tail]
        assert rows.select(["event_id", "timestamp", "log_offset"]).to_pylist() == [
            {"event_id": "e2", "timestamp": TIME, "log_offset": 2}
        ]


async def test_a_tail_has_all_that_its_row_says(subject: LakeSubject) -> None:
    full = event("a", user_id='ü",\n\\.', session_id="\\N", properties='{"a":[1,null]}', context='{"ip":"::1"}')
    await subject.store_events(full)
    async with subject.snapshots.snapshot(["shop"]) as snapshot:
        [row] = [row async for rows in snapshot.tail for row in rows.to_pylist()]
    assert row == full | {"log_offset": 0}


async def test_a_mark_above_the_checkpoint_bounds_no_tail(subject: LakeSubject) -> None:
    """It is of what is stored later than the rows that are to be found."""
    await subject.store_numbered(2)
    claimed = await subject.manifest.claim([SHOP])
    await subject.export(claimed, OffsetRange(SHOP, 0, 1), events=named(0, 1))
    far = TIME + timedelta(days=1)
    await subject.manifest.advance_tails([StoredMark(SHOP, 2, far), StoredMark(ELSEWHERE, 0, far)])
    assert (await subject.found())[1] == ["e1"]
    plan = await subject.manifest.plan([OffsetRange(SHOP, 1, 2)], epochs_of(claimed))
    await subject.manifest.commit(plan.plan_id, epochs_of(claimed), [], marks=[StoredMark(SHOP, 2, far)])
    [pending] = await subject.listing.pending()
    assert pending.since == far
    await subject.manifest.advance_tails([StoredMark(SHOP, 2, TIME)])
    assert await subject.listing.pending() == [pending]
