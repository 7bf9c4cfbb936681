"""How long what is kept: the settings' limits, the projects' own ones, and what the system itself needs.

Raw events are counted by whole days of storing. With the lake a day is due so long after the export (`raw_days`), or so
long after the day's end (`raw_max_days`) if it is exported at all. A project's own `raw_days` stands for both. Nothing
that is younger than `least_raw_days` is removed, whatever the limits say: the dedupe window and the windows are made
again from the event store.

The lake's limit is counted from the end of the hour or from the export, whichever is later: what is imported late is
kept from its import on.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from math import ceil
from typing import NamedTuple

from config.settings import RetentionSettings, Settings
from storage.retention import Group, ProjectLimits

DAY_S = 86400.0
CLOCKS_APART_S = 3600.0


class RawLimit(NamedTuple):
    """Days; 0 is never."""

    after_export: int
    after_storing: int


class Due(NamedTuple):
    """A day's rows may go if they were exported before."""

    exported_before: datetime | None
    """None: nobody asks for an export."""


@dataclass(frozen=True)
class Policy:
    settings: RetentionSettings
    with_lake: bool
    least_raw_days: int
    limits: Mapping[str, ProjectLimits] = field(default_factory=dict)

    @property
    def raw(self) -> RawLimit:
        return RawLimit(self.settings.raw_days, self.settings.raw_max_days)

    def raw_of(self, project_id: str) -> RawLimit:
        own = self.limits.get(project_id, ProjectLimits()).raw_days
        return self.raw if own is None else RawLimit(own, own)

    def raw_due(self, limit: RawLimit, day_end: datetime, now: datetime) -> Due | None:
        """None: the day stays."""
        if self.with_lake and self._is_over(limit.after_export, day_end, now):
            exported_before = now - timedelta(days=limit.after_export)
            return Due(now if self._is_over(limit.after_storing, day_end, now) else exported_before)
        if self._is_over(limit.after_storing, day_end, now):
            return Due(now if self.with_lake else None)
        return None

    def _is_over(self, days: int, day_end: datetime, now: datetime) -> bool:
        return days > 0 and day_end + timedelta(days=max(days, self.least_raw_days)) <= now

    @property
    def lake_days(self) -> int:
        """Hot and cold together; 0 is for ever."""
        hot, cold = self.settings.lake_hot_days, self.settings.lake_cold_days
        return hot + cold if hot and cold else 0

    def lake_before(self, now: datetime) -> datetime | None:
        """Files that are older are due, of projects without limits of their own."""
        return _before(self.lake_days, now)

    def lake_limits(self, now: datetime) -> dict[str, datetime | None]:
        """The same of projects with limits of their own; None is never."""
        own = {project: each.lake_days for project, each in self.limits.items()}
        return {project: _before(days, now) for project, days in own.items() if days is not None}

    def hot_before(self, now: datetime) -> datetime | None:
        return _before(self.settings.lake_hot_days, now)

    def records_before(self, group: Group, now: datetime) -> datetime | None:
        """Records that are older are due; None is never."""
        settings = self.settings
        match group.kind:
            case "rollups" | "aggregated" | "counted_days":
                own = self.limits.get(group.project_id, ProjectLimits()).rollup_days
                return _before(settings.rollup_days if own is None else own, now)
            case "dead_letters":
                return _before(settings.dead_letter_days, now)
            case "patterns":
                return _before(settings.pattern_days, now)
            case "recomputed_days":
                return _before(settings.history_days, now)
            case "runs":
                return _before(settings.audit_days, now)

    def contradictions(self, project_id: str, limits: ProjectLimits) -> list[str]:
        """Why a project cannot have these limits, in words."""
        if not self.with_lake:
            return []
        raw = self.raw.after_export if limits.raw_days is None else limits.raw_days
        lake = self.lake_days if limits.lake_days is None else limits.lake_days
        # They go by whole days, the lake's files by hours.
        longest = max(raw, self.least_raw_days) + 1
        if lake and (not raw or longest > lake):
            kept = f"up to {longest} days" if raw else "for ever"
            return [f"raw events of {project_id} would stay in PostgreSQL {kept}, in the lake {lake} days"]
        return []


def policy_of(settings: Settings, limits: Mapping[str, ProjectLimits], *, lake_was_used: bool = False) -> Policy:
    """A lake that is switched off for a while still counts: what it has not got stays."""
    return Policy(settings.retention, settings.lake.enabled or lake_was_used, least_raw_days(settings), limits)


def least_raw_days(settings: Settings) -> int:
    """What dedupe window and windows are made of again after a loss must be there, stored by any clock."""
    rebuilt_s = settings.windows.ttl_s + settings.gateway.max_event_ahead_s
    return ceil((max(settings.log.dedupe_window_s, rebuilt_s) + CLOCKS_APART_S) / DAY_S)


def _before(days: int, now: datetime) -> datetime | None:
    return now - timedelta(days=days) if days else None
