"""uvicorn's httptools protocol with what it lacks: caps on headers, deadlines, a bound on connections.

The cost of a request is constant: a few attributes are set. No timer is made for one; the server sweeps over the
open connections (`check_deadlines`) instead.

A connection waits for its first byte, reads headers, reads a body, handles, or is idle. What the client
is slow in has a deadline, and what the server is slow in has none here: the routes have theirs.
"""

import asyncio
import math
from asyncio import AbstractEventLoop, BaseTransport, Transport
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any, cast
from urllib.parse import unquote

import httptools
import uvicorn
from starlette.types import ASGIApp, Scope
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from config.settings import GatewaySettings
from gateway.answers import SEND_WHOLE, Header, new_request_id
from gateway.errors import ApiError

KEEP_ALIVE_S = 75.0
"""Longer than the 60 s of the usual load balancers, so that they, and not we, close an idle connection."""


Begin = Callable[[Scope, bytes, Callable[[ASGIApp], None]], bool]
"""Takes a complete request without an ASGI call, or tells that it has to be one: scope, body, and what runs an app for
the same request, if the answer has to be sent that way."""


class ConnectionConfig(uvicorn.Config):
    """uvicorn's configuration and our limits."""

    limits: GatewaySettings
    begin: "Begin | None" = None


class _Refused(Exception):
    """Raised inside a parser callback to stop the parser, which `_parse` answers."""


class Connection(HttpToolsProtocol):
    """One client connection."""

    def __init__(
        self,
        config: ConnectionConfig,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._limits = config.limits
        self._in_headers = False
        self._in_body = False
        self._deadline = math.inf
        self._stalled_until = math.inf
        self._header_bytes = 0
        """Bytes of the current headers in chunks after the one that they began in. Within a body: bytes of what is
        none of it (trailers, heads of its chunks), in chunks that had nothing of it."""
        self._chunk_bytes = 0
        self._first_chunk_bytes = 0
        """The chunk that the current headers began in; what came before them in it counts too."""
        self._refusal = "invalid_http"
        self._is_refused = False
        """Nothing more is read: the connection ends with an answer that is still owed."""
        self._begin = config.begin
        self._to_start: RequestResponseCycle | None = None
        """Of a request whose head has just been read; to be started."""
        self._cycle_before: RequestResponseCycle | None = None
        """Of a request that waits behind others: the one before it."""

    def connection_made(self, transport: BaseTransport) -> None:
        super().connection_made(cast(Transport, transport))
        self._deadline = self.loop.time() + self._limits.header_deadline_s
        if len(self.connections) > self._limits.max_connections:
            self._refuse("overloaded")

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self.cycle is not None:
            self.cycle.on_response = _nothing  # it refers to the connection, which refers to it

    def data_received(self, data: bytes) -> None:
        if self._is_refused:
            self.flow.pause_reading()  # the app resumes it when it reads the body of its request
            return
        self._chunk_bytes = len(data)
        self._header_bytes += len(data)
        self._parse(data)
        if self._to_start is not None:
            self._start(self._to_start)
        if self._in_headers:
            if self._header_bytes > self._limits.max_header_bytes:
                self._refuse("header_too_large")
            elif self._deadline == math.inf:
                self._deadline = self.loop.time() + self._limits.header_deadline_s
        elif self._in_body:
            if self._header_bytes > self._limits.max_header_bytes:
                self._refuse("header_too_large")
            elif self._deadline == math.inf:
                self._deadline = self.loop.time() + self._limits.body_deadline_s

    def _parse(self, data: bytes) -> None:
        """A wish for another protocol is passed over, as RFC 9110 lets a server do: some clients send it with every
        request over plain HTTP (Upgrade: h2c). uvicorn would take the request's body for that protocol's, and wait."""
        rest = memoryview(data)
        try:
            while True:
                try:
                    self.parser.feed_data(rest)
                    return
                except httptools.HttpParserUpgrade as upgrade:
                    rest = rest[upgrade.args[0] :]
                    self._decline_upgrade()
        except httptools.HttpParserError:
            self._refuse(self._refusal)

    def _decline_upgrade(self) -> None:
        """Read the head again without the wish; the body follows in the parser that has read it."""
        method, version = self.parser.get_method(), self.parser.get_http_version().encode()
        fields = [b"%b: %b\r\n" % field for field in self.headers if field[0] != b"upgrade"]
        head = b"%b %b HTTP/%b\r\n%b\r\n" % (method, self.url, version, b"".join(fields))
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self.parser.feed_data(head)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_headers = True
        self._header_bytes = 0
        self._first_chunk_bytes = self._chunk_bytes
        self._deadline = math.inf

    def on_header(self, name: bytes, value: bytes) -> None:
        """As uvicorn's, without the trailers of a chunked body, which the parser hands over too: they may not be
        taken for headers (RFC 9110, 6.5.1), and nobody here asks for them."""
        if not self._in_headers:
            return
        name = name.lower()
        if name == b"expect" and value.lower() == b"100-continue":
            self.expect_100_continue = True
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        self._in_headers = False
        if len(self.headers) > self._limits.max_headers or self._headers_too_large():
            self._refusal = "header_too_large"
            raise _Refused
        if self.parser.should_upgrade():
            if self.parser.get_method() == b"CONNECT":
                raise _Refused
            return
        self._begin_cycle()
        self._in_body = True
        self._header_bytes = 0
        self._deadline = math.inf

    def _begin_cycle(self) -> None:
        """uvicorn's `on_headers_complete` without what is never asked for here (a limit of requests, a root path,
        WebSockets), and with a URL that is split once for many requests: 4 µs less of 45."""
        parser, scope, before = self.parser, cast(dict[str, Any], self.scope), self.cycle
        scope["method"] = parser.get_method().decode("ascii")
        scope["http_version"] = version = parser.get_http_version()
        scope["path"], scope["raw_path"], scope["query_string"] = _split_url(self.url)
        scope[SEND_WHOLE] = self._send_whole
        self.cycle = RequestResponseCycle(
            scope=self.scope,
            transport=self.transport,
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=False,
            default_headers=self.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=self.expect_100_continue,
            keep_alive=version != "1.0" and parser.should_keep_alive(),
            on_response=self.on_response_complete,
        )
        if before is None or before.response_complete:
            self._to_start = self.cycle
        else:
            self.flow.pause_reading()
            self.pipeline.appendleft((self.cycle, self.app))
            self._cycle_before = before

    def _start(self, cycle: RequestResponseCycle) -> None:
        """When what has come of the request is parsed, so that it is known whether that was all."""
        self._to_start = None
        is_whole = not (cycle.more_body or cycle.disconnected or cycle.waiting_for_100_continue)
        scope, run = cast(Scope, cycle.scope), partial(self._start_asgi_task, cycle)
        if is_whole and self._begin is not None and self._begin(scope, bytes(cycle.body), run):
            cycle.body.clear()
        else:
            run(self.app)

    def on_body(self, body: bytes) -> None:
        self._header_bytes = 0
        super().on_body(body)

    def _headers_too_large(self) -> bool:
        limit = self._limits.max_header_bytes
        if self._first_chunk_bytes + self._header_bytes <= limit:
            return False
        return len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers) > limit

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade():
            return  # not the end of the request: `_decline_upgrade` follows
        self._in_body = False
        self._deadline = math.inf
        super().on_message_complete()

    def _send_whole(self, scope: Scope, status: int, headers: Sequence[Header], body: bytes) -> bool:
        """A complete answer in one write; False, and nothing done, when it has to go by way of ASGI's `send`.

        uvicorn's writes head and body one after the other, a system call each, and looks at every header by itself:
        31 µs of CPU a request in place of 25, with 64 busy connections, for the one, 2 or 3 more for the other.
        """
        cycle = self.cycle
        if cycle.scope is not scope or self.flow.write_paused or not body or scope["method"] == "HEAD":
            return False
        if cycle.disconnected:
            return True
        lines = [STATUS_LINE[status], *[b"%b: %b\r\n" % header for header in (*cycle.default_headers, *headers)]]
        if not cycle.keep_alive:
            lines.append(b"connection: close\r\n")
        head = b"".join(lines)
        if head.count(b"\r") != len(lines) or head.count(b"\n") != len(lines):
            return False  # a line break within a header, which uvicorn refuses
        cycle.response_started = cycle.response_complete = True
        cycle.waiting_for_100_continue = False
        self.transport.write(b"%b\r\n%b" % (head, body))
        cycle.message_event.set()
        if not cycle.keep_alive:
            self.transport.close()
        cycle.on_response()
        return True

    def on_response_complete(self) -> None:
        """As uvicorn's, but the idle time is a deadline for the sweep instead of a timer for each request."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            cycle, app = self.pipeline.pop()
            self._start_asgi_task(cycle, app)
        elif not (self._in_headers or self._in_body):
            self._deadline = self.loop.time() + KEEP_ALIVE_S

    def check_deadlines(self, now: float) -> None:
        """Called by the server's sweep: end the connection of a client that takes too long."""
        if self.flow.write_paused or self.transport.is_closing():
            self._check_stall(now)
        elif now >= self._deadline:
            if self.flow.read_paused:
                self._deadline = now + self._limits.body_deadline_s
            elif self._in_headers or self._in_body:
                self._refuse("timeout")
            else:
                self.transport.close()

    def _check_stall(self, now: float) -> None:
        """A client that does not read its answer would hold it in memory for ever."""
        if self._stalled_until == math.inf:
            self._stalled_until = now + self._limits.body_deadline_s
        elif now >= self._stalled_until:
            self.transport.abort()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stalled_until = math.inf

    def _refuse(self, code: str) -> None:
        """Answer for a request that the app does not answer, and close.

        An answer that is still owed to an earlier request of the connection goes first: the bad request then
        gets none, and the connection ends after the earlier one.
        """
        if self._in_body and self.pipeline:
            # The bad request is the last of those that wait, and was not begun.
            self.pipeline.popleft()
            assert self._cycle_before is not None
            self.cycle = self._cycle_before
            self._in_body = False
        cycle = self.cycle
        if self._in_body:
            if not cycle.response_started:
                self.transport.write(_refusal(code))
            cycle.disconnected = True
            cycle.message_event.set()
        elif cycle is not None and not cycle.response_complete:
            cycle.keep_alive = False
            self._is_refused = True
            self._deadline = math.inf
            self.flow.pause_reading()
            return
        else:
            self.transport.write(_refusal(code))
        self.transport.close()


@lru_cache(maxsize=64)
def _split_url(url: bytes) -> tuple[str, bytes, bytes]:
    """Path, path as sent, query. Raises `httptools.HttpParserInvalidURLError`."""
    parsed = httptools.parse_url(url)
    raw_path = parsed.path
    return unquote(raw_path.decode("ascii")), raw_path, parsed.query or b""


def _nothing() -> None:
    return None


def _refusal(code: str) -> bytes:
    """A whole answer of the error table."""
    error = ApiError(code)
    request_id = new_request_id()
    body = error.body(request_id.decode("ascii"))
    fields = {"content-type": "application/json", "content-length": str(len(body)), "connection": "close"}
    fields |= {"x-request-id": request_id.decode("ascii")} | error.headers()
    head = "".join(f"{name.lower()}: {value}\r\n" for name, value in fields.items())
    return STATUS_LINE[error.status] + head.encode("ascii") + b"\r\n" + body
