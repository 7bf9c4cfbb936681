"""The lake's files as their owners see them: which there are, what is not in them yet, and volumes for billing."""

from datetime import date, datetime
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from gateway.answers import Answer, json_answer
from gateway.endpoint import Call, Endpoint, ProjectQuery
from gateway.errors import ApiError
from gateway.routes.projects import PageLimit
from gateway.services import Lake
from storage.lake_exports import (
    COUNTED_EVENTS,
    Backlog,
    ExportedFile,
    ExportedTotals,
    InvalidExportCursor,
    decode_cursor,
    encode_cursor,
)
from storage.lake_listing import Volume
from storage.lake_manifest import Tier

Time = Annotated[datetime, Meta(tz=True, description="RFC 3339 with Z or an offset, or Unix time in seconds")]
Day = Annotated[date, Meta(description="day in UTC")]
Of = Annotated[
    Literal["exported", "held", "delivered"],
    Meta(
        description="exported on a day (what bills count); held now, by day of event time; or delivered to destinations"
        " on a day"
    ),
]


class ExportsQuery(ProjectQuery, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """Files of hours that overlap `startTime` to before `endTime`. The system's admin key without `projectId` sees all
    projects together."""

    start_time: Time | None = None
    end_time: Time | None = None
    limit: PageLimit = 100
    cursor: Annotated[str, Meta(description="nextCursor of the page before")] | None = None


class FileView(msgspec.Struct, rename="camel"):
    """`path` is below lake.url. A file may hold other projects as well: `rows` and `bytes` are the project's own."""

    path: str
    hour: datetime
    rows: int
    bytes: int
    first_timestamp: datetime
    last_timestamp: datetime
    tier: Tier
    created_at: datetime


class TotalsView(msgspec.Struct, rename="camel"):
    """Of all pages."""

    files: int
    rows: int
    bytes: int
    cold_files: int
    cold_bytes: int
    first_hour: datetime | None
    last_hour: datetime | None


class PendingView(msgspec.Struct):
    events: Annotated[int, Meta(description=f"stored and in no file yet; counted up to {COUNTED_EVENTS:,}")]
    complete: Annotated[bool, Meta(description="false when there are more")]
    records: Annotated[int, Meta(description="of the log, of all projects that share it with this one")]


class Exports(msgspec.Struct, rename="camel", omit_defaults=True, kw_only=True):
    """A page of files, by hour. What was stored before `freshAt` is in files."""

    files: list[FileView]
    totals: TotalsView
    pending: PendingView
    last_export_at: datetime | None
    fresh_at: datetime | None
    next_cursor: str | None = None


class VolumesQuery(ProjectQuery, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """`startDay` <= day < `endDay`"""

    start_day: Day | None = None
    end_day: Day | None = None
    client_id: Annotated[str, Meta(description="of this client's projects, as they are its own now")] | None = None
    of: Of = "exported"


class VolumeView(msgspec.Struct, rename="camel", omit_defaults=True):
    """`bytes` is the project's share of the files, by rows."""

    client_id: str
    project_id: str
    day: date
    files: int
    rows: int
    bytes: int
    destination_id: Annotated[str, Meta(description="of what was delivered")] = ""


class VolumeTotals(msgspec.Struct):
    rows: int
    bytes: int


class Volumes(msgspec.Struct):
    """By project and day. The volumes of a day that is over do not change, unless `of` is held."""

    of: Of
    volumes: list[VolumeView]
    totals: VolumeTotals


async def list_exports(call: Call) -> Answer:
    query: ExportsQuery = call.query
    project_id = await call.optional_project(query.project_id)
    exports = call.services.lake.exports
    try:
        after = None if query.cursor is None else decode_cursor(query.cursor)
    except InvalidExportCursor as error:
        raise ApiError("invalid_parameter", f"{error}.", pointer="/cursor") from error
    time_range = {"start": query.start_time, "end": query.end_time}
    overview = await exports.overview(project_id=project_id, **time_range)
    found = await exports.files(project_id=project_id, **time_range, after=after, limit=query.limit + 1)
    page = found[: query.limit]
    return json_answer(
        Exports(
            files=[_file(file) for file in page],
            totals=_totals(overview.totals),
            pending=_pending(overview.pending),
            last_export_at=overview.last_export_at,
            fresh_at=overview.fresh_at,
            next_cursor=encode_cursor(page[-1]) if len(found) > len(page) else None,
        )
    )


async def list_volumes(call: Call) -> Answer:
    query: VolumesQuery = call.query
    project_id = await call.optional_project(query.project_id)
    read = _delivered if query.of == "delivered" else _volumes
    found = await read(call.services.lake, query, project_id)
    totals = VolumeTotals(sum(volume.rows for volume in found), sum(volume.bytes for volume in found))
    return json_answer(Volumes(query.of, found, totals))


async def _volumes(lake: Lake, query: VolumesQuery, project_id: str | None) -> list[VolumeView]:
    read = lake.listing.volumes if query.of == "exported" else lake.listing.holdings
    found: list[Volume] = await read(project_id=project_id, start=query.start_day, end=query.end_day)
    clients = await lake.destinations.clients(sorted({volume.project_id for volume in found}))
    views = [VolumeView(clients.get(volume.project_id, volume.project_id), *volume) for volume in found]
    return [view for view in views if query.client_id in (None, view.client_id)]


async def _delivered(lake: Lake, query: VolumesQuery, project_id: str | None) -> list[VolumeView]:
    found = await lake.destinations.volumes(
        client_id=query.client_id, project_id=project_id, start=query.start_day, end=query.end_day
    )
    return [
        VolumeView(each.client_id, each.project_id, each.day, each.files, each.rows, each.bytes, each.destination_id)
        for each in found
    ]


def _file(file: ExportedFile) -> FileView:
    return FileView(
        path=file.key,
        hour=file.hour,
        rows=file.rows,
        bytes=file.bytes,
        first_timestamp=file.min_timestamp,
        last_timestamp=file.max_timestamp,
        tier=file.tier,
        created_at=file.created_at,
    )


def _totals(totals: ExportedTotals) -> TotalsView:
    return TotalsView(*totals)


def _pending(pending: Backlog) -> PendingView:
    return PendingView(pending.events, pending.complete, pending.records)


ENDPOINTS = [
    Endpoint(
        method="GET",
        path="/v1/exports",
        summary="The Parquet files of a project, and what is not in them yet",
        access="read",
        query=ExportsQuery,
        answers={200: Exports},
        errors=("invalid_parameter", "project_mismatch", "not_found"),
        handler=list_exports,
    ),
    Endpoint(
        method="GET",
        path="/v1/exports/volumes",
        summary="Events and bytes in Parquet files, by project and day",
        access="read",
        query=VolumesQuery,
        answers={200: Volumes},
        errors=("invalid_parameter", "project_mismatch", "not_found"),
        handler=list_volumes,
    ),
]
