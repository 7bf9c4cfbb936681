"""A whole shard in memory and in virtual time: batcher, stores, aggregators that follow one another; and the truth."""

import asyncio
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, NamedTuple, TypeVar

import msgspec

from analytics_actors.aggregator import Aggregator
from analytics_actors.batcher import Batcher
from analytics_actors.windows.definition_book import DefinitionBook
from analytics_actors.windows.progress import windows_progress
from analytics_actors.windows.shared import FREEZE_S
from config.settings import LogSettings, Settings, StoreSettings, WindowSettings
from gateway.columns import Part, build_batch
from gateway.ingest import new_batch_id
from gateway.rows import Row
from storage.errors import Unavailable
from storage.event_batch import EventBatch
from storage.event_columns import Batches, MemoryEventColumns, StoredEvents
from storage.event_store import PartitionWrite, WriteResult
from storage.fingerprint import partition_of
from storage.log_tail import TailRead
from storage.memory_log import MemoryLog
from storage.memory_rollups import MemoryRollups
from storage.memory_store import MemoryStore
from storage.memory_windows import MemoryWindows
from storage.metric_definitions import MetricDefinition
from storage.metric_registry import MemoryMetricRegistry
from storage.rollups import day_of
from storage.window_key import SIZE_S, Dimensions, Size, WindowKey, lateness_s, live_from

PARTITIONS = 4
START_S = 1_777_640_000.0
"""2026-05-01 12:53:20 UTC, where virtual time begins."""

SETTINGS = Settings(log=LogSettings(partitions=PARTITIONS), store=StoreSettings(batch_interval_ms=200, batch_size=50))
Result = TypeVar("Result")


def at_once(call: Coroutine[Any, Any, Result]) -> Result:
    """The result of a coroutine that waits for nothing."""
    try:
        call.send(None)
    except StopIteration as done:
        result: Result = done.value
        return result
    raise AssertionError("it waits")


class Event(NamedTuple):
    event_id: str
    timestamp_s: float
    event_type: str = "page_view"
    user: str = ""
    properties: str = "{}"


class LateMarkingStore(MemoryStore):
    """Marks late days in the same transaction, as `PostgresStore` does."""

    def __init__(self, rollups: MemoryRollups, lateness: float, *, clock_ms: Callable[[], int]) -> None:
        super().__init__(clock_ms=clock_ms)
        self._rollups = rollups
        self._lateness = lateness

    def _commit(self, writes: Sequence[PartitionWrite]) -> WriteResult:
        if not self._rollups.available:
            raise Unavailable("made to be away")
        before = len(self.rows)
        result = super()._commit(writes)
        for row in self.rows[before:]:
            if is_late(row, self._lateness):
                at_once(self._rollups.mark_days(row["project_id"], [day_of(int(seconds(row["timestamp"]) // 1))]))
        return result


class PausingEvents(MemoryEventColumns):
    """Chunks take a while: others have their turn between them."""

    async def _chunks(self, rows: Sequence[dict[str, object]]) -> Batches:
        async for chunk in super()._chunks(rows):
            await asyncio.sleep(0.003)
            yield chunk


class VirtualTail:
    """`storage.log_tail.Tail` that waits in the loop's own time."""

    def __init__(self, log: MemoryLog) -> None:
        self.log = log

    async def read(self, from_offsets: Mapping[int, int], *, block_ms: int, max_records: int) -> TailRead:
        found = await self.log.tail(from_offsets, block_ms=0, max_records=max_records)
        await asyncio.sleep(0.001 if found.records or found.gaps else 0.2)
        return found

    async def close(self) -> None:
        pass


class Slow:
    """Every coroutine of the target takes a while, before and after its effect: where a crash may hit."""

    def __init__(self, target: Any, chance: random.Random | None) -> None:
        self._target = target
        self._chance = chance

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._target, name)
        if self._chance is None or not asyncio.iscoroutinefunction(found):
            return found

        async def call(*arguments: Any, **named: Any) -> Any:
            await self._pause()
            result = await found(*arguments, **named)
            await self._pause()
            return result

        return call

    async def _pause(self) -> None:
        assert self._chance is not None
        await asyncio.sleep(self._chance.choice([0, 0, 0.001, 0.01, 0.05]))


class System:
    """Made inside of the loop. `chance` makes everything slow at random."""

    def __init__(self, settings: Settings = SETTINGS, *, chance: random.Random | None = None) -> None:
        self.settings = settings
        self.chance = chance
        self.skipped_s = 0.0
        self.lateness_s = lateness_s(settings.windows)
        self.log = MemoryLog(owner="first", clock_ms=self.clock_ms)
        self.rollups = MemoryRollups(partitions=PARTITIONS, clock=self.clock_s)
        self.store = LateMarkingStore(self.rollups, self.lateness_s, clock_ms=self.clock_ms)
        self.rollups._store = self.store
        self.windows = MemoryWindows(settings.windows, clock=self.clock_s)
        self.events = PausingEvents(self.store, chunk_rows=7)
        self.past: StoredEvents | None = None
        """Where days are counted again from, if not the events."""
        self.registry = MemoryMetricRegistry()
        self.batcher: Batcher | None = None
        self.aggregators: list[Aggregator] = []
        self.views: dict[int, MemoryWindows] = {}
        self.own: dict[str, MetricDefinition] = {}

    def clock_s(self) -> float:
        return START_S + asyncio.get_running_loop().time() + self.skipped_s

    def clock_ms(self) -> int:
        return int(self.clock_s() * 1000)

    async def start_batcher(self) -> Batcher:
        self.batcher = Batcher(
            0,
            range(PARTITIONS),
            MemoryLog(owner=f"batcher {self.clock_s()}", sharing=self.log, clock_ms=self.clock_ms),
            self.store,
            self.settings,
            other_sinks=windows_progress(self.windows),
            clock_ms=self.clock_ms,
        )
        await self.batcher.open()
        return self.batcher

    def start_aggregator(self) -> Aggregator:
        """A new incarnation; the one before it is not told."""
        owner = f"aggregator {len(self.aggregators)}"
        windows = MemoryWindows(self.settings.windows, owner=owner, sharing=self.windows, clock=self.clock_s)
        self.views[len(self.aggregators)] = windows
        aggregator = Aggregator(
            0,
            range(PARTITIONS),
            tail=VirtualTail(self.log),
            store=Slow(windows, self.chance),
            rollups=Slow(self.rollups, self.chance),
            events=self.events,
            past=self.past or self.events,
            stored=self.store.checkpoints,
            log_states=self.log.state,
            book=DefinitionBook(Slow(self.registry, self.chance), self.settings.windows),
            set_aside=self.store.set_aside,
            settings=self.settings,
            clock_s=self.clock_s,
            compute=compute_here,
        )
        self.aggregators.append(aggregator)
        aggregator.start()
        return aggregator

    @property
    def current(self) -> Aggregator:
        return self.aggregators[-1]

    async def send(self, project: str, events: Iterable[Event]) -> list[int]:
        """Append one batch; returns its reply's status."""
        assert self.batcher is not None
        replies = await self.batcher.append([self.make_batch(project, list(events))])
        return [reply.status for reply in replies]

    def make_batch(self, project: str, events: Sequence[Event]) -> EventBatch:
        rows = [
            Row(
                event.event_id,
                event.event_type,
                event.user or None,
                None,
                None,
                None,
                datetime.fromtimestamp(event.timestamp_s, UTC),
                event.properties.encode(),
                None,
            )
            for event in events
        ]
        received = datetime.fromtimestamp(self.clock_s(), UTC)
        return build_batch(
            partition_of(project, PARTITIONS), [Part(project, received, rows, 0)], batch_id=new_batch_id()
        )

    async def settle(self, seconds_more: float = 30.0) -> None:
        """Until everything is stored, counted, rolled up and recomputed, and nothing is about to be frozen."""
        assert self.batcher is not None
        async with asyncio.timeout(2000):
            while self.batcher.observe().lag_events or not self.current.ready:
                if self.current.failure is not None:
                    # As Ray does when the controller has asked.
                    await self.current.close()
                    self.start_aggregator()
                await asyncio.sleep(0.5)
            while (self.clock_s() + FREEZE_S) % 3600 < 2 * FREEZE_S or not await self._is_quiet():
                await asyncio.sleep(5)
        await asyncio.sleep(seconds_more)

    async def _is_quiet(self) -> bool:
        view = self.current.observe()
        marks = await self.rollups.late_days(range(PARTITIONS), quiet_s=0, max_wait_s=0, limit=1000)
        stored = {c.partition: c.next_offset for c in await self.store.checkpoints(range(PARTITIONS))}
        built = all(
            self.current._state.owner_of(project).built.get(project)
            in (None, self.current._book.wanted(project).version)
            for project in self.own
        )
        return (
            built
            and all(p.next_offset >= stored[p.partition] or p.state != "live" for p in view.partitions)
            and self.current.ready
            and not view.waiting_windows
            and set(marks) <= self.current._recompute._kept.keys()
        )

    async def close(self) -> None:
        for aggregator in self.aggregators:
            await aggregator.close()
        if self.batcher is not None:
            await self.batcher.close()

    def check(self) -> None:
        """Windows and roll-ups are what the stored events say (WM-2)."""
        live = live_from(self.clock_s(), self.settings.windows)
        in_time = [row for row in self.store.rows if not is_late(row, self.lateness_s)]
        self._check_own(in_time, live)
        for metric in ("events", "revenue", "unique_users"):
            wanted = windows_of(in_time, metric, ("1m", "5m", "1h"), live)
            found = {
                key: value_of(value, metric)
                for key, value in self.windows.windows.items()
                if key.metric == metric and key.start - key.start % 3600 >= live
            }
            assert found == wanted, f"windows of {metric}: {difference(found, wanted)}"
            self._check_rollups(metric, in_time, live)

    def _check_own(self, in_time: Sequence[dict[str, Any]], live: int) -> None:
        """A metric named `own` counts the events of one type by user, as it is defined now."""
        for project, definition in self.own.items():
            wanted: Counter[WindowKey] = Counter()
            for row in in_time:
                at = int(seconds(row["timestamp"]) // 1)
                if row["project_id"] == project and row["event_type"] in definition.event_types and at >= live:
                    for size in ("1m", "5m", "1h"):
                        key = WindowKey(project, "own", size, at - at % SIZE_S[size], ())
                        wanted[key] += 1
                        wanted[key._replace(dimensions=(("userId", row["user_id"]),))] += 1
            found = {
                key: value.count
                for key, value in self.windows.windows.items()
                if key[:2] == (project, "own") and key.start - key.start % 3600 >= live
            }
            assert found == wanted, difference(found, wanted)
            closed_s = self.clock_s() - self.settings.windows.close_after_s - 10
            rolled = {
                key: value.count
                for key, value in self.rollups.rows.items()
                if key[:2] == (project, "own") and key.start >= live
            }
            closed = {
                key: count
                for key, count in wanted.items()
                if key.size != "5m" and key.start + SIZE_S[key.size] <= closed_s
            }
            assert {key: rolled.get(key) for key in closed} == closed
            assert rolled.keys() <= wanted.keys(), difference(rolled, wanted)

    async def define(self, project: str, event_type: str) -> None:
        definition = MetricDefinition("own", event_types=[event_type], dimensions=["userId"])
        known = project in self.own
        await (self.registry.replace if known else self.registry.create)(project, definition)
        self.own[project] = definition

    def _check_rollups(self, metric: str, in_time: Sequence[dict[str, Any]], live: int) -> None:
        closed_s = self.clock_s() - self.settings.windows.close_after_s - 10
        rolled = {key: value_of(value, metric) for key, value in self.rollups.rows.items() if key.metric == metric}
        wanted = windows_of(in_time, metric, ("1m", "1h"), live)
        nowhere = {key: value for key, value in rolled.items() if key.start >= live and key not in wanted}
        assert not nowhere, f"live roll-ups of {metric} of nothing: {nowhere}"
        wanted = {key: value for key, value in wanted.items() if key.start + SIZE_S[key.size] <= closed_s}
        found = {k: v for k, v in rolled.items() if k in wanted}
        assert found == wanted, f"live roll-ups of {metric}: {difference(found, wanted)}"
        below = [row for row in self.store.rows if seconds(row["timestamp"]) < live]
        history = {k: v for k, v in rolled.items() if k.start < live and k.size != "1d"}
        wanted = windows_of(below, metric, ("1m", "1h"), None)
        assert history == wanted, f"history of {metric}: {difference(history, wanted)}"
        whole = [row for row in below if seconds(row["timestamp"]) // 86400 * 86400 + 86400 <= live]
        days = {k: v for k, v in rolled.items() if k.size == "1d"}
        assert days == windows_of(whole, metric, ("1d",), None), f"days of {metric}"


def difference(found: dict[WindowKey, Any], wanted: dict[WindowKey, Any]) -> list[tuple[WindowKey, Any, Any]]:
    """What is not as wanted: key, found, wanted."""
    keys = found.keys() | wanted.keys()
    return [(key, found.get(key), wanted.get(key)) for key in sorted(keys) if found.get(key) != wanted.get(key)]


async def compute_here(function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    return function(*arguments, **named)


def seconds(moment: datetime) -> float:
    return moment.timestamp()


def is_late(row: dict[str, Any], lateness: float) -> bool:
    return seconds(row["timestamp"]) // 3600 * 3600 + 3600 + lateness <= seconds(row["received_at"])


def value_of(value: Any, metric: str) -> Any:
    return value.value({"events": "count", "revenue": "sum", "unique_users": "unique"}[metric])


def windows_of(
    rows: Iterable[dict[str, Any]], metric: str, sizes: Sequence[Size], live: int | None
) -> dict[WindowKey, Any]:
    """The windows of some stored events, one by one."""
    counts: Counter[WindowKey] = Counter()
    sums: defaultdict[WindowKey, Decimal] = defaultdict(Decimal)
    users: defaultdict[WindowKey, set[str]] = defaultdict(set)
    for row in rows:
        at = int(seconds(row["timestamp"]) // 1)
        if live is not None and at < live:
            continue
        for size in sizes:
            start = at - at % SIZE_S[size]
            total = WindowKey(row["project_id"], metric, size, start, ())
            group: Dimensions = (("eventType", row["event_type"]),)
            counts[total] += 1
            counts[total._replace(dimensions=group)] += 1
            if row["user_id"]:
                users[total].add(row["user_id"])
            if row["event_type"] == "purchase":
                sums[total] += Decimal(str(msgspec.json.decode(row["properties"])["amount"]))
    if metric == "events":
        return dict(counts)
    if metric == "revenue":
        return dict(sums)
    return {key: len(names) for key, names in users.items()}


def default_settings(**windows: Any) -> Settings:
    return Settings(log=SETTINGS.log, store=SETTINGS.store, windows=WindowSettings(**windows))
