"""The lake keeper over PostgreSQL and real object stores: several at once, and the manifest's part of it."""

import asyncio
import io
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from analytics_actors.counters import Counters
from analytics_actors.lake.ageing import Ageing
from analytics_actors.lake.compaction import Compaction
from analytics_actors.lake.keeper import LakeKeeper
from analytics_actors.retention.policy import Policy
from analytics_actors.retention.report import Report
from analytics_actors.windows.sources import in_thread
from config.settings import LakeSettings, RetentionSettings
from storage.lake_file import cold_key, key_of, write_file
from storage.lake_manifest import OffsetRange
from storage.object_store import ObjectStore, PutResult, open_object_store
from tests.contract.lake_subject import HOUR, SHOP, LakeSubject, epochs_of, named
from tests.contract.test_object_store import settings_of
from tests.object_servers import ObjectServer
from tests.unit.test_lake_file import made_events, made_row

EAGER = LakeSettings(
    compact_quiet_s=0.2,
    keeper_interval_s=0.1,
    retired_grace_s=1,
    orphan_grace_s=2,
    orphan_interval_s=0.5,
)


@pytest.fixture
def subject(lake_subject: LakeSubject) -> LakeSubject:
    return lake_subject


@pytest.fixture(params=["folder", "moto"])
async def objects(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[ObjectStore]:
    settings = LakeSettings()
    if request.param == "moto":
        server: ObjectServer = request.getfixturevalue("moto_server")
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        settings = settings_of(server)
    store = open_object_store(settings, data=tmp_path / "data")
    yield store
    await store.close()


async def export(subject: LakeSubject, objects: ObjectStore, count: int) -> None:
    """As many exports of one event each, as real files."""
    await subject.store_numbered(count)
    epochs = epochs_of(await subject.manifest.claim([SHOP]))
    for number, (project, event_id) in enumerate(named(0, count)):
        plan = await subject.manifest.plan([OffsetRange(SHOP, number, number + 1)], epochs)
        row = made_row(
            number,
            project_id=project,
            event_id=event_id,
            timestamp=HOUR + timedelta(minutes=number),
            partition_id=SHOP,
            log_offset=number,
        )
        sink = io.BytesIO()
        hour = int(HOUR.timestamp())
        summary = write_file(made_events([row]), sink, hour=hour, plan=plan.plan_id, number=0, ranges=plan.ranges)
        key = key_of(hour, plan.plan_id, 0)
        assert await objects.put_if_absent(key, sink.getvalue()) is PutResult.WRITTEN
        await subject.manifest.commit(plan.plan_id, epochs, [summary.at(key)])


async def ids_in(subject: LakeSubject, objects: ObjectStore) -> list[str]:
    keys, tail = await subject.found()
    assert not tail
    tables = [pq.read_table(io.BytesIO(await objects.get(key))) for key in keys]
    return sorted(event_id for table in tables for event_id in table.column("event_id").to_pylist())


async def test_keepers_at_once_and_one_after_the_other(
    subject: LakeSubject, objects: ObjectStore, tmp_path: Path
) -> None:
    await export(subject, objects, 6)
    wanted = sorted(event_id for _, event_id in named(0, 6))
    keepers = [
        LakeKeeper(
            manifest=subject.manifest,
            listing=subject.listing,
            objects=objects,
            settings=EAGER,
            folder=tmp_path / "keeper",
        )
        for _ in range(3)
    ]
    async with AsyncExitStack() as stack, asyncio.timeout(60):
        for keeper in keepers:
            keeper.start()
            stack.push_async_callback(keeper.close)
        while len(live := await subject.listing.files()) > 1:
            assert await ids_in(subject, objects) == wanted
            await asyncio.sleep(0.02)
        assert "/compact-" in live[0].key
        assert await ids_in(subject, objects) == wanted
        while [info.key async for info in objects.list("")] != [live[0].key]:
            await asyncio.sleep(0.1)
        while (await subject.listing.totals()).retired_files or await subject.manifest.open_swaps():
            await asyncio.sleep(0.1)
    assert await ids_in(subject, objects) == wanted
    assert await subject.listing.gaps() == []
    assert [keeper.failure for keeper in keepers] == [None] * 3
    totals: Counter[str] = Counter()
    for keeper in keepers:
        totals.update({name: int(value) for name, value in keeper.observe().counters.items()})
    assert totals["merges"] >= 1 and totals["files_removed"] >= 6
    assert not list((tmp_path / "keeper").glob("*"))


async def test_files_become_cold_with_all_that_is_in_them(
    subject: LakeSubject, objects: ObjectStore, tmp_path: Path
) -> None:
    await export(subject, objects, 3)
    before = {entry.key: await objects.get(entry.key) for entry in await subject.listing.files()}
    counters = Counters()
    compaction = Compaction(
        subject.manifest,
        subject.listing,
        objects,
        counters,
        settings=EAGER,
        folder=tmp_path / "keeper",
        compute=in_thread,
    )
    ageing = Ageing(
        subject.manifest,
        subject.listing,
        objects,
        compaction,
        counters,
        settled_s=0.0,
        cold_storage_class="STANDARD_IA",
    )
    policy = Policy(RetentionSettings(lake_hot_days=1), with_lake=True, least_raw_days=3)
    report = Report(datetime.now(UTC) + timedelta(days=3), dry_run=False)
    moved = [removal async for removal in ageing.work(policy, report.started_at, report)]
    assert [(each.kind, each.files, each.rows) for each in moved] == [("moved_files", 1, 1)] * 3
    files = await subject.listing.files()
    assert {(entry.key, entry.tier) for entry in files} == {(cold_key(key), "cold") for key in before}
    for key, raw in before.items():
        assert await objects.get(cold_key(key)) == raw == await objects.get(key), "the old one stays for its grace"
    assert await ids_in(subject, objects) == sorted(event_id for _, event_id in named(0, 3))
    assert (await subject.listing.totals()).cold_files == 3 and await subject.listing.gaps() == []
    assert [removal async for removal in ageing.work(policy, report.started_at, report)] == [], "it is done"
    much_later = report.started_at + timedelta(days=800)
    gone = [removal async for removal in ageing.work(policy, much_later, report)]
    assert [each.kind for each in gone] == ["expired_files"] * 3 and await subject.listing.files() == []
    assert report.kept == [] and await subject.manifest.open_swaps() == []


async def test_a_swap_that_was_begun_is_told_until_it_ends(subject: LakeSubject, objects: ObjectStore) -> None:
    await export(subject, objects, 3)
    first, second, third = (entry.file_id for entry in await subject.listing.files())
    begun = await subject.manifest.plan_swap("compact", [first, second])
    expiring = await subject.manifest.plan_swap("expire", [third])
    assert begun is not None and expiring is not None
    swaps = await subject.manifest.open_swaps()
    assert [each[:3] for each in swaps] == [(begun, "compact", (first, second)), (expiring, "expire", (third,))]
    assert begun not in await subject.listing.ended([begun])

    await subject.manifest.cancel_swap(begun)
    await subject.manifest.cancel_swap(begun)
    await subject.manifest.swap(expiring, [])
    await subject.manifest.cancel_swap(expiring)
    assert await subject.manifest.open_swaps() == []
    assert await subject.manifest.swap(begun, []) == "outdated"
    assert await subject.manifest.swap(expiring, []) == "repeated"
    assert await subject.manifest.plan_swap("compact", [first, second]) is not None, "its files are free again"
    ended = await subject.listing.ended([begun, expiring, 999_999])
    assert ended == {each.plan_id: each.created_at for each in swaps}


async def test_an_export_is_no_swap(subject: LakeSubject) -> None:
    await subject.store_numbered(1)
    epochs = epochs_of(await subject.manifest.claim([SHOP]))
    plan = await subject.manifest.plan([OffsetRange(SHOP, 0, 1)], epochs)
    await subject.manifest.cancel_swap(plan.plan_id)
    assert await subject.manifest.open_swaps() == []
    assert await subject.manifest.open_plans([SHOP]) == [plan]
