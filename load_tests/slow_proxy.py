"""What makes a server slow: a TCP proxy that is as far away as a bucket in another data centre, or N times further.

`python -m load_tests.slow_proxy HOST:PORT --fd N`; each line of its standard input is a new N, and standard input's end
ends it. It knows nothing of HTTP. An answer is what the server says after the client has spoken: it is held back for
N · `LATENCY_S` (`100 Continue` too), and every byte of either side takes N / `BYTES_PER_S`. Connections do not share.
"""

import argparse
import asyncio
import socket
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress

LATENCY_S = 0.05
BYTES_PER_S = 50e6
"""About what one connection to Amazon's S3 does, and how long it thinks about a small object."""
PIECE_BYTES = 1 << 18

Sleep = Callable[[float], Awaitable[None]]


class Slowness:
    """`factor` of all connections."""

    def __init__(self) -> None:
        self.factor = 1.0


class Pace:
    """Of one connection: each call returns when what was said has arrived."""

    def __init__(self, slowness: Slowness, *, sleep: Sleep = asyncio.sleep) -> None:
        self._slowness = slowness
        self._sleep = sleep
        self._is_asked = False

    async def asked(self, size: int) -> None:
        """The client has said so many bytes."""
        self._is_asked = True
        await self._sleep(self._slowness.factor * size / BYTES_PER_S)

    async def answered(self, size: int) -> None:
        """The server has."""
        latency_s = LATENCY_S if self._is_asked else 0.0
        self._is_asked = False
        await self._sleep(self._slowness.factor * (latency_s + size / BYTES_PER_S))


async def relay(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str, port: int, slowness: Slowness
) -> None:
    """One connection, until either side ends it."""
    try:
        server_reader, server_writer = await asyncio.open_connection(host, port)
    except OSError:
        writer.close()
        return
    pace = Pace(slowness)

    async def forward() -> None:
        while piece := await reader.read(PIECE_BYTES):
            await pace.asked(len(piece))
            server_writer.write(piece)
            await server_writer.drain()

    async def back() -> None:
        while piece := await server_reader.read(PIECE_BYTES):
            await pace.answered(len(piece))
            writer.write(piece)
            await writer.drain()

    tasks = [asyncio.create_task(forward()), asyncio.create_task(back())]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        server_writer.close()
        writer.close()


async def serve(host: str, port: int, listener: socket.socket) -> None:
    slowness = Slowness()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # Cancelled at the end of the process: asyncio's streams would print that.
        with suppress(ConnectionError, asyncio.CancelledError):
            await relay(reader, writer, host, port, slowness)

    server = await asyncio.start_server(connected, sock=listener)
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    while line := await lines.readline():
        slowness.factor = float(line)
    server.close()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m load_tests.slow_proxy", description=__doc__)
    parser.add_argument("server", metavar="HOST:PORT")
    parser.add_argument("--fd", type=int, required=True, help="the listening socket")
    arguments = parser.parse_args()
    host, _, port = arguments.server.rpartition(":")
    asyncio.run(serve(host, int(port), socket.socket(fileno=arguments.fd)))


if __name__ == "__main__":
    main()
