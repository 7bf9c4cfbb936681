"""What passes between the stages of a gateway: checked rows in, a receipt out."""

import asyncio
from collections.abc import Sequence
from datetime import datetime
from typing import Literal, NamedTuple, Protocol

import msgspec


class Row(msgspec.Struct, gc=False):
    """One event that passed every check, ready for its columns. Times are aware, in UTC."""

    event_id: str
    event_type: str
    user_id: str | None
    anonymous_id: str | None
    session_id: str | None
    site_id: str | None
    timestamp: datetime
    properties: bytes
    """A JSON object, normalised: jsonb takes it as it is."""
    context: bytes | None


class Rejection(msgspec.Struct, frozen=True):
    """Why one event was refused: a stable code, a sentence that says what to do, and where (RFC 6901)."""

    code: str
    message: str
    pointer: str = ""


class Decoded(NamedTuple):
    """A request's events: the accepted rows in order, and the refused ones by their index in the request."""

    total: int
    rows: list[Row]
    rejections: dict[int, Rejection]
    event_ids: list[str | None]
    """The id of every event in the request (given or made), None where a refused event had none."""


class Receipt(NamedTuple):
    """The answer for rows that are safe now (NL-1)."""

    ack: Literal["logged", "spooled"]
    duplicates: Sequence[int]
    """Indices of rows that were stored before; unknown, so empty, when spooled."""
    partition: int
    offset: int | None
    """The log record that has the rows; None when spooled."""


class Overloaded(Exception):
    """No room for these rows now: answer 503 with this Retry-After, nothing was kept of them."""

    def __init__(self, reason: str, retry_after_s: int) -> None:
        super().__init__(reason)
        self.reason = reason
        self.retry_after_s = retry_after_s


class Ingest(Protocol):
    """Takes rows to safety: the partition log, or the spool while the log cannot be reached."""

    def submit(
        self, project_id: str, rows: list[Row], *, rejected: int, received_at: datetime
    ) -> "asyncio.Future[Receipt]":
        """The receipt comes when the rows are on disk, or `Overloaded` or `SpoolFull` when they could not be taken.
        Raises `Overloaded` when there is no room to begin with."""

    async def wait_stored(self, receipt: Receipt, *, deadline_s: float) -> bool:
        """Whether the receipt's rows were in PostgreSQL before the deadline."""
