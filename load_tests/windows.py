"""How far the windows of a running system are, and what they take in Redis."""

import asyncio
from collections.abc import Mapping
from typing import NamedTuple

import asyncpg
from redis.asyncio import Redis

from load_tests.generator import Clock
from load_tests.running_system import POLL_INTERVAL_S, STORED_DEADLINE_S, RunningSystem, SystemFailed
from storage.fingerprint import partition_of
from storage.postgres_store import SINK
from storage.redis_windows import RedisWindows

_KEYS_A_TIME = 1000


class RedisUse(NamedTuple):
    """Of all windows, their groups and checkpoints."""

    keys: int
    bytes: int


async def wait_counted(system: RunningSystem, *, clock: Clock) -> float:
    """When the windows were seen to hold every event of the load that is stored in PostgreSQL at the call.

    Raises `SystemFailed` when they do not come as far.
    """
    wanted = await _stored_below(system)
    windows = RedisWindows(system.connection.redis_url, system.settings, owner="bench")
    until_s = clock() + STORED_DEADLINE_S
    try:
        while missing := await _behind(windows, wanted):
            if clock() > until_s:
                raise SystemFailed(f"windows of partitions {missing} are behind after {STORED_DEADLINE_S} s")
            await asyncio.sleep(POLL_INTERVAL_S)
        return clock()
    finally:
        await windows.close()


async def _stored_below(system: RunningSystem) -> Mapping[int, int]:
    """The event store's checkpoint by partition. With all events stored that is the end of the log."""
    count = system.settings.log.partitions
    partitions = {partition_of(project.project_id, count) for project in system.projects}
    connection = await asyncpg.connect(system.connection.postgres_url)
    try:
        rows = await connection.fetch(
            "SELECT partition_id, next_offset FROM checkpoints WHERE sink = $1 AND partition_id = ANY($2)",
            SINK,
            list(partitions),
        )
    finally:
        await connection.close()
    return {row["partition_id"]: row["next_offset"] for row in rows}


async def _behind(windows: RedisWindows, wanted: Mapping[int, int]) -> list[int]:
    checkpoints = await windows.checkpoints(list(wanted))
    return [
        partition
        for (partition, offset), checkpoint in zip(wanted.items(), checkpoints, strict=True)
        if checkpoint is None or checkpoint.state != "live" or checkpoint.next_offset < offset
    ]


async def windows_in_redis(redis_url: str) -> RedisUse:
    """By MEMORY USAGE: with what the server needs for each key."""
    redis = Redis.from_url(redis_url)
    use = RedisUse(0, 0)
    try:
        for pattern in ("metric:*", "windows:*"):
            cursor = 0
            while True:
                cursor, keys = await redis.scan(cursor, match=pattern, count=_KEYS_A_TIME)
                pipeline = redis.pipeline(transaction=False)
                for key in keys:
                    pipeline.memory_usage(key, samples=0)
                sizes = [size or 0 for size in await pipeline.execute()]
                use = RedisUse(use.keys + len(sizes), use.bytes + sum(sizes))
                if not cursor:
                    break
        return use
    finally:
        await redis.aclose()
