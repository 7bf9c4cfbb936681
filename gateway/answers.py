"""Answers as ASGI callables, and the only place that turns an exception into one.

Beside ASGI's own keys a scope has ours, set by the edge unless it says otherwise:

- `HEADERS`: the request's headers as a dict, the last of a name winning;
- `REQUEST_ID`: the client's when it is sane, else one of ours;
- `ANSWER_HEADERS`: what every answer carries: the request id, and CORS when a web page asks;
- `KEY`: the `KeyInfo` of the caller, set by the route, for the log;
- `STATUS`: the answer's status, set by the answer, for the metrics and the log;
- `SEND_WHOLE`: a quicker way for complete answers (`SendWhole`), set by our protocol. Who takes it takes it out: it
  refers to the connection, which refers to the scope.
"""

import asyncio
import itertools
import secrets
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import msgspec
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from gateway.errors import ApiError
from gateway.rows import Overloaded, Receipt
from storage.errors import Conflict, NotFound, SpoolFull, Unavailable

HEADERS = "analytics.headers"
REQUEST_ID = "analytics.request_id"
ANSWER_HEADERS = "analytics.answer_headers"
KEY = "analytics.key"
STATUS = "analytics.status"
SEND_WHOLE = "analytics.send_whole"

Header = tuple[bytes, bytes]
SendWhole = Callable[[Scope, int, Sequence[Header], bytes], bool]
"""Sends status, headers and body, or tells that they must go by way of ASGI's `send`."""

JSON = b"application/json"
_JSON_HEADER: Header = (b"content-type", JSON)

_encode = msgspec.json.Encoder().encode
_process_prefix = secrets.token_hex(6).encode()
_request_numbers = itertools.count(1)


class Answer:
    """A complete answer: status, body, content type and further headers."""

    __slots__ = ("_body", "_headers", "status")

    def __init__(self, status: int, body: bytes, *, content_type: bytes = JSON, headers: Iterable[Header] = ()) -> None:
        self.status = status
        self._body = body
        self._headers = [_JSON_HEADER if content_type is JSON else (b"content-type", content_type), *headers]

    def send_at_once(self, scope: Scope) -> bool:
        """Whether that could be done; else it is to be sent by way of ASGI."""
        scope[STATUS] = self.status
        send_whole: SendWhole | None = scope.pop(SEND_WHOLE, None)
        return send_whole is not None and send_whole(scope, self.status, self._all_headers(scope), self._body)

    def _all_headers(self, scope: Scope) -> list[Header]:
        return [*self._headers, (b"content-length", b"%d" % len(self._body)), *scope[ANSWER_HEADERS]]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.send_at_once(scope):
            return
        await send({"type": "http.response.start", "status": self.status, "headers": self._all_headers(scope)})
        await send({"type": "http.response.body", "body": self._body})


class Begun(NamedTuple):
    """A request whose rows are on their way, and what is answered when they are safe."""

    receipt: "asyncio.Future[Receipt]"
    answer: Callable[[Receipt], Answer]


def json_answer(value: object, *, status: int = 200) -> Answer:
    return Answer(status, _encode(value))


def error_answer(error: ApiError, request_id: str, *, headers: Iterable[Header] = ()) -> Answer:
    """The answer of the error table. 401 says which scheme is expected, as RFC 9110 asks."""
    own = [(name.lower().encode(), value.encode()) for name, value in error.headers().items()]
    if error.status == 401:
        own.append((b"www-authenticate", b"Bearer"))
    return Answer(error.status, error.body(request_id), headers=[*own, *headers])


def as_api_error(error: Exception) -> ApiError:
    """The row of the error table for whatever a route has raised."""
    match error:
        case ApiError():
            return error
        case Overloaded():
            return ApiError("overloaded", f"{error.reason}.", retry_after_s=error.retry_after_s)
        case HTTPException(status_code=404):
            return ApiError("not_found", "There is no such route.", hint="GET /openapi.json lists the routes.")
        case HTTPException(status_code=405):
            return ApiError("method_not_allowed")
        case Unavailable() | TimeoutError():
            return ApiError("unavailable")
        case SpoolFull():
            return ApiError("spool_full")
        case Conflict():
            return ApiError("conflict", str(error) or None)
        case NotFound():
            return ApiError("not_found", str(error) or None)
    return ApiError("internal_error")


def new_request_id() -> bytes:
    """Unique, cheap, and tells which process made it."""
    return b"%b-%x" % (_process_prefix, next(_request_numbers))
