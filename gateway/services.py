"""What the routes need of the rest of the system, as Protocols: unit tests give small fakes, the worker
gives the real things. Every call has a deadline of its own or is given one by the route."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, NamedTuple, Protocol

import msgspec

from analytics_actors.retention.policy import Policy, policy_of
from config.settings import BatchSettings, GatewaySettings, QuerySettings, Settings, WindowSettings
from gateway.answer_cache import AnswerCache
from gateway.known_projects import KnownProjects
from gateway.metric_definitions import Backfills, Definitions, MetricRegistry
from gateway.metric_reader import MetricReader
from gateway.metric_stream import MetricStreams
from gateway.metrics import Metrics
from gateway.rows import Decoded, Ingest
from gateway.sql_queries import SqlAnswer
from gateway.steps import Steps
from storage.batch_jobs import BatchJobs
from storage.destinations import Destinations, OpenPlace
from storage.event_queries import DeadLetter, EventPage, Order, StoredEvent
from storage.key_text import KeyKind
from storage.lake_exports import LakeExports
from storage.lake_listing import LakeListing
from storage.ledger import Difference, LedgerHour
from storage.pattern_store import PatternPage
from storage.patterns import Kind
from storage.registry import KeyRecord, NewKey, Project
from storage.retention import ProjectLimits, RetentionStore
from storage.rollups import RollupStore
from storage.sandbox.wire import Format


class KeyInfo(NamedTuple):
    """What a valid key stands for. `project_id` is None for the system's admin key."""

    project_id: str | None
    kind: KeyKind
    key_id: str


class Keys(Protocol):
    def known(self, key: str) -> KeyInfo | None:
        """What the key stands for, if that can be told at once and is good news."""

    async def lookup(self, key: str) -> KeyInfo:
        """Raises `ApiError`: malformed_key, invalid_key, or unavailable when nobody can tell."""


class EventDecoder(Protocol):
    def single(self, body: bytes, *, project_id: str, now: datetime, import_old: bool) -> Decoded: ...

    def batch_steps(
        self, body: bytes, *, content_type: str | None, project_id: str, now: datetime, import_old: bool
    ) -> Steps[Decoded]: ...


class PendingHour(NamedTuple):
    """Events received in one hour that are safe and not yet in PostgreSQL, and the refused ones beside them."""

    events: int
    rejected: int


class Pending(NamedTuple):
    """By hour (hours since the Unix epoch); `complete` is False when log or spool could not be asked."""

    hours: Mapping[int, PendingHour]
    complete: bool


Place = Literal["log", "spool", "unknown"]


class Readiness(msgspec.Struct, frozen=True):
    """Whether events can be accepted now, and the state of each part: "ok" or what is wrong with it."""

    accepting: bool
    parts: dict[str, str]


class Status(Protocol):
    """Looks at the system from outside of the write path. No call raises for a part that is down."""

    async def snapshot(self) -> dict[str, Any]:
        """JSON for `GET /v1/status`: `gateways`, `shards` (each with `shard` and, when it answers, a `view`:
        `analytics_actors.messages.BatcherView`), `lakeKeeper`, `services`, `batching` (`gateway.batching.Batching`)."""

    async def readiness(self) -> Readiness: ...

    async def trace(self, project_id: str, event_id: str) -> Place:
        """Where an event is that is not in PostgreSQL."""

    async def pending(self, project_id: str) -> Pending: ...


class Registry(Protocol):
    """The part of `storage.registry.Registry` that the admin routes need."""

    async def create_project(self, project_id: str, *, client_id: str | None = None) -> Project: ...

    async def list_projects(self, *, limit: int, after: str = "") -> list[Project]: ...

    async def create_key(
        self, project_id: str | None, kind: KeyKind, *, expires_at: datetime | None = None
    ) -> NewKey: ...

    async def list_keys(
        self, project_id: str | None = None, *, limit: int, after: str | None = None
    ) -> list[KeyRecord]: ...

    async def revoke_key(self, key_id: str, *, project_id: str | None = None) -> KeyRecord: ...


class EventQueries(Protocol):
    """`storage.event_queries.EventQueries`."""

    async def list_events(
        self,
        project_id: str,
        *,
        event_type: str | None = None,
        user_id: str | None = None,
        session_id: str | None = None,
        start: datetime | None = None,
        end: datetime | None = None,
        limit: int = 100,
        cursor: str | None = None,
        order: Order = "newest",
    ) -> EventPage: ...

    async def find_event(self, project_id: str, event_id: str) -> StoredEvent | None: ...

    async def find_dead_letter(self, project_id: str, event_id: str) -> DeadLetter | None: ...

    async def history_begins(self, project_id: str) -> datetime | None: ...


class Ledger(Protocol):
    """`storage.ledger.Ledger`."""

    async def hours(
        self, project_id: str, *, start: datetime | None = None, end: datetime | None = None
    ) -> list[LedgerHour]: ...

    async def check(
        self, project_id: str | None = None, *, start: datetime | None = None, end: datetime | None = None
    ) -> list[Difference]: ...


LARGE_AT_ONCE = 2
"""Each takes up to seconds of one processor, of which a worker has one: more at once would all be late, in vain."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistics:
    """What the routes of windowed metrics need (the Prometheus metrics of this process are `Services.metrics`)."""

    settings: WindowSettings
    definitions: Definitions
    registry: MetricRegistry
    rollups: RollupStore
    backfills: Backfills
    reader: MetricReader
    answers: AnswerCache
    streams: MetricStreams
    large_answers: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(LARGE_AT_ONCE))
    """For answers that may be made of very many windows: the others wait, for as long as a query may take."""


class Patterns(Protocol):
    """The part of `storage.pattern_store.PatternStore` that the routes need."""

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
    ) -> PatternPage: ...

    async def signing_secret(self, project_id: str) -> bytes: ...

    async def replace_secret(self, project_id: str) -> bytes: ...


class Sql(Protocol):
    """`gateway.sql_queries.SqlQueries`."""

    @property
    def settings(self) -> QuerySettings: ...

    async def run(
        self, project_id: str, sql: str, form: Format, *, max_rows: int | None = None, strict: bool = False
    ) -> SqlAnswer: ...


@dataclass(frozen=True, slots=True)
class Lake:
    """What the routes need to know of the lake."""

    exports: LakeExports
    listing: LakeListing
    destinations: Destinations
    open_place: OpenPlace
    behind_s: float
    """`destinations.behind_s` of the settings."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Jobs that count days again."""

    jobs: BatchJobs
    settings: BatchSettings


@dataclass(frozen=True, slots=True)
class Retention:
    """How long what is kept."""

    store: RetentionStore
    settings: Settings

    def policy(self, limits: Mapping[str, ProjectLimits]) -> Policy:
        """With these limits of projects."""
        return policy_of(self.settings, limits)


@dataclass(frozen=True, slots=True)
class Services:
    """Everything that `create_app` needs."""

    settings: GatewaySettings
    decoder: EventDecoder
    ingest: Ingest
    keys: Keys
    registry: Registry
    projects: KnownProjects
    queries: EventQueries
    ledger: Ledger
    status: Status
    metrics: Metrics
    patterns: Patterns
    statistics: Statistics
    sql: Sql
    lake: Lake
    retention: Retention
    batch: Batch
