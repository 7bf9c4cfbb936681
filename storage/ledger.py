"""The ledger (LG-1): what became of every event, per project and hour of receipt, and the check of it.

The counts are written by the transaction that stores the events (`storage.ledger_counts`), so that they are
as exact as the events. What is in the log and not yet in PostgreSQL is not in the ledger either: it is
pending, and its owner counts it.
"""

from datetime import datetime
from typing import NamedTuple

from storage.postgres import Postgres
from storage.statements import statement

_HOURS = statement("ledger_hours")
_CHECK = statement("check_ledger")
# Enough to see what is wrong; a ledger that is wrong everywhere would return every hour of every project.
_MAX_DIFFERENCES = 1000


class LedgerHour(NamedTuple):
    """received = stored + duplicate + dead_lettered + rejected + lost + aggregated"""

    hour: datetime
    received: int
    stored: int
    duplicate: int
    dead_lettered: int
    rejected: int
    lost: int
    aggregated: int = 0
    expired: int = 0
    """Of those stored: their rows were removed when their time was over."""


class Difference(NamedTuple):
    """A count of the ledger that is not what was found: `received` against its parts, the others against rows."""

    project_id: str
    hour: datetime
    what: str
    in_ledger: int
    found: int


class Ledger:
    def __init__(self, postgres: Postgres) -> None:
        self._postgres = postgres

    async def hours(
        self, project_id: str, *, start: datetime | None = None, end: datetime | None = None
    ) -> list[LedgerHour]:
        """A project's hours with `start` <= hour < `end`, oldest first."""
        async with self._postgres.session() as connection:
            return [LedgerHour(*row) for row in await connection.fetch(_HOURS, project_id, start, end)]

    async def check(
        self,
        project_id: str | None = None,
        *,
        start: datetime | None = None,
        end: datetime | None = None,
        deadline_s: float | None = None,
    ) -> list[Difference]:
        """Count the rows and compare; [] when all is right. Bounds are whole hours.

        One snapshot: it is exact while events are being stored. Rows that were removed when their time was over are
        counted by the ledger. Aggregated events are compared for whole projects and only without bounds. Then every
        event is read (some 0.2 s a million): give it time.
        """
        async with self._postgres.transaction(snapshot=True, deadline_s=deadline_s) as connection:
            rows = await connection.fetch(_CHECK, project_id, start, end, _MAX_DIFFERENCES)
        return [Difference(*row) for row in rows]
