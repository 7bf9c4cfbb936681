"""`lake verify` and `lake rebuild` over a real manifest and real files, in a folder and on S3."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import msgspec
import pytest
from click.testing import Result

from analytics_actors.lake.rebuilding import Rebuilt, rebuild
from config.settings import LakeSettings
from storage.errors import Conflict, Fenced
from storage.folder_objects import FolderObjects
from storage.lake_file import read_note
from storage.lake_manifest import LakeFile, OffsetRange
from storage.object_store import ObjectStore
from storage.s3_objects import S3Objects
from tests.contract.lake_subject import BLOG, ELSEWHERE, HOUR, SHOP, epochs_of, postgres_lake
from tests.contract.real_lake import Crash, RealLake, crash_at
from tests.object_servers import ObjectServer
from tests.unit.cli_server import invoke

BOTH = ("shop", BLOG)


@pytest.fixture(params=["folder", "moto"])
async def objects(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[ObjectStore]:
    if request.param == "folder":
        made: ObjectStore = FolderObjects(tmp_path / "lake")
    else:
        server: ObjectServer = request.getfixturevalue("moto_server")
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        settings = LakeSettings(endpoint_url=server.endpoint_url, path_style=True)
        made = S3Objects(server.make_bucket(), "prefix", settings)
    yield made
    await made.close()


@pytest.fixture
async def lake(postgres_url: str, objects: ObjectStore, tmp_path: Path) -> AsyncIterator[RealLake]:
    async for subject in postgres_lake(postgres_url):
        yield RealLake(subject, objects, tmp_path)


async def grow(lake: RealLake) -> None:
    """Three exports of two hours, of which the first two are merged in the one hour."""
    for number in range(3):
        await lake.store(BOTH, hours=2)
        await lake.export()
        if number == 1:
            assert await lake.compact()
    await lake.check_each_event_once()


def _key(file: LakeFile) -> str:
    return file.key


async def made_anew(lake: RealLake, *, force: bool = False, under_way: str = "nothing") -> Rebuilt:
    """`under_way` begins the names of files that may arrive meanwhile."""
    made = await rebuild(lake.repair, lake.objects, folder=lake.folder, force=force)
    await lake.check_each_event_once()
    found = await lake.verify()
    arrived = [key for key in found.foreign if Path(key).name.startswith(under_way) and key not in made.foreign]
    assert (found.problems, found.foreign) == ([], sorted([*made.foreign, *arrived]))
    assert set(found.retired) == set(made.superseded)
    return made


@pytest.mark.parametrize("deep", [False, True])
async def test_a_good_lake_has_no_problem(lake: RealLake, deep: bool) -> None:
    assert (await lake.verify(deep=deep)).files == 0
    await grow(lake)
    await lake.store(BOTH)
    found = await lake.verify(deep=deep)
    assert (found.problems, found.foreign, found.planned, found.forgotten) == ([], [], [], {})
    assert (found.files, found.rows, len(found.retired)) == (5, 36, 2)


async def test_what_else_lies_there_is_named(lake: RealLake) -> None:
    await grow(lake)
    await lake.objects.put_if_absent("notes.txt", b"of somebody")
    stranger = (await lake.keys())[0].replace("part-0", "part-9")
    await lake.objects.put_if_absent(stranger, b"not Parquet")
    await lake.store(BOTH)
    with pytest.raises(Crash):
        await lake.export(reached=crash_at("put"))
    found = await lake.verify()
    assert (found.problems, found.foreign, len(found.planned)) == ([], sorted([stranger, "notes.txt"]), 1)


async def test_objects_that_are_gone_or_changed_are_problems(lake: RealLake) -> None:
    await grow(lake)
    gone, short, flipped, *_ = await lake.keys()
    await lake.objects.delete([gone])
    await lake.damage(short, lambda raw: raw[:-1])
    await lake.damage(flipped, lambda raw: raw[:100] + bytes([raw[100] ^ 1]) + raw[101:])
    problems = (await lake.verify(deep=False)).problems
    assert [problem.split(":")[0] for problem in sorted(problems)] == sorted([gone, short, flipped])
    assert any("no such object" in problem for problem in problems)
    assert any("bytes, not" in problem for problem in problems)
    assert any("checksum" in problem for problem in problems)


async def test_a_manifest_that_says_something_else_is_a_problem(lake: RealLake) -> None:
    await grow(lake)
    execute = lake.subject.connection.execute
    first, *_ = await lake.keys()
    await execute("UPDATE lake_files SET id_digest = id_digest + 1, rows = rows + 1 WHERE key = $1", first)
    problems = (await lake.verify()).problems
    assert [problem.split(":")[0] for problem in problems].count(first) == 2
    assert any("digest" in problem for problem in problems)
    assert any("of its projects" in problem for problem in problems)


async def test_offsets_that_are_not_covered_once_are_problems(lake: RealLake) -> None:
    await grow(lake)
    execute = lake.subject.connection.execute
    await execute("DELETE FROM lake_file_ranges WHERE partition_id = $1 AND first_offset = 6", SHOP)
    await execute("DELETE FROM lake_exports WHERE partition_id = $1 AND first_offset = 3", ELSEWHERE)
    await execute("UPDATE checkpoints SET next_offset = 8 WHERE sink = 'lake' AND partition_id = $1", ELSEWHERE)
    problems = "\n".join((await lake.verify()).problems)
    assert (
        f"partition {SHOP}: 3 events of" in problems and "at offsets 6 to 9 are stored, and in no live file" in problems
    )
    assert f"partition {ELSEWHERE}: offsets from 3 were exported, then from 6" in problems
    assert "exported below 9, and the checkpoint is 8" in problems
    assert "it covers offsets 6 to 9" in problems


async def test_forgotten_history_is_no_problem(lake: RealLake) -> None:
    await grow(lake)
    await lake.subject.connection.execute("DELETE FROM lake_exports WHERE first_offset = 0")
    found = await lake.verify()
    assert (found.problems, found.forgotten) == ([], {SHOP: 3, ELSEWHERE: 3})


async def test_a_lost_manifest_is_made_anew_as_it_was(lake: RealLake) -> None:
    await grow(lake)
    listing = lake.subject.listing
    files, holdings, totals = await listing.files(), await listing.holdings(), await listing.totals()
    content = await listing.load([entry.file_id for entry in files])
    checkpoints = await lake.repair.checkpoints()
    volumes = await listing.volumes()
    await lake.lose_manifest()
    made = await made_anew(lake)
    again = await listing.files()
    assert {entry.key: entry.plan_id for entry in again} == {entry.key: entry.plan_id for entry in files}
    made_content = await listing.load([entry.file_id for entry in again])
    assert sorted(made_content.values(), key=_key) == sorted(content.values(), key=_key)
    assert (await listing.holdings(), await listing.volumes()) == (holdings, volumes)
    assert await listing.totals() == totals
    assert made.checkpoints == {p: offset for p, offset in checkpoints.items() if offset} == {SHOP: 9, ELSEWHERE: 9}
    await lake.store(BOTH, hours=2)
    await lake.export()
    assert await lake.compact()
    await lake.check_each_event_once()
    assert (await lake.verify()).problems == []


async def test_a_manifest_that_holds_something_is_not_replaced_unless_forced(lake: RealLake) -> None:
    await grow(lake)
    files = await lake.subject.listing.files()
    with pytest.raises(Conflict):
        await rebuild(lake.repair, lake.objects, folder=lake.folder, force=False)
    assert await lake.subject.listing.files() == files
    await made_anew(lake, force=True)
    assert await lake.keys() == sorted(entry.key for entry in files)


async def test_a_plan_that_was_put_in_part_is_exported_again(lake: RealLake) -> None:
    await grow(lake)
    # More hours than are put at once: what is on its way at the crash may still arrive.
    await lake.store(BOTH, hours=12)
    with pytest.raises(Crash):
        await lake.export(reached=crash_at("one put", times=2))
    [cut_short] = await lake.subject.connection.fetch("SELECT plan_id FROM lake_plans WHERE state = 'open'")
    await lake.lose_manifest()
    made = await made_anew(lake, under_way=f"part-{cut_short['plan_id']:012}-")
    assert len(made.dropped_plans) == 1 and made.missing == []
    assert made.checkpoints == {SHOP: 9, ELSEWHERE: 9}
    await lake.export()
    assert await lake.repair.checkpoints() == {p: {SHOP: 12, ELSEWHERE: 12}.get(p, 0) for p in range(4)}
    await lake.check_each_event_once()
    found = await lake.verify()
    assert (found.problems, set(found.retired)) == ([], set(made.superseded))


async def test_a_plan_that_was_put_and_not_committed_is_taken(lake: RealLake) -> None:
    await lake.store(BOTH, hours=2)
    with pytest.raises(Crash):
        await lake.export(reached=crash_at("put"))
    made = await made_anew(lake)
    assert (made.checkpoints, made.dropped_plans, len(made.live)) == ({SHOP: 3, ELSEWHERE: 3}, [], 2)
    await lake.export()
    assert len(await lake.keys()) == 2
    await lake.check_each_event_once()


async def test_a_merge_that_was_put_and_not_swapped_stands_for_its_parts(lake: RealLake) -> None:
    await grow(lake)
    with pytest.raises(Crash):
        await lake.compact(ago=1, reached=crash_at("put"))
    made = await made_anew(lake, force=True)
    kinds = [(each.file.hour == HOUR, each.kind) for each in made.live]
    assert sorted(kinds) == [(False, "compact"), (True, "compact"), (True, "part")]
    assert len(made.superseded) == 5


async def test_whoever_exports_meanwhile_is_fenced_and_names_are_new(lake: RealLake) -> None:
    await grow(lake)
    await lake.store(BOTH)
    manifest = lake.subject.manifest
    claimed = await manifest.claim([SHOP])
    plan = await manifest.plan([OffsetRange(SHOP, 9, 12)], epochs_of(claimed))
    await made_anew(lake, force=True)
    with pytest.raises(Fenced):
        await manifest.commit(plan.plan_id, epochs_of(claimed), [])
    with pytest.raises(Fenced):
        await manifest.plan([OffsetRange(SHOP, 9, 12)], epochs_of(claimed))
    fresh = await manifest.plan([OffsetRange(SHOP, 9, 12)], epochs_of(await manifest.claim([SHOP])))
    assert fresh.plan_id > plan.plan_id


async def test_a_lost_file_in_the_middle_is_told(lake: RealLake) -> None:
    await grow(lake)
    lost = min(await lake.keys())
    await lake.objects.delete([lost])
    await lake.lose_manifest()
    made = await rebuild(lake.repair, lake.objects, folder=lake.folder, force=False)
    assert sum(each.events for each in made.missing) == 6
    assert {each.hour for each in made.missing} == {HOUR - timedelta(hours=1)}
    assert any("in no live file" in problem for problem in (await lake.verify()).problems)


async def test_what_cannot_be_read_is_told_and_left(lake: RealLake) -> None:
    await grow(lake)
    *_, last = await lake.keys()
    await lake.objects.put_if_absent(last.replace("part-0", "part-7"), b"PAR1 no")
    await lake.objects.put_if_absent("events/readme", b"x")
    made = await made_anew_with_foreign(lake)
    assert list(made.unreadable) == [last.replace("part-0", "part-7")]
    assert made.foreign == ["events/readme"]


async def made_anew_with_foreign(lake: RealLake) -> Rebuilt:
    made = await rebuild(lake.repair, lake.objects, folder=lake.folder, force=True)
    await lake.check_each_event_once()
    return made


async def test_a_new_database_goes_on_behind_what_the_files_hold(lake: RealLake) -> None:
    """PostgreSQL is lost with everything in it: offsets of the files are never given to other events."""
    await grow(lake)
    execute = lake.subject.connection.execute
    await lake.lose_manifest()
    await execute("TRUNCATE events_log, checkpoints, lake_volumes")
    made = await rebuild(lake.repair, lake.objects, folder=lake.folder, force=False)
    assert made.missing == []
    rows = await lake.subject.connection.fetch("SELECT sink, partition_id, next_offset FROM checkpoints")
    wanted = {(sink, partition, 9) for sink in ("lake", "event_store") for partition in (SHOP, ELSEWHERE)}
    assert {tuple(row) for row in rows} == wanted
    assert (await lake.verify()).problems == []
    volumes = await lake.subject.listing.volumes()
    assert {volume.project_id: volume.rows for volume in volumes} == {"shop": 18, BLOG: 18}


async def test_the_footers_tell_of_their_plans(lake: RealLake) -> None:
    await grow(lake)
    for entry in await lake.subject.listing.files():
        assert read_note(await lake.objects.get(entry.key)).plan == entry.plan_id


async def command(lake: RealLake, url: str, *words: str) -> Result:
    """With the settings that are given, as for a system of servers."""
    options = [
        "--data",
        str(lake.folder / "data"),
        "--postgres-url",
        url,
        "--lake-url",
        (lake.folder / "lake").as_uri(),
    ]
    return await asyncio.to_thread(invoke, "lake", *words, *options)


@pytest.mark.parametrize("objects", ["folder"], indirect=True)
async def test_the_commands(lake: RealLake, postgres_url: str) -> None:
    await grow(lake)
    await lake.store(BOTH)
    status = await command(lake, postgres_url, "status")
    assert status.exit_code == 0
    for shown in ("5 files, 36 rows", "2 files", "hours to compact"):
        assert shown in status.stdout
    told = msgspec.json.decode((await command(lake, postgres_url, "status", "--json")).stdout)
    assert (told["files"], told["rows"], told["shards"][0]["pending_records"]) == (5, 36, 6)
    good = await command(lake, postgres_url, "verify", "--deep")
    assert (good.exit_code, "as it should be: 5 files, 36 rows" in good.stdout) == (0, True)
    assert good.stdout.count("replaced, to be removed by the lake keeper: events/") == 2

    gone, *_ = await lake.keys()
    raw = await lake.objects.get(gone)
    await lake.objects.delete([gone])
    bad = await command(lake, postgres_url, "verify")
    assert bad.exit_code == 1
    assert f"problem: {gone}: there is no such object" in bad.stdout and "problems in the lake: 1" in bad.stderr
    as_json = await command(lake, postgres_url, "verify", "--json")
    assert as_json.exit_code == 1
    assert msgspec.json.decode(as_json.stdout)["problems"] == [f"{gone}: there is no such object"]
    await lake.objects.put_if_absent(gone, raw)

    refused = await command(lake, postgres_url, "rebuild")
    assert (refused.exit_code, "--force" in refused.stderr) == (1, True)
    made = await command(lake, postgres_url, "rebuild", "--force")
    assert (made.exit_code, "5 files, 36 rows" in made.stdout) == (0, True)
    again = msgspec.json.decode((await command(lake, postgres_url, "rebuild", "--force", "--json")).stdout)
    assert (again["files"], len(again["superseded"]), again["missing"], again["dropped_plans"]) == (5, 2, [], [])
    assert (await command(lake, postgres_url, "verify", "--deep")).exit_code == 0
