"""Reads HTTP/1.1 answers off a connection: the status, and where the answer ends. Nothing else of it is looked at.

It takes what the servers measured here send: a Content-Length, no chunks, no interim answers, one
answer at a time.
"""

_HEAD_END = b"\r\n\r\n"
_LENGTH = b"\r\ncontent-length:"
MAX_HEAD_BYTES = 16 * 1024
"""More than this without an end is no answer of ours."""


class BadResponse(Exception):
    """The bytes are not such an answer; the message shows their beginning."""


class ResponseReader:
    """Fed with the bytes of one connection in whatever pieces they come."""

    def __init__(self) -> None:
        self._head = b""
        self._status = 0
        self._body_left = 0

    def feed(self, data: bytes) -> int:
        """The status when these bytes complete an answer, else 0. Raises `BadResponse`."""
        if self._body_left:
            return self._take_body(len(data))
        head = self._head + data if self._head else data
        end = head.find(_HEAD_END)
        if end < 0:
            if len(head) > MAX_HEAD_BYTES:
                raise BadResponse(f"no end of headers in {len(head)} bytes: {head[:200]!r}")
            self._head = head
            return 0
        self._head = b""
        self._status, self._body_left = _parse(head[: end + 2])
        return self._take_body(len(head) - end - len(_HEAD_END))

    def _take_body(self, received: int) -> int:
        self._body_left -= received
        if self._body_left < 0:
            raise BadResponse(f"{-self._body_left} bytes more than the answer has")
        return 0 if self._body_left else self._status


def _parse(head: bytes) -> tuple[int, int]:
    """Status and body length of the head, which ends with the last header's line end."""
    lowered = head.lower()
    start = lowered.find(_LENGTH)
    if start < 0 or not lowered.startswith(b"http/1.1 "):
        raise BadResponse(f"not an HTTP/1.1 answer with a Content-Length: {head[:200]!r}")
    start += len(_LENGTH)
    try:
        return int(head[9:12]), int(head[start : head.index(b"\r\n", start)])
    except ValueError as error:
        raise BadResponse(f"status or length is not a number: {head[:200]!r}") from error
