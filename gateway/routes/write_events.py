"""`POST /v1/events` and `POST /v1/events/batch`: the hot path, plain ASGI.

An ordinary single event does without ASGI (`begin_single`), as an ordinary event does without the slower ways of
decoding: what is not taken there comes by way of ASGI, and there alone is said what is wrong with it.

In this order, the cheapest refusal first: announced length, key, body within its cap, inflate, decode, and
then `Ingest.submit`, which returns when the rows are safe (NL-1). What was refused at the door is handed on as
a count, so that the ledger balances (LG-1).

Inflating and decoding are work in steps. On the event loop there is one short turn at most, then the thread takes
turns at the requests that are not finished: none of them can keep it from the others, and what inflating adds is taken
of the body budget after each turn, so that beyond the budget there is one turn's output and no more.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

import msgspec
from msgspec import Meta
from starlette.types import Receive, Scope, Send

from gateway.answers import HEADERS, KEY, Answer, Begun
from gateway.body import BodyBudget, BodyReader
from gateway.credentials import Headers, find_key, parse_query
from gateway.endpoint import Operation, check_access
from gateway.errors import EVENT_ERRORS, ApiError
from gateway.inflate import GZIP_MAGIC, inflate_steps
from gateway.native_events import NativeEvent
from gateway.rows import Decoded, Receipt
from gateway.services import KeyInfo, Services
from gateway.steps import Steps, run_turn

INLINE_BYTES = 1024 * 1024
"""Up to this size a body is decoded on the event loop, above it in a thread. Measured: 1,000 events (342 KiB)
take 1.2 ms on the loop and 1.4 ms through the thread; 5,000 (1.7 MiB) would hold the loop up for 58 ms, with
the thread for 6."""
INLINE_COMPRESSED_BYTES = 128 * 1024
"""The same for what is yet to be inflated."""
INLINE_SINGLE_BYTES = 64 * 1024
"""The same for a single event, which is decoded in one step, in the worst case at 0.3 µs a byte."""
BEGIN_BYTES = 16 * 1024
"""Above it an event is none of the usual ones. What is refused is decoded twice: at most 5 ms each time."""
INLINE_S = 0.01
"""A turn on the event loop, which ends with the step that passes it. A thousand usual events take 3 ms."""
TURN_S = 0.05
"""A turn in the thread."""
TURN_BYTES = 4 * 1024 * 1024
"""And what may be inflated in it."""

Ack = Literal["logged", "spooled", "stored"]
Result = TypeVar("Result")


class EventAnswer(msgspec.Struct, rename="camel"):
    """One event was taken. `ack` says where it is safe: in the log, in the gateway's spool, or in PostgreSQL."""

    status: Literal["accepted", "duplicate"]
    event_id: str | None
    ack: Ack


class EventResult(msgspec.Struct, rename="camel", omit_defaults=True):
    """The outcome of one event of a batch, in the order of the request."""

    event_id: str | None
    status: Literal["accepted", "duplicate", "rejected"]
    code: str | None = None
    message: str | None = None
    pointer: str | None = None


class BatchAnswer(msgspec.Struct, rename="camel"):
    """The outcome of a batch: counts, where the accepted events are safe, and one result an event."""

    accepted: int
    duplicate: int
    rejected: int
    ack: Ack
    results: list[EventResult]


class WriteOptions(NamedTuple):
    """What the caller asked for in query or headers."""

    import_old: bool
    wait_stored: bool


class Taken(NamedTuple):
    """A request whose accepted events are safe."""

    decoded: Decoded
    duplicates: frozenset[int]
    """Indices of `decoded.rows`."""
    ack: Ack


_encode = msgspec.json.Encoder().encode
_DEFAULT_OPTIONS = WriteOptions(import_old=False, wait_stored=False)
_NONE: frozenset[int] = frozenset()
_NO_QUERY: dict[str, str] = {}


_WRITE_ERRORS = (
    "invalid_json",
    "invalid_body",
    "inflate_failed",
    "invalid_parameter",
    "body_too_large",
    "unsupported_encoding",
    "timeout",
    "spool_full",
)


class WriteQuery(msgspec.Struct, rename={"import_old": "import"}):
    """`import=true` takes events of any age; it needs an import or admin key."""

    import_old: Annotated[bool, Meta(description="take old events; also as header X-Import: true")] = False
    ack: Annotated[Literal["logged", "stored"], Meta(description="stored: answer when PostgreSQL has them")] = "logged"


class Event(NativeEvent[dict[str, Any]], rename="camel", forbid_unknown_fields=False):
    """An event. Only eventType is needed: a missing eventId is made, a missing timestamp is the time of receipt.

    The snake_case names are taken too, and the older ones: visitorId, data, eventData, createdAt, url, path,
    userAgent, ipAddress.
    """


class EventEnvelope(msgspec.Struct):
    """Other fields beside `events` are ignored."""

    events: list[Event]


OPERATIONS = [
    Operation(
        method="POST",
        path="/v1/events",
        summary="Send one event",
        access="write",
        query=WriteQuery,
        body=Event,
        body_content_types=("application/json", "text/plain"),
        answers={202: EventAnswer},
        errors=(*_WRITE_ERRORS, *EVENT_ERRORS),
    ),
    Operation(
        method="POST",
        path="/v1/events/batch",
        summary="Send several events: an array, an object with `events`, or NDJSON; an outcome for each",
        access="write",
        query=WriteQuery,
        body=list[Event] | EventEnvelope,
        body_content_types=("application/json", "application/x-ndjson", "text/plain"),
        answers={202: BatchAnswer},
        errors=(*_WRITE_ERRORS, "too_many_events"),
    ),
]


class WriteRoutes:
    """The two routes."""

    def __init__(
        self, services: Services, budget: BodyBudget, *, now: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        self._services = services
        self._settings = services.settings
        self._budget = budget
        self._now = now
        self._begin_bytes = min(BEGIN_BYTES, self._settings.max_body_bytes, self._settings.max_inflated_bytes)
        # One thread: the lock would not let two decode at once. What waits for it is bounded by the body budget, and
        # by a deadline.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="decode")

    def begin_single(self, scope: Scope, body: bytes) -> Begun | None:
        """Sends a usual event on its way; None, and nothing done, when it takes a closer look, or time.

        What it holds of the body until the receipt comes are the rows, which the bounds of `Ingest` are for.
        """
        headers: Headers = scope[HEADERS]
        if len(body) > self._begin_bytes or body.startswith(GZIP_MAGIC) or b"content-encoding" in headers:
            return None
        if scope["query_string"] or b"x-import" in headers:
            return None
        key = self._services.keys.known(find_key(headers, _NO_QUERY))
        if key is None:
            return None
        check_access("write", key)
        project_id = key.project_id
        assert project_id is not None
        now = self._now()
        decoded = self._services.decoder.single(body, project_id=project_id, now=now, import_old=False)
        if decoded.rejections:
            return None
        receipt = self._services.ingest.submit(project_id, decoded.rows, rejected=0, received_at=now)
        scope[KEY] = key
        self._services.metrics.body(len(body), len(body))
        return Begun(receipt, partial(self._answer_begun, decoded.event_ids[0]))

    def _answer_begun(self, event_id: str | None, receipt: Receipt) -> Answer:
        duplicate = bool(receipt.duplicates)
        self._services.metrics.acknowledged(receipt.ack, accepted=not duplicate, duplicate=duplicate)
        return _single_answer(event_id, receipt.ack, duplicate=duplicate)

    async def single(self, scope: Scope, receive: Receive, send: Send) -> None:
        taken = await self._take(scope, receive, batch=False)
        if taken.decoded.rejections:
            raise ApiError.of_event(taken.decoded.rejections[0])
        answer = _single_answer(taken.decoded.event_ids[0], taken.ack, duplicate=bool(taken.duplicates))
        await answer(scope, receive, send)

    async def batch(self, scope: Scope, receive: Receive, send: Send) -> None:
        taken = await self._take(scope, receive, batch=True)
        await Answer(202, batch_body(taken))(scope, receive, send)

    async def _take(self, scope: Scope, receive: Receive, *, batch: bool) -> Taken:
        headers: Headers = scope[HEADERS]
        query = parse_query(scope["query_string"])
        reader = BodyReader(self._budget, max_bytes=self._settings.max_body_bytes)
        reader.check_announced(headers.get(b"content-length"))
        key = scope[KEY] = await self._services.keys.lookup(find_key(headers, query))
        check_access("write", key)
        options = _options(headers, query, key)
        project_id = key.project_id
        assert project_id is not None
        try:
            body = await reader.read(receive, project_id)
            now = self._now()
            plain = await self._inflate(body, headers.get(b"content-encoding"), reader)
            self._services.metrics.body(len(body), len(plain))
            if batch:
                steps = self._services.decoder.batch_steps(
                    plain,
                    content_type=_text(headers.get(b"content-type")),
                    project_id=project_id,
                    now=now,
                    import_old=options.import_old,
                )
                decoded = await self._run(steps, reader, inline=len(plain) <= INLINE_BYTES)
            else:
                decode = self._services.decoder.single
                if len(plain) <= INLINE_SINGLE_BYTES:
                    decoded = decode(plain, project_id=project_id, now=now, import_old=options.import_old)
                else:
                    work = partial(decode, plain, project_id=project_id, now=now, import_old=options.import_old)
                    decoded = await self._in_thread(work)
            return await self._submit(decoded, project_id, options, now=now)
        finally:
            reader.release()

    async def _inflate(self, body: bytes, encoding: bytes | None, reader: BodyReader) -> bytes:
        max_bytes = self._settings.max_inflated_bytes
        if encoding is None and len(body) <= max_bytes and not body.startswith(GZIP_MAGIC):
            return body
        steps = inflate_steps(body, _text(encoding), max_bytes=max_bytes)
        return await self._run(steps, reader, inline=len(body) <= INLINE_COMPRESSED_BYTES)

    async def _in_thread(self, work: Callable[[], Result]) -> Result:
        """Raises what the work raises, and `ApiError` overloaded."""
        async with self._deadline():
            return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    async def _run(self, steps: Steps[Result], reader: BodyReader, *, inline: bool) -> Result:
        """The result of the steps. Raises what they raise, and `ApiError` overloaded."""
        if inline:
            turn = run_turn(steps, max_seconds=INLINE_S, max_bytes=INLINE_BYTES)
            reader.take(turn.added_bytes)
            if turn.result is not None:
                return turn.result
        loop = asyncio.get_running_loop()
        in_thread = partial(run_turn, steps, max_seconds=TURN_S, max_bytes=TURN_BYTES)
        async with self._deadline():
            while True:
                turn = await loop.run_in_executor(self._thread, in_thread)
                reader.take(turn.added_bytes)
                if turn.result is not None:
                    return turn.result

    @asynccontextmanager
    async def _deadline(self) -> AsyncIterator[None]:
        """For what waits for the thread, and for what it does. Raises `ApiError` overloaded."""
        try:
            async with asyncio.timeout(self._settings.decode_deadline_s):
                yield
        except TimeoutError as error:
            raise ApiError("overloaded", "This worker could not decode the request in time.") from error

    async def _submit(self, decoded: Decoded, project_id: str, options: WriteOptions, *, now: datetime) -> Taken:
        ingest, metrics = self._services.ingest, self._services.metrics
        rejections = decoded.rejections
        if not decoded.total:
            return Taken(decoded, _NONE, "logged")
        receipt = await ingest.submit(project_id, decoded.rows, rejected=len(rejections), received_at=now)
        ack: Ack = receipt.ack
        if options.wait_stored and ack == "logged":
            stored = await ingest.wait_stored(receipt, deadline_s=self._settings.stored_deadline_s)
            ack = "stored" if stored else ack
        duplicates = frozenset(receipt.duplicates) if receipt.duplicates else _NONE
        metrics.acknowledged(ack, accepted=len(decoded.rows) - len(duplicates), duplicate=len(duplicates))
        if rejections:
            metrics.rejected(Counter(rejection.code for rejection in rejections.values()))
        return Taken(decoded, duplicates, ack)


def _single_answer(event_id: str | None, ack: Ack, *, duplicate: bool) -> Answer:
    return Answer(202, _encode(EventAnswer("duplicate" if duplicate else "accepted", event_id, ack)))


def batch_body(taken: Taken) -> bytes:
    """The JSON of a batch's answer."""
    decoded, duplicates, ack = taken
    if not decoded.rejections and not duplicates:
        body = _all_accepted(decoded.event_ids, ack)
        if body is not None:
            return body
    results = _results(decoded, duplicates)
    rejected, duplicate = len(decoded.rejections), len(duplicates)
    return _encode(BatchAnswer(decoded.total - rejected - duplicate, duplicate, rejected, ack, results))


def _all_accepted(event_ids: Sequence[str | None], ack: Ack) -> bytes | None:
    """The common answer, made of the encoded list of ids; None when an id has a comma in it.

    If there are exactly as many commas as gaps between ids, then every comma is one of these gaps.
    """
    ids = _encode(event_ids)
    count = len(event_ids)
    if not count or ids.count(b",") != count - 1:
        return None
    results = ids[1:-1].replace(b",", b',"status":"accepted"},{"eventId":')
    head = b'{"accepted":%d,"duplicate":0,"rejected":0,"ack":"%b","results":[{"eventId":' % (count, ack.encode())
    return head + results + b',"status":"accepted"}]}'


def _results(decoded: Decoded, duplicates: frozenset[int]) -> list[EventResult]:
    results = []
    row = 0
    for index, event_id in enumerate(decoded.event_ids):
        rejection = decoded.rejections.get(index)
        if rejection is not None:
            results.append(EventResult(event_id, "rejected", rejection.code, rejection.message, rejection.pointer))
            continue
        results.append(EventResult(event_id, "duplicate" if row in duplicates else "accepted"))
        row += 1
    return results


def _options(headers: Headers, query: Mapping[str, str], key: KeyInfo) -> WriteOptions:
    """What the request asks for beyond the default. Raises `ApiError` for what the key may not ask for."""
    wanted = query.get("import") or (headers[b"x-import"].decode("latin-1") if b"x-import" in headers else None)
    ack = query.get("ack")
    if wanted is None and ack is None:
        return _DEFAULT_OPTIONS
    import_old = wanted is not None and _flag(wanted)
    if import_old and key.kind not in ("import", "admin"):
        raise ApiError("key_kind_not_allowed", "Old events are imported with an import or admin key of the project.")
    if ack not in (None, "logged", "stored"):
        raise ApiError("invalid_parameter", "ack is `logged` (the default) or `stored`.", pointer="/ack")
    return WriteOptions(import_old, ack == "stored")


def _flag(text: str) -> bool:
    if text.lower() not in ("true", "false", "1", "0"):
        raise ApiError("invalid_parameter", "import is `true` or `false`.", pointer="/import")
    return text.lower() in ("true", "1")


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode("latin-1")
