"""What only the log in Redis can get wrong: the server's death, its settings, late answers, unknown scripts."""

import asyncio
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import redis.asyncio

from config.settings import LogSettings
from storage.embedded.process import free_port
from storage.embedded.valkey import EmbeddedValkey
from storage.errors import Misconfigured, Unavailable
from storage.partition_log import Append, LogState, Trim
from storage.redis_log import CONNECTIONS, RedisLog
from tests.contract.cut_proxy import CutProxy

FRESH = LogState(0, 0, 0, 0)


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[EmbeddedValkey]:
    server = EmbeddedValkey(tmp_path / "valkey", max_memory_bytes=256 << 20)
    server.start()
    yield server
    server.stop()


@pytest.mark.parametrize("url", ["db.example.org:6379", "redis://me:secret@db.example.org:port/0"])
def test_what_is_no_url_is_refused_and_not_told(url: str) -> None:
    with pytest.raises(Misconfigured, match=r"log\.redis_url is no URL of a Redis") as refused:
        RedisLog(url, LogSettings())
    assert "example.org" not in str(refused.value)


@asynccontextmanager
async def opened(url: str, *, timeout_s: float = 5.0) -> AsyncIterator[RedisLog]:
    log = RedisLog(url, LogSettings(command_timeout_s=timeout_s), owner="one")
    try:
        yield log
    finally:
        await log.close()


async def append(log: RedisLog, epoch: int, offset: int, record: bytes) -> str:
    [outcome] = await log.append([Append(7, epoch, offset, record, b"%08d" % offset)])
    return str(outcome)


def process_of(server: EmbeddedValkey) -> "subprocess.Popen[bytes]":
    assert server.process is not None
    return server.process


async def test_kill_and_restart_keep_everything_acknowledged(own_server: EmbeddedValkey) -> None:
    """NL-1. The same client goes on afterwards, although the server has forgotten the scripts."""
    acknowledged = 0
    enough = asyncio.Event()

    async def write(log: RedisLog, epoch: int) -> None:
        nonlocal acknowledged
        while await append(log, epoch, acknowledged, b"%d" % acknowledged) == "appended":
            acknowledged += 1
            if acknowledged == 300:
                enough.set()

    async with opened(own_server.url) as log:
        state = await log.acquire(7, at_least=FRESH)
        writer = asyncio.create_task(write(log, state.epoch))
        await enough.wait()
        process_of(own_server).send_signal(signal.SIGKILL)
        with pytest.raises(Unavailable):
            await writer
        process_of(own_server).wait()
        own_server.start()

        renewed = await log.renew(7, epoch=state.epoch)
        assert renewed.next_offset in {acknowledged, acknowledged + 1}
        records = await log.read(7, 0, max_records=100_000)
        assert records == [(offset, b"%d" % offset) for offset in range(renewed.next_offset)]
        assert [entry.fingerprints async for entry in log.read_ids(7)] == [b"%08d" % offset for offset, _ in records]
        assert await append(log, renewed.epoch, renewed.next_offset, b"after") == "appended"


async def test_scripts_that_the_server_forgot_are_sent_again_once(valkey_url: str) -> None:
    async with opened(valkey_url) as log, redis.asyncio.Redis.from_url(valkey_url) as client:
        first = await log.acquire(7, at_least=FRESH)
        second = await log.acquire(8, at_least=FRESH)
        for offset in range(3):
            await client.script_flush()
            appends = [Append(7, first.epoch, offset, b"a", b""), Append(8, second.epoch, offset, b"b", b"")]
            assert await log.append(appends) == ["appended", "appended"]
        assert await log.read(7, 0, max_records=9) == [(0, b"a"), (1, b"a"), (2, b"a")]
        assert await log.read(8, 0, max_records=9) == [(0, b"b"), (1, b"b"), (2, b"b")]


async def test_an_append_that_arrives_after_the_renewal_is_refused(valkey_url: str) -> None:
    """A server that was stopped reads what its dead connections had sent: that must settle nothing any more."""
    proxy = CutProxy(valkey_url)
    await proxy.start()
    async with opened(proxy.url, timeout_s=2.0) as log:
        state = await log.acquire(7, at_least=FRESH)
        assert await append(log, state.epoch, 0, b"before") == "appended"
        proxy.cut_next("hold", b"EVALSHA")
        with pytest.raises(Unavailable):
            await append(log, state.epoch, 1, b"late")
        renewed = await log.renew(7, epoch=state.epoch)
        assert renewed.next_offset == 1
        await proxy.release()
        assert await log.state([7]) == [renewed]
        assert await append(log, renewed.epoch, 1, b"after") == "appended"
        assert await log.read(7, 0, max_records=9) == [(0, b"before"), (1, b"after")]
    await proxy.stop()


async def test_a_lost_reply_is_not_followed_by_a_second_send(valkey_url: str) -> None:
    """The client's own retry would be answered "fenced" by its first send."""
    proxy = CutProxy(valkey_url)
    await proxy.start()
    async with opened(proxy.url) as log:
        state = await log.acquire(7, at_least=FRESH)
        await append(log, state.epoch, 0, b"warm")
        proxy.cut_next("reply", b"EVALSHA")
        with pytest.raises(Unavailable):
            await append(log, state.epoch, 1, b"once")
        assert await log.state([7]) == [LogState(1, 0, 2, 0)]
    await proxy.stop()


async def test_a_stopped_server_is_unavailable_in_time_and_its_late_answers_go_nowhere(
    own_server: EmbeddedValkey,
) -> None:
    async with opened(own_server.url, timeout_s=1.5) as log:
        states = {p: await log.acquire(p, at_least=LogState(0, p, p, 0)) for p in range(1, 6)}
        process_of(own_server).send_signal(signal.SIGSTOP)
        try:
            started = time.monotonic()
            results = await asyncio.gather(*(log.state([p]) for p in states), return_exceptions=True)
            assert all(isinstance(result, Unavailable) for result in results)
            assert time.monotonic() - started < 5 * 1.5, "one after the other"
        finally:
            process_of(own_server).send_signal(signal.SIGCONT)
        for partition, state in states.items():
            assert await log.state([partition]) == [state]


async def test_a_cancelled_call_leaves_no_answer_behind(valkey_url: str) -> None:
    async with opened(valkey_url) as log:
        states = {p: await log.acquire(p, at_least=LogState(0, p, p, 0)) for p in range(1, 6)}
        for partition, state in states.items():
            call = asyncio.create_task(log.read(partition, 0, max_records=1))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            assert await log.state([partition]) == [state]


async def test_more_calls_at_once_than_connections_wait_for_one(valkey_url: str) -> None:
    async with opened(valkey_url) as log, redis.asyncio.Redis.from_url(valkey_url) as client:
        state = await log.acquire(7, at_least=FRESH)
        assert await asyncio.gather(*(log.state([7]) for _ in range(CONNECTIONS * 5))) == [[state]] * CONNECTIONS * 5
        assert (await client.info("clients"))["connected_clients"] <= CONNECTIONS + 1


async def test_ids_keep_their_order_when_the_clock_steps_back(valkey_url: str) -> None:
    async with opened(valkey_url) as log, redis.asyncio.Redis.from_url(valkey_url) as client:
        state = await log.acquire(7, at_least=FRESH)
        await append(log, state.epoch, 0, b"a")
        [entry] = [entry async for entry in log.read_ids(7)]
        an_hour_ahead = entry.appended_ms + 3_600_000
        await client.hset("state:{p007}", "ids_last_ms", str(an_hour_ahead))
        for offset in (1, 2):
            assert await append(log, state.epoch, offset, b"b") == "appended"
        entries = [(each.appended_ms, each.fingerprints) async for each in log.read_ids(7)]
        assert entries[1:] == [(an_hour_ahead, b"00000001"), (an_hour_ahead, b"00000002")]


async def test_streams_without_their_state_do_not_wedge_the_partition(valkey_url: str) -> None:
    async with opened(valkey_url) as log, redis.asyncio.Redis.from_url(valkey_url) as client:
        state = await log.acquire(7, at_least=FRESH)
        for offset in range(3):
            await append(log, state.epoch, offset, b"a")
        await client.delete("state:{p007}")
        anew = await log.acquire(7, at_least=LogState(1, 1, 1, 0))
        assert anew.next_offset == 3
        assert await append(log, anew.epoch, 3, b"b") == "appended"


async def test_a_server_that_does_not_keep_its_word_is_refused(own_server: EmbeddedValkey) -> None:
    async with opened(own_server.url) as log, redis.asyncio.Redis.from_url(own_server.url) as client:
        await log.check()
        await client.config_set("appendfsync", "everysec")
        await client.config_set("maxmemory-policy", "allkeys-lru")
        expected = r"set `appendfsync always` \(it is everysec\), `maxmemory-policy noeviction` \(it is allkeys-lru\)"
        with pytest.raises(Misconfigured, match=expected):
            await log.check()


async def test_a_server_that_hides_its_settings_is_refused_with_the_permission_to_give(
    own_server: EmbeddedValkey,
) -> None:
    async with redis.asyncio.Redis.from_url(own_server.url) as client:
        await client.acl_setuser("app", enabled=True, passwords=["+secret"], keys=["*"], commands=["+@all", "-config"])
    parts = urlsplit(own_server.url)
    as_app = parts._replace(netloc=f"app:secret@{parts.hostname}:{parts.port}").geturl()
    async with opened(as_app) as log:
        with pytest.raises(Misconfigured, match=r"CONFIG GET is not allowed.*\+config\|get"):
            await log.check()


async def test_a_wrong_password_is_a_misconfiguration(own_server: EmbeddedValkey) -> None:
    parts = urlsplit(own_server.url)
    async with opened(parts._replace(netloc=f"nobody:wrong@{parts.hostname}:{parts.port}").geturl()) as log:
        with pytest.raises(Misconfigured, match="check user, password and ACL"):
            await log.check()


async def test_nobody_listening_is_unavailable() -> None:
    async with opened(f"redis://127.0.0.1:{free_port()}/0") as log:
        with pytest.raises(Unavailable):
            await log.check()


async def test_a_server_over_its_memory_refuses_appends_and_still_takes_what_frees_it(
    own_server: EmbeddedValkey,
) -> None:
    async with opened(own_server.url) as log, redis.asyncio.Redis.from_url(own_server.url) as client:
        state = await log.acquire(7, at_least=FRESH)
        for offset in range(3):
            assert await append(log, state.epoch, offset, b"x" * 100_000) == "appended"
        await client.config_set("maxmemory", "1mb")
        assert await append(log, state.epoch, 3, b"y") == "full"
        renewed = await log.renew(7, epoch=state.epoch)
        again = await log.acquire(7, at_least=None)
        assert (renewed.next_offset, again.next_offset) == (3, 3)
        assert await log.acquire(8, at_least=FRESH) == LogState(1, 0, 0, 0)
        await log.trim([Trim(7, again.epoch, 3, 0)])
        assert await log.read(7, 0, max_records=9) == []
        assert (await log.state([7]))[0] == LogState(again.epoch, 3, 3, 0)
