"""The outermost ASGI callable: request id, CORS, dispatch, failures to the error table, metrics, log.

The write routes are found in a dict before Starlette's router sees the request: a route of the router
costs 16 µs, which is more than everything else that we do for a single event. And an ordinary single event, as
most requests are, is taken without an ASGI call (`Edge.begin`): its task and a dozen coroutines were a fifth of
what the gateway does for it.
"""

import asyncio
import logging
import re
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from starlette.exceptions import HTTPException
from starlette.routing import BaseRoute, Router, compile_path
from starlette.types import ASGIApp, Receive, Scope, Send

from config.logs import LogRate
from gateway.answers import (
    ANSWER_HEADERS,
    HEADERS,
    KEY,
    REQUEST_ID,
    STATUS,
    Answer,
    Begun,
    Header,
    as_api_error,
    error_answer,
    new_request_id,
)
from gateway.body import ClientGone
from gateway.endpoint import Operation
from gateway.errors import ApiError
from gateway.metrics import Metrics
from gateway.rows import Receipt

log = logging.getLogger(__name__)

CLIENT_GONE = 499
"""The status under which a request is counted whose client did not wait for its end."""
MAX_LINES_PER_SECOND = 5
"""Log lines of one code; enough to see what goes on, too few to fill a disk."""

Begin = Callable[[Scope, bytes], Begun | None]

_SANE_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:/+=@-]{1,128}")
_EXPOSED: Header = (
    b"access-control-expose-headers",
    b"Retry-After, X-Request-Id, X-Query-Truncated, X-Query-Missing, X-Query-Cold-Files",
)
_ANY_ORIGIN: list[Header] = [(b"access-control-allow-origin", b"*"), _EXPOSED]


class Edge:
    """`write_routes` by path, without trailing slash; everything else goes to the router. `begin_routes` are those of
    them that can begin without an ASGI call."""

    def __init__(
        self,
        write_routes: Mapping[str, ASGIApp],
        begin_routes: Mapping[str, Begin],
        router: Router,
        operations: Sequence[Operation],
        metrics: Metrics,
        *,
        query_origins: Sequence[str],
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._write_routes = {path + end: (app, path) for path, app in write_routes.items() for end in ("", "/")}
        self._begin_routes = {path + end: (begin, path) for path, begin in begin_routes.items() for end in ("", "/")}
        self._router = router
        self._methods = [(compile_path(operation.path)[0], operation.method) for operation in operations]
        self._metrics = metrics
        self._query_origins = frozenset(origin.encode() for origin in query_origins)
        self._clock = clock
        self._log_rate = LogRate(MAX_LINES_PER_SECOND)

    @property
    def routes(self) -> Sequence[BaseRoute]:
        """The router's routes."""
        return self._router.routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._router(scope, receive, send)
            return
        started = self._clock()
        write_route = self._write_routes.get(scope["path"])
        self._prepare(scope, is_write=write_route is not None)
        route = "none"
        try:
            if write_route is not None and scope["method"] == "POST":
                app, route = write_route
                await app(scope, receive, send)
            else:
                route = await self._dispatch(scope, receive, send)
        except ClientGone:
            scope[STATUS] = CLIENT_GONE
        except Exception as error:
            await self._fail(error, scope, receive, send)
        self._metrics.request(route, scope[STATUS], self._clock() - started)

    def begin(self, scope: Scope, body: bytes, run: Callable[[ASGIApp], None]) -> bool:
        """Take a complete request without an ASGI call; False, and nothing done, when it has to be one.

        The answer comes later. `run` is called with it when it cannot be sent at once.
        """
        begin_route = self._begin_routes.get(scope["path"])
        if begin_route is None or scope["method"] != "POST":
            return False
        started = self._clock()
        self._prepare(scope, is_write=True)
        begin, route = begin_route
        try:
            begun = begin(scope, body)
        except Exception:
            return False  # the call will come to the same, and says it
        if begun is None:
            return False
        begun.receipt.add_done_callback(partial(self._end, scope, run, route, started, begun.answer))
        return True

    def _end(
        self,
        scope: Scope,
        run: Callable[[ASGIApp], None],
        route: str,
        started: float,
        answer_to: Callable[[Receipt], Answer],
        receipt: "asyncio.Future[Receipt]",
    ) -> None:
        try:
            answer = answer_to(receipt.result())
        except Exception as error:
            answer = self._failure(error, scope)
        if not answer.send_at_once(scope):
            run(answer)
        self._metrics.request(route, answer.status, self._clock() - started)

    def _prepare(self, scope: Scope, *, is_write: bool) -> None:
        headers = scope[HEADERS] = dict(scope["headers"])
        request_id = headers.get(b"x-request-id")
        if request_id is None or not _SANE_REQUEST_ID.fullmatch(request_id):
            request_id = new_request_id()
        scope[REQUEST_ID] = request_id
        answer_headers = scope[ANSWER_HEADERS] = [(b"x-request-id", request_id)]
        if b"origin" in headers:
            answer_headers += self._cors(scope, headers, is_write=is_write)

    async def _dispatch(self, scope: Scope, receive: Receive, send: Send) -> str:
        """The pattern of the route that answered."""
        if scope["method"] == "OPTIONS" and b"access-control-request-method" in scope[HEADERS]:
            await Answer(204, b"", headers=_preflight(scope[HEADERS]))(scope, receive, send)
            return "preflight"
        # With an app in the scope Starlette raises for an unknown route instead of answering itself.
        scope["app"] = self
        # As it was sent: an encoded slash belongs to a name, and is no end or border of one.
        scope["path"] = scope["raw_path"].decode("ascii").rstrip("/") or "/"
        await self._router(scope, receive, send)
        return str(scope["route"].path)

    def _cors(self, scope: Scope, headers: Mapping[bytes, bytes], *, is_write: bool) -> list[Header]:
        method = scope["method"]
        if method == "OPTIONS":
            method = headers.get(b"access-control-request-method", b"").decode("latin-1")
        if is_write and method == "POST":
            return _ANY_ORIGIN
        origin = headers[b"origin"]
        vary: Header = (b"vary", b"Origin")
        if origin not in self._query_origins:
            return [vary]
        return [(b"access-control-allow-origin", origin), _EXPOSED, vary]

    async def _fail(self, error: Exception, scope: Scope, receive: Receive, send: Send) -> None:
        answer = self._failure(error, scope)
        if STATUS in scope:
            # The answer had begun, so the client has half of it: the server closes the connection.
            raise error
        await answer(scope, receive, send)

    def _failure(self, error: Exception, scope: Scope) -> Answer:
        """What is answered to an error, which is logged."""
        failure = as_api_error(error)
        self._log_failure(failure, error, scope)
        headers: list[Header] = []
        if failure.code == "method_not_allowed":
            headers.append((b"allow", self._allowed(scope["path"])))
        return error_answer(failure, scope[REQUEST_ID].decode("ascii"), headers=headers)

    def _allowed(self, path: str) -> bytes:
        methods = {method for pattern, method in self._methods if pattern.match(path)}
        if "GET" in methods:
            methods.add("HEAD")
        return ", ".join(sorted(methods)).encode()

    def _log_failure(self, failure: ApiError, error: Exception, scope: Scope) -> None:
        suppressed = self._log_rate.admit(failure.code)
        if suppressed is None:
            return
        key = scope.get(KEY)
        fields = {
            "action": "request_failed",
            "code": failure.code,
            "status": failure.status,
            "method": scope["method"],
            "path": scope["path"],
            "request_id": scope[REQUEST_ID].decode("ascii"),
            "project_id": key and key.project_id,
            "key_id": key and key.key_id,
            "suppressed": suppressed,
            "reason": None if isinstance(error, ApiError | HTTPException) else str(error),
        }
        unexpected = failure.code == "internal_error"
        log.log(failure.log_level, failure.message, extra=fields, exc_info=error if unexpected else None)


def _preflight(headers: Mapping[bytes, bytes]) -> list[Header]:
    """What a browser asks before a request that is not simple. Whether it may go on, the origin's header says."""
    answer = [
        (b"access-control-allow-methods", b"GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"),
        (b"access-control-max-age", b"86400"),
    ]
    wanted = headers.get(b"access-control-request-headers")
    if wanted:
        answer.append((b"access-control-allow-headers", wanted))
    return answer
