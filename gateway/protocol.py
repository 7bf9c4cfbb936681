"""uvicorn's httptools protocol with what it lacks: caps on headers, deadlines, a bound on connections.

The cost of a request is constant: a few attributes are set. No timer is made for one; the server sweeps over the
open connections (`check_deadlines`) instead.

A connection waits for its first byte, reads headers, reads a body, handles, or is idle. What the client
is slow in has a deadline, and what the server is slow in has none here: the routes have theirs.
"""

import math
from asyncio import AbstractEventLoop, BaseTransport, Transport
from typing import Any, cast

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from config.settings import GatewaySettings
from gateway.errors import raw_refusal

KEEP_ALIVE_S = 75.0
"""Longer than the 60 s of the usual load balancers, so that they, and not we, close an idle connection."""


class ConnectionConfig(uvicorn.Config):
    """uvicorn's configuration and our limits."""

    limits: GatewaySettings


class _Refused(Exception):
    """Raised inside a parser callback to stop the parser; `data_received` of uvicorn turns it into
    a call of `send_400_response`."""


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
        """Bytes of the current headers in chunks after the one that they began in."""
        self._chunk_bytes = 0
        self._refusal = "invalid_http"

    def connection_made(self, transport: BaseTransport) -> None:
        super().connection_made(cast(Transport, transport))
        self._deadline = self.loop.time() + self._limits.header_deadline_s
        if len(self.connections) > self._limits.max_connections:
            self._refuse("too_many_connections")

    def data_received(self, data: bytes) -> None:
        self._chunk_bytes = len(data)
        self._header_bytes += len(data)
        super().data_received(data)
        if self._in_headers:
            if self._header_bytes > self._limits.max_header_bytes:
                self._refuse("header_too_large")
            elif self._deadline == math.inf:
                self._deadline = self.loop.time() + self._limits.header_deadline_s
        elif self._in_body and self._deadline == math.inf:
            self._deadline = self.loop.time() + self._limits.body_deadline_s

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_headers = True
        self._header_bytes = 0
        self._deadline = math.inf

    def on_headers_complete(self) -> None:
        self._in_headers = False
        if len(self.headers) > self._limits.max_headers or self._headers_too_large():
            self._refusal = "header_too_large"
            raise _Refused
        self._in_body = True
        self._deadline = math.inf
        super().on_headers_complete()

    def _headers_too_large(self) -> bool:
        limit = self._limits.max_header_bytes
        if self._header_bytes + self._chunk_bytes <= limit:
            return False
        return len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers) > limit

    def on_message_complete(self) -> None:
        self._in_body = False
        self._deadline = math.inf
        super().on_message_complete()

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
                self._refuse("request_timeout")
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

    def send_400_response(self, msg: str) -> None:
        self._refuse(self._refusal)

    def _refuse(self, code: str) -> None:
        """Answer for a request that never reaches the app, and close."""
        cycle = self.cycle
        earlier_unanswered = cycle is not None and not cycle.response_complete and not self._in_body
        if earlier_unanswered:
            cycle.keep_alive = False
            self.flow.pause_reading()
            return
        if cycle is None or cycle.response_complete or not (cycle.response_started or self.pipeline):
            if not (self._in_body and cycle.response_complete):
                self.transport.write(raw_refusal(code))
        if self._in_body:
            cycle.disconnected = True
            cycle.message_event.set()
        self.transport.close()
