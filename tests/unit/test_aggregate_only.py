"""Aggregate-only events in the windows: the same live, rebuilt and recomputed; nobody else counts them."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence

import pytest
from msgspec.structs import replace

from analytics_actors.event_folding import EventFolding
from analytics_actors.windows.aggregate_only import effective, shape_of
from analytics_actors.windows.definition_book import SETTLED_S, DefinitionBook
from storage.aggregate import Aggregate
from storage.errors import Unavailable
from storage.event_store import PartitionWrite, WriteResult
from storage.metric_definitions import DEFAULT_METRICS, EVENTS, Filter, MetricDefinition, validate, validate_among
from storage.metric_registry import MemoryMetricRegistry
from storage.rollups import day_of
from storage.window_key import Dimensions, WindowKey, live_from
from tests.unit import virtual_time
from tests.unit.aggregation import SETTINGS, Event, LateMarkingStore, PausingEvents, System, at_once

HOUR_S = 3600
WATCHED = replace(EVENTS, patterns={"spikeFactor": 4})
RESPONSES = MetricDefinition(
    "responses", "p95", event_types=["response_time"], property="ms", dimensions=["route"], aggregate_only=True
)
Value = tuple[int, str, float | None, float | None, object]


class FoldingStore(LateMarkingStore):
    """Marks the days of late records too, as `PostgresStore` does."""

    def _commit(self, writes: Sequence[PartitionWrite]) -> WriteResult:
        known = {key: record.events for key, record in self.records.items()}
        result = super()._commit(writes)
        for key, record in self.records.items():
            if key.late and known.get(key) != record.events:
                at_once(self._rollups.mark_days(key.project_id, [day_of(key.minute)]))
        return result


class FoldingSystem(System):
    def __init__(self) -> None:
        super().__init__()
        self.folding = EventFolding(self.registry, lateness_s=self.lateness_s, max_groups=1000)
        self.store = FoldingStore(self.rollups, self.lateness_s, clock_ms=self.clock_ms)
        self.store._fold = self.folding.fold
        self.rollups._store = self.store
        self.events = PausingEvents(self.store, chunk_rows=7)

    async def follow(self) -> None:
        """As the batcher does."""
        while True:
            await self.folding.refresh()
            await asyncio.sleep(2)

    async def define_settled(self, definition: MetricDefinition) -> None:
        await self.registry.create("p", definition)
        await asyncio.sleep(SETTLED_S + 10)

    def found(self) -> dict[WindowKey, Value]:
        """Live windows that are not empty."""
        live = live_from(self.clock_s(), self.settings.windows)
        return {
            key: value_of(value)
            for key, value in self.windows.windows.items()
            if key.start - key.start % HOUR_S >= live and value.count
        }

    def count(self, metric: str, dimensions: Dimensions = ()) -> int:
        """Of the live hours."""
        return sum(
            value[0]
            for key, value in self.found().items()
            if (key.metric, key.size, key.dimensions) == (metric, "1h", dimensions)
        )

    async def rebuild(self) -> None:
        """Redis is lost: all windows come from the event store."""
        self.windows.flush_all()
        await asyncio.sleep(10)
        await self.settle()


def value_of(value: Aggregate) -> Value:
    return (value.count, str(value.total), value.minimum, value.maximum, (value.value("p95"), value.value("unique")))


def in_system(test: Callable[[FoldingSystem], Awaitable[None]]) -> None:
    async def main() -> None:
        system = FoldingSystem()
        following = asyncio.create_task(system.follow())
        await asyncio.sleep(0)
        await system.start_batcher()
        system.start_aggregator()
        try:
            await test(system)
        finally:
            following.cancel()
            await system.close()

    virtual_time.run(main())


def responses(system: System, *ages_s: float, prefix: str = "r") -> list[Event]:
    now_s = system.clock_s()
    return [
        Event(f"{prefix}{n}", now_s - age, "response_time", f"user-{n}", f'{{"ms": {n}, "route": "/{n % 2}"}}')
        for n, age in enumerate(ages_s)
    ]


def views(system: System, *ages_s: float, prefix: str = "v") -> list[Event]:
    now_s = system.clock_s()
    return [Event(f"{prefix}{n}", now_s - age, "page_view", f"user-{n % 3}") for n, age in enumerate(ages_s)]


def test_windows_are_the_same_live_and_rebuilt() -> None:
    async def test(system: FoldingSystem) -> None:
        await system.define_settled(RESPONSES)
        chance = random.Random(1)
        for number in range(5):
            ages = [chance.choice([0, 30, 400, 4000, 60000]) for _ in range(20)]
            await system.send("p", responses(system, *ages, prefix=f"r{number}-"))
            await system.send("p", views(system, *ages[:5], prefix=f"v{number}-"))
            await asyncio.sleep(3)
        await system.settle()
        assert {row["event_type"] for row in system.store.rows} == {"page_view"}
        assert sum(record.events for record in system.store.records.values()) == 100
        live = system.found()
        assert system.count("events", (("eventType", "response_time"),)) == 100
        assert system.count("responses") == 100 and system.count("responses", (("route", "/1"),)) == 50
        assert system.count("events") == 125 and system.count("unique_users") > 0
        await system.rebuild()
        assert system.current.observe().counters["rebuilds"] >= 1
        assert system.found() == live

    in_system(test)


def test_events_of_before_the_declaration_count_as_those_after_it() -> None:
    async def test(system: FoldingSystem) -> None:
        await system.send("p", [*responses(system, 0, 60, 120), *views(system, 0)])
        await system.settle()
        assert len(system.store.rows) == 4 and system.count("unique_users") == 4
        await system.define_settled(RESPONSES)
        await system.send("p", responses(system, 0, 60, prefix="s"))
        await system.settle()
        assert len(system.store.rows) == 4 and sum(each.events for each in system.store.records.values()) == 2
        assert (system.count("responses"), system.count("events"), system.count("unique_users")) == (5, 6, 1)
        live = system.found()
        await system.rebuild()
        assert system.found() == live

    in_system(test)


def test_a_declaration_made_while_events_come_in() -> None:
    """The event store is ahead of the windows with records when their metric is built."""

    async def test(system: FoldingSystem) -> None:
        await system.registry.create("p", RESPONSES)
        for number in range(120):
            await system.send("p", responses(system, 0, 1, prefix=f"r{number}-"))
            await asyncio.sleep(0.15)
        await system.settle()
        assert system.store.rows and system.store.records
        assert (system.count("responses"), system.count("events"), system.count("unique_users")) == (240, 240, 0)

    in_system(test)


def test_events_with_other_patterns_count_them_too() -> None:
    async def test(system: FoldingSystem) -> None:
        await system.registry.create("p", WATCHED)
        await system.define_settled(RESPONSES)
        await system.send("p", [*responses(system, 0, 60), *views(system, 0)])
        await system.settle()
        assert (system.count("events"), system.count("unique_users")) == (3, 1)
        live = system.found()
        await system.rebuild()
        assert system.found() == live

    in_system(test)


def test_late_records_are_in_the_roll_ups_of_their_day_only() -> None:
    async def test(system: FoldingSystem) -> None:
        await system.define_settled(RESPONSES)
        await system.send("p", responses(system, 0, 30 * HOUR_S, 30 * HOUR_S, 100 * HOUR_S))
        await system.settle(100)
        assert system.count("responses") == 1
        hours = {
            key.start: (value.count, value.minimum, value.maximum)
            for key, value in system.rollups.rows.items()
            if (key.metric, key.size, key.dimensions) == ("responses", "1h", ())
        }
        now_s = system.clock_s()
        assert sorted(value for start, value in hours.items() if start < now_s - 24 * HOUR_S) == [(1, 3, 3), (2, 1, 2)]
        assert await system.rollups.days_left("p") == 0
        # All of it again, as a backfill would.
        before = dict(hours)
        await system.rollups.mark_days("p")
        await system.settle(100)
        again = {
            key.start: (value.count, value.minimum, value.maximum)
            for key, value in system.rollups.rows.items()
            if (key.metric, key.size, key.dimensions) == ("responses", "1h", ()) and key.start in before
        }
        assert again == before

    in_system(test)


def test_a_deleted_declaration_stores_rows_again() -> None:
    async def test(system: FoldingSystem) -> None:
        await system.define_settled(RESPONSES)
        await system.send("p", responses(system, 0, 1))
        await system.settle()
        await system.registry.delete("p", "responses")
        await asyncio.sleep(SETTLED_S + 10)
        await system.send("p", responses(system, 0, prefix="s"))
        await system.settle()
        assert [row["event_id"] for row in system.store.rows] == ["s0"]
        assert (system.count("events"), system.count("unique_users")) == (3, 1)

    in_system(test)


def test_other_metrics_leave_the_types_out() -> None:
    named = MetricDefinition("named", event_types=["response_time", "page_view"])
    only = MetricDefinition("only", event_types=["response_time"])
    metrics = {metric.name: metric for metric in effective([*DEFAULT_METRICS, named, only, RESPONSES])}
    assert metrics["events"] == EVENTS and metrics["responses"] is RESPONSES
    assert metrics["named"].event_types == ["page_view"]
    assert metrics["only"].filters == metrics["unique_users"].filters == [Filter("eventType", "ne", "response_time")]
    assert metrics["revenue"] == next(metric for metric in DEFAULT_METRICS if metric.name == "revenue")
    assert effective(DEFAULT_METRICS) == DEFAULT_METRICS
    assert effective([WATCHED, RESPONSES])[0] is WATCHED


def test_a_declaration_needs_event_types_and_a_type_belongs_to_one() -> None:
    with pytest.raises(ValueError, match=r"^eventTypes: name the event types"):
        validate(MetricDefinition("all", aggregate_only=True))
    validate(RESPONSES)
    other = MetricDefinition("other", event_types=["x", "response_time"], aggregate_only=True)
    with pytest.raises(ValueError, match=r"^eventTypes: response_time is aggregate-only for the metric responses"):
        validate_among(other, [MetricDefinition("a"), RESPONSES])
    validate_among(RESPONSES, [RESPONSES, MetricDefinition("plain", event_types=["response_time"])])
    validate_among(MetricDefinition("plain", event_types=["response_time"]), [RESPONSES])


async def test_the_registry_refuses_a_second_owner_of_a_type() -> None:
    registry = MemoryMetricRegistry()
    await registry.create("p", RESPONSES)
    other = MetricDefinition("other", event_types=["response_time"], aggregate_only=True)
    with pytest.raises(ValueError, match="responses already"):
        await registry.create("p", other)
    await registry.create("q", other)
    await registry.create("p", MetricDefinition("other", event_types=["x"], aggregate_only=True))
    with pytest.raises(ValueError, match="responses already"):
        await registry.replace("p", other)


def test_shapes_tell_what_cannot_be_merged() -> None:
    def shape(aggregation: str = "p95", path: str = "ms", *types: str) -> int:
        return shape_of(MetricDefinition("m", aggregation, list(types), path))  # type: ignore[arg-type]

    assert shape() == shape("mean") == shape("p95", "ms", "a")
    assert len({shape(), shape("unique"), shape("count"), shape("p95", "s")}) == 4


def test_the_book_waits_until_every_batcher_knows() -> None:
    async def main() -> None:
        registry = MemoryMetricRegistry()
        book = DefinitionBook(registry, SETTINGS.windows)
        await book.refresh()
        before = book.wanted("p")
        await registry.create("p", RESPONSES)
        await book.refresh()
        assert book.wanted("p") is before
        await asyncio.sleep(SETTLED_S)
        await book.refresh()
        wanted = book.wanted("p")
        assert "responses" in {metric.name for metric in wanted.metrics}
        changed = book.changed("p", since=before.version)
        assert "events" not in changed and {"responses", "unique_users", "sessions"} <= changed.keys()
        # Another metric is no reason to wait, nor to build others.
        await registry.create("p", MetricDefinition("plain"))
        await book.refresh()
        assert list(book.changed("p", since=wanted.version)) == ["plain"]
        # Other patterns are no reason to build, and apply at once.
        built = {"p": book.applied("p").version}
        await registry.replace("p", MetricDefinition("plain", patterns={"spikeFactor": 4}))
        await book.refresh()
        assert book.mismatched(built | {"q": "x"}) == ["q"]
        plain = book.definition("p", "plain")
        assert plain is not None and plain.patterns == {"spikeFactor": 4}
        # After a restart all of it is settled.
        again = DefinitionBook(registry, SETTINGS.windows)
        await again.refresh()
        assert again.wanted("p") == book.wanted("p")

    virtual_time.run(main())


async def test_nothing_is_folded_before_the_declarations_are_known() -> None:
    folding = EventFolding(MemoryMetricRegistry(), lateness_s=1, max_groups=1000)
    with pytest.raises(Unavailable):
        folding.fold(None)
