"""What only the windows in Redis can get wrong: their names and times, late commands, a full server, slowness."""

import asyncio
import json
import signal
import time
from collections.abc import AsyncIterator, Iterator
from decimal import Decimal
from pathlib import Path

import pytest
import redis.asyncio

from config.settings import LogSettings, Settings
from storage.aggregate import Aggregate
from storage.embedded.process import free_port
from storage.embedded.valkey import EmbeddedValkey
from storage.errors import FormatError, Unavailable
from storage.redis_windows import RedisWindows
from storage.window_key import WindowKey
from storage.window_store import Publication
from tests.contract.cut_proxy import CutProxy
from tests.contract.test_window_store import HOUR, counts, go_live, key, publication


@pytest.fixture
async def store(valkey_url: str) -> AsyncIterator[RedisWindows]:
    made = RedisWindows(valkey_url, Settings(), owner="one")
    yield made
    await made.close()


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[EmbeddedValkey]:
    server = EmbeddedValkey(tmp_path / "valkey", max_memory_bytes=256 << 20)
    server.start()
    yield server
    server.stop()


async def test_windows_are_readable_by_their_documented_names(store: RedisWindows, valkey_url: str) -> None:
    await go_live(store)
    stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(HOUR))
    windows = [
        (key(metric="revenue"), Aggregate(2, Decimal("12.30"), 2.3, 10.0)),
        (key((("country", "AT"),), metric="revenue"), Aggregate(1)),
    ]
    await store.publish([publication(windows, built={"shop": "3"}, watermark_ms=5)])
    async with redis.asyncio.Redis.from_url(valkey_url, decode_responses=True) as client:
        total = f"metric:shop:revenue:1h:{stamp}"
        assert json.loads(str(await client.get(total))) == {
            "count": 2,
            "sum": 12.3,
            "min": 2.3,
            "max": 10,
            "mean": 6.15,
        }
        assert json.loads(str(await client.get(f"{total}:country:AT"))) == {"count": 1}
        assert await client.smembers(f"{total}:groups") == {'[["country","AT"]]'}
        for name in (total, f"{total}:groups"):
            assert await client.expiretime(name) == HOUR + 3600 + 86400
        assert await client.hgetall("windows:{p007}") == {
            "epoch": "1", "owner": "one", "next_offset": "10", "watermark_ms": "5", "state": "live", "built:shop": "3"
        }  # fmt: skip


async def test_two_thousand_windows_take_the_server_some_milliseconds(store: RedisWindows, valkey_url: str) -> None:
    """The server does nothing else meanwhile. 10 ms are wanted; the bound here is for a busy machine."""
    await go_live(store)
    windows = [
        (WindowKey("shop", f"metric{n % 10}", "1m", HOUR + 60 * (n // 200), (("page", f"p{n}"),)), Aggregate(n))
        for n in range(2000)
    ]
    async with redis.asyncio.Redis.from_url(valkey_url) as client:
        await store.publish([publication()])
        await client.config_resetstat()
        times = 5
        for _ in range(times):
            assert await store.publish([publication(windows)]) == ["published"]
        stats = await client.info("commandstats")
        server_ms = stats["cmdstat_evalsha"]["usec"] / 1000 / times
    print(f"2,000 windows: {server_ms:.1f} ms")
    assert server_ms < 50


async def test_a_publication_that_arrives_after_its_repetition_changes_nothing(valkey_url: str) -> None:
    """A server that was stopped reads what its dead connections had sent."""
    proxy = CutProxy(valkey_url)
    await proxy.start()
    store = RedisWindows(proxy.url, Settings(log=LogSettings(command_timeout_s=2.0)), owner="one")
    await go_live(store)
    assert await store.publish([publication([(key(), Aggregate(1))])]) == ["published"]
    late = publication([(key(), Aggregate(2))], first=10, following=20)
    proxy.cut_next("hold", b"EVALSHA")
    with pytest.raises(Unavailable):
        await store.publish([late])
    assert await store.publish([late]) == ["published"]
    assert await store.publish([publication([(key(), Aggregate(3))], first=20, following=30)]) == ["published"]
    await proxy.release()
    assert await counts(store, key()) == [3]
    await store.close()
    await proxy.stop()


async def test_windows_outlive_the_server_and_its_scripts(own_server: EmbeddedValkey) -> None:
    store = RedisWindows(own_server.url, Settings(), owner="one")
    await go_live(store)
    await store.publish([publication([(key(), Aggregate(1))])])
    assert own_server.process is not None
    own_server.process.send_signal(signal.SIGKILL)
    own_server.process.wait()
    with pytest.raises(Unavailable):
        await store.load([key()])
    own_server.start()
    assert await store.publish([publication([(key(), Aggregate(2))], first=10, following=20)]) == ["published"]
    assert await counts(store, key()) == [2]
    await store.close()


async def test_a_full_server_refuses_a_publication_whole(own_server: EmbeddedValkey) -> None:
    store = RedisWindows(own_server.url, Settings(), owner="one")
    await go_live(store)
    more: list[Publication] = [publication([(key(), Aggregate(2))], first=10, following=20)]
    async with redis.asyncio.Redis.from_url(own_server.url) as client:
        await store.publish([publication([(key(), Aggregate(1))])])
        await client.config_set("maxmemory", "1")
        with pytest.raises(Unavailable, match="maxmemory"):
            await store.publish(more)
        assert await counts(store, key()) == [1]
        assert (await store.claim(7, epoch=2)) is not None
        await client.config_set("maxmemory", "256mb")
    assert await store.publish([more[0]._replace(epoch=2)]) == ["published"]
    await store.close()


async def test_a_stopped_server_is_unavailable_in_time(own_server: EmbeddedValkey) -> None:
    store = RedisWindows(own_server.url, Settings(log=LogSettings(command_timeout_s=1.5)), owner="one")
    await go_live(store)
    assert own_server.process is not None
    own_server.process.send_signal(signal.SIGSTOP)
    try:
        async with asyncio.timeout(4):
            calls = (store.load([key()]), store.publish([publication()]), store.checkpoints([7]))
            results = await asyncio.gather(*calls, return_exceptions=True)
        assert all(isinstance(result, Unavailable) for result in results)
    finally:
        own_server.process.send_signal(signal.SIGCONT)
    await store.close()


async def test_nobody_listening_is_unavailable() -> None:
    store = RedisWindows(f"redis://127.0.0.1:{free_port()}/0", Settings(), owner="one")
    with pytest.raises(Unavailable):
        await store.claim(7, epoch=1)
    await store.close()


async def test_what_is_no_window_is_told(store: RedisWindows, valkey_url: str) -> None:
    await go_live(store)
    await store.publish([publication([(key((("a", "b"),)), Aggregate(1))])])
    async with redis.asyncio.Redis.from_url(valkey_url, decode_responses=True) as client:
        stem = f"metric:shop:m:1h:{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime(HOUR))}"
        await client.set(stem, "{")
        await client.sadd(f"{stem}:groups", "{}")
    with pytest.raises(FormatError):
        await store.load([key()])
    with pytest.raises(FormatError):
        await store.groups("shop", "m", "1h", [HOUR])
