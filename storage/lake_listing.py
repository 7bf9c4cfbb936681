"""What is in the lake, for people and for who keeps it in order. `PostgresLakeListing` and `MemoryLakeListing` both
keep this contract.

The law:
- Each call tells of one moment, which may be over when it returns: what acts on it does so by a swap
  (`storage.lake_manifest`), which looks again.
- A retired file's object may be deleted when its grace period is over; then `forget` takes its row away.
- An object whose key is not `known` is an orphan when its plan has ended, and began before the object was put. So that
  none is taken for one that is committed meanwhile: list the objects first, ask for the `ended` plans then, for the
  keys last, and let young ones be. Objects of other plans are not of this manifest, or of a time after its backup.
- Volumes count what was exported on a UTC day; nothing changes those of a day that is over. Holdings count what live
  files hold now, by day of event time.
- Each call ends at its deadline.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime
from typing import NamedTuple, Protocol

from storage.lake_manifest import HOUR, FileEntry, LakeFile, Tier

_FIRST = datetime(1970, 1, 1, tzinfo=UTC)


class LakeTotals(NamedTuple):
    files: int
    rows: int
    bytes: int
    cold_files: int
    cold_bytes: int
    retired_files: int
    retired_bytes: int
    open_plans: int
    first_hour: datetime | None
    last_hour: datetime | None


class PendingExport(NamedTuple):
    """What of a partition is stored and not in the lake."""

    partition: int
    exported_below: int
    stored_below: int
    since: datetime | None
    """It was stored since then, if anything bounds it."""


class Volume(NamedTuple):
    project_id: str
    day: date
    files: int
    rows: int
    bytes: int


class HourParts(NamedTuple):
    """An hour with several files that should be fewer."""

    hour: datetime
    files: int
    rows: int
    bytes: int
    newest: datetime
    """When the last of them became live."""


class AgingFile(NamedTuple):
    """A live file of which something is due for retention."""

    file_id: int
    key: str
    hour: datetime
    exported_at: datetime
    """When the newest of its events was."""
    tier: Tier
    rows: int
    bytes: int
    projects: Mapping[str, int]
    """Rows of each project."""

    @property
    def since(self) -> datetime:
        """From when on its events are kept: they happened before, or were exported later."""
        return max(self.hour + HOUR, self.exported_at)


class LakeListing(Protocol):
    async def files(
        self,
        *,
        project_id: str | None = None,
        start: datetime | None = None,
        end: datetime | None = None,
        after: tuple[datetime, int] | None = None,
        limit: int = 1000,
    ) -> list[FileEntry]:
        """Live files of hours that overlap [start, end), by hour and file_id; `after` the last one of the page
        before."""

    async def load(self, file_ids: Sequence[int]) -> dict[int, LakeFile]:
        """All that is known of live files; those that are not live any more are left out."""

    async def totals(self, project_id: str | None = None) -> LakeTotals:
        """Of a project: files that hold events of it, its rows and its share of the bytes; nothing of what is
        retired or planned."""

    async def pending(self) -> list[PendingExport]:
        """Of each partition that has something in the event store, in their order."""

    async def needed_since(self) -> datetime | None:
        """What was stored before this is in the lake, as far as is known: rows of the event store that are younger
        must stay. None: nothing is pending."""

    async def volumes(
        self, *, project_id: str | None = None, start: date | None = None, end: date | None = None
    ) -> list[Volume]:
        """Exported from `start` to before `end`, by project and day."""

    async def holdings(
        self, *, project_id: str | None = None, start: date | None = None, end: date | None = None
    ) -> list[Volume]:
        """Held now, by project and day of event time."""

    async def hours_to_compact(
        self, *, small_bytes: int, quiet_s: float, max_parts: int, limit: int
    ) -> list[HourParts]:
        """Hours with more than one live hot file below `small_bytes` to which none was added for `quiet_s`, or with
        more than `max_parts` of them. Those with the most files first. Only small files are counted."""

    async def small_files(self, hour: datetime, *, small_bytes: int) -> list[FileEntry]:
        """The hour's live hot files below that size, oldest first."""

    async def aging(
        self,
        *,
        hot_before: datetime | None,
        before: datetime | None,
        limited: Mapping[str, datetime | None],
        after: tuple[datetime, int] | None = None,
        limit: int,
    ) -> list[AgingFile]:
        """Live files, by hour and file_id: hot ones of hours that ended by `hot_before`, those since `before` or
        earlier, and those since its own time or earlier that hold events of a `limited` project. None is never."""

    async def expired(self, *, grace_s: float, limit: int) -> list[FileEntry]:
        """Files retired longer than the grace period ago."""

    async def forget(self, file_ids: Sequence[int]) -> None:
        """The objects of these retired files are deleted. Others stay."""

    async def known(self, keys: Sequence[str]) -> set[str]:
        """Which of the keys are of live or retired files."""

    async def ended(self, plan_ids: Sequence[int]) -> dict[int, datetime]:
        """Those of the plans that are not open any more and not forgotten, with the time they began."""

    async def open_plan_ids(self) -> set[int]:
        """Plans, of exports and swaps, whose objects may be put at any moment."""

    async def gaps(self) -> list[str]:
        """What contradicts the law of the manifest, in words: exported ranges that do not follow one another up to
        the checkpoint, live files that cover an offset of an hour twice or whose rows do not add up."""

    async def count_history(self, *, before: datetime) -> int:
        """How many plans `forget_history` would take away."""

    async def forget_history(self, *, before: datetime) -> int:
        """Take away the plans that ended before, and what says when ranges were exported before: events_export has no
        processed_at for their rows any more. How many plans that were."""


def needed_since(pending: Sequence[PendingExport]) -> datetime | None:
    waiting = [each.since or _FIRST for each in pending if each.exported_below < each.stored_below]
    return min(waiting, default=None)
