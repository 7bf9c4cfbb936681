"""Small fakes of what `gateway.services` asks for, and a client of the app without a socket."""

import asyncio
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, ClassVar

import httpx
import msgspec
import pyarrow as pa
from starlette.types import Scope

from config.settings import BatchSettings, GatewaySettings, QuerySettings, Settings, WindowSettings
from gateway.answer_cache import AnswerCache
from gateway.answers import SEND_WHOLE, Header
from gateway.app import create_app
from gateway.decode import Decoder
from gateway.errors import ApiError
from gateway.known_projects import KnownProjects
from gateway.metric_definitions import Backfills, Definitions
from gateway.metric_reader import MetricReader
from gateway.metric_stream import MetricStreams
from gateway.metrics import Metrics
from gateway.middleware import Edge
from gateway.project_turns import ProjectTurns
from gateway.rows import Overloaded, Receipt, Row
from gateway.services import (
    Batch,
    KeyInfo,
    Lake,
    Pending,
    PendingHour,
    Place,
    Readiness,
    Retention,
    Services,
    Statistics,
)
from gateway.sql_queries import SqlAnswer, turns_of
from storage import past_events
from storage.aggregated import AggregatedRecord, RecordKey
from storage.destinations import Destination
from storage.errors import Conflict, NotFound, Unavailable
from storage.event_columns import RecordChunks
from storage.event_queries import DeadLetter, EventPage, InvalidCursor, Order, StoredEvent
from storage.key_text import KeyKind
from storage.lake_cache import NotFetched
from storage.ledger import Difference, LedgerHour
from storage.memory_batch_jobs import MemoryBatchJobs
from storage.memory_destinations import MemoryDestinations
from storage.memory_lake_exports import MemoryLakeExports
from storage.memory_lake_listing import MemoryLakeListing
from storage.memory_manifest import MemoryManifest
from storage.memory_objects import MemoryObjects
from storage.memory_patterns import MemoryPatterns
from storage.memory_retention import MemoryRetention
from storage.memory_rollups import MemoryRollups
from storage.memory_store import MemoryStore
from storage.memory_windows import MemoryWindows
from storage.metric_registry import MemoryMetricRegistry, StoredDefinition
from storage.registry import KeyRecord, NewKey, Project
from storage.sandbox.wire import Column, Format, Result

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)

KEYS = {
    "write": KeyInfo("shop", "write", "w1"),
    "read": KeyInfo("shop", "read", "r1"),
    "import": KeyInfo("shop", "import", "i1"),
    "admin": KeyInfo("shop", "admin", "a1"),
    "other": KeyInfo("other", "write", "w2"),
    "system": KeyInfo(None, "admin", "s1"),
}


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


class FakeKeys:
    def __init__(self) -> None:
        self.error: Exception | None = None

    def known(self, key: str) -> KeyInfo | None:
        return KEYS.get(key) if self.error is None else None

    async def lookup(self, key: str) -> KeyInfo:
        if self.error is not None:
            raise self.error
        if key not in KEYS:
            raise ApiError("invalid_key")
        return KEYS[key]


class FakeIngest:
    """Keeps what was submitted; an event id seen before is a duplicate."""

    def __init__(self) -> None:
        self.submitted: list[tuple[str, list[Row], int]] = []
        self.error: Exception | None = None
        self.spooling = False
        self.stored = True
        self._seen: set[tuple[str, str]] = set()

    def submit(
        self, project_id: str, rows: list[Row], *, rejected: int, received_at: datetime
    ) -> "asyncio.Future[Receipt]":
        if isinstance(self.error, Overloaded):
            raise self.error
        receipt = asyncio.get_running_loop().create_future()
        if self.error is not None:
            receipt.set_exception(self.error)
        else:
            receipt.set_result(self._take(project_id, rows, rejected))
        return receipt

    def _take(self, project_id: str, rows: list[Row], rejected: int) -> Receipt:
        self.submitted.append((project_id, rows, rejected))
        if self.spooling:
            return Receipt("spooled", (), 0, None)
        duplicates = []
        for index, row in enumerate(rows):
            key = (project_id, row.event_id)
            if key in self._seen:
                duplicates.append(index)
            self._seen.add(key)
        return Receipt("logged", duplicates, 0, len(self.submitted))

    async def wait_stored(self, receipt: Receipt, *, deadline_s: float) -> bool:
        return self.stored

    def overload(self, retry_after_s: int) -> None:
        self.error = Overloaded("the shard is full", retry_after_s)


class FakeRegistry:
    def __init__(self) -> None:
        self.projects: dict[str, Project] = {"shop": Project("shop", NOW, "shop")}
        self.keys: dict[str, KeyRecord] = {}
        self.away = False
        self.asked = 0

    def add(self, project_id: str) -> None:
        self.projects[project_id] = Project(project_id, NOW, project_id)

    def _check(self) -> None:
        if self.away:
            raise Unavailable("PostgreSQL did not answer")

    async def create_project(self, project_id: str, *, client_id: str | None = None) -> Project:
        self._check()
        if " " in project_id:
            raise ValueError(f"{project_id!r} is no project id")
        if project_id in self.projects:
            raise Conflict(f"there is a project {project_id} already")
        return self.projects.setdefault(project_id, Project(project_id, NOW, client_id or project_id))

    async def list_projects(self, *, limit: int, after: str = "") -> list[Project]:
        self._check()
        return [self.projects[name] for name in sorted(self.projects) if name > after][:limit]

    async def has_project(self, project_id: str) -> bool:
        self.asked += 1
        self._check()
        return project_id in self.projects

    async def create_key(self, project_id: str | None, kind: KeyKind, *, expires_at: datetime | None = None) -> NewKey:
        self._check()
        if project_id is not None and project_id not in self.projects:
            raise NotFound(f"there is no project {project_id}")
        key_id = f"k{len(self.keys)}"
        self.keys[key_id] = KeyRecord(key_id, project_id, kind, b"", NOW, expires_at, None)
        return NewKey(key_id, f"aa_{kind}_{key_id}")

    async def list_keys(
        self, project_id: str | None = None, *, limit: int, after: str | None = None
    ) -> list[KeyRecord]:
        self._check()
        mine = [record for record in self.keys.values() if project_id in (None, record.project_id)]
        return [record for record in mine if after is None or record.key_id > after][:limit]

    async def revoke_key(self, key_id: str, *, project_id: str | None = None) -> KeyRecord:
        self._check()
        record = self.keys.get(key_id)
        if record is None or project_id not in (None, record.project_id):
            raise NotFound(f"there is no key {key_id}")
        self.keys[key_id] = record._replace(revoked_at=NOW)
        return self.keys[key_id]


class FakeQueries:
    """Holds a few events as JSON; filters by type, pages by index."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self.letters: dict[str, DeadLetter] = {}
        self.begins: datetime | None = None
        self.asked: list[dict[str, Any]] = []
        self.error: Exception | None = None
        self.delay_s = 0.0

    def add(self, event_id: str, *, project_id: str = "shop", event_type: str = "x") -> None:
        time = "2026-11-20T12:00:00.000000Z"
        event: dict[str, Any] = dict.fromkeys(("userId", "anonymousId", "sessionId", "siteId", "context"))
        event |= {"eventId": event_id, "eventType": event_type, "projectId": project_id, "properties": {"a": 1}}
        self.events.append(event | dict.fromkeys(("timestamp", "receivedAt", "createdAt"), time))

    async def _check(self) -> None:
        await asyncio.sleep(self.delay_s)
        if self.error is not None:
            raise self.error

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
    ) -> EventPage:
        await self._check()
        self.asked.append({"user_id": user_id, "session_id": session_id, "start": start, "end": end, "order": order})
        if cursor is not None and not cursor.isdigit():
            raise InvalidCursor("the cursor is not one that this server made")
        begin = int(cursor or 0)
        mine = [e for e in self.events if e["projectId"] == project_id and event_type in (None, e["eventType"])]
        page = [msgspec.Raw(msgspec.json.encode(event)) for event in mine[begin : begin + limit]]
        is_last = begin + limit >= len(mine)
        return EventPage(page, None if is_last else str(begin + limit), self.begins if is_last else None)

    async def find_event(self, project_id: str, event_id: str) -> StoredEvent | None:
        await self._check()
        for event in self.events:
            if (event["projectId"], event["eventId"]) == (project_id, event_id):
                return StoredEvent(msgspec.Raw(msgspec.json.encode(event)), 3, 7, NOW, NOW, NOW)
        return None

    async def find_dead_letter(self, project_id: str, event_id: str) -> DeadLetter | None:
        return self.letters.get(event_id)

    async def history_begins(self, project_id: str) -> datetime | None:
        await self._check()
        return self.begins


class FakeLedger:
    def __init__(self) -> None:
        self.rows: list[LedgerHour] = []
        self.differences: list[Difference] = []
        self.asked: list[str | None] = []

    async def hours(
        self, project_id: str, *, start: datetime | None = None, end: datetime | None = None
    ) -> list[LedgerHour]:
        self.asked.append(project_id)
        return [row for row in self.rows if (not start or row.hour >= start) and (not end or row.hour < end)]

    async def check(
        self, project_id: str | None = None, *, start: datetime | None = None, end: datetime | None = None
    ) -> list[Difference]:
        self.asked.append(project_id)
        return self.differences


class FakeStatus:
    def __init__(self) -> None:
        self.ready = Readiness(accepting=True, parts={"postgres": "ok", "log": "ok", "ray": "ok", "spool": "ok"})
        self.place: Place = "unknown"
        self.waiting = Pending({}, complete=True)
        self.snapshots = 0
        self.asked = 0

    async def snapshot(self) -> dict[str, Any]:
        self.snapshots += 1
        view = {"open_partitions": 64, "waiting_events": 1, "waiting_bytes": 2, "lag_events": 3, "lag_s": 0.5}
        view |= {"log_bytes": 4, "resident_bytes": 5, "window_ids": 6, "window_bytes": 7}
        lake = {"lag_records": 4, "held_s": 1.5, "resident_bytes": 9, "counters": {"files_written": 2.0}}
        windows = {"live_partitions": 64, "lag_s": 0.5, "watermark_ms": 1, "open_windows": 12, "waiting_windows": 0}
        windows |= {"resident_windows": 3, "resident_bytes": 9, "groups": 4, "late_days_left": 0}
        shard = {
            "shard": 0,
            "view": view | {"counters": {"events_stored": 8.0}},
            "aggregator": {"view": windows | {"counters": {"events_late": 11.0}}},
            "exporter": {"view": lake},
        }
        kept = {"hours_to_compact": 6, "hours_set_aside": 0, "strangers": 0, "last_run_ms": 1}
        kept |= {"destinations": 2, "destinations_failing": 1, "last_retention_ms": 1}
        keeper = {"view": kept | {"counters": {"files_merged": 5.0}}}
        shards = [shard, {"shard": 1, "view": None}]
        return {"gateways": [], "spools": [], "shards": shards, "lakeKeeper": keeper, "services": {}}

    async def readiness(self) -> Readiness:
        self.asked += 1
        return self.ready

    async def trace(self, project_id: str, event_id: str) -> Place:
        return self.place

    async def pending(self, project_id: str) -> Pending:
        return self.waiting

    def wait(self, hours: Mapping[int, PendingHour], *, complete: bool = True) -> None:
        self.waiting = Pending(hours, complete)


class FakeSql:
    """Answers what it is told to, and notes what was asked."""

    def __init__(self) -> None:
        self.settings = QuerySettings()
        self.turns: ProjectTurns | None = None
        self.asked: list[tuple[str, str, Format, int | None, bool]] = []
        self.error: Exception | None = None
        self.missing: list[NotFetched] = []
        self.cold_files = 0
        self.body = b'[["view",2]]'
        self.truncated = False
        self.delay_s = 0.0
        self.cancelled = 0

    async def run(
        self, project_id: str, sql: str, form: Format, *, max_rows: int | None = None, strict: bool = False
    ) -> SqlAnswer:
        self.turns = self.turns or turns_of(self.settings)
        async with self.turns.place(project_id):
            self.asked.append((project_id, sql, form, max_rows, strict))
            try:
                await asyncio.sleep(self.delay_s)
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
        if self.error is not None:
            raise self.error
        columns = [Column("event_type", "VARCHAR"), Column("n", "BIGINT")]
        result = Result(
            columns=columns, rows=1, truncated=self.truncated, bytes_read=9, is_offline=True, is_confined=True
        )
        return SqlAnswer(result, self.body, 3, self.cold_files, self.missing)


class FakeMetricRegistry(MemoryMetricRegistry):
    """Metrics are defined at `now`: long ago, unless a test says otherwise."""

    def __init__(self) -> None:
        super().__init__(clock=lambda: self.now)
        self.now = datetime(1970, 1, 1, tzinfo=UTC)
        self.away = False

    async def list(self, project_id: str, *, deleted: Collection[str] = ()) -> Sequence[StoredDefinition]:
        if self.away:
            raise Unavailable("PostgreSQL did not answer")
        return await super().list(project_id, deleted=deleted)


class FakeStoredEvents:
    """The event store as the reader of metrics sees it: batches of rows, and how far it is."""

    def __init__(self) -> None:
        self.batches: list[pa.RecordBatch] = []
        self.kept_records: list[tuple[RecordKey, AggregatedRecord]] = []
        self.next_offset = 0
        self.asked: list[tuple[float, float]] = []
        self.place: past_events.Place = "postgres"
        self.error: Exception | None = None

    async def place_of(self, project_ids: Sequence[str], *, start_s: float) -> past_events.Place:
        return self.place

    async def rows(
        self,
        project_ids: Sequence[str],
        *,
        start_s: float,
        end_s: float,
        columns: Collection[str] | None = None,
    ) -> AsyncIterator[pa.RecordBatch]:
        if self.error is not None:
            raise self.error
        self.asked.append((start_s, end_s))
        for batch in self.batches:
            times = batch.column("timestamp").cast(pa.int64()).to_numpy() / 1e6
            projects = batch.column("project_id").to_numpy(zero_copy_only=False)
            mask = (times >= start_s) & (times < end_s) & [project in project_ids for project in projects]
            yield batch.filter(pa.array(mask))

    async def records(self, project_ids: Sequence[str], *, start_s: float, end_s: float) -> RecordChunks:
        yield [
            (key, record)
            for key, record in self.kept_records
            if key.project_id in project_ids and start_s <= key.minute < end_s
        ]

    async def stored_below(self, partition: int) -> int:
        return self.next_offset


class FakeAnswers:
    """Keeps every answer; a version of its own for all ranges."""

    def __init__(self) -> None:
        self.kept: dict[str, bytes] = {}
        self.version: str | None = "1"
        self.error: Exception | None = None

    async def get(self, question: str) -> bytes | None:
        if self.error is not None:
            raise self.error
        return self.kept.get(question)

    async def put(self, question: str, answer: bytes, *, ttl_s: int) -> None:
        self.kept[question] = answer

    async def range_version(self, project_id: str, metric: str, start: int, end: int) -> str | None:
        return self.version


@dataclass
class FakeStatistics:
    """Windows, roll-ups and stored events in memory, at a time that the test sets."""

    settings: WindowSettings = field(default_factory=WindowSettings)
    now_s: float = NOW.timestamp()
    registry: FakeMetricRegistry = field(default_factory=FakeMetricRegistry)
    stored: FakeStoredEvents = field(default_factory=FakeStoredEvents)
    answers: FakeAnswers = field(default_factory=FakeAnswers)
    streams: MetricStreams = field(default_factory=lambda: MetricStreams(poll_s=0.01, heartbeat_s=0.05))

    def __post_init__(self) -> None:
        self.windows = MemoryWindows(self.settings, clock=lambda: self.now_s)
        self.rollups = MemoryRollups(clock=lambda: self.now_s)
        self.reader = MetricReader(
            self.settings,
            self.windows,
            self.rollups,
            self.stored,
            self.stored,
            self.rollups,
            partitions=64,
            max_ahead_s=86400,
            rollup_days=1826,
            clock_s=lambda: self.now_s,
        )

    def services(self) -> Statistics:
        return Statistics(
            settings=self.settings,
            definitions=Definitions(self.registry, self.settings, ttl_s=0.0),
            registry=self.registry,
            rollups=self.rollups,
            backfills=Backfills(self.rollups, wait_s=0.05),
            reader=self.reader,
            answers=AnswerCache(self.answers, self.answers, ttl_s=3600),
            streams=self.streams,
        )


class FakePlaces:
    """What is at a destination's place, or why nothing can be."""

    def __init__(self) -> None:
        self.objects = MemoryObjects()
        self.error: Exception | None = None

    async def open(self, destination: Destination) -> MemoryObjects:
        if self.error is not None:
            raise self.error
        return self.objects


class BeginTransport(httpx.AsyncBaseTransport):
    """What `Edge.begin` takes goes that way, the rest by ASGI. `x-begun` says which it was."""

    def __init__(self, app: Edge, calls: httpx.AsyncBaseTransport) -> None:
        self._app = app
        self._calls = calls

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if "content-length" not in request.headers:
            return await self._calls.handle_async_request(request)
        body = await request.aread()
        answered: asyncio.Future[httpx.Response] = asyncio.get_running_loop().create_future()

        def send_whole(scope: Scope, status: int, headers: Sequence[Header], content: bytes) -> bool:
            answered.set_result(httpx.Response(status, headers=[*headers, (b"x-begun", b"yes")], content=content))
            return True

        scope: Scope = {
            "type": "http",
            "method": request.method,
            "path": request.url.path,
            "raw_path": request.url.raw_path.partition(b"?")[0],
            "query_string": request.url.query,
            "headers": [(name.lower(), value) for name, value in request.headers.raw],
            SEND_WHOLE: send_whole,
        }
        if self._app.begin(scope, body, lambda app: None):
            return await answered
        return await self._calls.handle_async_request(request)


@dataclass
class System:
    """An app over fakes."""

    settings: GatewaySettings = field(default_factory=GatewaySettings)
    keys: FakeKeys = field(default_factory=FakeKeys)
    ingest: FakeIngest = field(default_factory=FakeIngest)
    registry: FakeRegistry = field(default_factory=FakeRegistry)
    queries: FakeQueries = field(default_factory=FakeQueries)
    ledger: FakeLedger = field(default_factory=FakeLedger)
    status: FakeStatus = field(default_factory=FakeStatus)
    metrics: Metrics = field(default_factory=Metrics)
    patterns: MemoryPatterns = field(default_factory=MemoryPatterns)
    statistics: FakeStatistics = field(default_factory=FakeStatistics)
    sql: FakeSql = field(default_factory=FakeSql)
    manifest: MemoryManifest = field(default_factory=lambda: MemoryManifest(MemoryStore(), clock=lambda: NOW))

    places: FakePlaces = field(default_factory=FakePlaces)
    begins: ClassVar[bool] = False
    """Whether requests are offered to `Edge.begin` first, as the server does."""

    def __post_init__(self) -> None:
        self.destinations = MemoryDestinations(self.manifest, {"shop": ("shop", 0)})
        self.retention = MemoryRetention(self.manifest)
        self.batch = MemoryBatchJobs(self.statistics.rollups)

    def app(self) -> Edge:
        services = Services(
            settings=self.settings,
            decoder=Decoder(self.settings),
            ingest=self.ingest,
            keys=self.keys,
            registry=self.registry,
            projects=KnownProjects(self.registry),
            queries=self.queries,
            ledger=self.ledger,
            status=self.status,
            metrics=self.metrics,
            patterns=self.patterns,
            statistics=self.statistics.services(),
            sql=self.sql,
            lake=Lake(
                MemoryLakeExports(self.manifest),
                MemoryLakeListing(self.manifest),
                self.destinations,
                self.places.open,
                3600,
            ),
            retention=Retention(self.retention, Settings()),
            batch=Batch(self.batch, BatchSettings()),
        )
        return create_app(services)

    def client(self, key: str | None = None) -> httpx.AsyncClient:
        app = self.app()
        transport: httpx.AsyncBaseTransport = httpx.ASGITransport(app, raise_app_exceptions=True)
        if self.begins:
            transport = BeginTransport(app, transport)
        headers = bearer(key) if key else {}
        return httpx.AsyncClient(transport=transport, base_url="http://gateway", headers=headers)
