"""The fake of the lake's manifest for unit tests; it passes the same contract suite as `PostgresManifest`."""

from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import Any, Literal, TypeVar

import pyarrow as pa

from storage.errors import Fenced, Unavailable
from storage.event_columns import OFFSET_COLUMNS
from storage.event_store import Checkpoint
from storage.fingerprint import partition_of
from storage.lake_manifest import (
    HOUR,
    SWAP_TIME_S,
    CommitOutcome,
    FileEntry,
    LakeFile,
    LakePosition,
    LakeSnapshot,
    OffsetRange,
    Plan,
    StoredMark,
    Swap,
    SwapKind,
    SwapOutcome,
    byte_shares,
    check_files,
    check_swap,
)
from storage.memory_store import MemoryStore

_EARLIEST = datetime(1970, 1, 1, tzinfo=UTC)
_CHUNK = 1000

_T = TypeVar("_T")


@dataclass
class KeptPlan:
    plan: Plan
    kind: Literal["export"] | SwapKind
    file_ids: Sequence[int] = ()
    state: Literal["open", "committed", "cancelled"] = "open"
    ended_at: datetime | None = None


@dataclass
class KeptFile:
    entry: FileEntry
    file: LakeFile
    exported_at: datetime = _EARLIEST
    retired_at: datetime | None = None


@dataclass
class Exported:
    """One partition's range of a committed plan."""

    range: OffsetRange
    plan_id: int
    at: datetime


@dataclass
class MemoryManifest:
    """Over a `MemoryStore`. What was committed can be looked at: `files`, `plans`, `exports`, `checkpoints`."""

    store: MemoryStore
    partitions: int = 64
    clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    checkpoints: dict[int, Checkpoint] = field(default_factory=dict)
    tails: dict[int, datetime] = field(default_factory=dict)
    plans: dict[int, KeptPlan] = field(default_factory=dict)
    files: dict[int, KeptFile] = field(default_factory=dict)
    exports: list[Exported] = field(default_factory=list)
    volumes: Counter[tuple[str, date, str]] = field(default_factory=Counter)
    """Of project, day of export and what is counted: files, rows or bytes."""
    available: bool = True
    """While False every call raises `Unavailable`."""
    _failures: list[bool] = field(default_factory=list)
    _plan_ids: int = 0
    _file_ids: int = 0

    def fail_next(self, *, committed: bool) -> None:
        """One more of the next operations raises `Unavailable`: before anything happened, or after its commit."""
        self._failures.append(committed)

    async def claim(self, partitions: Sequence[int]) -> dict[int, Checkpoint]:
        return self._run(lambda: self._claim(partitions))

    def _claim(self, partitions: Sequence[int]) -> dict[int, Checkpoint]:
        for partition in partitions:
            known = self.checkpoint(partition)
            self.checkpoints[partition] = known._replace(epoch=known.epoch + 1)
        for kept in self._open_of(partitions):
            if not {each.partition for each in kept.plan.ranges} <= set(partitions):
                self._end(kept, "cancelled")
        return {partition: self.checkpoints[partition] for partition in partitions}

    async def stored(self, partitions: Sequence[int]) -> dict[int, StoredMark]:
        found = self._run(lambda: None) or await self.store.checkpoints(partitions)
        return {each.partition: StoredMark(each.partition, each.next_offset, _EARLIEST) for each in found}

    async def plan(self, ranges: Sequence[OffsetRange], epochs: Mapping[int, int]) -> Plan:
        stored = {each.partition: each for each in await self.store.checkpoints([each.partition for each in ranges])}
        return self._run(lambda: self._plan(tuple(sorted(ranges)), epochs, stored))

    def _plan(
        self, ranges: tuple[OffsetRange, ...], epochs: Mapping[int, int], stored: Mapping[int, Checkpoint]
    ) -> Plan:
        self._check_epochs(epochs, ranges)
        for kept in self._open_of([each.partition for each in ranges]):
            if kept.plan.ranges == ranges:
                return kept.plan
            raise Fenced(f"plan {kept.plan.plan_id} is open for one of the partitions")
        for each in ranges:
            if not self.checkpoint(each.partition).next_offset == each.first_offset < each.next_offset:
                raise Fenced(f"{each} does not begin at {self.checkpoint(each.partition)}")
            if stored[each.partition].next_offset < each.next_offset:
                raise Fenced(f"{each} is not stored: {stored[each.partition]}")
        return self._begin("export", ranges).plan

    def _begin(self, kind: Literal["export"] | SwapKind, ranges: tuple[OffsetRange, ...]) -> KeptPlan:
        self._plan_ids += 1
        kept = KeptPlan(Plan(self._plan_ids, ranges, self.clock()), kind)
        self.plans[self._plan_ids] = kept
        return kept

    async def open_plans(self, partitions: Sequence[int]) -> list[Plan]:
        return self._run(lambda: [kept.plan for kept in self._open_of(partitions)])

    async def cancel(self, plan_id: int, epochs: Mapping[int, int]) -> None:
        self._run(lambda: self._cancel(plan_id, epochs))

    def _cancel(self, plan_id: int, epochs: Mapping[int, int]) -> None:
        kept = self.plans.get(plan_id)
        if kept is not None and kept.kind == "export" and kept.state == "open":
            self._check_epochs(epochs, kept.plan.ranges)
            self._end(kept, "cancelled")

    async def commit(
        self,
        plan_id: int,
        epochs: Mapping[int, int],
        files: Sequence[LakeFile],
        *,
        marks: Sequence[StoredMark] = (),
    ) -> CommitOutcome:
        return self._run(lambda: self._commit(plan_id, epochs, files, marks))

    def _commit(
        self, plan_id: int, epochs: Mapping[int, int], files: Sequence[LakeFile], marks: Sequence[StoredMark]
    ) -> CommitOutcome:
        kept = self.plans.get(plan_id)
        if kept is None or kept.kind != "export" or kept.state == "cancelled":
            raise Fenced(f"plan {plan_id} is not open any more")
        if kept.state == "committed":
            return "repeated"
        ranges = kept.plan.ranges
        self._check_epochs(epochs, ranges)
        check_files(files, ranges)
        for each in ranges:
            self.checkpoints[each.partition] = Checkpoint(each.partition, epochs[each.partition], each.next_offset)
            self.exports.append(Exported(each, plan_id, self.clock()))
        self._advance_tails(marks)
        self._add(plan_id, files)
        self._count(files)
        self._end(kept, "committed")
        return "committed"

    def _count(self, files: Sequence[LakeFile]) -> None:
        today = self.clock().date()
        for file in files:
            for project_id, share in byte_shares(file).items():
                self.volumes[project_id, today, "files"] += 1
                self.volumes[project_id, today, "rows"] += file.projects[project_id]
                self.volumes[project_id, today, "bytes"] += share

    async def advance_tails(self, marks: Sequence[StoredMark]) -> None:
        self._run(lambda: self._advance_tails(marks))

    def _advance_tails(self, marks: Sequence[StoredMark]) -> None:
        for mark in marks:
            if mark.next_offset <= self.checkpoint(mark.partition).next_offset:
                self.tails[mark.partition] = max(mark.since, self.tails.get(mark.partition, mark.since))

    async def plan_swap(self, kind: SwapKind, file_ids: Sequence[int]) -> int | None:
        return self._run(lambda: self._plan_swap(kind, file_ids))

    def _plan_swap(self, kind: SwapKind, file_ids: Sequence[int]) -> int | None:
        since = self.clock() - timedelta(seconds=SWAP_TIME_S)
        busy = {
            file_id
            for kept in self.plans.values()
            if kept.state == "open" and kept.plan.created_at > since
            for file_id in kept.file_ids
        }
        if busy & set(file_ids) or not self._all_live(file_ids):
            return None
        if kind != "expire" and len({self.files[file_id].file.hour for file_id in file_ids}) != 1:
            raise ValueError("the files of a swap are of one hour")
        kept = self._begin(kind, ())
        kept.file_ids = tuple(file_ids)
        return kept.plan.plan_id

    async def swap(self, plan_id: int, files: Sequence[LakeFile]) -> SwapOutcome:
        return self._run(lambda: self._swap(plan_id, files))

    def _swap(self, plan_id: int, files: Sequence[LakeFile]) -> SwapOutcome:
        kept = self.plans.get(plan_id)
        if kept is not None and kept.state == "committed":
            return "repeated"
        if kept is None or kept.kind == "export" or kept.state != "open" or not self._all_live(kept.file_ids):
            return "outdated"
        retired = [self.files[file_id] for file_id in kept.file_ids]
        check_swap(kept.kind, [each.file for each in retired], files)
        for each in retired:
            each.retired_at = self.clock()
        self._add(plan_id, files, exported_at=max(each.exported_at for each in retired))
        self._end(kept, "committed")
        return "committed"

    async def open_swaps(self) -> list[Swap]:
        return self._run(
            lambda: [
                Swap(kept.plan.plan_id, kept.kind, tuple(kept.file_ids), kept.plan.created_at)
                for kept in self.plans.values()
                if kept.kind != "export" and kept.state == "open"
            ]
        )

    async def cancel_swap(self, plan_id: int) -> None:
        self._run(lambda: self._cancel_swap(plan_id))

    def _cancel_swap(self, plan_id: int) -> None:
        kept = self.plans.get(plan_id)
        if kept is not None and kept.kind != "export" and kept.state == "open":
            self._end(kept, "cancelled")

    @asynccontextmanager
    async def snapshot(
        self, project_ids: Sequence[str], *, start: datetime | None = None, end: datetime | None = None
    ) -> AsyncIterator[LakeSnapshot]:
        self._run(lambda: None)
        partitions = sorted({partition_of(each, self.partitions) for each in project_ids})
        stored = await self.store.checkpoints(partitions)
        positions = [LakePosition(self.checkpoint(each.partition), each.next_offset) for each in stored]
        entries = [
            kept.entry
            for kept in self.live()
            if any(each in kept.file.projects for each in project_ids)
            and (start is None or kept.file.hour + HOUR > start)
            and (end is None or kept.file.hour < end)
        ]
        rows = [
            row
            for row in self.store.rows
            if row["project_id"] in project_ids
            and row["log_offset"] >= self.checkpoint(partition_of(row["project_id"], self.partitions)).next_offset
            and (start is None or row["timestamp"] >= start)
            and (end is None or row["timestamp"] < end)
        ]
        entries.sort(key=lambda entry: (entry.hour, entry.file_id))
        yield LakeSnapshot(entries, positions, offset_batches(rows))

    def live(self) -> list[KeptFile]:
        return [kept for kept in self.files.values() if kept.retired_at is None]

    def checkpoint(self, partition: int) -> Checkpoint:
        return self.checkpoints.get(partition, Checkpoint(partition, 0, 0))

    def _all_live(self, file_ids: Iterable[int]) -> bool:
        return all(each in self.files and self.files[each].retired_at is None for each in file_ids)

    def _check_epochs(self, epochs: Mapping[int, int], ranges: Sequence[OffsetRange]) -> None:
        for partition in {each.partition for each in ranges}:
            if epochs.get(partition) != self.checkpoint(partition).epoch:
                raise Fenced(f"partition {partition} has {self.checkpoint(partition)}")

    def _open_of(self, partitions: Sequence[int]) -> list[KeptPlan]:
        return [
            kept
            for kept in self.plans.values()
            if kept.state == "open" and any(each.partition in partitions for each in kept.plan.ranges)
        ]

    def _end(self, kept: KeptPlan, state: Literal["committed", "cancelled"]) -> None:
        kept.state, kept.ended_at = state, self.clock()

    def _add(self, plan_id: int, files: Sequence[LakeFile], *, exported_at: datetime | None = None) -> None:
        for file in files:
            self._file_ids += 1
            entry = FileEntry(
                self._file_ids,
                plan_id,
                file.key,
                file.hour,
                file.rows,
                file.bytes,
                file.checksum,
                file.id_digest,
                file.min_timestamp,
                file.max_timestamp,
                file.tier,
                self.clock(),
            )
            self.files[self._file_ids] = KeptFile(entry, file, exported_at or self.clock())

    def _run(self, operation: Callable[[], _T]) -> _T:
        if not self.available:
            raise Unavailable("made to be away")
        committed = self._failures.pop(0) if self._failures else None
        if committed is False:
            raise Unavailable("the operation was made to fail")
        result = operation()
        if committed:
            raise Unavailable("the operation was committed and made to fail")
        return result


async def offset_batches(rows: Sequence[dict[str, Any]]) -> AsyncIterator[pa.RecordBatch]:
    for first in range(0, len(rows), _CHUNK):
        yield pa.RecordBatch.from_pylist(list(rows[first : first + _CHUNK]), schema=OFFSET_COLUMNS)
