"""What retention looks at and removes in the database. `PostgresRetention` and `MemoryRetention` both keep this
contract.

The law:
- Rows of events are removed by the day on which they were stored, whole days where all of a day may go. Nobody writes
  to a day that is over, so what was seen of it stays true until another retention removes it.
- Whatever is removed is counted in the transaction that removes it: in the ledger as expired (LG-1), in the row of its
  run, and for events where the events of the project begin from now on.
- `shares` says how many rows of a day must stay for the lake: those that were not exported by a time, and those that
  are in no live file, whatever the checkpoint says. What was exported and whose time in the lake is over needs no file.
- Calls that delete are bounded, by a limit or by pages; whoever calls goes on until nothing comes back. To do it again
  is harmless, at the same time too.
- `drop_day` waits for its lock for `LOCK_TIMEOUT_S` at most, because every writer and reader that comes meanwhile
  waits behind it; `Conflict` is raised then, and nothing has changed.
- Each call ends at its deadline.
"""

from collections.abc import Mapping, Sequence
from datetime import date, datetime
from typing import Literal, NamedTuple, Protocol

LOCK_TIMEOUT_S = 0.3
NO_LIMITS: Mapping[str, datetime | None] = {}

RecordKind = Literal["rollups", "aggregated", "dead_letters", "patterns", "recomputed_days", "counted_days", "runs"]
Kind = Literal["partitions", "events", "moved_files", "expired_files", "rewritten_files", "plans"] | RecordKind
"""Of what is removed: whole days of events, a project's events of a day, files that became cold, files that were given
up, files without some of their projects, the lake's history, and records."""


class ProjectLimits(NamedTuple):
    """Days; None is the settings' limit, 0 for ever."""

    raw_days: int | None = None
    lake_days: int | None = None
    rollup_days: int | None = None


class StoredDay(NamedTuple):
    """A day of storing (UTC) that is there, and its bytes on disk."""

    day: date
    bytes: int


class Share(NamedTuple):
    """A project's rows of a day, and how many of them the lake still needs."""

    project_id: str
    rows: int
    waiting: int


class Gone(NamedTuple):
    rows: int
    bytes: int


class Removal(NamedTuple):
    """What was removed, or would be."""

    kind: Kind
    name: str
    files: int
    rows: int
    bytes: int


class Group(NamedTuple):
    """Records that share a limit. Those of a series of roll-ups are named by it."""

    kind: RecordKind
    project_id: str = ""
    metric: str = ""
    granularity: str = ""

    @property
    def name(self) -> str:
        """Within its kind."""
        return "/".join(self[1:]).strip("/")


class Run(NamedTuple):
    run_id: int
    started_at: datetime
    finished_at: datetime | None
    kept: Sequence[str]
    """What was due and stayed, and why."""
    removals: Sequence[Removal]


class RetentionStore(Protocol):
    async def limits(self) -> dict[str, ProjectLimits]:
        """Of the projects that have some of their own."""

    async def set_limits(self, project_id: str, limits: ProjectLimits) -> None:
        """Raises `NotFound` when there is no such project."""

    async def clear_limits(self, project_id: str) -> None:
        """The settings' limits hold again."""

    async def stored_before(self, project_id: str) -> datetime | None:
        """Events of the project that were stored before this may be gone; None when all are there."""

    async def lake_was_used(self) -> bool:
        """Whether there is, or was, a lake that is to have the events: it may be switched off for a while."""

    async def begin_run(self, at: datetime) -> int: ...

    async def end_run(self, run_id: int, at: datetime, kept: Sequence[str]) -> None: ...

    async def last_run(self) -> datetime | None:
        """When the last one that came to its end had begun."""

    async def runs(self, *, limit: int) -> list[Run]:
        """The newest first."""

    async def note(self, run_id: int, removal: Removal) -> None:
        """For what is not removed from the database. The same name again adds up."""

    async def days(self) -> list[StoredDay]:
        """The oldest first."""

    async def projects_of(self, day: date) -> list[str]:
        """Those that have rows of the day."""

    async def shares(
        self,
        day: date,
        *,
        exported_before: datetime | None,
        projects: Sequence[str] | None = None,
        lake_before: datetime | None = None,
        lake_limited: Mapping[str, datetime | None] = NO_LIMITS,
    ) -> list[Share]:
        """Of the projects, or of all that have rows of the day. Without `exported_before` nothing waits. What of the
        lake is due is said as for `storage.lake_listing.LakeListing.aging`."""

    async def drop_day(self, run_id: int, day: date, *, size: int) -> int:
        """Remove the day with all its rows: how many. 0 when it is not there. Raises `Conflict`."""

    async def expire_rows(
        self, run_id: int, day: date, projects: Sequence[str], *, first_page: int, row_bytes: float
    ) -> tuple[int, int | None]:
        """Delete the projects' rows in some pages of the day: how many, and the next page if there is one."""

    async def groups(self) -> list[Group]:
        """All there are records of."""

    async def count_old(self, group: Group, before: datetime) -> Gone:
        """What `delete_old` would delete in all."""

    async def delete_old(self, run_id: int, group: Group, before: datetime, *, limit: int) -> Gone:
        """Some of the records from before that time."""
