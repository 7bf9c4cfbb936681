"""Records of the log that are damaged on Valkey's disk before they are stored: set aside, and sent again."""

import asyncio
import json
import time
import uuid
from collections.abc import Callable
from typing import Any

import asyncpg
import pytest
import redis

from storage.fingerprint import partition_of
from tests.faults.conftest import check_whole
from tests.lake_reading import check_lake
from tests.metric_client import MetricClient
from tests.system import RunningSystem

pytestmark = pytest.mark.timeout(240)

PARTITIONS = 64

DAMAGE = """
local entries = redis.call('XRANGE', KEYS[1], '-', '+')
redis.call('DEL', KEYS[1])
for _, entry in ipairs(entries) do
    local record = entry[2][2]
    if entry[1] == ARGV[1] .. '-1' then record = string.sub(record, 1, -1 - #ARGV[2]) .. ARGV[2] end
    redis.call('XADD', KEYS[1], entry[1], 'r', record)
end
"""
"""Offset and what becomes of the record's end; all else is as it was."""

NO_ROWS = bytes(20) + b"\xc4\x08" + bytes(8)
"""The end of a block, and a digest behind it."""


async def until(holds: Callable[[], Any], *, deadline_s: float = 60.0) -> None:
    ends = time.monotonic() + deadline_s
    while not await asyncio.to_thread(holds):
        assert time.monotonic() < ends, "it does not come"
        await asyncio.sleep(0.1)


async def test_damaged_records_are_set_aside_and_sent_again(system: RunningSystem, metric_client: MetricClient) -> None:
    client = metric_client
    partition = partition_of(client.project, PARTITIONS)
    other = MetricClient(system)
    other.create_project()
    while partition_of(other.project, PARTITIONS) == partition:
        other.create_project()
    valkey = redis.Redis.from_url(system.connection["redis_url"])
    log_key, state_key, windows_key = (f"{name}:{{p{partition:03}}}" for name in ("log", "state", "windows"))

    def next_offset(key: str) -> int:
        return int(valkey.hget(key, "next_offset") or 0)

    stored, rows_lost, all_lost, kept = ([uuid.uuid4().hex for _ in range(count)] for count in (20, 12, 10, 5))

    def post(event_ids: list[str]) -> dict[str, Any]:
        taken = client.send([client.event(event_id, n) for n, event_id in enumerate(event_ids)])
        client.sent |= set(event_ids)
        client.acknowledged |= set(event_ids)
        return taken

    post(stored)
    await check_whole(client)
    # A row that somebody else holds stops the way into PostgreSQL, and the windows' way goes on.
    blocker = await asyncpg.connect(system.connection["postgres_url"])
    held = blocker.transaction()
    await held.start()
    await blocker.execute("SELECT FROM checkpoints WHERE partition_id = $1 FOR UPDATE", partition)
    try:
        first = next_offset(state_key)
        for event_ids in (rows_lost, all_lost, kept):
            assert (await asyncio.to_thread(post, event_ids))["ack"] == "logged"
        # The windows have counted them.
        await until(lambda: next_offset(windows_key) == first + 3)
        # Its rows; and all of it, so that it does not even tell whose events it has.
        for offset, end in ((first, NO_ROWS), (first + 1, bytes(length_of(valkey, log_key, first + 1)))):
            valkey.eval(DAMAGE, 1, log_key, str(offset), end)
        await asyncio.to_thread(system.kill, "ray::BatcherActor")
    finally:
        await held.rollback()
        await blocker.close()
    await until(lambda: f"partition {partition}: record {first} cannot be read" in json.dumps(system.status()))
    await asyncio.to_thread(system.wait_healthy)
    elsewhere = uuid.uuid4().hex
    other.send([other.event(elsewhere, 0)])
    await asyncio.to_thread(other.settle)
    assert await other.stored() == {elsewhere: 1}
    assert await client.stored() == dict.fromkeys(stored, 1)

    def run(*words: str, code: int = 0) -> dict[str, Any]:
        done = system.cli("log", *words, "--json", check=False)
        assert done.returncode == code, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    found = await asyncio.to_thread(run, "check", code=1)
    assert [(each["partition"], each["offset"], each["state"]) for each in found["unreadable"]] == [
        (partition, first, "stops"),
        (partition, first + 1, "stops"),
    ]
    assert found["unreadable"][0]["counts"][0]["lost"] == 12
    assert found["unreadable"][1]["counts"] is None
    for offset in (first, first + 1, first):
        await asyncio.to_thread(run, "set-aside", str(partition), str(offset))
    totals = (await asyncio.to_thread(client.settle))["totals"]
    assert (totals["received"], totals["stored"], totals["lost"]) == (37, 25, 12)
    assert await client.stored() == dict.fromkeys([*stored, *kept], 1)
    await until(lambda: f"partition {partition}: record" not in json.dumps(system.status()))
    # What windows had counted of them is gone, with the groups that only they had.
    await client.settle_metrics()

    assert post([*rows_lost, *all_lost, *kept])["duplicate"] == 5
    totals = (await asyncio.to_thread(client.settle))["totals"]
    assert (totals["stored"], totals["duplicate"], totals["lost"]) == (47, 5, 12)
    assert await client.stored() == dict.fromkeys(client.sent, 1)
    await asyncio.to_thread(system.cli, "ledger", "--check")
    await check_lake(client, system.data / "lake")
    await client.settle_metrics()
    of_nothing = "SELECT count(*) FROM metric_aggregates WHERE project_id = $1 AND count = 0"
    assert (await system.sql(of_nothing, client.project))[0]["count"] == 0
    found = await asyncio.to_thread(run, "check")
    assert len(found["setAside"]) == 2
    assert all(each["steppedOverAt"] for each in found["setAside"])


def length_of(valkey: redis.Redis, log_key: str, offset: int) -> int:
    entries: Any = valkey.xrange(log_key, f"{offset}-1", f"{offset}-1")
    return len(entries[0][1][b"r"])
