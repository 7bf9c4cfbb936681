"""How far the lake of a running system is, what it holds, and what the log keeps for all sinks meanwhile."""

import asyncio
import threading
from collections.abc import Sequence
from typing import Any, NamedTuple

import asyncpg
from redis import Redis

from load_tests.generator import Clock
from load_tests.running_system import POLL_INTERVAL_S, STORED_DEADLINE_S, RunningSystem, SystemFailed
from storage.fingerprint import partition_of
from storage.postgres_manifest import SINK as LAKE
from storage.postgres_store import SINK as EVENT_STORE
from storage.statements import statement

COMPACTED_POLL_S = 0.1
LOG_SAMPLE_S = 0.25
TRIMMED_AFTER_S = 3.0
"""The log is trimmed once a second, below checkpoints that are asked for before."""

_BEHIND = """
    SELECT stored.partition_id
    FROM checkpoints AS stored
    LEFT JOIN checkpoints AS exported ON exported.sink = $2 AND exported.partition_id = stored.partition_id
    WHERE stored.sink = $1 AND stored.next_offset > coalesce(exported.next_offset, 0)
"""
_HELD = """
    SELECT count(*) AS files, coalesce(sum(rows), 0)::bigint AS rows, coalesce(sum(bytes), 0)::bigint AS bytes
    FROM lake_files WHERE retired_at IS NULL
"""


class LakeUse(NamedTuple):
    """Of all live files."""

    files: int
    rows: int
    bytes: int


async def wait_exported(system: RunningSystem, *, clock: Clock) -> float:
    """When the lake was seen to hold every event that is stored in PostgreSQL; nobody may be sending.

    Raises `SystemFailed` when it does not come as far.
    """
    connection = await asyncpg.connect(system.connection.postgres_url)
    query = await connection.prepare(_BEHIND)
    until_s = clock() + STORED_DEADLINE_S
    try:
        while missing := await query.fetch(EVENT_STORE, LAKE):
            if clock() > until_s:
                partitions = [row["partition_id"] for row in missing]
                raise SystemFailed(f"the lake of partitions {partitions} is behind after {STORED_DEADLINE_S} s")
            await asyncio.sleep(POLL_INTERVAL_S)
        return clock()
    finally:
        await connection.close()


async def wait_compacted(system: RunningSystem, *, clock: Clock) -> None:
    """Return when the keeper has nothing to merge. Raises `SystemFailed` when it does not come as far."""
    lake = system.settings.lake
    connection = await asyncpg.connect(system.connection.postgres_url)
    query = await connection.prepare(statement("hours_to_compact"))
    until_s = clock() + STORED_DEADLINE_S
    try:
        while await query.fetch(lake.compact_below_bytes, lake.compact_quiet_s, lake.compact_max_parts, 1):
            if clock() > until_s:
                raise SystemFailed(f"the lake is not compacted after {STORED_DEADLINE_S} s")
            await asyncio.sleep(COMPACTED_POLL_S)
    finally:
        await connection.close()


async def lake_use(system: RunningSystem) -> LakeUse:
    connection = await asyncpg.connect(system.connection.postgres_url)
    try:
        [row] = await connection.fetch(_HELD)
        return LakeUse(row["files"], row["rows"], row["bytes"])
    finally:
        await connection.close()


class LogWatch:
    """Samples within `with` what Redis needs for the records of the load's partitions, in a thread of its own."""

    def __init__(self, system: RunningSystem) -> None:
        count = system.settings.log.partitions
        partitions = sorted({partition_of(project.project_id, count) for project in system.projects})
        # As `storage.redis_log` describes it.
        self._keys = [f"log:{{p{partition:03}}}" for partition in partitions]
        self._redis = Redis.from_url(system.connection.redis_url)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._failure: Exception | None = None
        self.peak_bytes = 0
        self.end_bytes = 0
        """Some seconds after the block, when what may be trimmed is."""

    def __enter__(self) -> "LogWatch":
        self._thread.start()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        try:
            if kind is None:
                self._settle()
        finally:
            self._redis.close()
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        try:
            while not self._ended.wait(LOG_SAMPLE_S):
                self.peak_bytes = max(self.peak_bytes, self._bytes())
        except Exception as error:  # told by __exit__, in the thread that can act on it
            self._failure = error

    def _settle(self) -> None:
        threading.Event().wait(TRIMMED_AFTER_S)
        self.end_bytes = self._bytes()

    def _bytes(self) -> int:
        """Of every node of each stream. By default Redis looks at the first five and takes all for alike; those that
        were appended after a stall of the disk are many times as large, and it found three times what there was."""
        pipeline = self._redis.pipeline(transaction=False)
        for key in self._keys:
            pipeline.memory_usage(key, samples=0)
        sizes: Sequence[Any] = pipeline.execute()
        return sum(size or 0 for size in sizes)
