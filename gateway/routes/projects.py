"""Projects: made and listed by whoever holds the system's admin key."""

from datetime import UTC, datetime, timedelta
from typing import Annotated

import msgspec
from msgspec import Meta

from gateway.answers import Answer, json_answer
from gateway.endpoint import Call, Endpoint
from gateway.errors import ApiError
from storage.key_text import KeyKind
from storage.registry import Project, check_client_id

PageLimit = Annotated[int, Meta(ge=1, le=1000, description="most entries in the answer")]
ExpiresInSeconds = Annotated[float, Meta(gt=0, le=10 * 366 * 86400, description="the key stops working then")]


class ProjectView(msgspec.Struct, rename="camel"):
    project_id: str
    client_id: Annotated[str, Meta(description="of whom it is; its own id unless it was given to a client")]
    created_at: datetime


class MadeKey(msgspec.Struct, rename="camel"):
    """A new key. `key` is shown this once: only its hash is kept."""

    kind: KeyKind
    key_id: str
    key: str


class NewProject(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    """`keys` are made with the project. A client may have several projects."""

    project_id: Annotated[str, Meta(description="1 to 100 letters, digits, '.', '_', '-'; the first no sign")]
    keys: Annotated[list[KeyKind], Meta(max_length=10)] = []
    expires_in_seconds: ExpiresInSeconds | None = None
    client_id: Annotated[str, Meta(description="as a project id")] | None = None


class ChangedProject(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    """From now on the project's events are the client's: destinations of the former one get what was stored before."""

    client_id: Annotated[str, Meta(description="as a project id")]


class ChangedClient(msgspec.Struct, rename="camel"):
    project_id: str
    client_id: str


class MadeProject(msgspec.Struct, rename="camel"):
    project_id: str
    client_id: str
    created_at: datetime
    keys: list[MadeKey]


class ProjectsQuery(msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    limit: PageLimit = 100
    after: Annotated[str, Meta(description="`next` of the page before")] = ""


class Projects(msgspec.Struct, rename="camel", omit_defaults=True):
    """A page, by name; with `next` there may be more."""

    projects: list[ProjectView]
    next: str | None = None


def expiry(expires_in_seconds: float | None) -> datetime | None:
    return None if expires_in_seconds is None else datetime.now(UTC) + timedelta(seconds=expires_in_seconds)


async def create_project(call: Call) -> Answer:
    wanted: NewProject = call.body
    registry = call.services.registry
    try:
        if wanted.client_id is not None:
            check_client_id(wanted.client_id)
    except ValueError as error:
        raise ApiError("invalid_body", f"{error}.", pointer="/clientId") from error
    try:
        project = await registry.create_project(wanted.project_id, client_id=wanted.client_id)
    except ValueError as error:
        raise ApiError("invalid_body", f"{error}.", pointer="/projectId") from error
    expires_at = expiry(wanted.expires_in_seconds)
    keys = []
    for kind in wanted.keys:
        made = await registry.create_key(project.project_id, kind, expires_at=expires_at)
        keys.append(MadeKey(kind, made.key_id, made.key))
    return json_answer(MadeProject(project.project_id, project.client_id, project.created_at, keys), status=201)


async def change_project(call: Call) -> Answer:
    wanted: ChangedProject = call.body
    project_id = call.request.path_params["projectId"]
    try:
        await call.services.lake.destinations.set_client(project_id, wanted.client_id)
    except ValueError as error:
        raise ApiError("invalid_body", f"{error}.", pointer="/clientId") from error
    return json_answer(ChangedClient(project_id, wanted.client_id))


async def list_projects(call: Call) -> Answer:
    query: ProjectsQuery = call.query
    try:
        projects = await call.services.registry.list_projects(limit=query.limit, after=query.after)
    except ValueError as error:
        raise ApiError("invalid_parameter", f"{error}.", pointer="/after") from error
    after = projects[-1].project_id if len(projects) == query.limit else None
    return json_answer(Projects([_view(project) for project in projects], after))


def _view(project: Project) -> ProjectView:
    return ProjectView(project.project_id, project.client_id, project.created_at)


ENDPOINTS = [
    Endpoint(
        method="GET",
        path="/v1/projects",
        summary="List projects",
        access="system",
        query=ProjectsQuery,
        answers={200: Projects},
        errors=("invalid_parameter",),
        handler=list_projects,
    ),
    Endpoint(
        method="POST",
        path="/v1/projects",
        summary="Create a project, and keys for it if wanted",
        access="system",
        body=NewProject,
        answers={201: MadeProject},
        errors=("invalid_json", "invalid_body", "conflict", "body_too_large"),
        handler=create_project,
    ),
    Endpoint(
        method="PATCH",
        path="/v1/projects/{projectId}",
        summary="Give a project to a client",
        access="system",
        body=ChangedProject,
        answers={200: ChangedClient},
        errors=("invalid_json", "invalid_body", "body_too_large", "not_found"),
        handler=change_project,
    ),
]
