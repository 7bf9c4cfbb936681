"""The law of `storage.lake_exports`, kept in memory and in PostgreSQL alike; and the documents' own queries agree."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest

from storage.event_queries import EventQueries
from storage.lake_exports import (
    COUNTED_EVENTS,
    ROW_GROUP_ROWS,
    Backlog,
    ExportedTotals,
    InvalidExportCursor,
    LakeExports,
    decode_cursor,
    encode_cursor,
    row_group_of,
)
from storage.lake_file import ROW_GROUP_ROWS as ROWS_OF_FILES
from storage.lake_manifest import OffsetRange
from storage.memory_lake_exports import MemoryLakeExports
from storage.postgres_lake_exports import PostgresLakeExports
from tests.contract.lake_subject import (
    BLOG,
    ELSEWHERE,
    HOUR,
    PARTITIONS,
    SHOP,
    TIME,
    LakeSubject,
    MemoryLake,
    PostgresLake,
    epochs_of,
    lake_file,
    named,
    postgres_lake,
)
from tests.contract.log_records import event

BOTH = sorted([SHOP, ELSEWHERE])
EARLIER = HOUR - timedelta(hours=30)
BYTES = 301 + 101
NOTHING = ExportedTotals(0, 0, 0, 0, 0, None, None)


@pytest.fixture
def subject(lake_subject: LakeSubject) -> LakeSubject:
    return lake_subject


@pytest.fixture
def exports(subject: LakeSubject) -> LakeExports:
    if isinstance(subject, MemoryLake):
        return MemoryLakeExports(subject.memory)
    assert isinstance(subject, PostgresLake)
    return PostgresLakeExports(subject.postgres, partitions=PARTITIONS)


async def export_two_hours(subject: LakeSubject) -> list[str]:
    """Keys of two files: of `EARLIER` one event of the blog, of `HOUR` two of the shop and one of the blog. One more
    event of the blog waits."""
    await subject.store_numbered(2)
    await subject.store_numbered(3, project=BLOG)
    epochs = epochs_of(await subject.manifest.claim(BOTH))
    plan = await subject.manifest.plan([OffsetRange(SHOP, 0, 2), OffsetRange(ELSEWHERE, 0, 2)], epochs)
    files = [
        lake_file(plan, [*named(0, 2), *named(0, 1, BLOG)]),
        lake_file(plan, named(1, 2, BLOG), number=1, hour=EARLIER),
    ]
    marks = await subject.manifest.stored(BOTH)
    await subject.manifest.commit(plan.plan_id, epochs, files, marks=list(marks.values()))
    return [files[1].key, files[0].key]


async def test_nothing(exports: LakeExports) -> None:
    assert await exports.files() == await exports.files(project_id="shop") == []
    for project in (None, "shop"):
        assert await exports.overview(project_id=project) == (NOTHING, Backlog(0, 0, True), None, None)
    assert await exports.file_of(0, 0, TIME) is None


async def test_files_have_the_rows_and_bytes_of_the_project(subject: LakeSubject, exports: LakeExports) -> None:
    keys = await export_two_hours(subject)
    earlier, now = await exports.files()
    assert [(file.key, file.hour, file.rows, file.bytes) for file in (earlier, now)] == [
        (keys[0], EARLIER, 1, 101),
        (keys[1], HOUR, 3, 301),
    ]
    assert (now.tier, now.min_timestamp, now.max_timestamp) == ("hot", HOUR, HOUR + timedelta(minutes=59))
    [of_shop] = await exports.files(project_id="shop")
    of_blog = await exports.files(project_id=BLOG)
    assert (of_shop.key, of_shop.rows, [file.rows for file in of_blog]) == (keys[1], 2, [1, 1])
    assert of_shop.bytes + of_blog[1].bytes == 301
    assert await exports.files(project_id="nobody") == []


async def test_files_by_time_in_pages(subject: LakeSubject, exports: LakeExports) -> None:
    await export_two_hours(subject)
    for project in (None, BLOG):
        earlier, now = await exports.files(project_id=project)
        assert await exports.files(project_id=project, start=HOUR) == [now]
        assert await exports.files(project_id=project, start=EARLIER + timedelta(minutes=59), end=HOUR) == [earlier]
        assert await exports.files(project_id=project, start=EARLIER + timedelta(hours=1), end=HOUR) == []
        assert await exports.files(project_id=project, limit=1) == [earlier]
        assert await exports.files(project_id=project, after=decode_cursor(encode_cursor(earlier))) == [now]
        assert await exports.files(project_id=project, after=decode_cursor(encode_cursor(now))) == []


async def test_totals_and_pending_are_together_what_is_stored(subject: LakeSubject, exports: LakeExports) -> None:
    await export_two_hours(subject)
    everything = await exports.overview()
    assert everything.totals == ExportedTotals(2, 4, BYTES, 0, 0, EARLIER, HOUR)
    assert everything.pending == Backlog(1, 1, complete=True)
    of_shop = await exports.overview(project_id="shop")
    of_blog = await exports.overview(project_id=BLOG)
    assert (of_shop.totals.rows, of_shop.pending.events) == (2, 0)
    assert (of_blog.totals.rows, of_blog.pending.events) == (2, 1)
    assert of_shop.totals.bytes + of_blog.totals.bytes == BYTES
    bounded = await exports.overview(project_id=BLOG, start=HOUR)
    assert (bounded.totals.rows, bounded.totals.first_hour, bounded.pending.events) == (1, HOUR, 1)
    for found in (everything, of_shop, of_blog):
        assert found.last_export_at is not None
        assert datetime.now(UTC) - found.last_export_at < timedelta(minutes=1)


async def test_pending_is_of_the_project_and_its_partition(subject: LakeSubject, exports: LakeExports) -> None:
    await subject.store_numbered(2)
    await subject.store_events(event("other", "another project in the shop's partition", timestamp=TIME))
    found = await exports.overview(project_id="shop")
    assert found == (NOTHING, Backlog(3, 2, complete=True), None, None)
    assert (await exports.overview()).pending == Backlog(3, 3, complete=True)


async def test_the_file_of_an_event(subject: LakeSubject, exports: LakeExports) -> None:
    keys = await export_two_hours(subject)
    found = await exports.file_of(SHOP, 1, TIME)
    assert found is not None and found.exported_at is not None
    assert found[:2] == (keys[1], 0)
    of_blog = await exports.file_of(ELSEWHERE, 1, EARLIER)
    assert of_blog is not None and of_blog[:2] == (keys[0], 0)
    assert await exports.file_of(ELSEWHERE, 2, TIME) is None
    assert await exports.file_of(SHOP, 1, EARLIER - timedelta(hours=1)) is None


def test_row_groups_are_known_of_small_parts() -> None:
    assert ROW_GROUP_ROWS == ROWS_OF_FILES
    assert row_group_of("events/x/part-1-0.parquet", ROW_GROUP_ROWS) == 0
    assert row_group_of("events/x/part-1-0.parquet", ROW_GROUP_ROWS + 1) is None
    assert row_group_of("events/x/compact-1-0.parquet", 1) is None


@pytest.mark.parametrize("cursor", ["", "x", "bm90IGpzb24", "WyIyMDI2LTExLTIwVDEyOjAwOjAwIiwxXQ", "é"])
def test_cursors_of_others_are_refused(cursor: str) -> None:
    with pytest.raises(InvalidExportCursor):
        decode_cursor(cursor)


@pytest.fixture
async def lake(postgres_url: str) -> AsyncIterator[PostgresLake]:
    async for made in postgres_lake(postgres_url):
        yield made


async def test_the_documents_query_for_billing_says_the_same(lake: PostgresLake) -> None:
    """With `events_export` in the place of `events_log`; there is no client, so by project."""
    await export_two_hours(lake)
    exports = PostgresLakeExports(lake.postgres, partitions=PARTITIONS)
    rows = await lake.connection.fetch("""
        SELECT project_id,
               COUNT(*) as total_events,
               COUNT(CASE WHEN export_status = 'exported' THEN 1 END) as exported_events,
               MAX(processed_at) as last_export
        FROM events_export
        WHERE created_at >= DATE_TRUNC('day', NOW())
        GROUP BY project_id
    """)
    volumes = {volume.project_id: volume for volume in await lake.listing.volumes()}
    assert {row["project_id"] for row in rows} == set(volumes) == {"shop", BLOG}
    for row in rows:
        overview = await exports.overview(project_id=row["project_id"])
        assert volumes[row["project_id"]].rows == row["exported_events"] == overview.totals.rows
        assert volumes[row["project_id"]].bytes == overview.totals.bytes
        assert overview.pending.events == row["total_events"] - row["exported_events"]
        assert overview.last_export_at == row["last_export"]


async def test_a_long_backlog_is_counted_up_to_a_bound(lake: PostgresLake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("storage.postgres_lake_exports.COUNTED_EVENTS", 2)
    await lake.store_numbered(4)
    overview = await PostgresLakeExports(lake.postgres, partitions=PARTITIONS).overview(project_id="shop")
    assert overview.pending == Backlog(4, 2, complete=False)
    assert COUNTED_EVENTS > 2


async def test_a_stored_event_has_what_its_file_is_found_by(lake: PostgresLake) -> None:
    keys = await export_two_hours(lake)
    found = await EventQueries(lake.postgres).find_event("shop", "e1")
    assert found is not None
    file = await PostgresLakeExports(lake.postgres, partitions=PARTITIONS).file_of(
        found.partition, found.offset, found.timestamp
    )
    assert file is not None and file.key == keys[1]
