"""A lake of real files over a real manifest: exported, merged and interrupted as exporters and the keeper do it."""

from collections import Counter as Counts
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from analytics_actors.counters import Counters
from analytics_actors.lake.carrying import Carrying, CrashPoint, no_crash
from analytics_actors.lake.compaction import Compaction
from analytics_actors.lake.objects import local_copy
from analytics_actors.lake.verification import Verification, Verified
from analytics_actors.windows.sources import in_thread
from config.settings import LakeSettings
from storage.event_columns import OFFSET_COLUMNS
from storage.fingerprint import partition_of
from storage.lake_file import EVENTS
from storage.lake_manifest import OffsetRange
from storage.lake_repair import LakeRepair
from storage.object_store import ObjectStore
from tests.contract.lake_subject import HOUR, PARTITIONS, TIME, PostgresLake, epochs_of
from tests.contract.log_records import event

ALL = range(PARTITIONS)


class Crash(Exception):
    """The process has ended at a named point."""


def crash_at(point: str, *, times: int = 1) -> CrashPoint:
    left = [times]

    def reached(name: str) -> None:
        left[0] -= name == point
        if name == point and left[0] == 0:
            raise Crash(point)

    return reached


class RealLake:
    def __init__(self, subject: PostgresLake, objects: ObjectStore, folder: Path) -> None:
        self.subject = subject
        self.objects = objects
        self.folder = folder
        self.repair = LakeRepair(subject.postgres)
        self._number = 0

    async def store(self, projects: Sequence[str], *, hours: int = 1, count: int = 3) -> None:
        """For each project `count` records, of an event an hour."""
        for project in projects:
            for _ in range(count):
                made: list[dict[str, Any]] = []
                for ago in range(hours):
                    self._number += 1
                    name, at = f"e{self._number}", TIME - timedelta(hours=ago)
                    made.append(event(name, project, timestamp=at, properties='{"amount": 1.5, "text": "é"}'))
                await self.subject.store_events(*made, partition=partition_of(project, PARTITIONS))

    async def export(self, partitions: Sequence[int] = ALL, *, reached: CrashPoint = no_crash) -> None:
        """What is stored and not exported, in one plan; one that was begun first."""
        manifest = self.subject.manifest
        claimed = await manifest.claim(partitions)
        marks = await manifest.stored(partitions)
        done: set[int] = set()
        for begun in await manifest.open_plans(partitions):
            await self._carry_out(begun, claimed, (), no_crash)
            done |= {each.partition for each in begun.ranges}
        ranges = [
            OffsetRange(partition, claimed[partition].next_offset, mark.next_offset)
            for partition, mark in sorted(marks.items())
            if claimed[partition].next_offset < mark.next_offset and partition not in done
        ]
        if ranges:
            plan = await manifest.plan(ranges, epochs_of(claimed))
            await self._carry_out(plan, claimed, list(marks.values()), reached)

    async def _carry_out(self, plan: Any, claimed: Any, marks: Any, reached: CrashPoint) -> None:
        carrying = Carrying(
            self.subject.manifest, self.objects, Counters(), compression="snappy", compute=in_thread, reached=reached
        )
        events = pa.concat_tables([await self._stored(each) for each in plan.ranges])
        await carrying.carry_out(plan, events, epochs_of(claimed), marks)

    async def _stored(self, within: OffsetRange) -> pa.Table:
        log = self.subject.stored_log
        batches = [
            batch
            for stretch in await log.stretches(within, since=None, max_rows=1000, max_bytes=1 << 30)
            async for batch in log.rows(stretch)
        ]
        rows = pa.Table.from_batches(batches, OFFSET_COLUMNS)
        partitions = pa.array(np.full(rows.num_rows, within.partition, np.int16))
        return rows.append_column(EVENTS.field("partition_id"), partitions).select(EVENTS.names).cast(EVENTS)

    async def compact(self, *, ago: int = 0, reached: CrashPoint = no_crash) -> bool:
        compaction = Compaction(
            self.subject.manifest,
            self.subject.listing,
            self.objects,
            Counters(),
            settings=LakeSettings(),
            folder=self.folder / "merging",
            compute=in_thread,
            reached=reached,
        )
        return await compaction.compact(HOUR - timedelta(hours=ago), is_quiet=True)

    async def keys(self) -> list[str]:
        return sorted([entry.key for entry in await self.subject.listing.files()])

    async def objects_there(self) -> set[str]:
        return {info.key async for info in self.objects.list("")}

    async def verify(self, *, deep: bool = True) -> Verified:
        folder = self.folder / "copies"
        folder.mkdir(exist_ok=True)
        return await Verification(self.subject.listing, self.repair, self.objects, folder=folder, deep=deep).run()

    async def check_each_event_once(self) -> None:
        """Live files and, from the checkpoints on, stored rows are the stored events."""
        checkpoints = await self.repair.checkpoints()
        rows = await self.subject.connection.fetch(
            "SELECT project_id, event_id, partition_id, log_offset FROM events_log"
        )
        stored = Counts((row["project_id"], row["event_id"]) for row in rows)
        tail = [row for row in rows if row["log_offset"] >= checkpoints.get(row["partition_id"], 0)]
        assert Counts((row["project_id"], row["event_id"]) for row in tail) + await self.filed() == stored

    async def filed(self) -> Counts[tuple[str, str]]:
        found: Counts[tuple[str, str]] = Counts()
        for key in await self.keys():
            async with local_copy(self.objects, key, self.folder) as path:
                rows = pq.read_table(path, columns=["project_id", "event_id"]).to_pylist()
            found.update((row["project_id"], row["event_id"]) for row in rows)
        return found

    async def lose_manifest(self) -> None:
        """And whatever says how far anybody was, but not the stored events."""
        for table in ("lake_file_ranges", "lake_file_projects", "lake_files", "lake_plans", "lake_exports"):
            await self.subject.connection.execute(f"DELETE FROM {table}")
        await self.subject.connection.execute("DELETE FROM lake_tails; DELETE FROM checkpoints WHERE sink = 'lake'")
        await self.subject.connection.execute("ALTER TABLE lake_plans ALTER plan_id RESTART")

    async def damage(self, key: str, change: Callable[[bytes], bytes]) -> None:
        """What lies there is replaced, behind everybody's back."""
        raw = await self.objects.get(key)
        await self.objects.delete([key])
        await self.objects.put_if_absent(key, change(raw))
