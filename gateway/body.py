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

    A single request may always hold its body, so that a budget below the body limit still lets requests pass.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self.held_bytes = 0

    def take(self, count: int, *, own: int = 0) -> None:
        """`own` is what the same request holds already. Raises `ApiError` overloaded when there is no room."""
        if self.held_bytes > own and self.held_bytes + count > self._max_bytes:
            raise ApiError("overloaded", "This worker holds as many bytes of requests as it may.")
        self.held_bytes += count

    def give_back(self, count: int) -> None:
        self.held_bytes -= count


class BodyReader:
    """Reads one body; what it took of the budget is given back by `release`."""

    __slots__ = ("_budget", "_held", "_max_bytes")

    def __init__(self, budget: BodyBudget, *, max_bytes: int) -> None:
        self._budget = budget
        self._max_bytes = max_bytes
        self._held = 0

    def check_announced(self, content_length: bytes | None) -> None:
        """Raises `ApiError` body_too_large. An announcement takes nothing of the budget: it is free for the client."""
        if content_length is not None and int(content_length) > self._max_bytes:
            raise self._too_large()

    async def read(self, receive: Receive) -> bytes:
        """The whole body. Raises `ApiError`: body_too_large, overloaded; or `ClientGone`."""
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
        if self._held + len(chunk) > self._max_bytes:
            raise self._too_large()
        self.take(len(chunk))
        return chunk, message.get("more_body", False)

    def take(self, count: int) -> None:
        """Holds more bytes for this request. Raises `ApiError` overloaded."""
        self._budget.take(count, own=self._held)
        self._held += count

    def _too_large(self) -> ApiError:
        return ApiError("body_too_large", f"The body is larger than {self._max_bytes} bytes.")

    def release(self) -> None:
        self._budget.give_back(self._held)
        self._held = 0
