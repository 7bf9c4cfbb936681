"""How long a project's events and roll-ups are kept, set by whoever holds the system's admin key."""

from datetime import datetime
from typing import Annotated

import msgspec
from msgspec import Meta

from analytics_actors.retention.policy import Policy
from gateway.answers import Answer, json_answer
from gateway.endpoint import Call, Endpoint
from gateway.errors import ApiError
from storage.retention import ProjectLimits

_PATH = "/v1/projects/{projectId}/retention"
Days = Annotated[int, Meta(ge=0, le=36500, description="0 is for ever")]


class RetentionLimits(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    """The project's own limits, in days; those that are left out are the settings'. `rawDays`: events in PostgreSQL,
    after their export; `lakeDays`: in the lake, after they happened or were exported; `rollupDays`: of metrics."""

    raw_days: Days | None = None
    lake_days: Days | None = None
    rollup_days: Days | None = None


class EffectiveLimits(msgspec.Struct, rename="camel"):
    """What holds for the project. Without a lake `rawDays` counts from when an event was stored."""

    raw_days: int
    lake_days: int | None
    rollup_days: int


class RetentionView(msgspec.Struct, rename="camel", omit_defaults=True):
    """`own` are the project's limits, `effective` what holds. Events that were stored before `historyBegins` may be
    gone from PostgreSQL."""

    project_id: str
    own: RetentionLimits
    effective: EffectiveLimits
    history_begins: datetime | None = None


async def show(call: Call) -> Answer:
    return json_answer(await _view(call, await call.project(call.request.path_params["projectId"])))


async def change(call: Call) -> Answer:
    project_id = await call.project(call.request.path_params["projectId"])
    limits = ProjectLimits(*msgspec.structs.astuple(call.body))
    contradictions = call.services.retention.policy({project_id: limits}).contradictions(project_id, limits)
    if contradictions:
        raise ApiError("invalid_body", f"{contradictions[0]}.", hint="What is in PostgreSQL is in the lake as well.")
    await call.services.retention.store.set_limits(project_id, limits)
    return json_answer(await _view(call, project_id))


async def clear(call: Call) -> Answer:
    project_id = await call.project(call.request.path_params["projectId"])
    await call.services.retention.store.clear_limits(project_id)
    return json_answer(await _view(call, project_id))


async def _view(call: Call, project_id: str) -> RetentionView:
    store = call.services.retention.store
    own = (await store.limits()).get(project_id, ProjectLimits())
    policy = call.services.retention.policy({project_id: own})
    return RetentionView(
        project_id, RetentionLimits(*own), _effective(policy, project_id), await store.stored_before(project_id)
    )


def _effective(policy: Policy, project_id: str) -> EffectiveLimits:
    own = policy.limits[project_id]
    raw = policy.raw_of(project_id)
    return EffectiveLimits(
        raw.after_export if policy.with_lake else raw.after_storing,
        None if not policy.with_lake else policy.lake_days if own.lake_days is None else own.lake_days,
        policy.settings.rollup_days if own.rollup_days is None else own.rollup_days,
    )


ENDPOINTS = [
    Endpoint(
        method="GET",
        path=_PATH,
        summary="How long a project's data is kept",
        access="admin",
        answers={200: RetentionView},
        errors=("project_mismatch", "not_found"),
        handler=show,
    ),
    Endpoint(
        method="PUT",
        path=_PATH,
        summary="Give a project limits of its own",
        access="system",
        body=RetentionLimits,
        answers={200: RetentionView},
        errors=("invalid_json", "invalid_body", "not_found", "body_too_large"),
        handler=change,
    ),
    Endpoint(
        method="DELETE",
        path=_PATH,
        summary="Let the settings' limits hold for a project",
        access="system",
        answers={200: RetentionView},
        errors=("not_found",),
        handler=clear,
    ),
]
