"""The fake of the lake's listing for unit tests; it passes the same contract suite as `PostgresLakeListing`."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import date, datetime, timedelta
from itertools import pairwise

from storage.lake_listing import AgingFile, HourParts, LakeTotals, PendingExport, Volume, needed_since
from storage.lake_manifest import HOUR, FileEntry, LakeFile, byte_shares
from storage.memory_manifest import MemoryManifest


class MemoryLakeListing:
    """Over a `MemoryManifest`."""

    def __init__(self, manifest: MemoryManifest) -> None:
        self._manifest = manifest

    async def files(
        self,
        *,
        project_id: str | None = None,
        start: datetime | None = None,
        end: datetime | None = None,
        after: tuple[datetime, int] | None = None,
        limit: int = 1000,
    ) -> list[FileEntry]:
        found = [
            kept.entry
            for kept in self._manifest.live()
            if (project_id is None or project_id in kept.file.projects)
            and (start is None or kept.file.hour + HOUR > start)
            and (end is None or kept.file.hour < end)
            and (after is None or (kept.file.hour, kept.entry.file_id) > after)
        ]
        return sorted(found, key=lambda entry: (entry.hour, entry.file_id))[:limit]

    async def load(self, file_ids: Sequence[int]) -> dict[int, LakeFile]:
        return {each.entry.file_id: each.file for each in self._manifest.live() if each.entry.file_id in file_ids}

    async def totals(self, project_id: str | None = None) -> LakeTotals:
        if project_id is not None:
            return self._totals_of_project(project_id)
        live = [kept.file for kept in self._manifest.live()]
        cold = [file for file in live if file.tier == "cold"]
        retired = [kept.file for kept in self._manifest.files.values() if kept.retired_at is not None]
        hours = [file.hour for file in live]
        return LakeTotals(
            len(live),
            sum(file.rows for file in live),
            sum(file.bytes for file in live),
            len(cold),
            sum(file.bytes for file in cold),
            len(retired),
            sum(file.bytes for file in retired),
            len(await self.open_plan_ids()),
            min(hours, default=None),
            max(hours, default=None),
        )

    def _totals_of_project(self, project_id: str) -> LakeTotals:
        files = [kept.file for kept in self._manifest.live() if project_id in kept.file.projects]
        cold = [file for file in files if file.tier == "cold"]
        hours = [file.hour for file in files]
        return LakeTotals(
            len(files),
            sum(file.projects[project_id] for file in files),
            sum(byte_shares(file)[project_id] for file in files),
            len(cold),
            sum(byte_shares(file)[project_id] for file in cold),
            0,
            0,
            0,
            min(hours, default=None),
            max(hours, default=None),
        )

    async def pending(self) -> list[PendingExport]:
        found: list[PendingExport] = []
        for partition in range(self._manifest.partitions):
            [stored] = await self._manifest.store.checkpoints([partition])
            if stored.epoch:
                exported = self._manifest.checkpoint(partition).next_offset
                since = self._manifest.tails.get(partition)
                found.append(PendingExport(partition, exported, stored.next_offset, since))
        return found

    async def needed_since(self) -> datetime | None:
        return needed_since(await self.pending())

    async def volumes(
        self, *, project_id: str | None = None, start: date | None = None, end: date | None = None
    ) -> list[Volume]:
        counts = self._manifest.volumes
        return [
            Volume(project, day, *(counts[project, day, what] for what in ("files", "rows", "bytes")))
            for project, day in sorted({(project, day) for project, day, _ in counts})
            if project_id in (None, project) and _is_within(day, start, end)
        ]

    async def holdings(
        self, *, project_id: str | None = None, start: date | None = None, end: date | None = None
    ) -> list[Volume]:
        sums: defaultdict[tuple[str, date], list[int]] = defaultdict(lambda: [0, 0, 0])
        for kept in self._manifest.live():
            for project, share in byte_shares(kept.file).items():
                added = (1, kept.file.projects[project], share)
                key = project, kept.file.hour.date()
                sums[key] = [have + more for have, more in zip(sums[key], added, strict=True)]
        return [
            Volume(project, day, *numbers)
            for (project, day), numbers in sorted(sums.items())
            if project_id in (None, project) and _is_within(day, start, end)
        ]

    async def hours_to_compact(
        self, *, small_bytes: int, quiet_s: float, max_parts: int, limit: int
    ) -> list[HourParts]:
        hours: defaultdict[datetime, list[FileEntry]] = defaultdict(list)
        for kept in self._manifest.live():
            if kept.file.tier == "hot" and kept.file.bytes < small_bytes:
                hours[kept.file.hour].append(kept.entry)
        quiet_since = self._manifest.clock() - timedelta(seconds=quiet_s)
        found = [
            HourParts(hour, len(parts), sum(each.rows for each in parts), sum(each.bytes for each in parts), newest)
            for hour, parts in hours.items()
            if (newest := max(each.created_at for each in parts)) < quiet_since or len(parts) > max_parts
        ]
        return sorted((each for each in found if each.files > 1), key=lambda each: (-each.files, each.hour))[:limit]

    async def small_files(self, hour: datetime, *, small_bytes: int) -> list[FileEntry]:
        return [
            kept.entry
            for kept in self._manifest.live()
            if kept.file.hour == hour and kept.file.tier == "hot" and kept.file.bytes < small_bytes
        ]

    async def aging(
        self,
        *,
        hot_before: datetime | None,
        before: datetime | None,
        limited: Mapping[str, datetime | None],
        after: tuple[datetime, int] | None = None,
        limit: int,
    ) -> list[AgingFile]:
        found = sorted(
            (kept.file.hour, kept.entry.file_id, kept)
            for kept in self._manifest.live()
            if after is None or (kept.file.hour, kept.entry.file_id) > after
        )
        files = [
            AgingFile(file_id, of.key, of.hour, kept.exported_at, of.tier, of.rows, of.bytes, of.projects)
            for _, file_id, kept in found
            if (of := kept.file)
        ]
        return [
            file
            for file in files
            if (file.tier == "hot" and _is_over(file.hour + HOUR, hot_before))
            or _is_over(file.since, before)
            or any(_is_over(file.since, limited.get(project)) for project in file.projects)
        ][:limit]

    async def expired(self, *, grace_s: float, limit: int) -> list[FileEntry]:
        before = self._manifest.clock() - timedelta(seconds=grace_s)
        return [
            kept.entry
            for kept in self._manifest.files.values()
            if kept.retired_at is not None and kept.retired_at < before
        ][:limit]

    async def forget(self, file_ids: Sequence[int]) -> None:
        for file_id in file_ids:
            kept = self._manifest.files.get(file_id)
            if kept is not None and kept.retired_at is not None:
                del self._manifest.files[file_id]

    async def known(self, keys: Sequence[str]) -> set[str]:
        return {kept.file.key for kept in self._manifest.files.values()} & set(keys)

    async def ended(self, plan_ids: Sequence[int]) -> dict[int, datetime]:
        plans = self._manifest.plans.items()
        return {
            plan_id: kept.plan.created_at for plan_id, kept in plans if plan_id in plan_ids and kept.state != "open"
        }

    async def open_plan_ids(self) -> set[int]:
        return {plan_id for plan_id, kept in self._manifest.plans.items() if kept.state == "open"}

    async def gaps(self) -> list[str]:
        found: list[str] = []
        for partition, checkpoint in self._manifest.checkpoints.items():
            ranges = sorted(each.range for each in self._manifest.exports if each.range.partition == partition)
            found += [f"{before} {after}" for before, after in pairwise(ranges) if before[2] != after[1]]
            if ranges and ranges[-1].next_offset != checkpoint.next_offset:
                found.append(f"{ranges[-1]} {checkpoint}")
        return found

    async def count_history(self, *, before: datetime) -> int:
        return len(self._ended(before))

    def _ended(self, before: datetime) -> list[int]:
        plans = self._manifest.plans.items()
        return [plan_id for plan_id, kept in plans if kept.ended_at is not None and kept.ended_at < before]

    async def forget_history(self, *, before: datetime) -> int:
        old = self._ended(before)
        for plan_id in old:
            del self._manifest.plans[plan_id]
        self._manifest.exports = [each for each in self._manifest.exports if each.at >= before]
        return len(old)


def _is_over(since: datetime, before: datetime | None) -> bool:
    return before is not None and since <= before


def _is_within(day: date, start: date | None, end: date | None) -> bool:
    return (start is None or day >= start) and (end is None or day < end)
