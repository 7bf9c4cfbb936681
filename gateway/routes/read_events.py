"""Reading events back: a list by page, one event, and where an event is."""

from datetime import datetime
from typing import Annotated, Any, Generic, Literal, TypeVar

import msgspec
from msgspec import Meta

from gateway.answers import Answer, json_answer
from gateway.endpoint import Call, Endpoint, ProjectQuery
from gateway.errors import ApiError
from gateway.routes.projects import PageLimit
from gateway.services import Place
from storage.event_queries import DeadLetter, InvalidCursor, Order, StoredEvent
from storage.lake_exports import EventFile

Time = Annotated[datetime, Meta(tz=True, description="RFC 3339 with Z or an offset, or Unix time in seconds")]
State = Literal["stored", "archived", "dead_lettered", "logged", "spooled", "unknown"]

_STATES: dict[Place, State] = {"log": "logged", "spool": "spooled", "unknown": "unknown"}

EventJson = TypeVar("EventJson")

_FIND = "SELECT log_partition, log_offset, timestamp, received_at FROM events WHERE event_id ="
_found_decoder = msgspec.json.Decoder(list[tuple[int, int, datetime, datetime]])


class EventsQuery(ProjectQuery, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """`startTime` <= time < `endTime`, in event time; with order=received in the time of storing."""

    type: Annotated[str, Meta(description="eventType")] | None = None
    user: Annotated[str, Meta(description="userId")] | None = None
    session: Annotated[str, Meta(description="sessionId")] | None = None
    start_time: Time | None = None
    end_time: Time | None = None
    limit: PageLimit = 100
    cursor: Annotated[str, Meta(description="nextCursor of the page before")] | None = None
    order: Annotated[Order, Meta(description="newest first, or as they were stored")] = "newest"


class EventView(msgspec.Struct, rename="camel"):
    """A stored event. `receivedAt` is when a gateway took it, `createdAt` when it was stored."""

    event_id: str
    event_type: str
    project_id: str
    user_id: str | None
    anonymous_id: str | None
    session_id: str | None
    site_id: str | None
    timestamp: datetime
    received_at: datetime
    created_at: datetime
    properties: dict[str, Any]
    context: dict[str, Any] | None


class Events(msgspec.Struct, Generic[EventJson], rename="camel", omit_defaults=True):
    """A page of events. `nextCursor` leads to the next; with order=received it is always there, to follow on. A page
    has at most `limit` events, and fewer where they are large: it ends after some 8 MiB. At the end of the newest, and
    with order=received, `historyBegins` says that what was stored before has left PostgreSQL: it is in the lake (POST
    /v1/query)."""

    events: list[EventJson]
    next_cursor: str | None = None
    history_begins: datetime | None = None


class TraceQuery(ProjectQuery, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """`lake=true` looks for the event in the files of the lake as well, which takes as long as a query over them."""

    lake: bool = False


class Trace(msgspec.Struct, rename="camel", omit_defaults=True, kw_only=True):
    """Where an event is: stored, a dead letter, safe in the log or a spool and not yet stored, or unknown here. Of
    a stored one that is in the lake the `file`, and the `rowGroup` where that is known without a look into it.
    `archived` is in the lake alone. What was stored before `historyBegins` has left PostgreSQL: an event that is
    unknown may be in the lake."""

    event_id: str
    state: State
    partition: int | None = None
    offset: int | None = None
    received_at: datetime | None = None
    stored_at: datetime | None = None
    file: str | None = None
    row_group: int | None = None
    exported_at: datetime | None = None
    dead_lettered_at: datetime | None = None
    code: str | None = None
    message: str | None = None
    history_begins: datetime | None = None


async def list_events(call: Call) -> Answer:
    query: EventsQuery = call.query
    try:
        page = await call.services.queries.list_events(
            await call.project(query.project_id),
            event_type=query.type,
            user_id=query.user,
            session_id=query.session,
            start=query.start_time,
            end=query.end_time,
            limit=query.limit,
            cursor=query.cursor,
            order=query.order,
        )
    except InvalidCursor as error:
        raise ApiError("invalid_parameter", f"{error}.", pointer="/cursor") from error
    return json_answer(Events(page.events, page.next_cursor, page.history_begins))


async def get_event(call: Call) -> Answer:
    event_id = call.request.path_params["eventId"]
    found = await call.services.queries.find_event(await call.project(call.query.project_id), event_id)
    if found is None:
        hint = "It may be on its way: GET /v1/events/{eventId}/trace tells."
        raise ApiError("not_found", "No event of this id is stored.", hint=hint)
    return Answer(200, bytes(found.event))


async def trace_event(call: Call) -> Answer:
    event_id = call.request.path_params["eventId"]
    project_id = await call.project(call.query.project_id)
    services = call.services
    stored = await services.queries.find_event(project_id, event_id)
    if stored is not None:
        file = await services.lake.exports.file_of(stored.partition, stored.offset, stored.timestamp)
        return json_answer(_stored(event_id, stored, file))
    letter = await services.queries.find_dead_letter(project_id, event_id)
    if letter is not None:
        return json_answer(_dead(event_id, letter))
    begins = await services.queries.history_begins(project_id)
    found = await _in_lake(call, project_id, event_id) if call.query.lake else None
    if found is not None:
        return json_answer(msgspec.structs.replace(found, history_begins=begins))
    place = await services.status.trace(project_id, event_id)
    if place != "unknown":
        return json_answer(Trace(event_id=event_id, state=_STATES[place]))
    asked = "and is in no file that could be read" if call.query.lake else "ask with lake=true"
    message = None if begins is None else f"What was stored before {begins:%Y-%m-%d} is in the lake alone: {asked}."
    return json_answer(Trace(event_id=event_id, state="unknown", history_begins=begins, message=message))


async def _in_lake(call: Call, project_id: str, event_id: str) -> Trace | None:
    """The event as the files of the lake have it, and in which it is."""
    literal = event_id.replace("'", "''")
    answer = await call.services.sql.run(project_id, f"{_FIND} '{literal}' ORDER BY received_at DESC LIMIT 1", "json")
    for partition, offset, timestamp, received_at in _found_decoder.decode(answer.body):
        file = await call.services.lake.exports.file_of(partition, offset, timestamp)
        return Trace(
            event_id=event_id,
            state="archived",
            partition=partition,
            offset=offset,
            received_at=received_at,
            file=None if file is None else file.key,
            row_group=None if file is None else file.row_group,
            exported_at=None if file is None else file.exported_at,
        )
    return None


def _stored(event_id: str, found: StoredEvent, file: EventFile | None) -> Trace:
    return Trace(
        event_id=event_id,
        state="stored",
        partition=found.partition,
        offset=found.offset,
        received_at=found.received_at,
        stored_at=found.stored_at,
        file=None if file is None else file.key,
        row_group=None if file is None else file.row_group,
        exported_at=None if file is None else file.exported_at,
    )


def _dead(event_id: str, letter: DeadLetter) -> Trace:
    return Trace(
        event_id=event_id,
        state="dead_lettered",
        partition=letter.partition,
        offset=letter.offset,
        received_at=letter.received_at,
        dead_lettered_at=letter.dead_lettered_at,
        code=letter.error_code,
        message=letter.message,
    )


# An event id may have slashes in it (`:path`), so the longer route comes first.
ENDPOINTS = [
    Endpoint(
        method="GET",
        path="/v1/events",
        summary="List events by type, user, session and time",
        access="read",
        query=EventsQuery,
        answers={200: Events[EventView]},
        errors=("invalid_parameter", "project_mismatch", "not_found"),
        handler=list_events,
    ),
    Endpoint(
        method="GET",
        path="/v1/events/{eventId:path}/trace",
        summary="Where an event is",
        access="read",
        query=TraceQuery,
        answers={200: Trace},
        errors=("invalid_parameter", "project_mismatch", "not_found"),
        handler=trace_event,
    ),
    Endpoint(
        method="GET",
        path="/v1/events/{eventId:path}",
        summary="One event",
        access="read",
        query=ProjectQuery,
        answers={200: EventView},
        errors=("invalid_parameter", "project_mismatch", "not_found"),
        handler=get_event,
    ),
]
