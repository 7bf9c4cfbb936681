"""The fake of what retention looks at, for unit tests; it passes the same contract suite as `PostgresRetention`."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import Any

from storage.errors import Conflict, NotFound, Unavailable
from storage.ledger_counts import LedgerKey
from storage.memory_manifest import MemoryManifest
from storage.retention import NO_LIMITS, Gone, Group, ProjectLimits, Removal, Run, Share, StoredDay

ROW_BYTES = 100
_HOUR_S = 3600


@dataclass
class MemoryRetention:
    """Over the events of a `MemoryManifest`'s store. `records` are put there by tests: their times, by group."""

    manifest: MemoryManifest
    projects: set[str] = field(default_factory=lambda: {"shop"})
    records: defaultdict[Group, list[datetime]] = field(default_factory=lambda: defaultdict(list))
    expired: Counter[LedgerKey] = field(default_factory=Counter)
    in_use: int = 0
    """So many of the next drops raise `Conflict`."""
    available: bool = True
    """While False every call raises `Unavailable`."""
    _limits: dict[str, ProjectLimits] = field(default_factory=dict)
    _stored_before: dict[str, datetime] = field(default_factory=dict)
    _runs: list[Run] = field(default_factory=list)

    def _reach(self) -> None:
        if not self.available:
            raise Unavailable("made to be away")

    async def limits(self) -> dict[str, ProjectLimits]:
        self._reach()
        return dict(self._limits)

    async def set_limits(self, project_id: str, limits: ProjectLimits) -> None:
        self._reach()
        if project_id not in self.projects:
            raise NotFound(f"there is no project {project_id}")
        self._limits[project_id] = limits

    async def clear_limits(self, project_id: str) -> None:
        self._reach()
        self._limits.pop(project_id, None)

    async def stored_before(self, project_id: str) -> datetime | None:
        self._reach()
        return self._stored_before.get(project_id)

    async def lake_was_used(self) -> bool:
        self._reach()
        return bool(self.manifest.checkpoints)

    async def begin_run(self, at: datetime) -> int:
        self._reach()
        self._runs.append(Run(len(self._runs) + 1, at, None, (), []))
        return len(self._runs)

    async def end_run(self, run_id: int, at: datetime, kept: Sequence[str]) -> None:
        self._reach()
        self._runs[run_id - 1] = self._runs[run_id - 1]._replace(finished_at=at, kept=list(kept))

    async def last_run(self) -> datetime | None:
        self._reach()
        return max((run.started_at for run in self._runs if run.finished_at is not None), default=None)

    async def runs(self, *, limit: int) -> list[Run]:
        self._reach()
        return self._runs[::-1][:limit]

    async def note(self, run_id: int, removal: Removal) -> None:
        self._reach()
        run = self._runs[run_id - 1]
        known = {(each.kind, each.name): each for each in run.removals}
        before = known.get((removal.kind, removal.name))
        if before is not None:
            added = [have + more for have, more in zip(before[2:], removal[2:], strict=True)]
            removal = Removal(removal.kind, removal.name, *added)
        known[removal.kind, removal.name] = removal
        self._runs[run_id - 1] = run._replace(removals=list(known.values()))

    def _rows_of(self, day: date) -> list[dict[str, Any]]:
        return [row for row in self.manifest.store.rows if _day_of(row) == day]

    async def days(self) -> list[StoredDay]:
        self._reach()
        counts = Counter(_day_of(row) for row in self.manifest.store.rows)
        return [StoredDay(day, ROW_BYTES * rows) for day, rows in sorted(counts.items())]

    async def projects_of(self, day: date) -> list[str]:
        self._reach()
        return sorted({row["project_id"] for row in self._rows_of(day)})

    async def shares(
        self,
        day: date,
        *,
        exported_before: datetime | None,
        projects: Sequence[str] | None = None,
        lake_before: datetime | None = None,
        lake_limited: Mapping[str, datetime | None] = NO_LIMITS,
    ) -> list[Share]:
        self._reach()
        found: defaultdict[str, list[bool]] = defaultdict(list)
        for row in self._rows_of(day):
            if projects is None or row["project_id"] in projects:
                due = lake_limited.get(row["project_id"], lake_before)
                waits = exported_before is not None and self._waits(row, exported_before, due)
                found[row["project_id"]].append(waits)
        return [Share(project, len(waits), sum(waits)) for project, waits in sorted(found.items())]

    def _waits(self, row: dict[str, Any], exported_before: datetime, lake_before: datetime | None) -> bool:
        partition, offset = row["partition_id"], row["log_offset"]
        exports = [each for each in self.manifest.exports if each.range.partition == partition]
        early = [each.range.next_offset for each in exports if each.at <= exported_before]
        below = max(early, default=min((each.range.first_offset for each in exports), default=0))
        hour = row["timestamp"].replace(minute=0, second=0, microsecond=0)
        is_in_a_file = any(
            kept.file.hour == hour
            and any(each[0] == partition and each[1] <= offset < each[2] for each in kept.file.ranges)
            for kept in self.manifest.live()
        )
        later = [each for each in exports if each.range.next_offset > offset]
        exported_at = min(later, key=lambda each: each.range.next_offset).at if later else exported_before
        is_over = lake_before is not None and max(hour + timedelta(hours=1), exported_at) <= lake_before
        return offset >= below or not (is_in_a_file or is_over)

    async def drop_day(self, run_id: int, day: date, *, size: int) -> int:
        self._reach()
        if self.in_use:
            self.in_use -= 1
            raise Conflict(f"the day {day} is in use")
        rows = self._expire(day, self._rows_of(day))
        if rows:
            await self.note(run_id, Removal("partitions", day.isoformat(), 0, rows, size))
        return rows

    async def expire_rows(
        self, run_id: int, day: date, projects: Sequence[str], *, first_page: int, row_bytes: float
    ) -> tuple[int, int | None]:
        self._reach()
        rows = self._expire(day, [row for row in self._rows_of(day) if row["project_id"] in projects])
        if rows:
            await self.note(run_id, Removal("events", day.isoformat(), 0, rows, int(rows * row_bytes)))
        return rows, None

    def _expire(self, day: date, rows: Sequence[dict[str, Any]]) -> int:
        end = datetime(day.year, day.month, day.day, tzinfo=UTC) + timedelta(days=1)
        for row in rows:
            project = row["project_id"]
            self.expired[LedgerKey(project, int(row["received_at"].timestamp()) // _HOUR_S)] += 1
            self._stored_before[project] = max(end, self._stored_before.get(project, end))
        gone = {id(row) for row in rows}
        self.manifest.store.rows = [row for row in self.manifest.store.rows if id(row) not in gone]
        return len(rows)

    async def groups(self) -> list[Group]:
        self._reach()
        return sorted(group for group, times in self.records.items() if times)

    async def count_old(self, group: Group, before: datetime) -> Gone:
        self._reach()
        rows = sum(time < before for time in self.records[group])
        return Gone(rows, rows * ROW_BYTES)

    async def delete_old(self, run_id: int, group: Group, before: datetime, *, limit: int) -> Gone:
        self._reach()
        old = sorted(time for time in self.records[group] if time < before)[:limit]
        for time in old:
            self.records[group].remove(time)
        gone = Gone(len(old), len(old) * ROW_BYTES)
        if gone.rows:
            await self.note(run_id, Removal(group.kind, group.name, 0, *gone))
        return gone


def _day_of(row: dict[str, Any]) -> date:
    return datetime.fromtimestamp(row["stored_ms"] / 1000, UTC).date()
