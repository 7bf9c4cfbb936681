"""Detected patterns, the state of their webhooks' delivery, and how far metrics were judged.

`PostgresPatterns` and `MemoryPatterns` keep this contract:
- A detection is stored once, however often it is found: by project, metric, kind, window and dimensions. With it, in
  one transaction, the state of the detector that found it is stored, so that a restart neither repeats nor loses it.
- A detector's state never moves back: one that has judged fewer windows than the stored one changes nothing.
- A webhook is delivered at least once: `due` hands an attempt out for the time of its lease, to one caller at a time;
  it is handed out again unless `delivered` or `failed` has been called by then.
- Calls end at their deadline with `Unavailable`, and every one of them may be repeated.
"""

import secrets
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, NamedTuple, Protocol
from uuid import UUID

import asyncpg
import msgspec

from storage.errors import NotFound
from storage.patterns import Delivery, Detection, Kind
from storage.postgres import Postgres
from storage.statements import statement

SECRET_BYTES = 32
MAX_ERROR_CHARS = 500

_PATTERN_COLUMNS = """project_id, metric_name, kind, direction, window_size, extract(epoch FROM window_start)::bigint,
    dimensions, value, mean, expected, sigmas, events, windows, seasonal, extract(epoch FROM detected_at)::float8"""
_SAVE = statement("save_patterns")
_SAVE_STATES = statement("save_pattern_states")
_DUE = statement("due_webhooks").replace("pattern_columns", _PATTERN_COLUMNS)
_LIST = statement("list_patterns").replace("pattern_columns", _PATTERN_COLUMNS)
_STATES = "SELECT project_id, metric_name, extract(epoch FROM next_start)::bigint, state FROM pattern_states"
_WANTED = " WHERE (project_id, metric_name) IN (SELECT * FROM unnest($1::text[], $2::text[]))"
_FORGET = "DELETE FROM pattern_states" + _WANTED
_DELIVERED = """UPDATE patterns
    SET delivery = 'delivered', delivered_at = now(), next_attempt_at = NULL, last_error = NULL
    WHERE pattern_id = $1 AND delivery <> 'delivered'"""
_FAILED = """UPDATE patterns SET last_error = $3,
    delivery = CASE WHEN $4::float8 IS NULL THEN 'failed' ELSE 'pending' END,
    next_attempt_at = now() + make_interval(secs => $4::float8)
    WHERE pattern_id = $1 AND attempts = $2 AND delivery = 'pending'"""
_SIGNING_KEY = "INSERT INTO webhook_secrets (project_id, secret) VALUES ($1, $2) ON CONFLICT (project_id) DO "
_KEEP = "NOTHING"
_REPLACE = "UPDATE SET secret = excluded.secret, created_at = now()"


class InvalidPatternCursor(ValueError):
    """Not a cursor of this list."""


class SavedState(NamedTuple):
    """A detector between two windows; `state` is JSON that only the detector reads."""

    project_id: str
    metric: str
    next_start: int
    state: bytes


class Found(NamedTuple):
    """A detection to be stored, and where it is to be posted ("": nowhere)."""

    detection: Detection
    webhook_url: str


class StoredPattern(NamedTuple):
    detection: Detection
    delivery: Delivery
    attempts: int
    delivered_at: datetime | None
    last_error: str | None


class PatternPage(NamedTuple):
    """Newest windows first; `next_cursor` is None at the end."""

    patterns: list[StoredPattern]
    next_cursor: str | None


class PendingWebhook(NamedTuple):
    """An attempt that the caller is to make now; `attempt` counts from 1."""

    detection: Detection
    url: str
    attempt: int


class PatternStore(Protocol):
    async def states(self, metrics: Sequence[tuple[str, str]] | None = None) -> list[SavedState]:
        """Those of these (project, metric), or of all; a metric that has none is left out."""

    async def save(self, states: Sequence[SavedState], found: Sequence[Found]) -> list[Detection]:
        """In one transaction; each metric at most once. Returns the detections that were not stored before."""

    async def forget(self, metrics: Sequence[tuple[str, str]]) -> None:
        """Drop the states of these (project, metric); what begins there again begins anew."""

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
        """Those whose window begins in [since, until). Raises `InvalidPatternCursor`."""

    async def due(self, *, limit: int, lease_s: float) -> list[PendingWebhook]:
        """Attempts whose time has come, the longest due first; see the law."""

    async def delivered(self, pattern_id: str) -> None: ...

    async def failed(self, pattern_id: str, attempt: int, error: str, *, retry_in_s: float | None) -> None:
        """The attempt has failed: another one after that time, or none any more. Nothing changes when a later attempt
        was handed out meanwhile."""

    async def signing_secret(self, project_id: str) -> bytes:
        """What the project's webhooks are signed with, made when first asked for. Raises `NotFound` for no project."""

    async def replace_secret(self, project_id: str) -> bytes:
        """A new secret; the old one signs nothing from now on. Raises `NotFound` for no project."""


class PostgresPatterns:
    """In the tables of migration 0005."""

    def __init__(self, postgres: Postgres) -> None:
        self._postgres = postgres

    async def states(self, metrics: Sequence[tuple[str, str]] | None = None) -> list[SavedState]:
        async with self._postgres.session() as connection:
            if metrics is None:
                rows = await connection.fetch(_STATES)
            else:
                rows = await connection.fetch(_STATES + _WANTED, *_columns(metrics))
        return [SavedState(project_id, metric, start, state.encode()) for project_id, metric, start, state in rows]

    async def save(self, states: Sequence[SavedState], found: Sequence[Found]) -> list[Detection]:
        new: set[str] = set()
        async with self._postgres.transaction() as connection:
            if states:
                rows = [(*state[:3], state.state.decode()) for state in states]
                await connection.execute(_SAVE_STATES, *zip(*rows, strict=True))
            if found:
                saved = await connection.fetch(_SAVE, *zip(*map(_row, found), strict=True))
                new = {str(row[0]) for row in saved}
        return [detection for detection, _ in found if detection.id in new]

    async def forget(self, metrics: Sequence[tuple[str, str]]) -> None:
        async with self._postgres.session() as connection:
            await connection.execute(_FORGET, *_columns(metrics))

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
        after, after_id = (None, None) if cursor is None else read_cursor(cursor)
        if not _can_be_stored(project_id) or not _can_be_stored(metric or ""):
            return PatternPage([], None)
        async with self._postgres.session() as connection:
            rows = await connection.fetch(_LIST, project_id, metric, kind, since, until, after, after_id, limit + 1)
        return page([_stored(row) for row in rows], limit)

    async def due(self, *, limit: int, lease_s: float) -> list[PendingWebhook]:
        async with self._postgres.session() as connection:
            rows = await connection.fetch(_DUE, limit, lease_s)
        return [PendingWebhook(_detection(row[2:]), row[1], row[0]) for row in rows]

    async def delivered(self, pattern_id: str) -> None:
        async with self._postgres.session() as connection:
            await connection.execute(_DELIVERED, UUID(pattern_id))

    async def failed(self, pattern_id: str, attempt: int, error: str, *, retry_in_s: float | None) -> None:
        async with self._postgres.session() as connection:
            await connection.execute(_FAILED, UUID(pattern_id), attempt, error_text(error), retry_in_s)

    async def signing_secret(self, project_id: str) -> bytes:
        return await self._secret(project_id, _KEEP)

    async def replace_secret(self, project_id: str) -> bytes:
        return await self._secret(project_id, _REPLACE)

    async def _secret(self, project_id: str, on_conflict: str) -> bytes:
        if not _can_be_stored(project_id):
            raise NotFound(f"there is no project {project_id!r}")
        async with self._postgres.session() as connection:
            try:
                await connection.execute(_SIGNING_KEY + on_conflict, project_id, secrets.token_bytes(SECRET_BYTES))
            except asyncpg.ForeignKeyViolationError:
                raise NotFound(f"there is no project {project_id}") from None
            secret: bytes = await connection.fetchval(
                "SELECT secret FROM webhook_secrets WHERE project_id = $1", project_id
            )
        return secret


def page(found: list[StoredPattern], limit: int) -> PatternPage:
    """Of up to `limit` + 1 patterns."""
    if len(found) <= limit:
        return PatternPage(found, None)
    last = found[limit - 1].detection
    key = (datetime.fromtimestamp(last.start, UTC), UUID(last.id))
    return PatternPage(found[:limit], urlsafe_b64encode(msgspec.json.encode(key)).decode().rstrip("="))


_cursor_decoder = msgspec.json.Decoder(tuple[Annotated[datetime, msgspec.Meta(tz=True)], UUID])


def read_cursor(cursor: str) -> tuple[datetime, UUID]:
    """The last entry of the page before. Raises `InvalidPatternCursor`."""
    try:
        return _cursor_decoder.decode(urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
    except (ValueError, msgspec.MsgspecError) as error:
        raise InvalidPatternCursor("the cursor is not one that this server made") from error


def error_text(error: str) -> str:
    """As it can be stored: a receiver had a part in it."""
    return "".join(c if c.isprintable() else "�" for c in error)[:MAX_ERROR_CHARS]


def _row(found: Found) -> tuple[Any, ...]:
    d = found.detection
    dimensions = msgspec.json.encode(d.dimensions).decode()
    numbers = (d.value, d.mean, d.expected, d.sigmas, d.events, d.windows, d.seasonal, d.detected_at)
    names = (d.project_id, d.metric, d.kind, d.direction, d.size)
    return (UUID(d.id), *names, d.start, dimensions, *numbers, found.webhook_url or None)


def _stored(row: asyncpg.Record) -> StoredPattern:
    return StoredPattern(_detection(row[4:]), *row[:4])


def _detection(columns: Sequence[Any]) -> Detection:
    names = ("project_id", "metric", "kind", "direction", "size", "start", "dimensions")
    numbers = ("value", "mean", "expected", "sigmas", "events", "windows", "seasonal", "detected_at")
    fields = dict(zip((*names, *numbers), columns, strict=True))
    fields["dimensions"] = msgspec.json.decode(fields["dimensions"], type=tuple[tuple[str, str], ...])
    return Detection(**fields)


def _columns(metrics: Sequence[tuple[str, str]]) -> tuple[list[str], list[str]]:
    return [project_id for project_id, _ in metrics], [metric for _, metric in metrics]


def _can_be_stored(text: str) -> bool:
    """What PostgreSQL's text cannot hold (NUL, lone surrogates) is in no row."""
    return "\0" not in text and not any("\ud800" <= character <= "\udfff" for character in text)
