"""Reading a request's body: capped while it streams, and within a budget for all requests of the worker.

What a body inflates to is of the same budget: a kilobyte may become two hundred.
"""

from starlette.types import Receive

from gateway.errors import ApiError


class ClientGone(Exception):
    """The client closed the connection before its request was complete: there is nobody to answer."""


class BodyBudget:
    """Bytes of request bodies, as sent and inflated, that a worker holds at once (BP-1): what does not fit is shed,
    not queued.

    Of bodies as sent a project may hold half: its write key is public, and what does not end is held until its
    deadline, while inflating is soon over. A request that is the only one may always hold its body, so that a budget
    below the body limit still lets requests pass.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._max_sent_bytes = max_bytes // 2
        self._sent_bytes: dict[str | None, int] = {}
        self.held_bytes = 0

    def take(self, count: int, *, own: int) -> None:
        """`own` is what the same request holds already. Raises `ApiError` overloaded when there is no room."""
        if self.held_bytes > own and self.held_bytes + count > self._max_bytes:
            raise ApiError("overloaded", "This worker holds as many bytes of requests as it may.")
        self.held_bytes += count

    def take_sent(self, count: int, project_id: str | None, *, own: int) -> None:
        """As `take`, for a part of a body as sent; `own` is what of it is held already."""
        sent = self._sent_bytes.get(project_id, 0)
        if sent > own and sent + count > self._max_sent_bytes:
            raise ApiError("overloaded", "This worker holds as many bytes of the project's requests as it may.")
        self.take(count, own=own)
        self._sent_bytes[project_id] = sent + count

    def give_back(self, count: int, *, sent: int, project_id: str | None) -> None:
        """`sent` of the bytes were of a body as sent."""
        self.held_bytes -= count
        left = self._sent_bytes.pop(project_id, 0) - sent
        if left:
            self._sent_bytes[project_id] = left


class BodyReader:
    """Reads one body; what it took of the budget is given back by `release`."""

    __slots__ = ("_budget", "_held", "_max_bytes", "_project_id", "_sent")

    def __init__(self, budget: BodyBudget, *, max_bytes: int) -> None:
        self._budget = budget
        self._max_bytes = max_bytes
        self._held = 0
        self._sent = 0
        self._project_id: str | None = None

    def check_announced(self, content_length: bytes | None) -> None:
        """Raises `ApiError` body_too_large. An announcement takes nothing of the budget: it is free for the client."""
        if content_length is not None and int(content_length) > self._max_bytes:
            raise self._too_large()

    async def read(self, receive: Receive, project_id: str | None) -> bytes:
        """The whole body, held for the project (None: the system's admin key).
        Raises `ApiError`: body_too_large, overloaded; or `ClientGone`."""
        self._project_id = project_id
        body, more = await self._next(receive)
        if not more:
            return body
        chunks = [body]
        while more:
            chunk, more = await self._next(receive)
            chunks.append(chunk)
        return b"".join(chunks)

    async def _next(self, receive: Receive) -> tuple[bytes, bool]:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        chunk: bytes = message.get("body", b"")
        if self._sent + len(chunk) > self._max_bytes:
            raise self._too_large()
        self._budget.take_sent(len(chunk), self._project_id, own=self._held)
        self._held += len(chunk)
        self._sent = self._held
        return chunk, message.get("more_body", False)

    def take(self, count: int) -> None:
        """Holds more bytes for this request, beyond its body as sent. Raises `ApiError` overloaded."""
        self._budget.take(count, own=self._held)
        self._held += count

    def _too_large(self) -> ApiError:
        return ApiError("body_too_large", f"The body is larger than {self._max_bytes} bytes.")

    def release(self) -> None:
        self._budget.give_back(self._held, sent=self._sent, project_id=self._project_id)
        self._held = self._sent = 0
