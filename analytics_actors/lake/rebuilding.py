"""The manifest made anew from the files' own footers, when the database is lost or its manifest cannot be trusted.

The law:
- The objects are only read. Those that others stand for become retired files, which the lake keeper removes later.
- The lake's checkpoints go as far as the files do. Whether all files of a partition's last plan were put cannot be
  seen from them: when the event store has an event of it that is in no file, and all that its files hold, the plan is
  dropped as a whole and its offsets are exported again. So nothing is missed, and nothing is live twice.
- What is missing further back cannot be exported any more without doing so twice: it is told.
- What retention or a deletion had removed, and the keeper not yet deleted, is live again: run them again.
"""

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime
from pathlib import Path

from analytics_actors.lake.objects import AT_ONCE, Name, local_copy, name_of
from analytics_actors.lake.settling import Found, Settled, last_plans, next_offsets, settle
from storage.errors import Conflict, FormatError, Missing
from storage.lake_file import read_summary
from storage.lake_listing import Volume
from storage.lake_manifest import byte_shares
from storage.lake_repair import LakeRepair, NewManifest, PlannedFile, Uncovered
from storage.object_store import ObjectInfo, ObjectStore


@dataclass(frozen=True)
class Rebuilt:
    """What was made of the objects."""

    live: Sequence[Found]
    superseded: Sequence[str]
    """Keys of objects whose place others have."""
    foreign: Sequence[str]
    """Keys of what is no file of the lake."""
    unreadable: dict[str, str]
    """Objects under names of the lake, and why they could not be read."""
    dropped_plans: Sequence[int]
    """Plans of which not all files were there."""
    missing: Sequence[Uncovered]
    checkpoints: dict[int, int]


@dataclass
class _Objects:
    found: list[Found] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)
    unreadable: dict[str, str] = field(default_factory=dict)
    last_plan: int = 0


async def rebuild(repair: LakeRepair, objects: ObjectStore, *, folder: Path, force: bool) -> Rebuilt:
    """`folder` is for copies. Raises `Conflict` when the manifest holds anything, unless `force` is given."""
    if not force and await repair.holds_anything():
        raise Conflict("the manifest is not empty")
    read = await _read_all(objects, folder)
    dropped: set[int] = set()
    while True:
        settled = settle(each for each in read.found if each.plan_id not in dropped)
        checkpoints = next_offsets(settled.live)
        missing = await repair.uncovered([each.file for each in settled.live], checkpoints)
        suspected = _incomplete(settled.live, missing) - dropped
        incomplete = {plan_id for plan_id in suspected if await _can_be_exported_again(repair, read.found, plan_id)}
        if not incomplete:
            break
        dropped |= incomplete
    superseded = [*settled.superseded, *(each for each in read.found if each.plan_id in dropped)]
    made = NewManifest(
        [PlannedFile(each.plan_id, each.file) for each in settled.live],
        [PlannedFile(each.plan_id, each.file) for each in superseded],
        checkpoints,
        read.last_plan,
        _volumes(settled),
    )
    await repair.replace(made, force=force)
    return Rebuilt(
        settled.live,
        [each.key for each in superseded],
        read.foreign,
        read.unreadable,
        sorted(dropped),
        missing,
        checkpoints,
    )


async def _read_all(objects: ObjectStore, folder: Path) -> _Objects:
    read = _Objects()
    slots = asyncio.Semaphore(AT_ONCE)

    async def read_one(info: ObjectInfo, name: Name) -> None:
        try:
            read.found.append(await _read(objects, info, name, folder))
        except (FormatError, Missing) as error:
            read.unreadable[info.key] = str(error)
        finally:
            slots.release()

    async with asyncio.TaskGroup() as tasks:
        async for info in objects.list(""):
            name = name_of(info.key)
            if name is None:
                read.foreign.append(info.key)
                continue
            read.last_plan = max(read.last_plan, name.plan_id)
            await slots.acquire()
            tasks.create_task(read_one(info, name))
    read.found.sort(key=lambda each: each.key)
    return read


async def _read(objects: ObjectStore, info: ObjectInfo, name: Name, folder: Path) -> Found:
    async with local_copy(objects, info.key, folder) as path:
        summary = await asyncio.to_thread(read_summary, path)
    file = summary.at(info.key)
    if name.is_cold:
        file = replace(file, tier="cold")
    return Found(info.key, name.kind, name.plan_id, file, info.modified_s)


def _incomplete(live: Sequence[Found], missing: Sequence[Uncovered]) -> set[int]:
    """Plans that lack a file, of those that may."""
    last = last_plans(live)
    return {
        last[each.partition][0]
        for each in missing
        if each.partition in last and each.next_offset > last[each.partition][1]
    }


async def _can_be_exported_again(repair: LakeRepair, files: Sequence[Found], plan_id: int) -> bool:
    """Whether the event store has at least what the plan's files hold: retention may have taken some of it away."""
    of_plan = [each.file for each in files if each.plan_id == plan_id]
    ranges = sorted({each for file in of_plan for each in file.ranges})
    return await repair.count_stored(ranges) >= sum(file.rows for file in of_plan)


def _volumes(settled: Settled) -> list[Volume]:
    """For a database that has lost them: by the day on which the objects were made, which is that of the export for
    those that were not merged."""
    sums: dict[tuple[str, date], Counter[str]] = {}
    for each in settled.live:
        day = datetime.fromtimestamp(each.modified_s, UTC).date()
        for project_id, share in byte_shares(each.file).items():
            counts = sums.setdefault((project_id, day), Counter())
            counts.update(files=1, rows=each.file.projects[project_id], bytes=share)
    return [Volume(*key, of["files"], of["rows"], of["bytes"]) for key, of in sorted(sums.items())]
