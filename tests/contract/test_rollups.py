"""The law of `storage.rollups`, kept by the roll-ups in memory and by those in PostgreSQL alike."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import NamedTuple

import asyncpg
import numpy as np
import pytest

from config.settings import StoreSettings
from storage.aggregate import AGGREGATIONS, Aggregate, Aggregation, is_sketched
from storage.errors import Fenced
from storage.event_store import EventStore
from storage.fingerprint import partition_of
from storage.memory_rollups import MemoryRollups
from storage.memory_store import MemoryStore
from storage.migrate import migrate
from storage.postgres import Postgres
from storage.postgres_rollups import PostgresRollups
from storage.postgres_store import PostgresStore
from storage.quantile_sketch import QuantileSketch
from storage.rollups import DAY_S, RolledSize, RollupSeries, RollupStore, TooManyRows, day_of, day_start
from storage.unique_sketch import UniqueSketch
from storage.window_key import Dimensions, Size, WindowKey
from tests.contract.log_records import batch, event, record, write

PARTITIONS = 64
SHOP = partition_of("shop", PARTITIONS)
DAY = day_start(date(2026, 5, 1))
NEVER = 10_000.0
GROUP: Dimensions = (("country", "AT"),)
OTHERS: Dimensions = (("country", "__other__"),)


class Subject(NamedTuple):
    rollups: RollupStore
    events: EventStore

    async def read(
        self, size: RolledSize, start: int = DAY, end: int = DAY + DAY_S, *, grouped: bool = False, metric: str = "m"
    ) -> Sequence[RollupSeries]:
        return (await self.rollups.read("shop", metric, size, start, end, grouped=grouped)).series

    async def replace(
        self, projects: Sequence[str], start: int, end: int, rows: Sequence[tuple[WindowKey, Aggregate]]
    ) -> int:
        ticket = await self.rollups.begin_recount(projects, start, end)
        return await self.rollups.replace(projects, start, end, rows, ticket=ticket)

    async def counts(self, size: RolledSize) -> dict[int, int]:
        """Of the totals, by seconds into the day."""
        series = await self.read(size)
        return {int(s) - DAY: int(n) for s, n in zip(series[0].starts, series[0].counts, strict=True)} if series else {}


def _told(aggregate: Aggregate) -> tuple[object, ...]:
    """Everything that it can answer; the bytes of a quantile sketch are not the same each time."""
    return aggregate.count, aggregate.total, *(aggregate.value(each) for each in AGGREGATIONS)


@pytest.fixture
async def subject(url: str) -> AsyncIterator[Subject]:
    if not url:
        events = MemoryStore()
        yield Subject(MemoryRollups(partitions=PARTITIONS, store=events), events)
        return
    await migrate(url)
    postgres = Postgres(url, owner="test", pool_size=4, deadline_s=10)
    store = PostgresStore(StoreSettings(postgres_url=url), owner="test")
    yield Subject(PostgresRollups(postgres, partitions=PARTITIONS), store)
    await postgres.close()
    await store.close()


def key(
    at: int = 0, size: Size = "1h", dimensions: Dimensions = (), *, metric: str = "m", project: str = "shop"
) -> WindowKey:
    """`at`: seconds into the day."""
    return WindowKey(project, metric, size, DAY + at, dimensions)


async def test_values_come_back_as_they_were(subject: Subject) -> None:
    exact, quantiles = UniqueSketch(), QuantileSketch()
    exact.add_hashes(np.arange(10, dtype=np.uint64))
    quantiles.add(np.arange(150.0))
    aggregates = [
        Aggregate(3, Decimal("12.30"), -1.5, 1e300),
        Aggregate(10, unique=exact),
        Aggregate(2**40),
        Aggregate(150, Decimal("-0.000000001"), 0.0, 149.0, quantiles=quantiles),
        Aggregate(1, Decimal("99999999999999999999999999999.999999999"), 5e-324, 5e-324),
        Aggregate(),
    ]
    rows = [(key(3600 * n), aggregate) for n, aggregate in enumerate(aggregates)]
    await subject.rollups.upsert(rows[::-1], epoch=1, next_offset=1)
    [series] = await subject.read("1h")
    assert series.dimensions == ()
    assert series.starts.tolist() == [each.start for each, _ in rows]
    assert series.counts.tolist() == [3, 10, 2**40, 150, 1, 0]
    assert [_told(series.aggregate(row)) for row in range(6)] == [_told(each) for each in aggregates]
    assert Decimal(series.sums[0]) == Decimal("12.3") and series.minima[0] == -1.5 and np.isnan(series.maxima[1])


@pytest.mark.parametrize("wanted", ["count", "sum", "mean", "min", "max", "unique", "p99"])
async def test_only_the_wanted_columns_are_read(subject: Subject, wanted: Aggregation) -> None:
    quantiles = QuantileSketch()
    quantiles.add(np.arange(3.0))
    users = UniqueSketch()
    users.add_hashes(np.arange(10, dtype=np.uint64))
    whole = Aggregate(3, Decimal("3.5"), 0.5, 2.0, users, quantiles)
    await subject.rollups.upsert([(key(0, "1h", GROUP), whole)], epoch=1, next_offset=1)
    columns = await subject.rollups.read("shop", "m", "1h", DAY, DAY + DAY_S, grouped=True, wanted=wanted)
    [series] = columns.series
    assert (series.dimensions, series.starts.tolist(), series.counts.tolist()) == (GROUP, [DAY], [3])
    assert Decimal(series.sums[0]) == (Decimal("3.5") if wanted in ("sum", "mean") else 0)
    assert (series.minima[0] == 0.5) == (wanted == "min") and (series.maxima[0] == 2.0) == (wanted == "max")
    if is_sketched(wanted):
        assert _told(series.aggregate(0)) == _told(whole)
    else:
        assert series.sketches is None


async def test_more_rows_than_are_wanted_are_refused(subject: Subject) -> None:
    rows = [(key(3600 * hour, "1h", group), Aggregate(1)) for hour in range(2) for group in ((), GROUP, OTHERS)]
    await subject.rollups.upsert(rows, epoch=1, next_offset=1)

    async def read(max_rows: int, *, grouped: bool) -> list[int]:
        found = await subject.rollups.read(
            "shop", "m", "1h", DAY, DAY + DAY_S, grouped=grouped, wanted="count", max_rows=max_rows
        )
        return [len(series.starts) for series in found.series]

    assert await read(4, grouped=True) == await read(5, grouped=True) == [2, 2]
    assert await read(2, grouped=False) == [2]
    for most, grouped in ((3, True), (1, False), (0, False)):
        with pytest.raises(TooManyRows):
            await read(most, grouped=grouped)
    assert await read(2, grouped=False) == [2], "it still answers"


async def test_rows_of_plain_numbers_have_no_sketches(subject: Subject) -> None:
    await subject.rollups.upsert([(key(), Aggregate(1))], epoch=1, next_offset=1)
    [series] = await subject.read("1h")
    assert series.sketches is None and list(series.sums) == ["0"] and np.isnan(series.minima[0])


async def test_groups_and_totals_sizes_and_metrics_are_read_apart(subject: Subject) -> None:
    two: Dimensions = (("device", 'mo:bi"le\\ü'), ("c", "AT"))
    swapped: Dimensions = (("c", "AT"), ("device", 'mo:bi"le\\ü'))
    rows = [
        (key(), Aggregate(1)),
        (key(3600), Aggregate(2)),
        (key(0, "1h", two), Aggregate(3)),
        (key(7200, "1h", two), Aggregate(4)),
        (key(0, "1h", swapped), Aggregate(5)),
        (key(0, "1m"), Aggregate(6)),
        (key(0, "1d"), Aggregate(7)),
        (key(metric="other"), Aggregate(8)),
        (key(project="zoo"), Aggregate(9)),
    ]
    await subject.rollups.upsert(rows, epoch=1, next_offset=1)
    assert await subject.counts("1h") == {0: 1, 3600: 2}
    assert await subject.counts("1m") == {0: 6}
    assert await subject.counts("1d") == {0: 7}
    groups = await subject.read("1h", grouped=True)
    assert [(s.dimensions, s.starts.tolist(), s.counts.tolist()) for s in groups] == [
        (swapped, [DAY], [5]),
        (two, [DAY, DAY + 7200], [3, 4]),
    ]
    assert [s.counts.tolist() for s in await subject.read("1h", DAY + 1, DAY + 7200)] == [[2]]
    assert await subject.read("1h", DAY + 3601, DAY + DAY_S) == []
    assert await subject.read("1h", metric="none") == []


async def test_only_rolled_sizes_are_taken(subject: Subject) -> None:
    with pytest.raises(ValueError, match="5m"):
        await subject.rollups.upsert([(key(0, "5m"), Aggregate(1))], epoch=1, next_offset=1)
    await subject.rollups.upsert([], epoch=1, next_offset=1)


async def test_an_older_count_changes_nothing(subject: Subject) -> None:
    """FN-1, CK-1."""

    async def upsert(count: int, epoch: int, next_offset: int) -> int:
        await subject.rollups.upsert([(key(), Aggregate(count))], epoch=epoch, next_offset=next_offset)
        return (await subject.counts("1h"))[0]

    assert await upsert(1, 5, 100) == 1
    assert await upsert(2, 5, 99) == 1
    assert await upsert(3, 4, 999) == 1
    assert await upsert(4, 5, 100) == 4, "the same again"
    assert await upsert(5, 5, 101) == 5
    assert await upsert(6, 6, 0) == 6


async def test_what_is_counted_no_more_is_gone_and_stays_gone(subject: Subject) -> None:
    """FN-1, CK-1, also of rows that are not there to say how far they were counted."""
    rollups = subject.rollups
    kept = [key(at, size) for size in ("1m", "1h") for at in (0, 3600)]
    lost = [key(60, "1m"), key(0, "1h", GROUP), key(0, "1m", GROUP), key(0, "1h", metric="n")]
    beside = [key(7200), key(0, "1d"), key(0, metric="left alone"), key(project="zoo")]
    before = [(each, Aggregate(1)) for each in (*kept, *lost, *beside)]
    await rollups.upsert(before, epoch=2, next_offset=10)
    await rollups.upsert([(key(120, "1m"), Aggregate(7))], epoch=3, next_offset=0)
    await subject.replace(["shop"], DAY + 10800, DAY + 14400, [(key(10800), Aggregate(9))])

    async def remove(epoch: int, next_offset: int, end: int = 7200, counted: Sequence[WindowKey] = kept) -> int:
        at = {"epoch": epoch, "next_offset": next_offset}
        return await rollups.remove_others("shop", ["m", "n"], DAY, DAY + end, counted, **at)

    assert await remove(2, 9) == 0, "they were counted further"
    assert await remove(2, 11) == len(lost)
    assert await remove(2, 11) == 0
    await rollups.upsert([(each, Aggregate(2)) for each in (*lost, *kept)], epoch=2, next_offset=10)
    await rollups.upsert([(each, Aggregate(2)) for each in lost], epoch=1, next_offset=99)
    assert await subject.counts("1m") == {0: 1, 120: 7, 3600: 1}
    assert await subject.counts("1h") == {0: 1, 3600: 1, 7200: 1, 10800: 9}
    assert await subject.counts("1d") == {0: 1}
    assert await subject.read("1h", grouped=True) == await subject.read("1m", grouped=True) == []
    assert await subject.read("1h", metric="n") == []
    assert len(await subject.read("1h", metric="left alone")) == 1
    assert (await rollups.read("zoo", "m", "1h", DAY, DAY + DAY_S, grouped=False)).series[0].counts.tolist() == [1]
    # Another partition's rows are counted for themselves.
    await rollups.upsert([(each, Aggregate(4)) for each in (key(project="zoo"), lost[0])], epoch=2, next_offset=10)
    assert (await rollups.read("zoo", "m", "1h", DAY, DAY + DAY_S, grouped=False)).series[0].counts.tolist() == [4]
    await rollups.upsert([(each, Aggregate(3)) for each in lost[:1]], epoch=2, next_offset=11)
    assert await subject.counts("1m") == {0: 1, 60: 3, 120: 7, 3600: 1}, "as far, or further, it is counted again"
    assert await remove(1, 99, 14400, []) == 0, "a stale owner removes nothing"
    assert await remove(3, 0, 14400, []) == 7
    assert await subject.counts("1m") == {}
    assert await subject.counts("1h") == {10800: 9}, "what was counted from stored events knows better"


async def test_what_is_replaced_is_gone(subject: Subject) -> None:
    rollups = subject.rollups
    old = [(key(at, size), Aggregate(1)) for size in ("1m", "1h") for at in (0, 3600, 7200)]
    old += [(key(0, "1d"), Aggregate(1)), (key(0, "1h", (("a", "b"),)), Aggregate(1))]
    old += [(key(project="zoo"), Aggregate(9)), (key(0, "1h", metric="dropped"), Aggregate(1))]
    await rollups.upsert(old, epoch=1, next_offset=1)
    new = [(key(3600, "1h"), Aggregate(5)), (key(3660, "1m"), Aggregate(6))]
    gone = ["an hour", "two", "minutes", "a group", "a dropped metric"]
    assert await subject.replace(["shop", "none"], DAY, DAY + 7200, new) == len(new) + len(gone)
    assert await subject.counts("1h") == {3600: 5, 7200: 1}
    assert await subject.counts("1m") == {3660: 6, 7200: 1}
    assert await subject.counts("1d") == {0: 1}
    assert await subject.read("1h", grouped=True) == []
    assert await subject.read("1h", metric="dropped") == []
    assert (await rollups.read("zoo", "m", "1h", DAY, DAY + DAY_S, grouped=False)).series[0].counts.tolist() == [9]
    await subject.replace(["shop"], DAY, DAY + DAY_S, [(key(0, "1d"), Aggregate(7))])
    assert await subject.counts("1h") == await subject.counts("1m") == {}
    assert await subject.counts("1d") == {0: 7}


async def test_replacing_many_rows(subject: Subject) -> None:
    rows = [
        (key(60 * minute, "1m", (("g", f"{group}"),)), Aggregate(minute))
        for minute in range(700)
        for group in range(10)
    ]
    assert await subject.replace(["shop"], DAY, DAY + DAY_S, rows) == 7000
    assert await subject.replace(["shop"], DAY, DAY + DAY_S, rows) == 0
    groups = await subject.read("1m", grouped=True)
    assert len(groups) == 10
    assert all(series.counts.tolist() == list(range(700)) for series in groups)


def _unlike() -> list[Aggregate]:
    """Each differs from all others, and is made anew each time."""
    return [
        Aggregate(3),
        Aggregate(4),
        Aggregate(3, Decimal("1.5"), 0.5, 1.0),
        Aggregate(3, Decimal("1.6"), 0.5, 1.0),
        Aggregate(3, Decimal("1.5"), 0.4, 1.0),
        Aggregate(3, Decimal("1.5"), 0.5, 1.1),
        Aggregate(3, unique=UniqueSketch(np.array([1, 2], np.uint64))),
        Aggregate(3, unique=UniqueSketch(np.array([1, 3], np.uint64))),
        _percentiles(),
    ]


def _percentiles() -> Aggregate:
    """Of so many values that the sketch is another each time."""
    sketch = QuantileSketch()
    sketch.add(np.arange(5000.0))
    return Aggregate(5000, Decimal(12497500), 0.0, 4999.0, quantiles=sketch)


async def test_only_what_differs_is_changed(subject: Subject) -> None:
    """A recount that is done again leaves every row as it is, and says so."""
    for number, one in enumerate(_unlike()):
        await subject.replace(["shop"], DAY, DAY + 3600, [(key(), one)])
        for other_number, other in enumerate(_unlike()):
            differs = number != other_number
            row = [(key(), other)]
            assert await subject.rollups.replace(["shop"], DAY, DAY + 3600, row, ticket=None) == differs
    assert await subject.counts("1h") == {0: 5000}, "without a ticket nothing was written"


async def test_what_windows_wrote_is_the_recounts_from_then_on(subject: Subject) -> None:
    await subject.rollups.upsert([(key(), Aggregate(5))], epoch=1, next_offset=1)
    assert await subject.replace(["shop"], DAY, DAY + 3600, [(key(), Aggregate(5))]) == 0
    await subject.rollups.upsert([(key(), Aggregate(4))], epoch=9, next_offset=9)
    assert await subject.counts("1h") == {0: 5}


async def test_some_sizes_are_replaced_alone(subject: Subject) -> None:
    await subject.rollups.upsert([(key(0, "1h"), Aggregate(1)), (key(0, "1d"), Aggregate(1))], epoch=1, next_offset=1)
    ticket = await subject.rollups.begin_recount(["shop"], DAY, DAY + DAY_S)
    row = [(key(0, "1d"), Aggregate(2))]
    assert await subject.rollups.replace(["shop"], DAY, DAY + DAY_S, row, ticket=ticket, sizes=("1d",)) == 1
    assert (await subject.counts("1h"), await subject.counts("1d")) == ({0: 1}, {0: 2})
    with pytest.raises(ValueError, match="only 1d"):
        await subject.rollups.replace(["shop"], DAY, DAY + DAY_S, [(key(), Aggregate(1))], ticket=ticket, sizes=("1d",))


async def test_what_was_recomputed_is_changed_by_recomputing_alone(subject: Subject) -> None:
    """It knows events that no window does."""
    rollups = subject.rollups
    await subject.replace(["shop"], DAY, DAY + 3600, [(key(), Aggregate(5))])
    await rollups.upsert([(key(), Aggregate(4)), (key(3600), Aggregate(4))], epoch=9, next_offset=9)
    assert await subject.counts("1h") == {0: 5, 3600: 4}
    await subject.replace(["shop"], DAY, DAY + 3600, [(key(), Aggregate(6))])
    assert await subject.counts("1h") == {0: 6, 3600: 4}


async def test_who_began_last_writes(subject: Subject) -> None:
    """FN-1: a ghost does not put back what it had read, however late it comes."""
    rollups = subject.rollups
    first = await rollups.begin_recount(["shop", "zoo"], DAY - DAY_S, DAY + DAY_S)
    second = await rollups.begin_recount(["shop"], DAY, DAY + 3600)
    await rollups.replace(["shop"], DAY, DAY + 3600, [(key(), Aggregate(2))], ticket=second)
    with pytest.raises(Fenced):
        await rollups.replace(["shop"], DAY, DAY + DAY_S, [(key(), Aggregate(1))], ticket=first)
    with pytest.raises(Fenced):
        await rollups.replace(["zoo", "shop"], DAY - DAY_S, DAY + 3600, [], ticket=first)
    with pytest.raises(Fenced):
        await rollups.end_recount(DAY, DAY + 3600, {"shop": "x"}, ticket=first)
    await rollups.replace(["shop"], DAY - DAY_S, DAY, [], ticket=first)
    await rollups.replace(["zoo"], DAY, DAY + DAY_S, [], ticket=first)
    assert await subject.counts("1h") == {0: 2}


async def test_what_does_not_lie_in_the_range_is_refused(subject: Subject) -> None:
    outside = [key(3600), key(-3600), key(project="zoo"), key(0, "1d"), key(0, "5m")]
    for each in outside:
        with pytest.raises(ValueError, match=r"in \[|not rolled up"):
            await subject.replace(["shop"], DAY, DAY + 3600, [(each, Aggregate(1))])
    with pytest.raises(ValueError, match="whole hours"):
        await subject.replace(["shop"], DAY + 60, DAY + 3600, [])


async def test_marks_wait_for_quiet_or_long_enough(subject: Subject) -> None:
    rollups = subject.rollups
    first, second = date(2020, 2, 29), date(2019, 12, 31)
    assert await rollups.mark_days("shop", [first, second, first]) == 2
    assert await rollups.mark_days("zoo", [first]) == 1
    assert await rollups.mark_days("shop", []) == 0
    assert await rollups.days_left("shop") == 2

    async def due(quiet_s: float, max_wait_s: float, limit: int = 9) -> list[tuple[str, date]]:
        days = await rollups.late_days([SHOP], quiet_s=quiet_s, max_wait_s=max_wait_s, limit=limit)
        return [(each.project_id, each.day) for each in days]

    assert sorted(await due(0, NEVER)) == [("shop", second), ("shop", first)]
    assert len(await due(0, NEVER, limit=1)) == 1
    assert await due(NEVER, NEVER) == []
    assert len(await due(NEVER, 0)) == 2
    assert await rollups.late_days([SHOP + 1], quiet_s=0, max_wait_s=0, limit=9) == []


async def test_only_the_mark_that_was_read_is_cleared(subject: Subject) -> None:
    rollups = subject.rollups
    days = [date(2020, 1, 1), date(2020, 1, 2)]
    await rollups.mark_days("shop", days)
    read = await rollups.late_days([SHOP], quiet_s=0, max_wait_s=NEVER, limit=9)
    assert sorted(each.start for each in read) == [day_start(day) for day in days]
    await rollups.mark_days("shop", days[:1])
    await rollups.clear_late_days(read)
    [left] = await rollups.late_days([SHOP], quiet_s=0, max_wait_s=NEVER, limit=9)
    assert left.day == days[0] and left not in read
    await rollups.clear_late_days([left, left._replace(project_id="zoo")])
    await rollups.clear_late_days([])
    assert await rollups.days_left("shop") == 0


async def test_a_day_marked_again_and_again_waits_anew_each_time(subject: Subject) -> None:
    rollups = subject.rollups
    await rollups.mark_days("shop", [date(2020, 1, 1)])
    [read] = await rollups.late_days([SHOP], quiet_s=0, max_wait_s=NEVER, limit=9)
    await asyncio.sleep(waited_s := 1.0)
    await rollups.mark_days("shop", [date(2020, 1, 1)])
    assert len(await rollups.late_days([SHOP], quiet_s=NEVER, max_wait_s=waited_s, limit=9)) == 1
    await rollups.clear_late_days([read])
    assert await rollups.late_days([SHOP], quiet_s=NEVER, max_wait_s=waited_s, limit=9) == []
    assert await rollups.days_left("shop") == 1


async def test_all_days_with_events_are_marked(subject: Subject) -> None:
    times = [
        datetime(1969, 12, 31, 23, 59, tzinfo=UTC),
        datetime(2020, 2, 29, 0, 0, tzinfo=UTC),
        datetime(2020, 2, 29, 23, 59, 59, 999999, tzinfo=UTC),
        datetime(2026, 1, 1, tzinfo=UTC),
    ]
    events = [event(f"{n}", timestamp=at) for n, at in enumerate(times)]
    await subject.events.claim(SHOP, epoch=1)
    elsewhere = event("z", project_id="zoo", timestamp=times[0] + timedelta(days=5))
    await subject.events.write([write(record(batch(*events, elsewhere)), partition=SHOP)])
    assert await subject.rollups.mark_days("shop") == 3
    marked = await subject.rollups.late_days([SHOP], quiet_s=0, max_wait_s=0, limit=9)
    assert {each.day for each in marked} == {each.date() for each in times}
    assert await subject.rollups.mark_days("nobody") == 0


@pytest.mark.parametrize("second", [0, -1, -DAY_S, DAY, DAY + DAY_S - 1])
def test_the_day_of_a_second(second: int) -> None:
    assert day_start(day_of(second)) <= second < day_start(day_of(second)) + DAY_S


@pytest.fixture
async def connection(postgres_url: str) -> AsyncIterator["asyncpg.Connection[asyncpg.Record]"]:
    await migrate(postgres_url)
    made = await asyncpg.connect(postgres_url)
    yield made
    await made.close()


@pytest.fixture
async def postgres(connection: object, postgres_url: str) -> AsyncIterator[Postgres]:
    made = Postgres(postgres_url, owner="test", pool_size=4, deadline_s=10)
    yield made
    await made.close()


async def test_the_table_reads_as_the_documents_have_it(
    postgres: Postgres, connection: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    known = {"revenue": "sum", "response_time": "mean"}
    rollups = PostgresRollups(postgres, partitions=PARTITIONS, aggregation_of=lambda _, metric: known.get(metric))  # type: ignore[arg-type, return-value]
    unique = UniqueSketch()
    unique.add_hashes(np.arange(7, dtype=np.uint64))
    rows = [
        (key(metric="daily_active_users", size="1d"), Aggregate(9, unique=unique)),
        (
            key(0, "1h", (("device", "mobile"), ("country", "US")), metric="revenue"),
            Aggregate(4, Decimal(50000), 1.0, 2.0),
        ),
        (key(0, "1h", (("nul", "a\0b"),), metric="revenue"), Aggregate(4)),
        (key(metric="response_time"), Aggregate(3, Decimal(10), 1.0, 5.0)),
        (key(metric="unknown"), Aggregate(3)),
    ]
    await rollups.upsert(rows, epoch=1, next_offset=1)
    found = await connection.fetch(
        "SELECT metric_name, metric_type, time_granularity, round(value, 2)::text, dimensions::text"
        " FROM metric_aggregates WHERE \"timestamp\" = '2026-05-01T00:00:00Z' ORDER BY metric_name, value"
    )
    assert [tuple(row) for row in found] == [
        ("daily_active_users", "unique", "day", "7.00", "{}"),
        ("response_time", "mean", "hour", "3.33", "{}"),
        ("revenue", "sum", "hour", "50000.00", '{"device": "mobile", "country": "US"}'),
        ("revenue", "sum", "hour", None, '{"nul": "a\ufffdb"}'),
        ("unknown", "count", "hour", "3.00", "{}"),
    ]


async def test_who_removes_waits_for_who_writes(
    postgres: Postgres, connection: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    """A write whose end nobody waited for may be under way still."""
    rollups = PostgresRollups(postgres, partitions=PARTITIONS)
    group = key(0, "1h", GROUP)
    await rollups.upsert([(key(), Aggregate(1))], epoch=1, next_offset=1)
    held = connection.transaction()
    await held.start()
    await connection.execute("SELECT FROM metric_aggregates FOR UPDATE")

    async def waiting(count: int) -> None:
        wanted = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        async with asyncio.timeout(5), postgres.session() as looking:
            while await looking.fetchval(wanted) < count:
                await asyncio.sleep(0.01)

    rows = [(key(), Aggregate(2)), (group, Aggregate(1))]
    try:
        writing = asyncio.create_task(rollups.upsert(rows, epoch=1, next_offset=1))
        await waiting(1)
        removal = rollups.remove_others("shop", ["m"], DAY, DAY + DAY_S, [key()], epoch=1, next_offset=1)
        removing = asyncio.create_task(removal)
        await waiting(2)
    finally:
        await held.rollback()
    await writing
    assert await removing == 1
    assert (await rollups.read("shop", "m", "1h", DAY, DAY + DAY_S, grouped=True)).series == []


async def test_thirty_days_of_hours_of_fifty_groups_are_read_fast(
    postgres: Postgres, connection: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    """25 ms are wanted on a quiet machine; the bound here is for a busy one."""
    rollups = PostgresRollups(postgres, partitions=PARTITIONS)
    hours = 30 * 24
    for group in range(51):
        dimensions: Dimensions = (("country", f"C{group}"), ("device", "mobile")) if group else ()
        rows = [
            (key(3600 * hour, "1h", dimensions), Aggregate(hour, Decimal("1.25"), 1.0, 2.0)) for hour in range(hours)
        ]
        await rollups.upsert(rows, epoch=1, next_offset=1)
    await connection.execute("VACUUM ANALYZE metric_aggregates")
    times = []
    for _ in range(7):
        started = time.perf_counter()
        columns = await rollups.read("shop", "m", "1h", DAY, DAY + 3600 * hours, grouped=True)
        times.append(time.perf_counter() - started)
    assert len(columns.series) == 50 and all(len(series.starts) == hours for series in columns.series)
    print(f"36,000 rows: {min(times) * 1000:.1f} ms")
    assert min(times) < 0.25
    total = (await rollups.read("shop", "m", "1h", DAY, DAY + 3600 * hours, grouped=False)).series
    assert [len(series.starts) for series in total] == [hours]
