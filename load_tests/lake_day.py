"""A day of millions of events in a lake, as compaction leaves it: one file an hour, written past the exporters.

The events of one hour are made once. Those of the other hours are the same with other times, and ids that differ in
their last two digits, which keeps the order of rows. What is left to do for a file is what costs nothing but encoding.
"""

import datetime as dt
import math
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from load_tests.measure_lake_file import made_events
from load_tests.running_system import Project, RunningSystem
from storage.fingerprint import partition_of
from storage.lake_file import HOUR_S, ROW_GROUP_ROWS, LakeFileWriter, key_of, lake_rows
from storage.lake_manifest import LakeFile, OffsetRange
from storage.postgres import Postgres
from storage.postgres_lake_files import insert_files
from storage.statements import statement

HOURS = 24
THREADS = 2
"""Encoding runs without Python's lock. Each holds the events of an hour."""
INSERT_DEADLINE_S = 30.0
_US = 1_000_000
_ORDER = [(name, "ascending") for name in ("event_type", "timestamp", "event_id")]


class LakeDay(NamedTuple):
    """Where the events lie, and what is among them."""

    start: dt.datetime
    paths: list[str]
    events_by_type: dict[str, int]
    bytes: int


class HourMaker:
    """Rows of the lake's files, of any hour: `events` of one project, in the order of a file."""

    def __init__(self, events: int, *, project_id: str, partition: int) -> None:
        self._events = events
        made = made_events(events, 1)
        us = np.random.default_rng(1).integers(0, HOUR_S * 1000, events) * 1000
        instead = {
            "project_id": pa.array([project_id]).take(pa.array(np.zeros(events, np.int32))),
            "timestamp": pa.array(us, pa.timestamp("us", tz="UTC")),
            "received_at": pa.array(us + _US, pa.timestamp("us", tz="UTC")),
            "partition_id": pa.array(np.full(events, partition, np.int16)),
        }
        for name, column in instead.items():
            made = made.set_column(made.column_names.index(name), name, column)
        self._rows = lake_rows(made.take(pc.sort_indices(made, sort_keys=_ORDER)))
        counted = pc.value_counts(self._rows.column("event_type"))
        self.events_by_type: dict[str, int] = {each["values"].as_py(): each["counts"].as_py() for each in counted}

    def rows(self, hour: int, number: int) -> pa.Table:
        """Of the hour that begins at `hour`, in seconds since the epoch; `number` (below 256) names it."""
        rows = self._rows
        instead = {
            "event_id": pc.binary_replace_slice(rows.column("event_id"), 34, 36, f"{number:02x}"),
            "timestamp": _later(rows.column("timestamp"), hour),
            "received_at": _later(rows.column("received_at"), hour),
            "log_offset": pc.add(rows.column("log_offset"), number * self._events),
        }
        for name, column in instead.items():
            rows = rows.set_column(rows.column_names.index(name), rows.schema.field(name), column)
        return rows

    def ranges(self, number: int) -> list[OffsetRange]:
        partition = self._rows.column("log_partition")[0].as_py()
        return [OffsetRange(partition, number * self._events, (number + 1) * self._events)]


def _later(times: pa.ChunkedArray, seconds: int) -> pa.ChunkedArray:
    return pc.add(times.cast(pa.int64()), seconds * _US).cast(times.type)


def write_hour(maker: HourMaker, folder: Path, *, hour: int, plan: int, number: int) -> LakeFile:
    """The file of one hour in the lake's folder."""
    key = key_of(hour, plan, number, kind="compact")
    path = folder / key
    path.parent.mkdir(parents=True)
    rows = maker.rows(hour, number)
    with (
        path.open("wb") as sink,
        LakeFileWriter(sink, hour=hour, plan=plan, number=number, ranges=maker.ranges(number)) as writer,
    ):
        for first in range(0, rows.num_rows, ROW_GROUP_ROWS):
            writer.write(rows.slice(first, ROW_GROUP_ROWS))
        return writer.finish().at(key)


async def fill_day(system: RunningSystem, project: Project, events: int) -> LakeDay:
    """Write yesterday (UTC) into the system's folder and its manifest: so many events, or a few more. The project must
    be new."""
    start = int(time.time()) // (HOURS * HOUR_S) * (HOURS * HOUR_S) - HOURS * HOUR_S
    partition = partition_of(project.project_id, system.settings.log.partitions)
    folder = system.data / "lake"
    maker = HourMaker(math.ceil(events / HOURS), project_id=project.project_id, partition=partition)
    postgres = Postgres(system.connection.postgres_url, owner="bench", pool_size=1, deadline_s=INSERT_DEADLINE_S)
    try:
        async with postgres.session() as connection:
            plan = await connection.fetchval(statement("begin_plan"), "compact", [], [], [], [])

        def write(number: int) -> LakeFile:
            return write_hour(maker, folder, hour=start + number * HOUR_S, plan=plan, number=number)

        with ThreadPoolExecutor(THREADS) as threads:
            files = list(threads.map(write, range(HOURS)))
        async with postgres.transaction() as connection:
            await insert_files(connection, plan, files)
            await connection.execute(statement("end_plan"), plan, "committed")
    finally:
        await postgres.close()
    return LakeDay(
        start=dt.datetime.fromtimestamp(start, dt.UTC),
        paths=[str(folder / file.key) for file in files],
        events_by_type={name: count * HOURS for name, count in maker.events_by_type.items()},
        bytes=sum(file.bytes for file in files),
    )
