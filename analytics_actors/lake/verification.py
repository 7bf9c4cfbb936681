"""The lake against its manifest: every live file is there as it was committed, and every offset that was exported is in
the manifest once. Nothing is changed.

It may run while files are exported and merged: what seems wrong is looked at again, and counts only for files that are
still live then.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from analytics_actors.lake.objects import AT_ONCE, local_copy, name_of
from storage.errors import FormatError, Missing
from storage.lake_content import contradictions
from storage.lake_listing import LakeListing
from storage.lake_manifest import FileEntry, LakeFile
from storage.lake_repair import LakeRepair, Uncovered
from storage.object_store import ObjectStore

PAGE_FILES = 500
LOOKS = 3
"""At what seems to be missing, before it is."""

Progress = Callable[[int], None]
"""Called with the number of files that were looked at."""


@dataclass
class Verified:
    """`problems` are what is wrong; the rest is what a look around has shown besides."""

    files: int = 0
    rows: int = 0
    bytes: int = 0
    problems: list[str] = field(default_factory=list)
    retired: list[str] = field(default_factory=list)
    """Objects that were replaced, and are kept for readers until their grace period is over."""
    planned: list[str] = field(default_factory=list)
    """Objects of an open plan: they become live, or are orphans."""
    foreign: list[str] = field(default_factory=list)
    """Objects that the manifest does not know."""
    forgotten: dict[int, int] = field(default_factory=dict)
    """By partition the first offset of which it is known when it was exported, where that is not 0."""


def _quiet(_: int) -> None:
    """Says nothing."""


class Verification:
    """`folder` is for copies of objects that do not lie on this machine."""

    def __init__(
        self, listing: LakeListing, repair: LakeRepair, objects: ObjectStore, *, folder: Path, deep: bool = False
    ) -> None:
        self._listing = listing
        self._repair = repair
        self._objects = objects
        self._folder = folder
        self._deep = deep
        self._found = Verified()

    async def run(self, progress: Progress = _quiet) -> Verified:
        """Raises `StorageError` when a service is away."""
        found = self._found
        checkpoints = await self._repair.checkpoints()
        live: list[LakeFile] = []
        async for page in self._pages():
            loaded = await self._listing.load([entry.file_id for entry in page])
            live += loaded.values()
            slots = asyncio.Semaphore(AT_ONCE)
            entries = [entry for entry in page if entry.file_id in loaded]
            of_page = [self._verify(slots, entry, loaded[entry.file_id]) for entry in entries]
            for problems in await asyncio.gather(*of_page):
                found.problems += problems
            found.files += len(entries)
            progress(found.files)
        found.rows = sum(file.rows for file in live)
        found.bytes = sum(file.bytes for file in live)
        found.problems += await self._ranges(live, checkpoints)
        await self._look_around()
        return found

    async def _pages(self) -> AsyncIterator[list[FileEntry]]:
        after = None
        while page := await self._listing.files(after=after, limit=PAGE_FILES):
            yield page
            after = page[-1].hour, page[-1].file_id

    async def _verify(self, slots: asyncio.Semaphore, entry: FileEntry, file: LakeFile) -> list[str]:
        async with slots:
            problems = await self._object(file)
            if not problems or not await self._listing.load([entry.file_id]):
                return []
            return [f"{file.key}: {problem}" for problem in problems]

    async def _object(self, file: LakeFile) -> list[str]:
        try:
            info = await self._objects.head(file.key)
            if info is None:
                return ["there is no such object"]
            if info.size != file.bytes:
                return [f"it has {info.size:,} bytes, not {file.bytes:,}"]
            if info.checksum and info.checksum != file.checksum:
                return [f"its checksum is {info.checksum}, not {file.checksum}"]
            # A checksum that only stands beside the object says what was put, and not what is there now.
            if self._deep or not info.checksum:
                async with local_copy(self._objects, file.key, self._folder) as path:
                    return await asyncio.to_thread(contradictions, path, file)
        except (Missing, FormatError) as error:
            return [str(error) if isinstance(error, FormatError) else "there is no such object"]
        return []

    async def _ranges(self, live: Sequence[LakeFile], checkpoints: dict[int, int]) -> list[str]:
        problems = await self._listing.gaps()
        now = await self._repair.checkpoints()
        for file in live:
            for partition, first, after in file.ranges:
                if after > now.get(partition, 0):
                    bound = f"partition {partition} is exported below {now.get(partition, 0)}"
                    problems.append(f"{file.key}: it covers offsets {first} to {after}, and {bound}")
        beginnings = await self._repair.beginnings()
        self._found.forgotten = {partition: first for partition, first in sorted(beginnings.items()) if first}
        if self._deep:
            for each in await self._uncovered(live, checkpoints):
                events = f"{each.events:,} events of {each.hour:%Y-%m-%dT%HZ}"
                offsets = f"offsets {each.first_offset} to {each.next_offset}"
                problems.append(f"partition {each.partition}: {events} at {offsets} are stored, and in no live file")
        return problems

    async def _uncovered(self, live: Sequence[LakeFile], checkpoints: dict[int, int]) -> list[Uncovered]:
        """By checkpoints that were read before the files: what is exported meanwhile is not asked for. Hours may be
        merged while pages are read: what no file seems to have is asked for again."""
        found = await self._repair.uncovered(live, checkpoints)
        for _ in range(LOOKS - 1):
            if not found:
                break
            now: list[LakeFile] = []
            async for page in self._pages():
                now += (await self._listing.load([entry.file_id for entry in page])).values()
            found = await self._repair.uncovered(now, checkpoints)
        return found

    async def _look_around(self) -> None:
        """Objects first, then what is known of them: none is taken for a stranger that is committed meanwhile."""
        keys: list[str] = [info.key async for info in self._objects.list("")]
        open_plans = await self._listing.open_plan_ids()
        for first in range(0, len(keys), PAGE_FILES):
            some = keys[first : first + PAGE_FILES]
            live_or_retired = await self._listing.known(some)
            live = await self._repair.live(some)
            self._found.retired += [key for key in some if key in live_or_retired and key not in live]
            for key in some:
                if key not in live_or_retired:
                    name = name_of(key)
                    is_planned = name is not None and name.plan_id in open_plans
                    (self._found.planned if is_planned else self._found.foreign).append(key)
