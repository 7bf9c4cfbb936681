"""Keys: made, listed, revoked. An admin key of a project reaches that project's keys alone."""

from datetime import datetime
from typing import Annotated

import msgspec
from msgspec import Meta

from gateway.answers import Answer, json_answer
from gateway.endpoint import Call, Endpoint, ProjectQuery
from gateway.errors import ApiError
from gateway.routes.projects import ExpiresInSeconds, MadeKey, PageLimit, expiry
from storage.key_text import KeyKind
from storage.registry import KeyRecord


class NewKeyBody(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    """`projectId` may be left out with a project's own admin key. An admin key without it is the system's."""

    kind: KeyKind
    project_id: str | None = None
    expires_in_seconds: ExpiresInSeconds | None = None


class KeyView(msgspec.Struct, rename="camel"):
    """A key without its text, which nobody knows but its holder."""

    key_id: str
    project_id: str | None
    kind: KeyKind
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None


class KeysQuery(ProjectQuery, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    limit: PageLimit = 100
    after: Annotated[str | None, Meta(description="`next` of the page before")] = None


class Keys(msgspec.Struct, rename="camel", omit_defaults=True):
    """A page, oldest first; with `next` there may be more."""

    keys: list[KeyView]
    next: str | None = None


class RevokedKey(msgspec.Struct, rename="camel"):
    """Every gateway refuses the key after at most `effectiveWithinSeconds`."""

    key_id: str
    revoked_at: datetime | None
    effective_within_seconds: float


async def create_key(call: Call) -> Answer:
    wanted: NewKeyBody = call.body
    project_id = await call.optional_project(wanted.project_id)
    if project_id is None and wanted.kind != "admin":
        raise ApiError("invalid_body", f"A {wanted.kind} key needs a projectId.", pointer="/projectId")
    expires_at = expiry(wanted.expires_in_seconds)
    made = await call.services.registry.create_key(project_id, wanted.kind, expires_at=expires_at)
    return json_answer(MadeKey(wanted.kind, made.key_id, made.key), status=201)


async def list_keys(call: Call) -> Answer:
    query: KeysQuery = call.query
    project_id = await call.optional_project(query.project_id)
    try:
        records = await call.services.registry.list_keys(project_id, limit=query.limit, after=query.after)
    except ValueError as error:
        raise ApiError("invalid_parameter", "after is no key id.", pointer="/after") from error
    after = records[-1].key_id if len(records) == query.limit else None
    return json_answer(Keys([_view(record) for record in records], after))


async def revoke_key(call: Call) -> Answer:
    key_id = call.request.path_params["keyId"]
    record = await call.services.registry.revoke_key(key_id, project_id=call.caller.project_id)
    return json_answer(RevokedKey(record.key_id, record.revoked_at, call.services.settings.key_refresh_s))


def _view(record: KeyRecord) -> KeyView:
    return KeyView(
        record.key_id, record.project_id, record.kind, record.created_at, record.expires_at, record.revoked_at
    )


ENDPOINTS = [
    Endpoint(
        method="GET",
        path="/v1/keys",
        summary="List keys",
        access="admin",
        query=KeysQuery,
        answers={200: Keys},
        errors=("invalid_parameter", "project_mismatch", "not_found"),
        handler=list_keys,
    ),
    Endpoint(
        method="POST",
        path="/v1/keys",
        summary="Make a key",
        access="admin",
        body=NewKeyBody,
        answers={201: MadeKey},
        errors=("invalid_json", "invalid_body", "not_found", "project_mismatch", "body_too_large"),
        handler=create_key,
    ),
    Endpoint(
        method="DELETE",
        path="/v1/keys/{keyId}",
        summary="Revoke a key",
        access="admin",
        answers={200: RevokedKey},
        errors=("not_found",),
        handler=revoke_key,
    ),
]
