"""The fake of the pattern store for unit tests; it passes the same contract suite as `PostgresPatterns`."""

import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from uuid import UUID

from storage.errors import NotFound, Unavailable
from storage.pattern_store import (
    SECRET_BYTES,
    Found,
    PatternPage,
    PendingWebhook,
    SavedState,
    StoredPattern,
    error_text,
    page,
    read_cursor,
)
from storage.patterns import Detection, Kind


@dataclass
class _Row:
    detection: Detection
    url: str
    stored: StoredPattern
    next_attempt_s: float


@dataclass
class MemoryPatterns:
    """`away` makes every call raise `Unavailable`. Only `projects` have secrets."""

    clock: Callable[[], float] = time.time
    away: bool = False
    projects: set[str] = field(default_factory=lambda: {"shop"})
    rows: dict[str, _Row] = field(default_factory=dict)
    kept: dict[tuple[str, str], SavedState] = field(default_factory=dict)
    _secrets: dict[str, bytes] = field(default_factory=dict)

    def _check(self) -> None:
        if self.away:
            raise Unavailable("PostgreSQL was made to be away")

    @property
    def detections(self) -> list[Detection]:
        return [row.detection for row in self.rows.values()]

    async def states(self, metrics: Sequence[tuple[str, str]] | None = None) -> list[SavedState]:
        self._check()
        return [state for key, state in self.kept.items() if metrics is None or key in metrics]

    async def save(self, states: Sequence[SavedState], found: Sequence[Found]) -> list[Detection]:
        self._check()
        for state in states:
            known = self.kept.get((state.project_id, state.metric))
            if known is None or known.next_start <= state.next_start:
                self.kept[state.project_id, state.metric] = state
        new = []
        for detection, url in found:
            if detection.id in self.rows:
                continue
            stored = StoredPattern(detection, "pending" if url else "none", 0, None, None)
            self.rows[detection.id] = _Row(detection, url, stored, self.clock())
            new.append(detection)
        return new

    async def forget(self, metrics: Sequence[tuple[str, str]]) -> None:
        self._check()
        for metric in metrics:
            self.kept.pop(metric, None)

    async def list_patterns(
        self,
        project_id: str,
        *,
        metric: str | None = None,
        kind: Kind | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        limit: int = 100,
        cursor: str | None = None,
    ) -> PatternPage:
        self._check()
        after = None if cursor is None else read_cursor(cursor)

        def is_wanted(detection: Detection) -> bool:
            start, _ = key = _key(detection)
            return (
                detection.project_id == project_id
                and metric in (None, detection.metric)
                and kind in (None, detection.kind)
                and (since is None or start >= since)
                and (until is None or start < until)
                and (after is None or key < after)
            )

        rows = [row.stored for row in self.rows.values() if is_wanted(row.detection)]
        rows.sort(key=lambda stored: _key(stored.detection), reverse=True)
        return page(rows[: limit + 1], limit)

    async def due(self, *, limit: int, lease_s: float) -> list[PendingWebhook]:
        self._check()
        now = self.clock()
        due = [row for row in self.rows.values() if row.stored.delivery == "pending" and row.next_attempt_s <= now]
        due.sort(key=lambda row: row.next_attempt_s)
        for row in due[:limit]:
            row.stored = row.stored._replace(attempts=row.stored.attempts + 1)
            row.next_attempt_s = now + lease_s
        return [PendingWebhook(row.detection, row.url, row.stored.attempts) for row in due[:limit]]

    async def delivered(self, pattern_id: str) -> None:
        self._check()
        row = self.rows[pattern_id]
        at = datetime.fromtimestamp(self.clock(), UTC)
        row.stored = row.stored._replace(delivery="delivered", delivered_at=at, last_error=None)

    async def failed(self, pattern_id: str, attempt: int, error: str, *, retry_in_s: float | None) -> None:
        self._check()
        row = self.rows[pattern_id]
        if row.stored.delivery != "pending" or row.stored.attempts != attempt:
            return
        row.stored = row.stored._replace(
            delivery="failed" if retry_in_s is None else "pending", last_error=error_text(error)
        )
        row.next_attempt_s = self.clock() + (retry_in_s or 0.0)

    async def signing_secret(self, project_id: str) -> bytes:
        return self._secrets[project_id] if project_id in self._secrets else await self.replace_secret(project_id)

    async def replace_secret(self, project_id: str) -> bytes:
        self._check()
        if project_id not in self.projects:
            raise NotFound(f"there is no project {project_id}")
        self._secrets[project_id] = secrets.token_bytes(SECRET_BYTES)
        return self._secrets[project_id]


def _key(detection: Detection) -> tuple[datetime, UUID]:
    return datetime.fromtimestamp(detection.start, UTC), UUID(detection.id)
