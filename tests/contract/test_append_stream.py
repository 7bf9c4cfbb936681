"""The connection between a gateway and a batcher, over real sockets on loopback and in one event loop."""

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import uvloop

from analytics_actors.append_stream import APPEND, MAX_FRAME_BYTES, WAIT_STORED, AppendServer, Endpoint
from gateway.shard_stream import Connection, LinkError, ShardStream

DEADLINE_S = 2.0


class Batcher:
    """Answers with what it was sent, behind a gate."""

    def __init__(self) -> None:
        self.taken: list[bytes] = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def append(self, raw: bytes) -> bytes:
        self.taken.append(raw)
        await self.gate.wait()
        return b"+" + raw

    async def fail(self, raw: bytes) -> bytes:
        raise ValueError(raw)


class Started:
    """A server, and a stream to it that counts how often it had to ask where it is."""

    def __init__(self, batcher: Batcher, server: AppendServer, endpoint: Endpoint) -> None:
        self.batcher = batcher
        self.server = server
        self.endpoint = endpoint
        self.located = 0
        self.stream = ShardStream(self.locate)

    async def locate(self) -> Endpoint:
        self.located += 1
        return self.endpoint

    async def append(self, raw: bytes, *, deadline_s: float = DEADLINE_S) -> bytes:
        return await self.stream.call(APPEND, raw, deadline_s=deadline_s)


Start = Callable[[], Awaitable[Started]]


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    all_started: list[Started] = []

    async def start() -> Started:
        batcher = Batcher()
        server = AppendServer({APPEND: batcher.append, WAIT_STORED: batcher.fail})
        started = Started(batcher, server, await server.start("127.0.0.1"))
        all_started.append(started)
        return started

    yield start
    for started in all_started:
        started.stream.close()
        await started.server.close()


async def test_calls_are_answered_over_one_connection(start: Start) -> None:
    started = await start()
    answers = await asyncio.gather(*(started.append(b"%d" % number) for number in range(100)))
    assert answers == [b"+%d" % number for number in range(100)]
    assert started.located == 1


async def test_calls_arrive_in_the_order_in_which_they_were_made(start: Start) -> None:
    started = await start()
    await started.append(b"first")
    started.batcher.gate.clear()
    calls = [asyncio.ensure_future(started.append(b"%d" % number * 1000)) for number in range(50)]
    while len(started.batcher.taken) < 51:
        await asyncio.sleep(0.001)
    started.batcher.gate.set()
    await asyncio.gather(*calls)
    assert started.batcher.taken[1:] == [b"%d" % number * 1000 for number in range(50)]


async def test_a_large_frame_passes(start: Start) -> None:
    started = await start()
    raw = bytes(5_000_000)
    assert await started.append(raw) == b"+" + raw


async def test_a_missed_deadline_has_the_batcher_looked_for_anew(start: Start) -> None:
    stopped, successor = await start(), await start()
    stopped.batcher.gate.clear()
    with pytest.raises(LinkError, match="no answer within"):
        await stopped.append(b"a", deadline_s=0.05)
    stopped.endpoint = successor.endpoint
    assert await stopped.append(b"b") == b"+b"
    assert successor.batcher.taken == [b"b"]


async def test_a_connection_that_ends_fails_its_calls_and_the_next_call_finds_the_successor(start: Start) -> None:
    started, successor = await start(), await start()
    calls = asyncio.gather(started.append(b"a"), started.stream.call(WAIT_STORED, b"", deadline_s=DEADLINE_S))
    with pytest.raises(LinkError):
        await calls
    started.endpoint = successor.endpoint
    assert await started.append(b"b") == b"+b"


def test_a_call_on_a_connection_that_broke_a_moment_ago_fails_like_any_other() -> None:
    async def run() -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            connection = await Connection.open(Endpoint("127.0.0.1", server.getsockname()[1], b"secret"))
            peer, _ = server.accept()
            # Closed with unread data and no lingering: a reset, as from a process that was killed.
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            peer.close()
            # One turn of the loop at a time: in one of them the transport is closed and nobody has been told.
            for _ in range(10):
                with contextlib.suppress(LinkError):
                    connection.send(APPEND, b"a").add_done_callback(asyncio.Future.exception)
                await asyncio.sleep(0)
            assert not connection.is_open

    for _ in range(20):
        uvloop.run(run())


async def test_a_call_that_fails_has_an_unknown_outcome(start: Start) -> None:
    started = await start()
    with pytest.raises(LinkError):
        await started.stream.call(WAIT_STORED, b"", deadline_s=DEADLINE_S)


async def test_nobody_listens(start: Start) -> None:
    started = await start()
    await started.server.close()
    with pytest.raises(LinkError):
        await started.append(b"a", deadline_s=0.5)


async def test_a_caller_without_the_secret_is_not_served(start: Start) -> None:
    started = await start()
    started.endpoint = started.endpoint._replace(secret=bytes(len(started.endpoint.secret)))
    with pytest.raises(LinkError):
        await started.append(b"a")
    assert started.batcher.taken == []


@pytest.mark.parametrize("sent", [b"\xff" * 9, (MAX_FRAME_BYTES + 1).to_bytes(4, "little") + bytes(5)])
async def test_what_is_no_frame_ends_the_connection_and_no_other(start: Start, sent: bytes) -> None:
    started = await start()
    reader, writer = await asyncio.open_connection(started.endpoint.host, started.endpoint.port)
    writer.write(started.endpoint.secret + sent)
    assert await asyncio.wait_for(reader.read(), DEADLINE_S) == b""
    writer.close()
    assert await started.append(b"a") == b"+a"


async def test_an_unknown_kind_of_call_ends_the_connection(start: Start) -> None:
    started = await start()
    with pytest.raises(LinkError):
        await started.stream.call(77, b"", deadline_s=DEADLINE_S)


async def test_calls_end_when_the_stream_is_given_up(start: Start) -> None:
    started = await start()
    started.batcher.gate.clear()
    call = asyncio.ensure_future(started.append(b"a"))
    while not started.batcher.taken:
        await asyncio.sleep(0.001)
    started.stream.close()
    with pytest.raises(LinkError):
        await call
