"""The law of `storage.stored_log`, kept over the store in memory and the one in PostgreSQL alike."""

import pytest

from storage.event_columns import OFFSET_COLUMNS
from storage.lake_manifest import OffsetRange
from storage.stored_log import DeadRow, Stretch
from tests.contract.lake_subject import BLOG, ELSEWHERE, SHOP, LakeSubject
from tests.contract.log_records import batch, event, record, write


@pytest.fixture
def subject(lake_subject: LakeSubject) -> LakeSubject:
    return lake_subject


async def ids(subject: LakeSubject, stretch: Stretch) -> list[tuple[int, str]]:
    found: list[tuple[int, str]] = []
    async for rows in subject.stored_log.rows(stretch):
        assert rows.schema.equals(OFFSET_COLUMNS)
        found += [(row["log_offset"], row["event_id"]) for row in rows.to_pylist()]
    return sorted(found)


async def test_a_range_is_read_back(subject: LakeSubject) -> None:
    for number in range(4):
        await subject.store_events(event(f"a{number}"), event(f"b{number}"))
        await subject.store_events(event(f"c{number}", BLOG), partition=ELSEWHERE)
    [stretch] = await subject.stored_log.stretches(OffsetRange(SHOP, 1, 3), since=None, max_rows=100, max_bytes=1 << 30)
    assert stretch[:2] == (OffsetRange(SHOP, 1, 3), 4)
    assert await ids(subject, stretch) == [(1, "a1"), (1, "b1"), (2, "a2"), (2, "b2")]


async def test_rows_are_as_they_were_stored(subject: LakeSubject) -> None:
    full = event("a", user_id='ü",\n\\.', session_id="\\N", properties='{"a":[1,null]}', context='{"ip":"::1"}')
    await subject.store_events(full)
    [stretch] = await subject.stored_log.stretches(OffsetRange(SHOP, 0, 1), since=None, max_rows=100, max_bytes=1 << 30)
    [rows] = [rows async for rows in subject.stored_log.rows(stretch)]
    assert rows.to_pylist() == [full | {"log_offset": 0}]


async def test_stretches_are_of_whole_records_and_leave_nothing_out(subject: LakeSubject) -> None:
    """Records of 3 events at offsets 0 to 9; what was stored in one write and what was not."""
    await subject.store.claim(SHOP, epoch=1)
    records = [record(batch(*(event(f"{offset}-{n}") for n in range(3)))) for offset in range(10)]
    await subject.store.write([write(*records[:6], partition=SHOP)])
    await subject.store.write([write(*records[6:], partition=SHOP, first=6)])
    found = await subject.stored_log.stretches(OffsetRange(SHOP, 0, 10), since=None, max_rows=8, max_bytes=1 << 30)
    assert [(each.range.first_offset, each.range.next_offset, each.rows) for each in found] == [
        (0, 3, 9),
        (3, 6, 9),
        (6, 8, 6),
        (8, 10, 6),
    ]
    whole = [each for stretch in found for each in await ids(subject, stretch)]
    assert whole == [(offset, f"{offset}-{n}") for offset in range(10) for n in range(3)]


async def test_stretches_are_of_so_many_bytes_too(subject: LakeSubject) -> None:
    large = f'{{"t": "{"x" * 10_000}"}}'
    sizes = [large, "{}", "{}", large, large, "{}"]
    for number, properties in enumerate(sizes):
        context = large if number == 2 else None
        await subject.store_events(event(f"e{number}", properties=properties, context=context))
    found = await subject.stored_log.stretches(OffsetRange(SHOP, 0, 6), since=None, max_rows=100, max_bytes=15_000)
    assert [(each.range.first_offset, each.range.next_offset) for each in found] == [(0, 3), (3, 4), (4, 6)]
    assert [len(await ids(subject, each)) for each in found] == [3, 1, 2]
    each_alone = await subject.stored_log.stretches(OffsetRange(SHOP, 3, 6), since=None, max_rows=100, max_bytes=1)
    assert [each.rows for each in each_alone] == [1, 1, 1]


async def test_a_record_larger_than_a_stretch_is_one(subject: LakeSubject) -> None:
    await subject.store_events(event("a"))
    await subject.store_events(*(event(f"b{n}") for n in range(50)))
    await subject.store_events(event("c"))
    found = await subject.stored_log.stretches(OffsetRange(SHOP, 0, 3), since=None, max_rows=10, max_bytes=1 << 30)
    assert [each.rows for each in found] == [51, 1]


async def test_offsets_without_rows_are_in_a_stretch_too(subject: LakeSubject) -> None:
    """Duplicates alone, a gap of the log, dead letters: nothing is stored there."""
    [empty] = await subject.stored_log.stretches(OffsetRange(SHOP, 0, 9), since=None, max_rows=10, max_bytes=1 << 30)
    assert empty[:2] == (OffsetRange(SHOP, 0, 9), 0)
    assert await ids(subject, empty) == []
    await subject.store.claim(SHOP, epoch=1)
    await subject.store.write([write(partition=SHOP)._replace(next_offset=5)])
    await subject.store.write([write(record(batch(event("a"))), partition=SHOP, first=5)])
    await subject.store.write([write(record(batch(event("a"), duplicates=[0])), partition=SHOP, first=6)])
    found = await subject.stored_log.stretches(OffsetRange(SHOP, 0, 7), since=None, max_rows=1, max_bytes=1 << 30)
    assert [(each.range, each.rows) for each in found] == [(OffsetRange(SHOP, 0, 7), 1)]


async def test_the_mark_of_a_checkpoint_leaves_none_of_its_rows_out(subject: LakeSubject) -> None:
    for number in range(5):
        marks = await subject.manifest.stored([SHOP])
        since = marks[SHOP].since if marks else None
        await subject.store_events(event(f"e{number}"))
        [stretch] = await subject.stored_log.stretches(
            OffsetRange(SHOP, number, number + 1), since=since, max_rows=9, max_bytes=1 << 30
        )
        assert await ids(subject, stretch) == [(number, f"e{number}")]


async def test_dead_rows_are_told_by_record_and_row(subject: LakeSubject) -> None:
    bad = '{"a":"\\u0000"}'
    await subject.store_events(event("fine"), event("bad", properties=bad))
    await subject.store_events(event("x\0y", properties=bad))
    await subject.store_events(event("later", properties=bad))
    assert await subject.stored_log.dead_rows([OffsetRange(SHOP, 0, 2), OffsetRange(ELSEWHERE, 0, 9)]) == [
        DeadRow(SHOP, 0, 1, "shop", "bad"),
        DeadRow(SHOP, 1, 0, "shop", "x\ufffdy"),
    ]
    assert await subject.stored_log.dead_rows([]) == []
