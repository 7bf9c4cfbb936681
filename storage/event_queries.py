"""Reading the event store: events by page, one event by its id, a dead letter.

Events come as JSON text in the API's words, built by PostgreSQL; an answer is put together without parsing.
Pages follow a key, not a number: a cursor names the last event of its page, so that rows that arrive
meanwhile shift nothing. They are read in steps of bounded size and end at a number of bytes: the JSON of a
thousand large events would be more than a gateway or PostgreSQL can hold for each reader.

Which index serves is decided here and not by the planner, which knows nothing of how well a Bloom filter
leaves out pages (it would read the whole table): see `_BY_NEWEST` and `_BY_LOOKUP`, and migration 0002.
"""

from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Annotated, Literal, NamedTuple

import msgspec

from storage.postgres import Postgres
from storage.statements import statement

Order = Literal["newest", "received"]

_EVENT_JSON = statement("event_json")
_FIND_EVENT = statement("find_event").replace("event_json", _EVENT_JSON)
_FIND_DEAD_LETTER = statement("find_dead_letter")
_HISTORY_BEGINS = "SELECT stored_before FROM expired_events WHERE project_id = $1"
_BY_NEWEST = "SELECT set_config('enable_seqscan', 'off', true), set_config('enable_bitmapscan', 'off', true)"
_BY_LOOKUP = "SELECT set_config('enable_seqscan', 'off', true), set_config('enable_indexscan', 'off', true)"
_KEYS = {"newest": '"timestamp"', "received": "created_at"}
_DIRECTIONS = {"newest": "DESC", "received": "ASC"}
_SIGNS = {"newest": "<", "received": ">"}
_FIRST = datetime.min.replace(tzinfo=UTC)
# Some 15 ms; what makes up more than half a percent of a project's events fills a page of 100 from them.
_PROBED_EVENTS = 20_000
_PAGE_BYTES = 8 * 1024 * 1024
"""Of JSON, after which a page ends."""
_STEP_BYTES = 1024 * 1024
"""As they are stored, of the events that are read at a time. jsonb keeps 309 digits of 1e308 in 16 bytes: their JSON
is at most 20 times that."""


class InvalidCursor(ValueError):
    """Not a cursor of this order of list."""


class EventPage(NamedTuple):
    events: list[msgspec.Raw]
    """JSON objects."""
    next_cursor: str | None
    """None when a list of the newest is at its end. In the order of receipt it is always where to go on."""
    history_begins: datetime | None = None
    """Where a list of the newest is at its end, and in the order of receipt: events of the project that were stored
    before this may be gone; None when none are."""


class StoredEvent(NamedTuple):
    """An event and where it is: its log record, when it was received and stored, and when it happened."""

    event: msgspec.Raw
    partition: int
    offset: int
    received_at: datetime
    stored_at: datetime
    timestamp: datetime


class DeadLetter(NamedTuple):
    """Where an event stood in the log that could not be stored, and why."""

    partition: int
    offset: int
    row_number: int
    received_at: datetime
    dead_lettered_at: datetime
    error_code: str
    message: str


class _Listed(NamedTuple):
    """What a list found: the first of its events, and where each of them is, also those that were too many to read."""

    events: list[msgspec.Raw]
    keys: list[tuple[datetime, int, str]]


class EventQueries:
    """Every call has the deadline of the `Postgres` it is given, and raises `Unavailable` after it."""

    def __init__(self, postgres: Postgres, *, max_event_ahead_s: float = 86400.0) -> None:
        """No event's time is later than its receipt by more than `max_event_ahead_s`."""
        self._postgres = postgres
        self._max_ahead = timedelta(seconds=max_event_ahead_s)

    async def list_events(
        self,
        project_id: str,
        *,
        event_type: str | None = None,
        user_id: str | None = None,
        session_id: str | None = None,
        start: datetime | None = None,
        end: datetime | None = None,
        limit: int = 100,
        cursor: str | None = None,
        order: Order = "newest",
    ) -> EventPage:
        """A page of a project's events with `start` <= time < `end`.

        `newest` goes back in event time. `received` goes forward in the order of storing, which within a
        project is the order of its log (OR-1), for those who follow it; `start` and `end` are then times of
        storing, and without them or a cursor everything is read. Large events make a page shorter than `limit`.
        Raises `InvalidCursor`.
        """
        filters = {"event_type": event_type, "user_id": user_id, "session_id": session_id}
        given = {column: text for column, text in filters.items() if text is not None}
        if not all(map(_can_be_stored, (project_id, *given.values()))):
            return EventPage([], None)
        listing = _Listing(order, project_id, limit=limit + 1)
        for column, text in given.items():
            listing.filters.add(f"{column} = ?", text)
        self._add_times(listing, start, end)
        if cursor is not None:
            listing.after(*_decode_cursor(cursor, order))
        page = _page(await self._listed(listing), limit, order, cursor)
        if order == "newest" and page.next_cursor is not None:
            return page
        return page._replace(history_begins=await self.history_begins(project_id))

    async def history_begins(self, project_id: str) -> datetime | None:
        """Events of the project that were stored before this may be gone; None when none are."""
        if not _can_be_stored(project_id):
            return None
        async with self._postgres.session() as connection:
            found: datetime | None = await connection.fetchval(_HISTORY_BEGINS, project_id)
        return found

    def _add_times(self, listing: "_Listing", start: datetime | None, end: datetime | None) -> None:
        if start is not None:
            listing.times.add(f"{listing.key} >= ?", start)
            # Leaves out the days before; a later day may still bring an event of then.
            listing.times.add("created_at >= ?", max(start, _FIRST + self._max_ahead) - self._max_ahead)
        if end is not None:
            listing.times.add(f"{listing.key} < ?", end)

    async def _listed(self, listing: "_Listing") -> _Listed:
        """Frequent things are among the newest; only what is rare is worth looking up by its filters."""
        if listing.order == "newest":
            listed = await self._in_steps(_BY_NEWEST, listing.statement_by_newest, listing.values)
            if not listing.filters or len(listed.keys) == listing.limit:
                return listed
        return await self._in_steps(_BY_LOOKUP, listing.statement_by_lookup, listing.values)

    async def _in_steps(self, plan: str, statement: Callable[[int], str], values: list[object]) -> _Listed:
        """Ordinary pages are one step."""
        events: list[msgspec.Raw] = []
        keys: list[tuple[datetime, int, str]] = []
        room = _PAGE_BYTES
        async with self._postgres.transaction(snapshot=True) as connection:
            await connection.execute(plan)
            while True:
                rows = await connection.fetch(statement(len(events)), *values)
                keys[len(events) :] = [row[1:] for row in rows]
                texts = [row[0].encode() for row in rows if row[0] is not None]
                events += map(msgspec.Raw, texts)
                room -= sum(map(len, texts))
                if room <= 0 or len(events) == len(keys):
                    return _Listed(events, keys)

    async def find_event(self, project_id: str, event_id: str) -> StoredEvent | None:
        """The event of that id; the latest, should an id have come back after the dedupe window."""
        if not (_can_be_stored(project_id) and _can_be_stored(event_id)):
            return None
        async with self._postgres.transaction(snapshot=True) as connection:
            await connection.execute(_BY_LOOKUP)
            row = await connection.fetchrow(_FIND_EVENT, project_id, event_id)
        return None if row is None else StoredEvent(msgspec.Raw(row[0].encode()), *row[1:])

    async def find_dead_letter(self, project_id: str, event_id: str) -> DeadLetter | None:
        """The last dead letter of that id."""
        if not (_can_be_stored(project_id) and _can_be_stored(event_id)):
            return None
        async with self._postgres.session() as connection:
            row = await connection.fetchrow(_FIND_DEAD_LETTER, project_id, event_id)
        return None if row is None else DeadLetter(*row)


class _Conditions:
    """Parts of a WHERE; `?` becomes the number of the value in the statement's list."""

    def __init__(self, values: list[object]) -> None:
        self._values = values
        self._parts: list[str] = []

    def add(self, part: str, *values: object) -> None:
        for value in values:
            self._values.append(value)
            part = part.replace("?", f"${len(self._values)}", 1)
        self._parts.append(part)

    def __bool__(self) -> bool:
        return bool(self._parts)

    def __str__(self) -> str:
        return " AND ".join(self._parts) or "true"


class _Listing:
    """One list's conditions, and the statements that serve it by one index or the other."""

    def __init__(self, order: Order, project_id: str, *, limit: int) -> None:
        self.order = order
        self.limit = limit
        self.key = _KEYS[order]
        self.values: list[object] = []
        self.project, self.times, self.filters = (_Conditions(self.values) for _ in range(3))
        self.project.add("project_id = ?", project_id)
        direction = _DIRECTIONS[order]
        self._ordering = f"ORDER BY {self.key} {direction}, log_offset {direction}, event_id {direction}"

    def after(self, at: datetime, log_offset: int, event_id: str) -> None:
        """Only what comes after that event in this order."""
        sign = _SIGNS[self.order]
        # The second says it all; the first is what an index understands.
        self.times.add(f"{self.key} {sign}= ?", at)
        self.times.add(f"({self.key}, log_offset, event_id) {sign} (?, ?, ?)", at, log_offset, event_id)

    def statement_by_newest(self, skip: int = 0) -> str:
        """Without filters the whole answer, with them what is among the newest `_PROBED_EVENTS`. `skip`: without so
        many of the first."""
        probe = f"{self._ordering} LIMIT {_PROBED_EVENTS}" if self.filters else ""
        source = f"SELECT * FROM events_log WHERE {self.project} AND {self.times} {probe}"
        return self._statement(source, self.filters, skip)

    def statement_by_lookup(self, skip: int = 0) -> str:
        """OFFSET 0 is a fence: the project, which every index has, cannot draw the planner to another one."""
        source = f"SELECT * FROM events_log WHERE {self.filters} AND {self.times} OFFSET 0"
        return self._statement(source, self.project, skip)

    def _statement(self, source: str, wanted: _Conditions, skip: int) -> str:
        """All keys, but the JSON of the first event and of what fits into one step with it: it is not even made of
        the others. The sizes are read without the values, which are stored elsewhere when they are large."""
        return f"""
            SELECT CASE WHEN through <= {_STEP_BYTES:d} OR through = size THEN {_EVENT_JSON} END,
                {self.key}, log_offset, event_id
            FROM (
                SELECT *, sum(size) OVER ({self._ordering} ROWS UNBOUNDED PRECEDING) AS through
                FROM (
                    SELECT *, pg_column_size(properties) + coalesce(pg_column_size(context), 0) AS size
                    FROM ({source}) AS source
                    WHERE {wanted} {self._ordering} LIMIT {self.limit - skip:d} OFFSET {skip:d}
                ) AS sized
            ) AS page
            {self._ordering}
        """


def _page(listed: _Listed, limit: int, order: Order, cursor: str | None) -> EventPage:
    events = listed.events[:limit]
    if len(listed.keys) > len(events) or (events and order == "received"):
        return EventPage(events, _encode_cursor(order, *listed.keys[len(events) - 1]))
    return EventPage(events, cursor if order == "received" else None)


def _encode_cursor(order: Order, at: datetime, log_offset: int, event_id: str) -> str:
    return urlsafe_b64encode(msgspec.json.encode((order, at, log_offset, event_id))).decode().rstrip("=")


_cursor_decoder = msgspec.json.Decoder(tuple[Order, Annotated[datetime, msgspec.Meta(tz=True)], int, str])


def _decode_cursor(cursor: str, order: Order) -> tuple[datetime, int, str]:
    try:
        made_for, at, log_offset, event_id = _cursor_decoder.decode(
            urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))
        )
    except (ValueError, msgspec.MsgspecError) as error:
        raise InvalidCursor("the cursor is not one that this server made") from error
    if not _can_be_stored(event_id) or not 0 <= log_offset < 1 << 63 or at.tzinfo is not UTC:
        raise InvalidCursor("the cursor is not one that this server made")
    if made_for != order:
        raise InvalidCursor(f"the cursor belongs to a list in the order {made_for}")
    return at, log_offset, event_id


def _can_be_stored(text: str | None) -> bool:
    """What PostgreSQL's text cannot hold (NUL, lone surrogates) is in no row."""
    return text is None or ("\0" not in text and not any("\ud800" <= character <= "\udfff" for character in text))
