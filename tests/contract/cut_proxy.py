"""A TCP proxy on loopback that loses, or holds back, the next request with a given word in it."""

import asyncio
from contextlib import suppress
from typing import Literal
from urllib.parse import urlsplit

CutMode = Literal["request", "reply", "hold"]


class CutProxy:
    """In front of the server at `url`; clients connect to `.url`."""

    def __init__(self, url: str) -> None:
        self._upstream = urlsplit(url)
        self._mode: CutMode | None = None
        self._word = b""
        self._held: list[tuple[bytes, asyncio.StreamReader, asyncio.StreamWriter]] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self.url = ""

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        credentials, at, _ = self._upstream.netloc.rpartition("@")
        self.url = self._upstream._replace(netloc=f"{credentials}{at}127.0.0.1:{port}").geturl()

    async def stop(self) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for _, _, upstream in self._held:
            upstream.close()

    def cut_next(self, mode: CutMode, word: bytes) -> None:
        """request: it never arrives. reply: it takes effect and nobody hears of it. hold: it waits for `release`."""
        self._mode, self._word = mode, word

    async def release(self) -> None:
        """Let the held requests reach the server, although their client is gone, and wait for the answers."""
        while self._held:
            request, answers, upstream = self._held.pop()
            upstream.write(request)
            await answers.read(1)
            upstream.close()

    async def _serve(self, requests: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        answers, upstream = await asyncio.open_connection(self._upstream.hostname, self._upstream.port)
        back = asyncio.create_task(_pump(answers, client))
        held = False
        with suppress(ConnectionError, asyncio.CancelledError):
            held = await self._relay(requests, answers, upstream, back)
        back.cancel()
        client.close()
        if not held:
            upstream.close()
        self._tasks.discard(task)

    async def _relay(
        self,
        requests: asyncio.StreamReader,
        answers: asyncio.StreamReader,
        upstream: asyncio.StreamWriter,
        back: "asyncio.Task[None]",
    ) -> bool:
        """Forward until the client or a cut ends it. Whether the last request is held."""
        while request := await requests.read(1 << 16):
            mode = self._mode if self._word in request else None
            if mode is None:
                upstream.write(request)
                continue
            self._mode = None
            back.cancel()
            with suppress(asyncio.CancelledError):
                await back
            if mode == "hold":
                self._held.append((request, answers, upstream))
                await requests.read()  # until the client gives up
                return True
            if mode == "reply":
                upstream.write(request)
                await answers.read(1)
            return False
        return False


async def _pump(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        while data := await source.read(1 << 16):
            target.write(data)
        # The server has hung up: the client that waits for that is told.
        target.close()
