"""The ledger (LG-1): what became of every event that was received, and a recount of it.

What is pending is read first and PostgreSQL after it: an event that is stored in between is told twice for a moment,
where the other order would tell it in neither, as if it were lost.
"""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Annotated

import msgspec
from msgspec import Meta

from gateway.answers import Answer, json_answer
from gateway.endpoint import Call, Endpoint, ProjectQuery
from gateway.services import PendingHour
from storage.ledger import LedgerHour

HOUR_S = 3600

Time = Annotated[datetime, Meta(tz=True, description="RFC 3339 with Z or an offset; whole hours")]


class Counts(msgspec.Struct, rename="camel", kw_only=True):
    """received = stored + duplicate + deadLettered + rejected + lost + aggregated + pending. `expired` of those that
    were stored have left PostgreSQL because their time was over."""

    received: int = 0
    stored: int = 0
    duplicate: int = 0
    dead_lettered: int = 0
    rejected: int = 0
    lost: int = 0
    aggregated: int = 0
    pending: int = 0
    expired: int = 0

    def balances(self) -> bool:
        kept = self.stored + self.aggregated + self.pending
        return self.received == kept + self.duplicate + self.dead_lettered + self.rejected + self.lost


class Hour(Counts, rename="camel", kw_only=True):
    """Counts by hour of receipt."""

    hour: datetime


class LedgerQuery(ProjectQuery, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """`startTime` <= hour < `endTime`"""

    start_time: Time | None = None
    end_time: Time | None = None


class Ledger(msgspec.Struct, rename="camel"):
    """`pendingComplete` is false when log or spool could not be asked: more may be pending then."""

    hours: list[Hour]
    totals: Counts
    balanced: bool
    pending_complete: bool


class DifferenceView(msgspec.Struct, rename="camel"):
    """A count that is not what a recount found."""

    project_id: str
    hour: datetime
    what: str
    in_ledger: int
    found: int


class LedgerCheck(msgspec.Struct):
    """`ok` when the recount found no difference."""

    ok: bool
    differences: list[DifferenceView]


async def show_ledger(call: Call) -> Answer:
    query: LedgerQuery = call.query
    project_id = await call.project(query.project_id)
    pending = await call.services.status.pending(project_id)
    stored = await call.services.ledger.hours(project_id, start=query.start_time, end=query.end_time)
    hours = merge(stored, pending.hours, start=query.start_time, end=query.end_time)
    totals = Counts(**{name: sum(getattr(hour, name) for hour in hours) for name in Counts.__struct_fields__})
    balanced = all(hour.balances() for hour in hours)
    return json_answer(Ledger(hours, totals, balanced, pending.complete))


async def check_ledger(call: Call) -> Answer:
    query: LedgerQuery = call.query
    project_id = await call.optional_project(query.project_id)
    found = await call.services.ledger.check(project_id, start=query.start_time, end=query.end_time)
    differences = [DifferenceView(*difference) for difference in found]
    return json_answer(LedgerCheck(not differences, differences))


def merge(
    stored: Iterable[LedgerHour], pending: Mapping[int, PendingHour], *, start: datetime | None, end: datetime | None
) -> list[Hour]:
    """The hours of both, oldest first. What is pending was received, and refused, but is not in PostgreSQL yet."""
    hours = {
        row.hour: Hour(
            hour=row.hour,
            received=row.received,
            stored=row.stored,
            duplicate=row.duplicate,
            dead_lettered=row.dead_lettered,
            rejected=row.rejected,
            lost=row.lost,
            aggregated=row.aggregated,
            expired=row.expired,
        )
        for row in stored
    }
    for number, waiting in pending.items():
        time = datetime.fromtimestamp(number * HOUR_S, UTC)
        if (start is not None and time < start) or (end is not None and time >= end):
            continue
        hour = hours.setdefault(time, Hour(hour=time))
        hour.received += waiting.events + waiting.rejected
        hour.rejected += waiting.rejected
        hour.pending += waiting.events
    return [hours[time] for time in sorted(hours)]


ENDPOINTS = [
    Endpoint(
        method="GET",
        path="/v1/ledger",
        summary="What became of a project's events, by hour of receipt",
        access="read",
        query=LedgerQuery,
        answers={200: Ledger},
        errors=("invalid_parameter", "project_mismatch", "not_found"),
        handler=show_ledger,
    ),
    Endpoint(
        method="GET",
        path="/v1/ledger/check",
        summary="Recount what is stored and compare it with the ledger",
        access="admin",
        query=LedgerQuery,
        answers={200: LedgerCheck},
        errors=("invalid_parameter", "project_mismatch", "not_found"),
        handler=check_ledger,
    ),
]
