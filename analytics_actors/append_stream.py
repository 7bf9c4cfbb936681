"""The way of events into a batcher: a TCP connection from each gateway straight to the actor.

Ray finds the actor and vouches for it: a gateway asks it by name for its `Endpoint`, whose secret lives as long
as the actor's process. Appends do not travel in Ray calls, because a call costs both processes about a
millisecond of CPU and three hand-overs between threads (ARCHITECTURE has the numbers).

A client sends the secret first, and then frames; the server answers each with a frame of the same call number,
in any order. Frame: length of what follows the header, call number, kind (little endian, 4 + 4 + 1 bytes), then

- `APPEND`: `storage.event_batch.encode_batches`; answered by `messages.encode_replies`.
- `WAIT_STORED`: MessagePack `[partition, offset, deadline_s]`; answered by MessagePack true or false.

Appends of one connection are queued in the order in which they were sent (OR-1). A connection that breaks leaves
the outcome of its calls unknown.
"""

import asyncio
import hmac
import logging
import secrets
import struct
from collections.abc import Awaitable, Callable, Mapping
from typing import NamedTuple

APPEND = 0
WAIT_STORED = 1

MAX_FRAME_BYTES = 64 * 1024 * 1024
"""Far above what a gateway puts into one append; a length beyond it is not one of our frames."""

SECRET_BYTES = 32
HELLO_DEADLINE_S = 5.0
READ_BUFFER_BYTES = 1024 * 1024

_HEADER = struct.Struct("<IIB")

_log = logging.getLogger(__name__)


class Endpoint(NamedTuple):
    """Where a batcher listens, and what proves that a caller was told so by Ray."""

    host: str
    port: int
    secret: bytes


class Frame(NamedTuple):
    call: int
    kind: int
    payload: bytes


class BrokenStream(Exception):
    """What arrived is not a frame."""


def write_frame(writer: asyncio.StreamWriter, frame: Frame) -> None:
    # Together: each write alone is a system call, and wakes the reader.
    writer.writelines((_HEADER.pack(len(frame.payload), frame.call, frame.kind), frame.payload))


async def read_frame(reader: asyncio.StreamReader) -> Frame:
    """Raises `asyncio.IncompleteReadError` at the connection's end, `BrokenStream`."""
    size, call, kind = _HEADER.unpack(await reader.readexactly(_HEADER.size))
    if size > MAX_FRAME_BYTES:
        raise BrokenStream(f"a frame of {size} bytes")
    return Frame(call, kind, await reader.readexactly(size))


Handler = Callable[[bytes], Awaitable[bytes]]


class AppendServer:
    """Answers frames by the handler of their kind. Lives in the batcher's event loop."""

    def __init__(self, handlers: Mapping[int, Handler]) -> None:
        self._handlers = handlers
        self._secret = secrets.token_bytes(SECRET_BYTES)
        self._server: asyncio.Server | None = None
        self._calls: set[asyncio.Task[None]] = set()

    async def start(self, host: str) -> Endpoint:
        self._server = await asyncio.start_server(self._serve, host, 0, limit=READ_BUFFER_BYTES)
        port: int = self._server.sockets[0].getsockname()[1]
        return Endpoint(host, port, self._secret)

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        for call in self._calls:
            call.cancel()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(HELLO_DEADLINE_S):
                secret = await reader.readexactly(SECRET_BYTES)
            if not hmac.compare_digest(secret, self._secret):
                _log.warning("a caller does not know the secret", extra={"action": "stream_refused"})
                return
            while True:
                # Tasks start in the order in which they are made, and appends queue before their first await.
                call = asyncio.ensure_future(self._answer(await read_frame(reader), writer))
                self._calls.add(call)
                call.add_done_callback(self._calls.discard)
        except (asyncio.IncompleteReadError, ConnectionError, TimeoutError):
            pass
        except BrokenStream as error:
            _log.warning("a connection is closed", extra={"action": "stream_broken", "error": str(error)})
        finally:
            writer.close()

    async def _answer(self, frame: Frame, writer: asyncio.StreamWriter) -> None:
        try:
            answer = await self._handlers[frame.kind](frame.payload)
        except Exception as error:
            # The caller learns of it by the connection's end, as it would of this process's end.
            _log.error("a call failed", exc_info=error, extra={"action": "stream_call_failed"})
            writer.close()
            return
        if not writer.is_closing():
            write_frame(writer, Frame(frame.call, frame.kind, answer))
