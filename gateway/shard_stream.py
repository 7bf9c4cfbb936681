"""The gateway's end of `analytics_actors.append_stream`: one connection to the batcher of one shard."""

import asyncio
from collections.abc import Awaitable, Callable

from analytics_actors.append_stream import (
    READ_BUFFER_BYTES,
    BrokenStream,
    Endpoint,
    Frame,
    read_frame,
    write_frame,
)


class LinkError(Exception):
    """The actor could not be reached, did not answer in time or failed: the call's outcome is unknown."""


class Connection:
    """An open connection and the calls that wait for their answers."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._answers: dict[int, asyncio.Future[bytes]] = {}
        self._calls = 0
        self._reading = asyncio.ensure_future(self._read())

    @classmethod
    async def open(cls, endpoint: Endpoint) -> "Connection":
        reader, writer = await asyncio.open_connection(endpoint.host, endpoint.port, limit=READ_BUFFER_BYTES)
        writer.write(endpoint.secret)
        return cls(reader, writer)

    @property
    def is_open(self) -> bool:
        return not (self._reading.done() or self._writer.is_closing())

    def send(self, kind: int, payload: bytes) -> "asyncio.Future[bytes]":
        """The answer to come; `LinkError` when the connection ends before, or has ended."""
        if not self.is_open:
            # uvloop would raise its RuntimeError, before the reading task has heard of the end.
            raise LinkError("the connection was closed")
        self._calls = (self._calls + 1) & 0xFFFFFFFF
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._answers[self._calls] = answer
        write_frame(self._writer, Frame(self._calls, kind, payload))
        return answer

    async def _read(self) -> None:
        reason = "the connection was closed"
        try:
            while True:
                frame = await read_frame(self._reader)
                answer = self._answers.pop(frame.call, None)
                if answer is not None and not answer.done():
                    answer.set_result(frame.payload)
        except (asyncio.IncompleteReadError, OSError, BrokenStream) as error:
            reason = f"{type(error).__name__}: {error}"
        finally:
            self._writer.close()
            for answer in self._answers.values():
                if not answer.done():
                    answer.set_exception(LinkError(reason))
            self._answers.clear()

    def close(self) -> None:
        self._reading.cancel()


class ShardStream:
    """Calls to one shard's batcher, wherever it is at the moment. `locate` asks for its endpoint."""

    def __init__(self, locate: Callable[[], Awaitable[Endpoint]]) -> None:
        self._locate = locate
        self._connection: Connection | None = None
        self._connecting = asyncio.Lock()

    async def call(self, kind: int, payload: bytes, *, deadline_s: float) -> bytes:
        """The answer. Raises `LinkError`; after a missed deadline the batcher is looked for anew."""
        connection = self._connection
        try:
            async with asyncio.timeout(deadline_s):
                if connection is None or not connection.is_open:
                    connection = await self._connect()
                return await connection.send(kind, payload)
        except TimeoutError as error:
            # Not one that another call has opened since.
            if connection is self._connection:
                self.close()
            raise LinkError(f"no answer within {deadline_s} s") from error

    async def _connect(self) -> Connection:
        async with self._connecting:
            if self._connection is None or not self._connection.is_open:
                endpoint = await self._locate()
                try:
                    self._connection = await Connection.open(endpoint)
                except OSError as error:
                    raise LinkError(f"{endpoint.host}:{endpoint.port}: {error}") from error
            return self._connection

    def close(self) -> None:
        """Give the connection up; the calls that wait on it end with `LinkError`."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
