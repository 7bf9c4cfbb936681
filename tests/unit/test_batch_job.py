"""The daily job from its schedule to its end, over fakes: what it counts, what it survives, what it never does."""

import asyncio
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analytics_actors.batch.driver import BatchDriver
from analytics_actors.batch.worker import BatchWorker
from analytics_actors.windows.definition_book import DefinitionBook
from analytics_actors.windows.recount import Recount, Stretch
from config.settings import BatchSettings, WindowSettings
from storage.aggregate import encode_aggregate
from storage.batch_jobs import MAX_TURNS, Job, Request
from storage.event_columns import MemoryEventColumns
from storage.memory_batch_jobs import MemoryBatchJobs
from storage.memory_rollups import MemoryRollups
from storage.memory_store import MemoryStore
from storage.metric_definitions import MetricDefinition
from storage.metric_registry import MemoryMetricRegistry
from storage.rollups import day_of
from storage.window_key import TOTAL, WindowKey
from tests.contract.log_records import batch, event, record, write

DAY = date(2026, 5, 1)
START = datetime(2026, 5, 1, 12, tzinfo=UTC)
NOW = datetime(2026, 5, 10, 3, tzinfo=UTC)
WINDOWS = WindowSettings()


async def here(call: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    await asyncio.sleep(0)
    return call(*arguments, **named)


class Task:
    """`driver.Worker`: a task of this loop."""

    def __init__(self, work: "asyncio.Task[int]") -> None:
        self.work = work

    def ended(self) -> str | None:
        if not self.work.done():
            return None
        if self.work.cancelled():
            return "it was killed"
        error = self.work.exception()
        return "" if error is None else repr(error)

    def kill(self) -> None:
        self.work.cancel()


class World:
    """Events, roll-ups and jobs; drivers and workers come and go. `crash`: at which point the next worker dies."""

    def __init__(self) -> None:
        self.now = NOW
        self.store = MemoryStore(clock_ms=lambda: int(self.now.timestamp() * 1000))
        self.events = MemoryEventColumns(self.store, chunk_rows=3)
        self.rollups = MemoryRollups(store=self.store, clock=self.clock_s)
        self.registry = MemoryMetricRegistry(clock=lambda: self.now)
        self.jobs = MemoryBatchJobs(self.rollups, days=self._days, clock=lambda: self.now)
        self.crash: list[str] = []
        self.tasks: list[Task] = []
        self._numbers = 0
        self._offset = 0
        self.driver = self.new_driver()

    def clock_s(self) -> float:
        return self.now.timestamp()

    def _days(self) -> set[tuple[str, date]]:
        return {(row["project_id"], day_of(int(row["timestamp"].timestamp()))) for row in self.store.rows}

    def new_driver(self, **changed: Any) -> BatchDriver:
        book = DefinitionBook(self.registry, WINDOWS)
        self.driver = BatchDriver(
            self.jobs,
            self,
            book,
            settings=BatchSettings(**changed),
            windows=WINDOWS,
            clock_s=self.clock_s,
        )
        return self.driver

    def recount(self) -> tuple[Recount, DefinitionBook]:
        book = DefinitionBook(self.registry, WINDOWS)
        return Recount(self.events, self.rollups, book, settings=WINDOWS, compute=here), book

    def start(self, job_id: int, worker: str) -> Task:
        recount, book = self.recount()
        working = BatchWorker(self.jobs, recount, book.refresh, clock_s=self.clock_s, reached=self._reached)
        self.tasks.append(Task(asyncio.create_task(working.run(job_id, worker, budget_s=60))))
        return self.tasks[-1]

    def _reached(self, point: str) -> None:
        if self.crash and self.crash[0] == point:
            self.crash.pop(0)
            raise RuntimeError("the process has ended")

    async def send(self, project: str, *times: datetime, late: bool = True) -> None:
        events = []
        for at in times:
            self._numbers += 1
            events.append(
                event(
                    f"e{self._numbers}",
                    project,
                    timestamp=at,
                    received_at=self.now,
                    user_id=f"u{self._numbers % 7}",
                    properties=f'{{"amount": {self._numbers}}}',
                )
            )
        if not self._offset:
            await self.store.claim(0, epoch=1)
        await self.store.write([write(record(batch(*events)), partition=0, first=self._offset)])
        self._offset += 1
        if late:
            await self.rollups.mark_days(project, [day_of(int(at.timestamp())) for at in times])

    async def recompute(self) -> None:
        """What an aggregator does with its marks, promptly."""
        recount, book = self.recount()
        await book.refresh()
        marks = await self.rollups.late_days(range(64), quiet_s=0, max_wait_s=0, limit=1000)
        for mark in marks:
            await recount.run(Stretch((mark.project_id,), mark.start, mark.start + 86400))
        await self.rollups.clear_late_days(marks)

    async def run(self, *, steps: int = 200) -> Job:
        """Until no job is open; time goes on by seconds."""
        for _ in range(steps):
            await self.driver.step()
            for _ in range(60):
                await asyncio.sleep(0)
            self.now += timedelta(seconds=5)
            if await self.jobs.open_job() is None:
                return (await self.jobs.jobs(limit=1))[0]
        raise AssertionError("the job does not come to its end")

    def events_of(self, project: str, day: date = DAY) -> int:
        key = WindowKey(project, "events", "1d", int(datetime.combine(day, START.time(), UTC).timestamp()), TOTAL)
        found = self.rollups.rows.get(key._replace(start=key.start // 86400 * 86400))
        return found.count if found else 0

    async def from_scratch(self) -> dict[WindowKey, bytes]:
        """All roll-ups of days that are over, by a recount of everything into nothing."""
        other = MemoryRollups()
        book = DefinitionBook(self.registry, WINDOWS)
        await book.refresh()
        recount = Recount(self.events, other, book, settings=WINDOWS, compute=here)
        for project, day in sorted(self._days()):
            start = int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp())
            await recount.run(Stretch((project,), start, start + 86400))
        return {key: encode_aggregate(value) for key, value in other.rows.items()}

    def encoded(self) -> dict[WindowKey, bytes]:
        return {key: encode_aggregate(value) for key, value in self.rollups.rows.items()}


async def test_it_runs_once_a_day_and_finds_what_late_events_touched() -> None:
    world = World()
    job = await world.run()
    assert (job.request, job.state, job.progress.days) == (Request("daily", daily=NOW.date()), "done", 0)
    assert not world.tasks, "nothing is to be done, so nobody is started"
    await world.send("a", START, START + timedelta(days=1))
    await world.send("b", START)
    await world.driver.step()
    assert len(await world.jobs.jobs(limit=9)) == 1
    world.now += timedelta(days=1)
    job = await world.run()
    assert (job.state, job.progress.days, job.progress.projects, job.progress.events) == ("done", 3, 2, 3)
    assert job.progress.changed == job.progress.rows > 0
    assert world.encoded() == await world.from_scratch()
    await world.rollups.clear_late_days(await world.rollups.late_days(range(64), quiet_s=0, max_wait_s=0, limit=9))
    world.now += timedelta(days=1)
    assert (await world.run()).progress.days == 0, "what was audited comes again only when it is touched again"
    await world.send("a", START)
    await world.recompute()
    world.now += timedelta(days=1)
    job = await world.run()
    assert (job.progress.days, job.progress.changed) == (1, 0), "the prompt recomputation was right"


async def test_twice_is_once() -> None:
    world = World()
    await world.send("a", *(START + timedelta(minutes=n) for n in range(200)))
    await world.run()
    before = world.encoded()
    for dry_run in (True, False):
        await world.jobs.ask(Request("command", dry_run=dry_run))
        job = await world.run()
        assert (job.progress.days, job.progress.events, job.progress.changed) == (1, 200, 0)
        assert world.encoded() == before


async def test_a_dry_run_counts_what_differs_and_writes_nothing() -> None:
    world = World()
    await world.run()
    await world.send("a", START, late=False)
    await world.jobs.ask(Request("command", dry_run=True))
    job = await world.run()
    assert job.progress.changed == job.progress.rows > 0
    assert not world.rollups.rows and not world.rollups.built


@pytest.mark.parametrize("point", ["piece taken", "piece counted"])
async def test_a_worker_that_dies_is_replaced(point: str) -> None:
    world = World()
    await world.send("a", START)
    world.crash = [point, point]
    job = await world.run()
    assert (job.state, job.progress.days, job.progress.days_left) == ("done", 1, 0)
    assert world.events_of("a") == 1
    assert len(world.tasks) == 3
    assert world.driver.counters.totals["workers_failed"] == 2


async def test_a_piece_that_kills_its_workers_is_left_at_last() -> None:
    world = World()
    await world.send("a", START)
    world.crash = ["piece taken"] * 99
    job = await world.run()
    assert (job.state, job.progress.days_failed) == ("incomplete", 1)
    assert len(world.tasks) == MAX_TURNS
    assert job.progress.errors == ("its worker has ended",)
    world.crash = []
    world.now += timedelta(days=1)
    assert (await world.run()).state == "done"
    assert world.events_of("a") == 1


async def test_a_driver_that_comes_later_goes_on() -> None:
    world = World()
    for project in "abcd":
        await world.send(project, START, START + timedelta(days=ord(project) - ord("a") + 2))
    world.new_driver(concurrency=1)
    await world.driver.step()
    for _ in range(5):
        await asyncio.sleep(0)
    world.tasks[0].work.cancel()
    await asyncio.gather(world.tasks[0].work, return_exceptions=True)
    [job] = await world.jobs.jobs(limit=1)
    assert job.state == "running" and job.progress.days_left
    world.new_driver()
    job = await world.run()
    assert (job.state, job.progress.days, job.progress.days_left) == ("done", 8, 0)
    assert world.encoded() == await world.from_scratch()


async def test_who_is_past_the_deadline_is_ended_and_writes_nothing_any_more() -> None:
    world = World()
    await world.send("a", START)
    gate = asyncio.Event()
    rows = world.events.rows

    async def slow(*arguments: Any, **named: Any) -> Any:
        async for chunk in rows(*arguments, **named):
            await gate.wait()
            yield chunk

    world.events.rows = slow  # type: ignore[method-assign]
    await world.driver.step()
    await asyncio.sleep(0)
    ghost = world.tasks[0]
    ghost.kill = lambda: None  # type: ignore[method-assign]
    world.now += timedelta(hours=1)
    await world.driver.step()
    world.events.rows = rows  # type: ignore[method-assign]
    await world.send("a", START)
    job = await world.run()
    assert (job.state, world.events_of("a")) == ("done", 2)
    before = world.encoded()
    gate.set()
    assert await ghost.work == 0, "its turn is over"
    assert world.encoded() == before
    assert (await world.jobs.jobs(limit=1))[0] == job


async def test_what_cannot_be_read_changes_nothing_and_is_tried_again() -> None:
    world = World()
    await world.send("a", START)
    await world.run()
    before = world.encoded()
    await world.send("a", START)
    world.now += timedelta(days=1)
    rows = world.events.rows
    world.events.available = False
    for _ in range(3):
        await world.driver.step()
        await asyncio.sleep(0.001)
        world.now += timedelta(seconds=5)
    [job, *_] = await world.jobs.jobs(limit=1)
    assert (job.state, job.progress.errors) == ("running", ("made to be away",))
    assert world.encoded() == before
    world.events.available, world.events.rows = True, rows  # type: ignore[method-assign]
    job = await world.run()
    assert (job.state, job.progress.errors, world.events_of("a")) == ("done", (), 2)


async def test_days_that_may_change_wait_for_another_day() -> None:
    world = World()
    await world.send("a", NOW - timedelta(hours=20), NOW - timedelta(days=3))
    job = await world.run()
    assert (job.progress.days, job.progress.days_open) == (1, 1)


async def test_a_metric_is_counted_for_the_days_before_it_was_defined() -> None:
    world = World()
    await world.send("a", START, START + timedelta(days=1))
    await world.send("b", START)
    await world.run()
    await world.registry.create("a", MetricDefinition("total", "sum", property="amount"))
    await world.jobs.ask(Request("backfill", project_id="a", metric="total"))
    assert await world.jobs.days_left("a") == 0
    job = await world.run()
    assert (job.progress.days, job.progress.projects) == (2, 1)
    sums = [float(v.total) for k, v in world.rollups.rows.items() if (k.metric, k.size) == ("total", "1d")]
    assert sorted(sums) == [1.0, 2.0]
    await world.jobs.ask(Request("backfill", project_id="a", metric="total"))
    assert (await world.run()).progress.days == 0, "it was counted already"


ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("send"), st.sampled_from("ab"), st.integers(0, 3)),
        st.tuples(st.just("recompute"), st.none(), st.none()),
        st.tuples(st.just("step"), st.integers(1, 40), st.none()),
        st.tuples(st.just("new driver"), st.none(), st.none()),
        st.tuples(st.just("crash"), st.sampled_from(["piece taken", "piece counted"]), st.none()),
        st.tuples(st.just("ask"), st.booleans(), st.none()),
        st.tuples(st.just("day"), st.none(), st.none()),
    ),
    max_size=25,
)


@settings(max_examples=60, deadline=None)
@given(ACTIONS)
def test_any_interleaving_ends_in_what_a_recount_of_everything_gives(actions: list[tuple[str, Any, Any]]) -> None:
    async def story() -> None:
        world = World()
        for name, first, second in actions:
            match name:
                case "send":
                    await world.send(first, START + timedelta(days=second, minutes=second))
                case "recompute":
                    await world.recompute()
                case "step":
                    await world.driver.step()
                    for _ in range(first):
                        await asyncio.sleep(0)
                    world.now += timedelta(seconds=3)
                case "new driver":
                    world.new_driver()
                case "crash":
                    world.crash.append(first)
                case "ask":
                    await world.jobs.ask(Request("command", dry_run=first))
                case "day":
                    world.now += timedelta(days=1)
        world.crash = []
        world.now += timedelta(days=1)
        await world.run()
        await asyncio.gather(*(task.work for task in world.tasks), return_exceptions=True)
        assert world.encoded() == await world.from_scratch()

    asyncio.run(story())
