"""The law of `storage.lake_listing`, kept by the listing in memory and by the one in PostgreSQL alike."""

from datetime import UTC, datetime, timedelta

import pytest

from storage.lake_listing import LakeTotals, PendingExport, Volume
from storage.lake_manifest import OffsetRange
from tests.contract.lake_subject import (
    BLOG,
    ELSEWHERE,
    HOUR,
    SHOP,
    LakeSubject,
    epochs_of,
    lake_file,
    merged,
    named,
)

BOTH = sorted([SHOP, ELSEWHERE])
EARLIER = HOUR - timedelta(hours=30)


@pytest.fixture
def subject(lake_subject: LakeSubject) -> LakeSubject:
    return lake_subject


async def export_two_hours(subject: LakeSubject) -> None:
    """Two files: of `HOUR` two events of the shop and one of the blog, of `EARLIER` one of the blog."""
    await subject.store_numbered(2)
    await subject.store_numbered(3, project=BLOG)
    epochs = epochs_of(await subject.manifest.claim(BOTH))
    plan = await subject.manifest.plan([OffsetRange(SHOP, 0, 2), OffsetRange(ELSEWHERE, 0, 2)], epochs)
    files = [
        lake_file(plan, [*named(0, 2), *named(0, 1, BLOG)]),
        lake_file(plan, named(1, 2, BLOG), number=1, hour=EARLIER),
    ]
    await subject.manifest.commit(plan.plan_id, epochs, files)


async def test_an_empty_lake(subject: LakeSubject) -> None:
    listing = subject.listing
    assert (await listing.files(), await listing.volumes(), await listing.holdings()) == ([], [], [])
    assert await listing.gaps() == []
    nothing = LakeTotals(0, 0, 0, 0, 0, 0, 0, 0, None, None)
    assert (await listing.totals(), await listing.totals("shop")) == (nothing, nothing)
    assert await listing.pending() == []
    assert await listing.needed_since() is None


async def test_files_by_project_and_time_in_pages(subject: LakeSubject) -> None:
    await export_two_hours(subject)
    earlier, now = await subject.listing.files()
    assert (earlier.hour, now.hour) == (EARLIER, HOUR)
    assert await subject.listing.files(project_id="shop") == [now]
    assert await subject.listing.files(start=HOUR) == [now]
    assert await subject.listing.files(start=EARLIER + timedelta(minutes=59), end=HOUR) == [earlier]
    assert await subject.listing.files(start=EARLIER + timedelta(hours=1), end=HOUR) == []
    assert await subject.listing.files(limit=1) == [earlier]
    assert await subject.listing.files(after=(earlier.hour, earlier.file_id), limit=1) == [now]


async def test_totals(subject: LakeSubject) -> None:
    await export_two_hours(subject)
    assert await subject.listing.totals() == LakeTotals(2, 4, 301 + 101, 0, 0, 0, 0, 0, EARLIER, HOUR)
    of_blog = await subject.listing.totals(BLOG)
    of_shop = await subject.listing.totals("shop")
    assert (of_blog.files, of_blog.rows, of_shop.files, of_shop.rows) == (2, 2, 1, 2)
    assert of_blog.bytes + of_shop.bytes == 301 + 101


async def test_pending_is_between_the_checkpoints(subject: LakeSubject) -> None:
    await subject.store_numbered(2)
    assert await subject.listing.pending() == [PendingExport(SHOP, 0, 2, None)]
    assert await subject.listing.needed_since() == datetime(1970, 1, 1, tzinfo=UTC)
    claimed = await subject.manifest.claim([SHOP])
    await subject.export(claimed, OffsetRange(SHOP, 0, 2), events=named(0, 2))
    [done] = await subject.listing.pending()
    assert done[:3] == (SHOP, 2, 2) and done.since is not None
    assert await subject.listing.needed_since() is None
    await subject.store_numbered(3, first=2)
    [again] = await subject.listing.pending()
    assert again == done._replace(stored_below=5)
    assert await subject.listing.needed_since() == done.since


async def test_volumes_stay_and_holdings_follow_the_files(subject: LakeSubject) -> None:
    await export_two_hours(subject)
    today = datetime.now(UTC).date()
    shares = {project: (await subject.listing.totals(project)).bytes for project in (BLOG, "shop")}
    exported = [Volume(BLOG, today, 2, 2, shares[BLOG]), Volume("shop", today, 1, 2, shares["shop"])]
    assert await subject.listing.volumes() == exported
    assert await subject.listing.volumes(project_id="shop", start=today) == exported[1:]
    assert await subject.listing.volumes(end=today) == []
    held = await subject.listing.holdings()
    assert [(each.project_id, each.day, each.rows) for each in held] == [
        (BLOG, EARLIER.date(), 1),
        (BLOG, HOUR.date(), 1),
        ("shop", HOUR.date(), 2),
    ]
    assert await subject.listing.holdings(project_id=BLOG, end=HOUR.date()) == held[:1]
    for entry in await subject.listing.files():
        expire = await subject.manifest.plan_swap("expire", [entry.file_id])
        assert expire is not None
        await subject.manifest.swap(expire, [])
    assert await subject.listing.holdings() == []
    assert await subject.listing.volumes() == exported


async def test_hours_to_compact(subject: LakeSubject) -> None:
    await subject.store_numbered(6)
    claimed = await subject.manifest.claim([SHOP])
    for first in range(3):
        await subject.export(claimed, OffsetRange(SHOP, first, first + 1), events=named(first, first + 1))

    async def hours(small_bytes: int = 1000, quiet_s: float = 1000.0, max_parts: int = 9) -> list[tuple[int, int]]:
        found = await subject.listing.hours_to_compact(
            small_bytes=small_bytes, quiet_s=quiet_s, max_parts=max_parts, limit=10
        )
        assert all(each.hour == HOUR for each in found)
        return [(each.files, each.bytes) for each in found]

    assert await hours() == await hours(max_parts=3) == []
    assert await hours(quiet_s=0) == await hours(max_parts=2) == [(3, 303)]
    assert await hours(small_bytes=101, quiet_s=0) == []
    parts = await subject.listing.small_files(HOUR, small_bytes=1000)
    assert parts == await subject.listing.files()
    await subject.export(claimed, OffsetRange(SHOP, 3, 5), events=named(3, 5))
    assert await hours(small_bytes=200, quiet_s=0) == [(3, 303)]


async def test_retired_files_are_known_until_they_are_forgotten(subject: LakeSubject) -> None:
    await subject.store_numbered(2)
    claimed = await subject.manifest.claim([SHOP])
    file = await subject.export(claimed, OffsetRange(SHOP, 0, 2), events=named(0, 2))
    [entry] = await subject.listing.files()
    swap = await subject.manifest.plan_swap("compact", [entry.file_id])
    assert swap is not None
    assert await subject.listing.open_plan_ids() == {swap}
    await subject.manifest.swap(swap, [merged("compacted", file)])
    assert await subject.listing.open_plan_ids() == set()
    keys = [file.key, "compacted", "orphan"]
    assert await subject.listing.known(keys) == {file.key, "compacted"}
    assert await subject.listing.expired(grace_s=1000, limit=10) == []
    assert await subject.listing.expired(grace_s=0, limit=10) == [entry]
    [live] = await subject.listing.files()
    await subject.listing.forget([entry.file_id, live.file_id])
    assert await subject.listing.known(keys) == {"compacted"}
    assert await subject.listing.files() == [live]


async def test_history_is_forgotten(subject: LakeSubject) -> None:
    await subject.store_numbered(2)
    claimed = await subject.manifest.claim([SHOP])
    await subject.export(claimed, OffsetRange(SHOP, 0, 1), events=named(0, 1))
    left = await subject.manifest.plan([OffsetRange(SHOP, 1, 2)], epochs_of(claimed))
    for before, plans in ((HOUR, 0), (datetime.now(UTC) + timedelta(hours=1), 1)):
        assert await subject.listing.count_history(before=before) == plans
        assert await subject.listing.forget_history(before=before) == plans
        assert await subject.listing.count_history(before=before) == 0
    assert await subject.listing.open_plan_ids() == {left.plan_id}
    assert await subject.listing.gaps() == []
    assert [volume.rows for volume in await subject.listing.volumes()] == [1]
