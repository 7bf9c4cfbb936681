"""The lake's manifest: which objects hold which events. Readers take the file list from here, never from a listing.
`PostgresManifest` (with `PostgresLakeSnapshots`) and `MemoryManifest` both keep this contract.

What is exported is planned first, then put, then committed. Objects are named after their plan, so that whoever
finishes a plan that somebody else began makes the same objects.

The law:
- A partition belongs to who claimed it last. Each claim makes a new epoch; whoever names an older one is `Fenced`,
  and nothing has changed (FN-1).
- A plan begins where the lake's checkpoints stand, and a partition is in one open plan at most. The same plan asked
  for again is the one that is open already.
- Checkpoints move by `commit` alone, from the plan's first offsets to its next ones, in the transaction that makes
  its files live (CK-1, ND-1). All ranges that were committed follow one another without a gap.
- An open plan is finished with the same ranges, or cancelled. A claim that takes some of a plan's partitions and not
  all of them cancels it: no owner could finish it. The objects of a cancelled plan are orphans.
- Live files of one hour never cover the same offset of a partition twice. What is planned is stored already, so that
  the events of a partition are at any moment those in its live files and, from the lake's checkpoint on, the rows of
  the event store: each once. A `snapshot` is such a moment.
- A file once live stays as it is until `swap` retires it, and what takes its place was exported when it was; its
  object is kept for readers that have its name, until the grace period is over (`storage.lake_listing`). What a swap
  retires and what it adds cover the same offsets; when it compacts or moves, they hold the same events (rows and
  id_digest), else `FormatError` and nothing changes.
- `Unavailable` leaves the outcome unknown. Every operation may be repeated as it was: "repeated" says that it was
  committed before. To commit a plan that was cancelled is `Fenced`.
- Each call is one transaction and ends at its deadline.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Literal, NamedTuple, Protocol

import pyarrow as pa

from storage.errors import FormatError
from storage.event_store import Checkpoint

Tier = Literal["hot", "cold"]
SwapKind = Literal["compact", "move", "rewrite", "expire"]
"""compact and move keep the events; rewrite leaves some out (a person's deletion); expire adds no file."""

CommitOutcome = Literal["committed", "repeated"]
SwapOutcome = Literal["committed", "repeated", "outdated"]
"""outdated: a file that was to be retired is not live any more; nothing has changed, nor ever will by this plan."""

HOUR = timedelta(hours=1)
DIGEST_BITS = 64


class OffsetRange(NamedTuple):
    """The records [first_offset, next_offset) of a partition."""

    partition: int
    first_offset: int
    next_offset: int


@dataclass(frozen=True)
class LakeFile:
    """An object of one event-time hour, as it becomes live. Times are UTC."""

    key: str
    hour: datetime
    rows: int
    bytes: int
    checksum: str
    """SHA-256 of the object, hex."""
    id_digest: int
    """Sum of the fingerprints of its idempotency keys modulo 2^64: digests of parts add up to that of the whole."""
    min_timestamp: datetime
    max_timestamp: datetime
    ranges: Sequence[OffsetRange]
    """Every event of this hour in these ranges is in this file. Partitions without an event of the hour may be left
    out."""
    projects: Mapping[str, int]
    """Rows of each project."""
    tier: Tier = "hot"


class FileEntry(NamedTuple):
    """What a reader needs to know of a file."""

    file_id: int
    plan_id: int
    key: str
    hour: datetime
    rows: int
    bytes: int
    checksum: str
    id_digest: int
    min_timestamp: datetime
    max_timestamp: datetime
    tier: Tier
    created_at: datetime


class Plan(NamedTuple):
    plan_id: int
    ranges: tuple[OffsetRange, ...]
    """In the order of the partitions."""
    created_at: datetime


class Swap(NamedTuple):
    """Live files that are about to be replaced."""

    plan_id: int
    kind: SwapKind
    file_ids: tuple[int, ...]
    created_at: datetime


class StoredMark(NamedTuple):
    """How far the event store was in a partition at some moment."""

    partition: int
    next_offset: int
    since: datetime
    """No row of a record at or above `next_offset` is stored earlier than this (created_at)."""


class LakePosition(NamedTuple):
    """How far lake and event store are in a partition."""

    checkpoint: Checkpoint
    """The lake's."""
    stored_below: int
    """The event store's checkpoint."""


@dataclass(frozen=True)
class LakeSnapshot:
    """One moment of some projects: `files` and `tail` together hold each stored event of the range once.

    A file holds other projects and times as well: its reader filters both."""

    files: Sequence[FileEntry]
    """In the order of hour and file_id, each once."""
    positions: Sequence[LakePosition]
    """Of the projects' partitions, in their order."""
    tail: AsyncIterator[pa.RecordBatch]
    """Rows of the event store at or above the checkpoints, in no order, in the schema
    `storage.event_columns.OFFSET_COLUMNS`, their JSON compact. To be read within the snapshot's block."""


class LakeManifest(Protocol):
    async def claim(self, partitions: Sequence[int]) -> dict[int, Checkpoint]:
        """Take the partitions, under new epochs, and cancel the open plans that hold only some of them."""

    async def stored(self, partitions: Sequence[int]) -> dict[int, StoredMark]:
        """How far the event store is: nothing at or above may be planned yet."""

    async def plan(self, ranges: Sequence[OffsetRange], epochs: Mapping[int, int]) -> Plan:
        """Begin a plan. `epochs` are those of the claim. Raises `Fenced` unless every range begins at its
        checkpoint, no other plan is open for its partition, and the event store has all of it."""

    async def open_plans(self, partitions: Sequence[int]) -> list[Plan]:
        """Plans of any of the partitions that were begun and neither committed nor cancelled; oldest first."""

    async def cancel(self, plan_id: int, epochs: Mapping[int, int]) -> None:
        """Give an open plan up; one that is not open any more stays as it is."""

    async def commit(
        self,
        plan_id: int,
        epochs: Mapping[int, int],
        files: Sequence[LakeFile],
        *,
        marks: Sequence[StoredMark] = (),
    ) -> CommitOutcome:
        """Make the files live and move the checkpoints; no file at all where the ranges hold no event to keep.
        `marks` as for `advance_tails`: the best are those that the plan was cut at."""

    async def advance_tails(self, marks: Sequence[StoredMark]) -> None:
        """Bound what a snapshot looks through: it leaves out what was stored before the latest mark of the partition
        that is not above its checkpoint. Marks above are left out, of any partition. To be called about once a
        minute with fresh marks, for the partitions that have nothing to export."""

    async def plan_swap(self, kind: SwapKind, file_ids: Sequence[int]) -> int | None:
        """Begin to replace live files, of one hour unless they expire; the plan's id names the new objects. None when
        one of them is not live any more, or is in another open swap that is younger than `SWAP_TIME_S`."""

    async def swap(self, plan_id: int, files: Sequence[LakeFile]) -> SwapOutcome:
        """Retire the files of the plan and make these live instead."""

    async def open_swaps(self) -> list[Swap]:
        """Swaps that were begun and neither committed nor cancelled; oldest first. Whoever makes the same objects may
        end one that somebody else has begun: of two that do, one hears "repeated"."""

    async def cancel_swap(self, plan_id: int) -> None:
        """Give an open swap up: it will be outdated. One that is not open any more stays as it is."""


class LakeSnapshots(Protocol):
    def snapshot(
        self, project_ids: Sequence[str], *, start: datetime | None = None, end: datetime | None = None
    ) -> AbstractAsyncContextManager[LakeSnapshot]:
        """The projects' events with `start` <= timestamp < `end`. Nothing is held after the block but the names of
        files, whose objects stay for the grace period."""


SWAP_TIME_S = 3600.0
"""After this a swap that was begun and not ended is taken for dead: its files may be in another swap's plan. Should it
end all the same, one of the two is outdated."""


def check_files(files: Sequence[LakeFile], within: Sequence[OffsetRange]) -> None:
    """Raises `FormatError` for files that contradict themselves, one another, or the ranges that they are made of."""
    covered: dict[tuple[datetime, int], list[OffsetRange]] = {}
    for file in files:
        _check_file(file)
        for each in file.ranges:
            if not any(_holds(outer, each) for outer in within):
                raise FormatError(f"{file.key} covers {each}, which is not among what was planned")
            covered.setdefault((file.hour, each.partition), []).append(each)
    for (hour, partition), ranges in covered.items():
        ordered = sorted(ranges, key=lambda each: each.first_offset)
        for before, after in pairwise(ordered):
            if after.first_offset < before.next_offset:
                raise FormatError(f"offsets of partition {partition} are in two files of {hour}")


def _check_file(file: LakeFile) -> None:
    if file.hour.replace(minute=0, second=0, microsecond=0) != file.hour:
        raise FormatError(f"{file.key} is of {file.hour}, which is no hour")
    if not file.hour <= file.min_timestamp <= file.max_timestamp < file.hour + HOUR:
        raise FormatError(f"{file.key} has events that are not of its hour")
    if file.rows <= 0 or sum(file.projects.values()) != file.rows:
        raise FormatError(f"{file.key} has {file.rows} rows, of its projects {sum(file.projects.values())}")
    if not file.ranges:
        raise FormatError(f"{file.key} covers no offset")


def _holds(outer: OffsetRange, inner: OffsetRange) -> bool:
    return (
        outer.partition == inner.partition
        and outer.first_offset <= inner.first_offset < inner.next_offset <= outer.next_offset
    )


def joined(ranges: Sequence[OffsetRange]) -> list[OffsetRange]:
    """The same offsets in as few ranges as they need: what a compacted file covers."""
    result: list[OffsetRange] = []
    for each in sorted(ranges):
        if result and result[-1].partition == each.partition and result[-1].next_offset == each.first_offset:
            result[-1] = result[-1]._replace(next_offset=each.next_offset)
        else:
            result.append(each)
    return result


def check_swap(kind: SwapKind, retired: Sequence[LakeFile], files: Sequence[LakeFile]) -> None:
    """Raises `FormatError` unless the files may take the place of the retired ones."""
    if not files and kind == "expire":
        return
    ranges = joined([each for file in retired for each in file.ranges])
    check_files(files, ranges)
    if {file.hour for file in files} - {file.hour for file in retired}:
        raise FormatError("the files of a swap are of another hour")
    if kind == "expire":
        raise FormatError("files that expire are replaced by none")
    if kind != "rewrite" and _content(retired) != _content(files):
        raise FormatError(f"a swap would change (rows, digest) {_content(retired)} to {_content(files)}")
    if kind != "rewrite" and joined([each for file in files for each in file.ranges]) != ranges:
        raise FormatError("a swap would change the offsets that are covered")


def _content(files: Sequence[LakeFile]) -> tuple[int, int]:
    return sum(file.rows for file in files), sum(file.id_digest for file in files) % (1 << DIGEST_BITS)


def byte_shares(file: LakeFile) -> dict[str, int]:
    """What each project has of the file's bytes, by its rows; together all of them."""
    shares: dict[str, int] = {}
    rows = 0
    for project_id, of_project in sorted(file.projects.items()):
        before = file.bytes * rows // file.rows
        rows += of_project
        shares[project_id] = file.bytes * rows // file.rows - before
    return shares
