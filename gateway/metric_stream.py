"""Live points as server-sent events (`text/event-stream`).

Everybody who watches the same thing shares one `Feed`, which looks once a second and remembers the last message about
each window. A client is sent what is newer than what it has: who reads slowly gets fewer messages, never a queue.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Hashable, Mapping

from starlette.types import Receive, Scope, Send

from gateway.answers import ANSWER_HEADERS, STATUS, Answer, Header
from gateway.errors import ApiError
from storage.errors import StorageError

POLL_S = 1.0
"""A client gets at most so many messages about a window: one a second."""

HEARTBEAT_S = 15.0
"""A comment after so long a silence: proxies close what is silent for 30 to 60 s, and a key that was revoked meanwhile
is noticed."""

MAX_STREAMS = 200
"""Open streams of a worker. Each may be a feed of its own: three round trips to Redis a second."""

RETRY_MS = 2000
"""After a stream's end a browser opens it again so much later."""

CONTENT_TYPE = "text/event-stream"

_HEADERS: tuple[Header, ...] = (
    (b"content-type", CONTENT_TYPE.encode()),
    (b"cache-control", b"no-store"),
    # nginx would keep messages back until its buffer is full.
    (b"x-accel-buffering", b"no"),
)

Messages = Mapping[Hashable, bytes]
"""By window: the whole message about it, as it goes out."""
Poll = Callable[[], Awaitable[Messages]]
Check = Callable[[], Awaitable[None]]

_log = logging.getLogger(__name__)


def message(event: str, data: bytes) -> bytes:
    """One server-sent event. `data` is JSON, so it has no line breaks."""
    return b"event: %b\ndata: %b\n\n" % (event.encode(), data)


class Feed:
    """The last message of each window of one subscription; runs while somebody watches."""

    def __init__(self, poll: Poll, *, poll_s: float) -> None:
        self._poll = poll
        self._poll_s = poll_s
        self._messages: dict[Hashable, tuple[int, bytes]] = {}
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.version = 0
        self.watchers = 0
        self.ended = False

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        try:
            while True:
                with contextlib.suppress(StorageError, ApiError, TimeoutError):
                    self._take(await self._poll())
                await asyncio.sleep(self._poll_s)
        except Exception:
            _log.exception("a feed of metrics has failed", extra={"action": "feed_failed"})
        finally:
            self.end()

    def _take(self, messages: Messages) -> None:
        news = {window for window, text in messages.items() if self._messages.get(window, (0, b""))[1] != text}
        kept = {window: self._messages[window] for window in messages if window not in news}
        if news:
            self.version += 1
            kept |= {window: (self.version, messages[window]) for window in messages if window in news}
        self._messages = kept
        if news:
            self._wake()

    def since(self, version: int) -> bytes:
        return b"".join(text for at, text in self._messages.values() if at > version)

    @property
    def changed(self) -> asyncio.Event:
        """Set with the next change, or the end."""
        return self._changed

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def end(self) -> None:
        """Everybody who watches is let go."""
        self.ended = True
        if self._task is not None:
            self._task.cancel()
        self._wake()


class MetricStreams:
    """All streams of a worker. `close` ends them."""

    def __init__(
        self, *, max_streams: int = MAX_STREAMS, poll_s: float = POLL_S, heartbeat_s: float = HEARTBEAT_S
    ) -> None:
        self._max_streams = max_streams
        self._poll_s = poll_s
        self._heartbeat_s = heartbeat_s
        self._feeds: dict[Hashable, Feed] = {}
        self._closed = False
        self.open = 0

    def stream(self, subscription: Hashable, poll: Poll, check: Check) -> "Stream":
        """An answer that goes on until client, server or `check` (asked at each heartbeat; it raises) ends it.
        Raises `ApiError` overloaded at the bound."""
        if self._closed or self.open >= self._max_streams:
            raise ApiError("overloaded", f"This worker has {self.open} streams open, as many as it may.")
        return Stream(self, subscription, poll, check, heartbeat_s=self._heartbeat_s)

    def join(self, subscription: Hashable, poll: Poll) -> Feed:
        feed = self._feeds.get(subscription)
        if feed is None or feed.ended:
            feed = self._feeds[subscription] = Feed(poll, poll_s=self._poll_s)
            feed.start()
        feed.watchers += 1
        self.open += 1
        return feed

    def leave(self, subscription: Hashable, feed: Feed) -> None:
        feed.watchers -= 1
        self.open -= 1
        if feed.watchers == 0:
            feed.end()
            if self._feeds.get(subscription) is feed:
                del self._feeds[subscription]

    def close(self) -> None:
        """Called when the worker is to stop: its streams would keep it from ending."""
        self._closed = True
        for feed in self._feeds.values():
            feed.end()


class Stream(Answer):
    """One client's stream, as an ASGI callable."""

    __slots__ = ("_check", "_heartbeat_s", "_poll", "_streams", "_subscription")

    def __init__(
        self, streams: MetricStreams, subscription: Hashable, poll: Poll, check: Check, *, heartbeat_s: float
    ) -> None:
        super().__init__(200, b"")
        self._streams = streams
        self._subscription = subscription
        self._poll = poll
        self._check = check
        self._heartbeat_s = heartbeat_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope[STATUS] = self.status
        headers = [*_HEADERS, *scope[ANSWER_HEADERS]]
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        if scope["method"] != "HEAD":
            await self._send_all(receive, send)
        await send({"type": "http.response.body", "body": b""})

    async def _send_all(self, receive: Receive, send: Send) -> None:
        feed = self._streams.join(self._subscription, self._poll)
        gone = asyncio.ensure_future(_disconnected(receive))
        try:
            version, text = 0, b"retry: %d\n\n" % RETRY_MS
            loop = asyncio.get_running_loop()
            checked_at = loop.time()
            while not (feed.ended or gone.done()):
                if loop.time() - checked_at >= self._heartbeat_s:
                    checked_at = loop.time()
                    await self._check()
                changed = asyncio.ensure_future(feed.changed.wait())
                version, text = feed.version, text + feed.since(version)
                await send({"type": "http.response.body", "body": text or b": nothing new\n\n", "more_body": True})
                text = b""
                await asyncio.wait((changed, gone), timeout=self._heartbeat_s, return_when=asyncio.FIRST_COMPLETED)
                changed.cancel()
        except ApiError:
            # The key is not valid any more: the client learns it when it comes back.
            pass
        finally:
            gone.cancel()
            self._streams.leave(self._subscription, feed)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
