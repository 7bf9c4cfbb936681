"""Small files of one hour become one: planned, merged, put, swapped.

The law:
- Readers see the hour's events once at any moment: new files become live and old ones are retired in one transaction,
  and the old objects stay until their grace period is over.
- The object's name comes from the plan, its content from the plan's files. Whoever does a plan again, after a crash
  anywhere or at the same time, makes the same object: what lies there is taken when its note says that it holds the
  same events. So two keepers cost each other work, and nothing else.
- Nothing becomes live unless rows and digest are those of the files it replaces. Files that cannot be merged stay as
  they are, and their plan is given up.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import replace
from datetime import datetime
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from analytics_actors.counters import Counters
from analytics_actors.lake.carrying import CrashPoint, NameTaken, Patience, Unreadable, no_crash
from analytics_actors.lake.objects import check_bytes
from analytics_actors.windows.sources import Compute
from config.settings import MIB, LakeSettings
from storage.destinations import Stretch
from storage.errors import FormatError, Missing
from storage.lake_file import Compression, FileSummary, cold_key, key_of, read_summary
from storage.lake_listing import LakeListing
from storage.lake_manifest import DIGEST_BITS, FileEntry, LakeFile, LakeManifest, OffsetRange, Swap, joined
from storage.lake_merge import select_rows
from storage.lake_selection import Selection
from storage.object_store import ObjectStore, PutResult

MAX_FILES = 64
"""Of one merge: an hour with more takes several, whose files are merged in turn."""
MAX_OPEN_BYTES = 256 * MIB
"""What the files of one merge take while they are read."""
PAGES_BYTES = 20 * MIB
"""What reading takes of a large file: a page of each column, decompressed."""
_INFLATED = 4

DOWNLOADS = 4
"""At once."""

Refused = (FormatError, Missing, NameTaken, Unreadable, OSError)
"""Why files stay as they are: to try again at once would not help."""

_log = logging.getLogger(__name__)


class Compaction:
    """One merge at a time. `folder` is on this machine, for copies of objects and for what is not put yet."""

    def __init__(
        self,
        manifest: LakeManifest,
        listing: LakeListing,
        objects: ObjectStore,
        counters: Counters,
        *,
        settings: LakeSettings,
        folder: Path,
        compute: Compute,
        cold_storage_class: str = "",
        reached: CrashPoint = no_crash,
    ) -> None:
        self._cold_storage_class = cold_storage_class
        self._manifest = manifest
        self._listing = listing
        self._objects = objects
        self._counters = counters
        self._patience = Patience(counters)
        self._settings = settings
        self._folder = folder
        self._compute = compute
        self._reached = reached
        self.open_plan = 0
        """The plan under way; 0 for none."""
        self._met = 0
        """The last plan that was in the way."""

    async def compact(self, hour: datetime, *, is_quiet: bool) -> bool:
        """Merge small files of the hour; whether that was done. Raises what is in `Refused`."""
        below = self._settings.compact_below_bytes
        small = await self._patience.wait_for("manifest", lambda: self._listing.small_files(hour, small_bytes=below))
        chosen = choose(small, is_quiet=is_quiet, settings=self._settings)
        if len(chosen) < 2:
            return False
        file_ids = tuple(entry.file_id for entry in chosen)
        plan_id = await self._patience.wait_for("manifest", lambda: self._manifest.plan_swap("compact", file_ids))
        if plan_id is not None:
            return await self.finish(plan_id, file_ids)
        swap = await self._in_the_way(set(file_ids))
        return swap is not None and await self.finish(swap.plan_id, swap.file_ids)

    async def _in_the_way(self, file_ids: set[int]) -> Swap | None:
        """The open merge that has some of the files, when it is ours, the answer being lost, or that of another keeper
        that was met before and is probably no more."""
        for swap in await self._patience.wait_for("manifest", self._manifest.open_swaps):
            if swap.kind == "compact" and file_ids & set(swap.file_ids):
                if file_ids == set(swap.file_ids) or swap.plan_id == self._met:
                    return swap
                self._met = swap.plan_id
        return None

    async def rewrite(self, file_id: int, leave_out: Collection[str]) -> bool:
        """Put a file without some projects in its place; whether that was done. One other project is in it at least.
        Raises what is in `Refused`. Who begins anew cancels such a plan: it does not know what was to be left out."""
        plan_id = await self._patience.wait_for("manifest", lambda: self._manifest.plan_swap("rewrite", [file_id]))
        return plan_id is not None and await self.finish(plan_id, [file_id], leave_out=leave_out)

    async def finish(self, plan_id: int, file_ids: Sequence[int], *, leave_out: Collection[str] = ()) -> bool:
        """Carry out a plan that was begun; whether it took effect. It is given up if it cannot be."""
        self.open_plan = plan_id
        try:
            is_done = await self._carry_out(plan_id, file_ids, leave_out)
        except Refused:
            await self._give_up(plan_id)
            raise
        finally:
            self.open_plan = 0
        if not is_done:
            await self._give_up(plan_id)
        return is_done

    async def _give_up(self, plan_id: int) -> None:
        self._counters.count("merges_given_up")
        await self._patience.wait_for("manifest", lambda: self._manifest.cancel_swap(plan_id))

    async def _carry_out(self, plan_id: int, file_ids: Sequence[int], leave_out: Collection[str]) -> bool:
        self._reached("planned")
        found = await self._patience.wait_for("manifest", lambda: self._listing.load(file_ids))
        if len(found) < len(file_ids):
            return False
        sources = [found[file_id] for file_id in file_ids]
        started_s = time.monotonic()
        self._folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=self._folder, prefix=f"{plan_id}-") as folder:
            file = await self._merged(plan_id, sources, leave_out, Path(folder))
        self._reached("put")
        outcome = await self._patience.wait_for("manifest", lambda: self._manifest.swap(plan_id, [file]))
        self._reached("swapped")
        if outcome == "outdated":
            return False
        if leave_out:
            self._count_rewritten(sources, file)
        else:
            self._count(sources, file, seconds=time.monotonic() - started_s)
        return True

    async def _merged(
        self, plan_id: int, sources: Sequence[LakeFile], leave_out: Collection[str], folder: Path
    ) -> LakeFile:
        """The new file, as it lies in the object store."""
        paths = await self._local(sources, folder)
        for path, file in zip(paths, sources, strict=True):
            await self._compute(check_bytes, path, file.key, file.checksum)
        hour = int(sources[0].hour.timestamp())
        key = key_of(hour, plan_id, 0, kind="compact")
        is_cold = sources[0].tier == "cold"
        if is_cold:
            key = cold_key(key)
        made = folder / "merged"
        ranges = joined([each for file in sources for each in file.ranges])
        summary: FileSummary = await self._compute(
            _merge, paths, made, hour, plan_id, ranges, self._settings.compression, _without(sources, leave_out)
        )
        _check_content(summary, sources, leave_out)
        self._reached("merged")
        put = await self._patience.wait_for(
            "object store", lambda: self._objects.put_if_absent(key, made, checksum=summary.checksum)
        )
        if put is PutResult.OTHER:
            made.unlink()
            summary = await self._adopted(key, summary, folder)
        if is_cold and self._cold_storage_class:
            kind = self._cold_storage_class
            await self._patience.wait_for("object store", lambda: self._objects.copy(key, key, storage_class=kind))
        return replace(summary.at(key), tier=sources[0].tier)

    async def _local(self, sources: Sequence[LakeFile], folder: Path) -> list[Path]:
        """Where the files are on this machine."""
        slots = asyncio.Semaphore(DOWNLOADS)

        async def local(number: int, key: str) -> Path:
            path = self._objects.local_path(key)
            if path is not None:
                return path
            target = folder / f"source-{number}"
            async with slots:
                await self._patience.wait_for_object(self._objects, key, lambda: self._objects.download(key, target))
            return target

        tasks = [asyncio.create_task(local(number, file.key)) for number, file in enumerate(sources)]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _adopted(self, key: str, ours: FileSummary, folder: Path) -> FileSummary:
        """What lies there, made by another release or with another compression, when it holds what ours does."""
        path = self._objects.local_path(key)
        if path is None:
            path = folder / "adopted"
            await self._patience.wait_for_object(self._objects, key, partial(self._objects.download, key, path))
        theirs: FileSummary = await self._compute(read_summary, path)
        told = [(s.note.plan, s.note.number, s.note.hour, s.note.rows, s.note.id_digest) for s in (theirs, ours)]
        if told[0] != told[1]:
            raise NameTaken(f"{key} holds (plan, number, hour, rows, digest) {told[0]}, not {told[1]}")
        return theirs

    def _count(self, sources: Sequence[LakeFile], file: LakeFile, *, seconds: float) -> None:
        self._counters.count("merges")
        self._counters.count("files_merged", len(sources))
        self._counters.count("rows_merged", file.rows)
        self._counters.count("bytes_merged", sum(each.bytes for each in sources))
        self._counters.count("bytes_written", file.bytes)
        self._counters.count("merge_seconds", seconds)
        fields = {"key": file.key, "files": len(sources), "rows": file.rows, "bytes": file.bytes}
        _log.info("small files became one", extra={"action": "compacted"} | fields)

    def _count_rewritten(self, sources: Sequence[LakeFile], file: LakeFile) -> None:
        self._counters.count("files_rewritten", len(sources))
        fields = {"key": file.key, "rows_before": sum(each.rows for each in sources), "rows": file.rows}
        _log.info("a file was written without some projects", extra={"action": "rewritten"} | fields)


def choose(small: Sequence[FileEntry], *, is_quiet: bool, settings: LakeSettings) -> list[FileEntry]:
    """Which of an hour's small files, oldest first, become one: two at least, if there are so many.

    While the hour is busy, what was merged before is left for the end, so that a file is not rewritten with each few
    that come; unless that alone is too much."""
    fresh = [entry for entry in small if "/part-" in entry.key]
    candidates = fresh if not is_quiet and len(fresh) > settings.compact_max_parts // 2 else small
    chosen: list[FileEntry] = []
    file_bytes = read_bytes = 0
    for entry in candidates[:MAX_FILES]:
        file_bytes += entry.bytes
        read_bytes += open_bytes(entry.bytes)
        if len(chosen) >= 2 and (file_bytes > settings.compact_max_bytes or read_bytes > MAX_OPEN_BYTES):
            break
        chosen.append(entry)
    return chosen


def open_bytes(file_bytes: int) -> int:
    """What a file takes in memory while it is read."""
    return min(file_bytes * _INFLATED, PAGES_BYTES)


def _merge(
    sources: Sequence[Path],
    target: Path,
    hour: int,
    plan_id: int,
    ranges: Sequence[OffsetRange],
    compression: Compression,
    selection: Selection | None,
) -> FileSummary:
    with target.open("wb") as sink:
        made = select_rows(
            sources, sink, selection, hour=hour, plan=plan_id, number=0, ranges=ranges, compression=compression
        )
    if made is None:
        raise FormatError("files of the lake have no row that stays")
    return made


def _without(sources: Sequence[LakeFile], leave_out: Collection[str]) -> Selection | None:
    """The rows of the other projects; None for all rows."""
    if not leave_out:
        return None
    stay = _projects(sources).keys() - set(leave_out)
    ranges = [each for file in sources for each in file.ranges]
    return Selection([Stretch(project, *each) for project in sorted(stay) for each in ranges])


def _check_content(made: FileSummary, sources: Sequence[LakeFile], leave_out: Collection[str]) -> None:
    if leave_out:
        stay = {project: rows for project, rows in _projects(sources).items() if project not in leave_out}
        if made.note.projects != stay:
            raise FormatError(f"a file of {sources[0].hour} holds {made.note.projects}, of the manifest stay {stay}")
        return
    wanted = sum(file.rows for file in sources), sum(file.id_digest for file in sources) % (1 << DIGEST_BITS)
    if (found := (made.note.rows, made.note.id_digest)) != wanted:
        raise FormatError(f"files of {sources[0].hour} hold (rows, digest) {found}, the manifest says {wanted}")


def _projects(files: Sequence[LakeFile]) -> Counter[str]:
    rows: Counter[str] = Counter()
    for file in files:
        rows.update(file.projects)
    return rows
