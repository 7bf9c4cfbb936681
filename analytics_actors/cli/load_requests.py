"""Requests that are made again when the gateway is overloaded or away, for as long as patience lasts."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping

import httpx

from analytics_actors.cli.failure import Failure

MAX_PAUSE_S = 30.0
_AGAIN = frozenset({429, 502, 503, 504})


class Requests:
    """Counts what it does. `pause` and `jitter` are given so that tests need not wait."""

    def __init__(
        self,
        client: httpx.AsyncClient,
        *,
        patience_s: float,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._client = client
        self._patience_s = patience_s
        self._pause = pause
        self._jitter = jitter
        self.made = 0
        self.repeated = 0

    async def post(
        self, path: str, body: bytes, headers: Mapping[str, str], *, parameters: Mapping[str, str] | None = None
    ) -> httpx.Response:
        """The first answer that does not ask to come again. Raises `Failure` when patience is at its end.

        A request whose outcome is unknown is made again: what it asks for must bear that.
        """
        waited_s = 0.0
        attempt = 0
        while True:
            self.made += 1
            asked_s = None
            try:
                response = await self._client.post(path, content=body, headers=dict(headers), params=parameters)
            except httpx.TransportError as error:
                trouble = str(error) or type(error).__name__
            else:
                if response.status_code not in _AGAIN:
                    return response
                trouble, asked_s = f"answers {response.status_code}", retry_after_s(response)
            pause_s = pause_before(attempt, asked_s, jitter=self._jitter())
            if waited_s + pause_s > self._patience_s:
                raise Failure(f"gave up after {waited_s:.0f} s: {self._client.base_url} {trouble}")
            await self._pause(pause_s)
            waited_s += pause_s
            attempt += 1
            self.repeated += 1


def retry_after_s(response: httpx.Response) -> float | None:
    """What the gateway asks for; it never names a date."""
    text = response.headers.get("Retry-After", "")
    return float(text) if text.replace(".", "", 1).isdigit() else None


def pause_before(attempt: int, asked_s: float | None, *, jitter: float) -> float:
    """Seconds: what was asked for and a little, or doubling from 0.1; `jitter` (0 to 1) spreads the crowd."""
    if asked_s is not None:
        return min(asked_s, MAX_PAUSE_S) * (1 + 0.25 * jitter)
    return float(min(0.1 * 2 ** min(attempt, 16), MAX_PAUSE_S) * (0.5 + 0.5 * jitter))
