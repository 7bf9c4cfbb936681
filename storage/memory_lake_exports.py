"""The fake of the lake's exports for unit tests; it passes the same contract suite as `PostgresLakeExports`."""

from datetime import datetime

from storage.fingerprint import partition_of
from storage.lake_exports import (
    COUNTED_EVENTS,
    Backlog,
    EventFile,
    ExportedFile,
    ExportedTotals,
    ExportOverview,
    PartitionState,
    fresh_at,
    row_group_of,
)
from storage.lake_manifest import HOUR, LakeFile, byte_shares
from storage.memory_manifest import KeptFile, MemoryManifest


class MemoryLakeExports:
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
        limit: int = 100,
    ) -> list[ExportedFile]:
        found = [
            _exported(kept, project_id)
            for kept in self._live(project_id, start, end)
            if after is None or (kept.file.hour, kept.entry.file_id) > after
        ]
        return sorted(found, key=lambda file: (file.hour, file.file_id))[:limit]

    async def overview(
        self, *, project_id: str | None = None, start: datetime | None = None, end: datetime | None = None
    ) -> ExportOverview:
        files = [_exported(kept, project_id) for kept in self._live(project_id, start, end)]
        cold = [file for file in files if file.tier == "cold"]
        hours = [file.hour for file in files]
        totals = ExportedTotals(
            len(files),
            sum(file.rows for file in files),
            sum(file.bytes for file in files),
            len(cold),
            sum(file.bytes for file in cold),
            min(hours, default=None),
            max(hours, default=None),
        )
        states = await self._states(project_id)
        exports = [state.last_export_at for state in states if state.last_export_at is not None]
        return ExportOverview(totals, self._backlog(project_id, states), max(exports, default=None), fresh_at(states))

    def _backlog(self, project_id: str | None, states: list[PartitionState]) -> Backlog:
        below = {state.partition: state.exported_below for state in states}
        events = sum(
            project_id in (None, row["project_id"])
            and row["partition_id"] in below
            and row["log_offset"] >= below[row["partition_id"]]
            for row in self._manifest.store.rows
        )
        records = sum(state.behind for state in states)
        return Backlog(records, min(events, COUNTED_EVENTS), complete=events <= COUNTED_EVENTS)

    async def _states(self, project_id: str | None) -> list[PartitionState]:
        manifest = self._manifest
        partitions = (
            range(manifest.partitions) if project_id is None else [partition_of(project_id, manifest.partitions)]
        )
        return [
            PartitionState(
                stored.partition,
                manifest.checkpoint(stored.partition).next_offset,
                stored.next_offset,
                manifest.tails.get(stored.partition),
                max((each.at for each in manifest.exports if each.range.partition == stored.partition), default=None),
            )
            for stored in await manifest.store.checkpoints(partitions)
            if stored.epoch
        ]

    async def file_of(self, partition: int, offset: int, timestamp: datetime) -> EventFile | None:
        hour = timestamp.replace(minute=0, second=0, microsecond=0)
        for kept in self._manifest.live():
            if kept.file.hour == hour and _covers(kept.file, partition, offset):
                key = kept.file.key
                return EventFile(key, row_group_of(key, kept.file.rows), self._exported_at(partition, offset))
        return None

    def _exported_at(self, partition: int, offset: int) -> datetime | None:
        exports = [each for each in self._manifest.exports if each.range.partition == partition]
        return next((each.at for each in exports if each.range.next_offset > offset), None)

    def _live(self, project_id: str | None, start: datetime | None, end: datetime | None) -> list[KeptFile]:
        return [
            kept
            for kept in self._manifest.live()
            if (project_id is None or project_id in kept.file.projects)
            and (start is None or kept.file.hour + HOUR > start)
            and (end is None or kept.file.hour < end)
        ]


def _covers(file: LakeFile, partition: int, offset: int) -> bool:
    return any(each.partition == partition and each.first_offset <= offset < each.next_offset for each in file.ranges)


def _exported(kept: KeptFile, project_id: str | None) -> ExportedFile:
    file, entry = kept.file, kept.entry
    return ExportedFile(
        entry.file_id,
        file.key,
        file.hour,
        file.rows if project_id is None else file.projects[project_id],
        file.bytes if project_id is None else byte_shares(file)[project_id],
        file.min_timestamp,
        file.max_timestamp,
        file.tier,
        entry.created_at,
    )
