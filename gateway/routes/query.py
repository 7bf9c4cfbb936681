"""SQL over a project's events."""

import asyncio
from collections.abc import Coroutine
from typing import Annotated, Any, Generic, TypeVar

import msgspec
from msgspec import Meta
from starlette.requests import Request

from gateway.answers import Answer, Header, json_answer
from gateway.body import ClientGone
from gateway.endpoint import Call, Endpoint, ProjectQuery
from gateway.sql_queries import SqlAnswer
from storage.sandbox.wire import Column, Format

_SQL = "one SELECT; its table is events"
_FORMAT = (
    "json answers with this object; of the others the headers X-Query-Truncated, -Missing and -Cold-Files tell the rest"
)

Rows = TypeVar("Rows")


class QueryRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`limit` can only lower the setting query.max_rows. With `strict` an answer that would lack something is 503."""

    sql: Annotated[
        str,
        Meta(min_length=1, description=_SQL, examples=["SELECT event_type, count(*) FROM events GROUP BY event_type"]),
    ]
    format: Annotated[Format, Meta(description=_FORMAT)] = "json"
    limit: Annotated[int, Meta(ge=1, description="most rows")] | None = None
    strict: bool = False


class MissingFile(msgspec.Struct, frozen=True):
    file: str
    reason: str


class QueryAnswer(msgspec.Struct, Generic[Rows], rename="camel", kw_only=True):
    """`truncated`: there would have been more rows. `degraded`: the events of the `missing` files are not in it.
    `bytesRead` is what was read of `files`. `coldFiles` of them, and of the missing ones, are in the cold part of the
    lake, which is slower."""

    columns: list[Column]
    rows: Rows
    truncated: bool
    degraded: bool
    missing: list[MissingFile]
    files: int
    cold_files: int
    bytes_read: int


_CONTENT_TYPES: dict[Format, bytes] = {
    "ndjson": b"application/x-ndjson",
    "csv": b"text/csv; charset=utf-8; header=present",
    "arrow": b"application/vnd.apache.arrow.stream",
}


async def run_query(call: Call) -> Answer:
    asked: QueryRequest = call.body
    project_id = await call.project(call.query.project_id)
    work = call.services.sql.run(project_id, asked.sql, asked.format, max_rows=asked.limit, strict=asked.strict)
    answer = await _unless_gone(call.request, work)
    if asked.format == "json":
        return json_answer(_json(answer))
    return Answer(200, answer.body, content_type=_CONTENT_TYPES[asked.format], headers=_headers(answer))


def _json(answer: SqlAnswer) -> QueryAnswer[msgspec.Raw]:
    return QueryAnswer(
        columns=answer.result.columns,
        rows=msgspec.Raw(answer.body),
        truncated=answer.result.truncated,
        degraded=bool(answer.missing),
        missing=[MissingFile(file.key, file.reason) for file in answer.missing],
        files=answer.files,
        cold_files=answer.cold_files,
        bytes_read=answer.result.bytes_read,
    )


def _headers(answer: SqlAnswer) -> list[Header]:
    return [
        (b"x-query-truncated", b"true" if answer.result.truncated else b"false"),
        (b"x-query-missing", b"%d" % len(answer.missing)),
        (b"x-query-cold-files", b"%d" % answer.cold_files),
    ]


async def _unless_gone(request: Request, work: Coroutine[Any, Any, SqlAnswer]) -> SqlAnswer:
    """A query that nobody waits for any more is ended: it holds one of few places."""
    running = asyncio.create_task(work)
    gone = asyncio.create_task(_disconnected(request))
    try:
        await asyncio.wait({running, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not running.done():
            raise ClientGone
        return running.result()
    finally:
        gone.cancel()
        running.cancel()
        await asyncio.gather(gone, running, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


ENDPOINTS = [
    Endpoint(
        method="POST",
        path="/v1/query",
        summary="Run SQL over the events of a project",
        access="read",
        query=ProjectQuery,
        body=QueryRequest,
        answers={200: QueryAnswer[list[list[Any]]]},
        formats=tuple(content_type.decode() for content_type in _CONTENT_TYPES.values()),
        errors=(
            "invalid_json",
            "invalid_body",
            "invalid_parameter",
            "project_mismatch",
            "not_found",
            "body_too_large",
            "sql_invalid",
            "sql_not_allowed",
            "sql_failed",
            "query_out_of_memory",
            "query_timeout",
            "query_too_large",
        ),
        handler=run_query,
    ),
]
