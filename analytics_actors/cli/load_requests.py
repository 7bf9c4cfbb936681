"""Requests that are made again when the gateway is overloaded or away, for as long as patience lasts.

By aiohttp: a load with thousands of projects makes tens of thousands of requests, and each costs the loader
0.3 ms of CPU with it (measured; httpx: 2 ms). It comes with Ray.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import NamedTuple, Protocol

import aiohttp

from analytics_actors.cli.failure import Failure

REQUEST_DEADLINE_S = 60.0
MAX_PAUSE_S = 30.0
_AGAIN = frozenset({429, 502, 503, 504})


class Reply(NamedTuple):
    """An answer, whatever its status."""

    status: int
    retry_after: str
    content: bytes


class Unreachable(Exception):
    """No answer; whether the request was carried out is unknown."""


class Post(Protocol):
    """One POST to the gateway. Raises `Unreachable`."""

    async def __call__(
        self, path: str, body: bytes, headers: Mapping[str, str], parameters: Mapping[str, str]
    ) -> Reply: ...


@asynccontextmanager
async def posting(url: str, *, connections: int) -> AsyncIterator[Post]:
    """POSTs to that gateway, over connections that are kept open."""
    base = url.rstrip("/")
    timeout = aiohttp.ClientTimeout(total=REQUEST_DEADLINE_S)
    connector = aiohttp.TCPConnector(limit=connections)
    async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:

        async def post(path: str, body: bytes, headers: Mapping[str, str], parameters: Mapping[str, str]) -> Reply:
            try:
                async with session.post(base + path, data=body, headers=headers, params=parameters) as response:
                    content = await response.read()
                    return Reply(response.status, response.headers.get("Retry-After", ""), content)
            except (aiohttp.ClientError, TimeoutError) as error:
                raise Unreachable(str(error) or type(error).__name__) from error

        yield post


class Requests:
    """Counts what it does. `pause` and `jitter` are given so that tests need not wait."""

    def __init__(
        self,
        post: Post,
        *,
        patience_s: float,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._post = post
        self._patience_s = patience_s
        self._pause = pause
        self._jitter = jitter
        self.made = 0
        self.repeated = 0

    async def post(self, path: str, body: bytes, headers: Mapping[str, str], parameters: Mapping[str, str]) -> Reply:
        """The first answer that does not ask to come again. Raises `Failure` when patience is at its end.

        A request whose outcome is unknown is made again: what it asks for must bear that.
        """
        waited_s = 0.0
        attempt = 0
        while True:
            self.made += 1
            asked_s = None
            try:
                reply = await self._post(path, body, headers, parameters)
            except Unreachable as error:
                trouble = str(error)
            else:
                if reply.status not in _AGAIN:
                    return reply
                trouble, asked_s = f"it answers {reply.status}", seconds(reply.retry_after)
            pause_s = pause_before(attempt, asked_s, jitter=self._jitter())
            if waited_s + pause_s > self._patience_s:
                raise Failure(f"gave up on the gateway after {waited_s:.0f} s: {trouble}")
            await self._pause(pause_s)
            waited_s += pause_s
            attempt += 1
            self.repeated += 1


def seconds(retry_after: str) -> float | None:
    """What the gateway asks for; it never names a date."""
    return float(retry_after) if retry_after.replace(".", "", 1).isdigit() else None


def pause_before(attempt: int, asked_s: float | None, *, jitter: float) -> float:
    """Seconds: what was asked for and a little, or doubling from 0.1; `jitter` (0 to 1) spreads the crowd."""
    if asked_s is not None:
        return min(asked_s, MAX_PAUSE_S) * (1 + 0.25 * jitter)
    return float(min(0.1 * 2 ** min(attempt, 16), MAX_PAUSE_S) * (0.5 + 0.5 * jitter))
