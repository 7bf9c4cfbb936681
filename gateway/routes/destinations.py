"""Destinations of the lake's events: made, looked at, changed and removed by whoever holds the system's admin key.

A destination is tried before it is made or changed: an object is put, read and deleted there.
"""

import asyncio
import secrets
from dataclasses import replace
from datetime import UTC, datetime
from typing import Annotated

import msgspec
from msgspec import Meta

from analytics_actors.lake.places import is_backup_id
from gateway.answers import Answer, json_answer
from gateway.endpoint import Call, Endpoint
from gateway.errors import ApiError
from gateway.routes.projects import PageLimit
from storage.destinations import DeliveryState, Destination, DestinationKind, Owner, Since, state_of
from storage.errors import Misconfigured, Unavailable
from storage.registry import check_client_id

TRY_S = 8.0
"""For the try of a place; the server's own deadline of a request is a little longer."""

Text = Annotated[str, Meta(max_length=1024)]
_EXAMPLE = {"clientId": "acme", "url": "s3://acme-events/raw", "region": "eu-west-1", "credentials": "acme"}


class NewDestination(msgspec.Struct, rename="camel", forbid_unknown_fields=True, kw_only=True):
    """Of a project, of a client (all its projects, later ones too), or with neither of all projects."""

    project_id: str | None = None
    client_id: str | None = None
    kind: DestinationKind = "client"
    url: Annotated[str, Meta(max_length=1024, description="s3://bucket/prefix, or file:///folder")]
    endpoint_url: Annotated[str, Meta(max_length=1024, description="of an S3 server that is not Amazon's")] = ""
    region: Text = "us-east-1"
    path_style: bool = False
    credentials: Annotated[str, Meta(max_length=100, description="profile of the servers' AWS configuration")] = ""
    since: Annotated[
        str, Meta(max_length=64, description="now, beginning or RFC 3339: what was exported from then on is delivered")
    ] = "now"


class ChangedDestination(msgspec.Struct, rename="camel", forbid_unknown_fields=True, kw_only=True):
    """What is not named stays. Another url is another destination."""

    enabled: bool | None = None
    endpoint_url: Text | None = None
    region: Text | None = None
    path_style: bool | None = None
    credentials: Annotated[str, Meta(max_length=100)] | None = None


class DestinationView(msgspec.Struct, rename="camel", omit_defaults=True, kw_only=True):
    """What was exported to the lake before `freshAt` is delivered; `pendingFiles` of the lake may hold more."""

    destination_id: str
    project_id: str | None = None
    client_id: str | None = None
    kind: DestinationKind
    url: str
    endpoint_url: str = ""
    region: str
    path_style: bool = False
    credentials: str = ""
    enabled: bool
    state: DeliveryState
    created_at: datetime
    fresh_at: datetime | None
    delivered_at: datetime | None
    failing_since: datetime | None
    last_error: str
    files: int
    rows: int
    bytes: int
    pending_files: int


class DestinationsQuery(msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    limit: PageLimit = 100
    after: Annotated[str, Meta(description="`next` of the page before")] = ""


class DestinationPage(msgspec.Struct, rename="camel", omit_defaults=True):
    """A page, by id; with `next` there may be more."""

    destinations: list[DestinationView]
    next: str | None = None


class RemovedDestination(msgspec.Struct, rename="camel"):
    """What was delivered stays where it is."""

    destination_id: str


async def create_destination(call: Call) -> Answer:
    wanted: NewDestination = call.body
    owner, owner_id = _owner(wanted, await call.optional_project(wanted.project_id))
    destination = Destination(
        destination_id=f"d-{secrets.token_hex(6)}",
        owner=owner,
        owner_id=owner_id,
        kind=wanted.kind,
        url=wanted.url,
        endpoint_url=wanted.endpoint_url,
        region=wanted.region,
        path_style=wanted.path_style,
        credentials=wanted.credentials,
    )
    since = _since(wanted.since)
    await _try(call, destination)
    await call.services.lake.destinations.create(destination, since=since)
    return json_answer(await _view(call, destination), status=201)


def _owner(wanted: NewDestination, project_id: str | None) -> tuple[Owner, str]:
    if project_id is not None and wanted.client_id is not None:
        raise ApiError("invalid_body", "A destination is of a project or of a client.", pointer="/clientId")
    if wanted.client_id is not None:
        try:
            check_client_id(wanted.client_id)
        except ValueError as error:
            raise ApiError("invalid_body", f"{error}.", pointer="/clientId") from error
        return "client", wanted.client_id
    return ("all", "") if project_id is None else ("project", project_id)


def _since(text: str) -> Since:
    if text == "now":
        return "now"
    if text == "beginning":
        return "beginning"
    try:
        time: datetime = msgspec.convert(text, Annotated[datetime, Meta(tz=True)])
    except msgspec.ValidationError as error:
        message = "since is now, beginning, or a time in RFC 3339 with Z or an offset."
        raise ApiError("invalid_body", message, pointer="/since") from error
    return time


async def _try(call: Call, destination: Destination) -> None:
    try:
        async with asyncio.timeout(TRY_S):
            place = await call.services.lake.open_place(destination)
            try:
                await place.check()
            finally:
                await place.close()
    except (Misconfigured, Unavailable) as error:
        raise ApiError("invalid_body", f"Nothing can be delivered there: {error}.", pointer="/url") from error
    except TimeoutError as error:
        raise ApiError("invalid_body", f"It did not answer within {TRY_S:g} s.", pointer="/url") from error


async def list_destinations(call: Call) -> Answer:
    query: DestinationsQuery = call.query
    page = await call.services.lake.destinations.listed(after=query.after, limit=query.limit)
    after = page[-1].destination_id if len(page) == query.limit else None
    return json_answer(DestinationPage([await _view(call, each) for each in page], after))


async def get_destination(call: Call) -> Answer:
    return json_answer(await _view(call, await _named(call)))


async def change_destination(call: Call) -> Answer:
    wanted: ChangedDestination = call.body
    _check_is_no_backup(call)
    named = await _named(call)
    given = {name: getattr(wanted, name) for name in wanted.__struct_fields__}
    changed = replace(named, **{name: value for name, value in given.items() if value is not None})
    if changed.enabled:
        await _try(call, changed)
    await call.services.lake.destinations.change(changed)
    return json_answer(await _view(call, changed))


async def remove_destination(call: Call) -> Answer:
    # Made again at the next start, it would deliver everything a second time.
    _check_is_no_backup(call)
    destination_id = call.request.path_params["destinationId"]
    await call.services.lake.destinations.remove(destination_id)
    return json_answer(RemovedDestination(destination_id))


def _check_is_no_backup(call: Call) -> None:
    """What is the settings' is trusted wherever it is, so that nobody else may say where."""
    if is_backup_id(call.request.path_params["destinationId"]):
        raise ApiError("conflict", "The settings have made it: change destinations.backup_url there.")


async def _named(call: Call) -> Destination:
    return await call.services.lake.destinations.get(call.request.path_params["destinationId"])


async def _view(call: Call, destination: Destination) -> DestinationView:
    lake = call.services.lake
    status = await lake.destinations.status(destination.destination_id)
    return DestinationView(
        destination_id=destination.destination_id,
        project_id=destination.owner_id if destination.owner == "project" else None,
        client_id=destination.owner_id if destination.owner == "client" else None,
        kind=destination.kind,
        url=destination.url,
        endpoint_url=destination.endpoint_url,
        region=destination.region,
        path_style=destination.path_style,
        credentials=destination.credentials,
        enabled=destination.enabled,
        state=state_of(destination, status, now=datetime.now(UTC), behind_s=lake.behind_s),
        created_at=status.created_at,
        fresh_at=status.fresh_at,
        delivered_at=status.delivered_at,
        failing_since=status.failing_since,
        last_error=status.last_error,
        files=status.files,
        rows=status.rows,
        bytes=status.bytes,
        pending_files=status.pending_files,
    )


_PATH = "/v1/exports/destinations"
_BODY_ERRORS = ("invalid_json", "invalid_body", "body_too_large")

ENDPOINTS = [
    Endpoint(
        method="GET",
        path=_PATH,
        summary="List the destinations of the lake's events, each with its state",
        access="system",
        query=DestinationsQuery,
        answers={200: DestinationPage},
        errors=("invalid_parameter",),
        handler=list_destinations,
    ),
    Endpoint(
        method="POST",
        path=_PATH,
        summary="Deliver a project's or a client's events to a bucket of its own",
        access="system",
        body=Annotated[NewDestination, Meta(examples=[_EXAMPLE])],
        answers={201: DestinationView},
        errors=(*_BODY_ERRORS, "not_found", "conflict"),
        handler=create_destination,
    ),
    Endpoint(
        method="GET",
        path=_PATH + "/{destinationId}",
        summary="One destination: state, last error, what was delivered and what waits",
        access="system",
        answers={200: DestinationView},
        errors=("not_found",),
        handler=get_destination,
    ),
    Endpoint(
        method="PATCH",
        path=_PATH + "/{destinationId}",
        summary="Disable or enable a destination, or change how it is reached",
        access="system",
        body=ChangedDestination,
        answers={200: DestinationView},
        errors=(*_BODY_ERRORS, "not_found", "conflict"),
        handler=change_destination,
    ),
    Endpoint(
        method="DELETE",
        path=_PATH + "/{destinationId}",
        summary="Deliver nothing there any more",
        access="system",
        answers={200: RemovedDestination},
        errors=("not_found", "conflict"),
        handler=remove_destination,
    ),
]
