"""Roll-ups in PostgreSQL: the table metric_aggregates, and the marks of late days. The law is `storage.rollups`'s.

Rows are written with one statement for thousands, and read in columns: one record a group, whatever its length.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from itertools import compress
from typing import Any

import asyncpg
import msgspec
import numpy as np

from storage.aggregate import Aggregate, Aggregation, encode_aggregate
from storage.errors import Fenced
from storage.fingerprint import partition_of
from storage.postgres import Connection, Postgres
from storage.rollups import (
    GRANULARITY,
    ROLLED,
    LateDay,
    RolledSize,
    RollupColumns,
    RollupSeries,
    TooManyRows,
    check_range,
    check_rolled,
    days_within,
    dimensions_hash,
    metric_type,
    wanted_columns,
)
from storage.statements import statement
from storage.window_key import Dimensions, WindowKey

AggregationOf = Callable[[str, str], Aggregation | None]
"""A project's metric to its aggregation, None where that is not known."""

ROWS_A_STATEMENT = 5000
"""Some 50 ms."""

REPLACE_DEADLINE_S = 300.0
"""A day of minutes of many groups is some hundred thousand rows."""

MARK_DEADLINE_S = 60.0
"""Finding all days with events takes some 10 µs for each, in each daily partition."""

_UPSERT = statement("upsert_rollups")
_HOLD_FLOORS = statement("hold_rollup_floors")
_MAKE_FLOORS = "INSERT INTO rollup_floors SELECT unnest($1::smallint[]), 0, 0 ON CONFLICT DO NOTHING"
_RAISE_FLOOR = statement("raise_rollup_floor")
_REMOVE = statement("remove_rollups")
_PACKED = {
    "sum": "string_agg(coalesce(trim_scale(sum)::text, '0'), ' ') AS sums",
    "minimum": "string_agg(float8send(coalesce(minimum, 'NaN')), '') AS minima",
    "maximum": "string_agg(float8send(coalesce(maximum, 'NaN')), '') AS maxima",
    "sketches": "array_agg(sketches) AS sketches",
}
"""Columns and what they are packed by, in the order of `wanted_columns`."""
_READ = statement("read_rollups")
_READ_PLAN = statement("read_rollups_plan")
_TICKET = "SELECT nextval('recount_tickets')"
_BEGIN = statement("begin_recount")
_HOLD = statement("lock_recounted_days")
_END = statement("end_recount")
_DELETE = statement("delete_rollups")
_DUE = statement("due_late_days")
_LOCK_DAYS = statement("lock_late_days")
_CLEAR_DAYS = statement("clear_late_days")
_RENEW_DAYS = statement("renew_late_days")
_MARK_DAYS = statement("mark_late_days")
_DAYS_WITH_EVENTS = statement("days_with_events")
_DAYS_LEFT = "SELECT count(*) FROM late_days WHERE project_id = $1"

_2000_S = 946684800
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

_Rows = Sequence[tuple[WindowKey, Aggregate]]


class PostgresRollups:
    """Every call has the deadline of the `Postgres` it is given, but for those with a deadline of their own above.

    `aggregation_of` tells what a row's `value` is (a column for people and their tools; nothing here reads it).
    Without it the value is the unique count, median or sum that the row has, else its count.
    """

    def __init__(self, postgres: Postgres, *, partitions: int, aggregation_of: AggregationOf | None = None) -> None:
        self._postgres = postgres
        self._partitions = partitions
        self._aggregation_of = aggregation_of or _unknown

    async def upsert(self, rows: _Rows, *, epoch: int, next_offset: int) -> None:
        check_rolled([key for key, _ in rows])
        if not rows:
            return
        async with self._postgres.transaction() as connection:
            partitions = {partition_of(project, self._partitions) for project in {key.project_id for key, _ in rows}}
            if refused := await _below_floor(connection, partitions, epoch, next_offset):
                rows = [row for row in rows if partition_of(row[0].project_id, self._partitions) not in refused]
            await self._write(connection, rows, epoch, next_offset, recomputed=False)

    async def remove_others(
        self,
        project_id: str,
        metrics: Sequence[str],
        start: int,
        end: int,
        counted: Sequence[WindowKey],
        *,
        epoch: int,
        next_offset: int,
    ) -> int:
        check_rolled(counted)
        where = (project_id, list(metrics), _instant(start), _instant(end))
        async with self._postgres.transaction(deadline_s=REPLACE_DEADLINE_S) as connection:
            partition = partition_of(project_id, self._partitions)
            if await connection.fetchval(_RAISE_FLOOR, partition, epoch, next_offset) is None:
                return 0
            deleted = await connection.execute(_REMOVE, *where, *_named(counted), epoch, next_offset)
        return int(deleted.split()[-1])

    async def begin_recount(self, project_ids: Sequence[str], start: int, end: int) -> int:
        async with self._postgres.transaction() as connection:
            ticket: int = await connection.fetchval(_TICKET)
            await connection.execute(_BEGIN, *_days(project_ids, start, end), ticket)
        return ticket

    async def replace(
        self,
        project_ids: Sequence[str],
        start: int,
        end: int,
        rows: _Rows,
        *,
        ticket: int | None,
        sizes: Sequence[RolledSize] = ROLLED,
    ) -> int:
        check_range(start, end, [key for key, _ in rows], project_ids, sizes)
        if start >= end or not project_ids:
            return 0
        async with self._postgres.transaction(deadline_s=REPLACE_DEADLINE_S) as connection:
            if ticket is None:
                # Written, and taken back.
                undone = connection.transaction()
                await undone.start()
                changed = await self._replace(connection, project_ids, start, end, rows, sizes)
                await undone.rollback()
                return changed
            await _hold(connection, *_days(project_ids, start, end), ticket)
            return await self._replace(connection, project_ids, start, end, rows, sizes)

    async def _replace(
        self,
        connection: Connection,
        project_ids: Sequence[str],
        start: int,
        end: int,
        rows: _Rows,
        sizes: Sequence[RolledSize],
    ) -> int:
        named = ([key.project_id for key, _ in rows], *_named([key for key, _ in rows]))
        granularities = [GRANULARITY[size] for size in sizes]
        where = (list(project_ids), _instant(start), _instant(end))
        deleted = await connection.execute(_DELETE, *where, *named, granularities)
        return int(deleted.split()[-1]) + await self._write(connection, rows, 0, 0, recomputed=True)

    async def end_recount(
        self, start: int, end: int, built: Mapping[str, str], *, ticket: int, audited: bool = False
    ) -> None:
        projects, days = _days(list(built), start, end)
        async with self._postgres.transaction() as connection:
            await _hold(connection, projects, days, ticket)
            await connection.execute(_END, projects, days, [built[each] for each in projects], audited)

    async def _write(
        self, connection: Connection, rows: _Rows, epoch: int, next_offset: int, *, recomputed: bool
    ) -> int:
        """How many rows are other than they were."""
        changed = 0
        # Sorted over all statements, so that no two writers wait for each other.
        ordered = sorted(rows, key=_row_order)
        for first in range(0, len(ordered), ROWS_A_STATEMENT):
            some = ordered[first : first + ROWS_A_STATEMENT]
            columns = zip(*(self._columns(key, aggregate) for key, aggregate in some), strict=True)
            changed += await connection.fetchval(_UPSERT, *columns, epoch, next_offset, recomputed)
        return changed

    def _columns(self, key: WindowKey, aggregate: Aggregate) -> tuple[object, ...]:
        """In the order of upsert_rollups.sql."""
        aggregation = metric_type(self._aggregation_of(key.project_id, key.metric), aggregate)
        has_sketch = aggregate.unique is not None or aggregate.quantiles is not None
        return (
            key.project_id,
            key.metric,
            aggregation,
            GRANULARITY[key.size],
            key.start,
            dimensions_hash(key.dimensions),
            _value(aggregate, aggregation),
            _dimensions_json(key.dimensions),
            aggregate.count,
            None if aggregate.minimum is None else aggregate.total,
            aggregate.minimum,
            aggregate.maximum,
            encode_aggregate(aggregate) if has_sketch else None,
        )

    async def read(
        self,
        project_id: str,
        metric: str,
        size: RolledSize,
        start: int,
        end: int,
        *,
        grouped: bool,
        wanted: Aggregation | None = None,
        max_rows: int | None = None,
    ) -> RollupColumns:
        limit = None if max_rows is None else max_rows + 1
        where = (project_id, metric, GRANULARITY[size], _instant(start), _instant(end), grouped, limit)
        async with self._postgres.transaction(snapshot=True) as connection:
            await connection.execute(_READ_PLAN)
            records = await connection.fetch(_read_statement(wanted), *where)
        # A start has 8 bytes.
        if max_rows is not None and sum(len(record["starts"]) for record in records) // 8 > max_rows:
            raise TooManyRows
        return RollupColumns(sorted(map(_series, records), key=lambda series: series.dimensions))

    async def late_days(
        self, partitions: Sequence[int], *, quiet_s: float, max_wait_s: float, limit: int
    ) -> list[LateDay]:
        async with self._postgres.session() as connection:
            return [LateDay(*row) for row in await connection.fetch(_DUE, partitions, quiet_s, max_wait_s, limit)]

    async def clear_late_days(self, days: Sequence[LateDay]) -> None:
        if not days:
            return
        projects, dates, versions = zip(*days, strict=True)
        async with self._postgres.transaction() as connection:
            await connection.execute(_LOCK_DAYS, projects, dates)
            await connection.execute(_CLEAR_DAYS, projects, dates, versions)
            await connection.execute(_RENEW_DAYS, projects, dates)

    async def mark_days(self, project_id: str, days: Sequence[date] | None = None) -> int:
        async with self._postgres.transaction(deadline_s=MARK_DEADLINE_S) as connection:
            if days is None:
                days = [row["day"] for row in await connection.fetch(_DAYS_WITH_EVENTS, project_id)]
            numbers = sorted({(day - _EPOCH.date()).days for day in days})
            partition = partition_of(project_id, self._partitions)
            marks = ([project_id] * len(numbers), numbers, [partition] * len(numbers))
            await connection.execute(_MARK_DAYS, *marks)
        return len(numbers)

    async def days_left(self, project_id: str) -> int:
        async with self._postgres.session() as connection:
            return await connection.fetchval(_DAYS_LEFT, project_id) or 0

    async def close(self) -> None:
        """Nothing: the `Postgres` is its owner's."""


def _days(project_ids: Sequence[str], start: int, end: int) -> tuple[list[str], list[date]]:
    """Each of the projects with each day of the range."""
    pairs = [(project_id, day) for project_id in project_ids for day in days_within(start, end)]
    return [project_id for project_id, _ in pairs], [day for _, day in pairs]


async def _below_floor(
    connection: Connection, partitions: Collection[int], epoch: int, next_offset: int
) -> Collection[int]:
    """Partitions that rows counted so far are not written of any more. None rises until the transaction ends."""
    wanted = sorted(partitions)
    floors = await connection.fetch(_HOLD_FLOORS, wanted, epoch, next_offset)
    if len(floors) < len(wanted):
        await connection.execute(_MAKE_FLOORS, wanted)
        floors = await connection.fetch(_HOLD_FLOORS, wanted, epoch, next_offset)
    return {floor["partition_id"] for floor in floors if floor["is_above"]}


async def _hold(connection: Connection, projects: Sequence[str], days: Sequence[date], ticket: int) -> None:
    if len(await connection.fetch(_HOLD, projects, days, ticket)) < len(days):
        raise Fenced(f"days of {', '.join(sorted(set(projects)))} are counted again by somebody who began later")


def _read_statement(wanted: Aggregation | None) -> str:
    columns = list(compress(_PACKED, wanted_columns(wanted)))
    named = "".join(f", {column}" for column in columns)
    packed = "".join(f", {_PACKED[column]}" for column in columns)
    return _READ.replace("            wanted_columns", named).replace("        packed_columns", packed)


def _named(keys: Sequence[WindowKey]) -> tuple[list[str], list[str], list[int], list[int]]:
    """Metrics, granularities, starts, hashes."""
    return (
        [key.metric for key in keys],
        [GRANULARITY[key.size] for key in keys],
        [key.start for key in keys],
        [dimensions_hash(key.dimensions) for key in keys],
    )


def _unknown(_project_id: str, _metric: str) -> None:
    return None


def _row_order(row: tuple[WindowKey, Aggregate]) -> tuple[str, str, str, int]:
    key = row[0]
    return key.project_id, key.metric, GRANULARITY[key.size], key.start


def _value(aggregate: Aggregate, aggregation: Aggregation) -> Decimal | None:
    value = aggregate.value(aggregation)
    return Decimal(repr(value)) if isinstance(value, float) else None if value is None else Decimal(value)


def _dimensions_json(dimensions: Dimensions) -> str | None:
    """PostgreSQL's text has no NUL; an event that has one is a dead letter, and may have been counted before."""
    if not dimensions:
        return None
    pairs = {name: value.replace("\0", "\ufffd") for name, value in dimensions}
    return msgspec.json.encode(pairs).decode()


def _instant(second: int) -> datetime:
    return _EPOCH + timedelta(seconds=second)


def _series(record: asyncpg.Record) -> RollupSeries:
    starts = _integers(record["starts"]) // 1_000_000 + _2000_S
    counts = _integers(record["counts"])
    rows = len(starts)
    sums = record["sums"].split(" ") if "sums" in record else ["0"] * rows
    minima, maxima = (_floats(record.get(name), rows) for name in ("minima", "maxima"))
    sketches = record["sketches"] if any(record.get("sketches") or ()) else None
    # Rows come in the order of the index or of the table, as the planner likes.
    if rows > 1 and not (np.diff(starts) > 0).all():
        order = np.argsort(starts)
        starts, counts, minima, maxima = starts[order], counts[order], minima[order], maxima[order]
        sums = [sums[row] for row in order]
        sketches = sketches and [sketches[row] for row in order]
    return RollupSeries(_dimensions(record), starts, counts, sums, minima, maxima, sketches)


def _dimensions(record: asyncpg.Record) -> Dimensions:
    values: dict[str, str] = msgspec.json.decode(record["dimensions"])
    return tuple((name, values[name]) for name in record["names"])


def _integers(packed: bytes) -> "np.ndarray[Any, np.dtype[np.int64]]":
    return np.frombuffer(packed, ">i8").astype(np.int64)


def _floats(packed: bytes | None, rows: int) -> "np.ndarray[Any, np.dtype[np.float64]]":
    return np.full(rows, np.nan) if packed is None else np.frombuffer(packed, ">f8").astype(np.float64)
