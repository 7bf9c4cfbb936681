"""The metrics of a project: defined, replaced, deleted, counted for the past.

A metric counts from its definition on, and the last hours before it; a backfill counts what is stored of the time
before. It goes day by day, for all metrics of the project together: `daysLeft` is how many are still to be done.
"""

from datetime import datetime
from typing import Annotated

import msgspec
from msgspec import Meta
from yarl import URL

from analytics_actors.webhook_hosts import Refused, WebhookHosts
from gateway.answers import Answer, json_answer
from gateway.endpoint import Call, Endpoint, ProjectQuery
from gateway.errors import ApiError
from gateway.metric_definitions import MAX_OWN, Known
from storage.metric_definitions import MetricDefinition, validate
from storage.metric_registry import StoredDefinition
from storage.patterns import PatternSettings, check_pattern_settings

_EXAMPLE = {
    "name": "checkout_value",
    "aggregation": "sum",
    "eventTypes": ["purchase"],
    "property": "properties.amount",
    "dimensions": ["country", "device=context.device.type"],
    "filters": [{"path": "properties.test", "op": "ne", "value": True}],
}


class DefinitionBody(MetricDefinition, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """A metric, and with the system's admin key the project (which may be a parameter of the URL instead)."""

    project_id: str | None = None


class DefinitionView(msgspec.Struct, rename="camel", kw_only=True):
    """A metric. Those that are built in have no version and no time; one of the project's own may take their name."""

    definition: MetricDefinition
    dimension_names: Annotated[list[str], Meta(description="by which answers can be grouped and filtered")]
    built_in: bool
    version: int | None
    created_at: datetime | None


class Definitions(msgspec.Struct, rename="camel"):
    """All metrics of a project by name. `daysLeft`: days that are still to be counted, of a backfill or for late
    events."""

    project_id: str
    definitions: list[DefinitionView]
    days_left: int


class DefinitionDetail(DefinitionView, rename="camel", kw_only=True):
    """A metric, and how many days of its project are still to be counted."""

    days_left: int


class Backfill(msgspec.Struct, rename="camel"):
    """What a backfill has begun: every day that holds events of the project; null while they are being found. GET the
    definition to see it go on."""

    name: str
    days_marked: int | None
    days_left: int


class DeletedDefinition(msgspec.Struct):
    """The metric that there is no more."""

    name: str


def _known_of(stored: StoredDefinition) -> Known:
    return Known(stored.definition, stored.definition, stored.version, stored.created_at)


def _view(known: Known) -> DefinitionView:
    return DefinitionView(
        definition=known.definition,
        dimension_names=list(known.definition.dimension_names),
        built_in=known.created_at is None,
        version=known.version or None,
        created_at=known.created_at,
    )


async def list_definitions(call: Call) -> Answer:
    project_id = await call.project(call.query.project_id)
    statistics = call.services.statistics
    found = await statistics.definitions.of(project_id)
    days_left = await _days_left(call, project_id)
    return json_answer(Definitions(project_id, [_view(found[name]) for name in sorted(found)], days_left))


async def get_definition(call: Call) -> Answer:
    project_id = await call.project(call.query.project_id)
    return await _detail(call, project_id, await _known(call, project_id))


async def create_definition(call: Call) -> Answer:
    project_id, definition = await _checked(call)
    statistics = call.services.statistics
    statistics.definitions.forget(project_id)
    known = await statistics.definitions.of(project_id)
    if sum(each.created_at is not None for each in known.values()) >= MAX_OWN:
        message = f"A project defines at most {MAX_OWN} metrics."
        raise ApiError("invalid_body", message, hint="Delete one that is not needed; one metric may have dimensions.")
    try:
        stored = await statistics.registry.create(project_id, definition)
    except ValueError as error:
        raise _invalid(error) from error
    statistics.definitions.changed(project_id)
    return await _detail(call, project_id, _known_of(stored), status=201)


async def replace_definition(call: Call) -> Answer:
    name = call.request.path_params["name"]
    body: DefinitionBody = call.body
    if body.name != name:
        raise ApiError("invalid_body", "The name is not that of the path.", pointer="/name")
    project_id, definition = await _checked(call)
    statistics = call.services.statistics
    try:
        stored = await statistics.registry.replace(project_id, definition)
    except ValueError as error:
        raise _invalid(error) from error
    statistics.definitions.changed(project_id)
    return await _detail(call, project_id, _known_of(stored))


async def delete_definition(call: Call) -> Answer:
    name = call.request.path_params["name"]
    project_id = await call.project(call.query.project_id)
    await call.services.statistics.registry.delete(project_id, name)
    call.services.statistics.definitions.changed(project_id)
    return json_answer(DeletedDefinition(name))


async def start_backfill(call: Call) -> Answer:
    project_id = await call.project(call.query.project_id)
    known = await _known(call, project_id)
    statistics = call.services.statistics
    marked = await statistics.backfills.start(project_id)
    days_left = await _days_left(call, project_id)
    return json_answer(Backfill(known.definition.name, marked, days_left), status=202)


async def _days_left(call: Call, project_id: str) -> int:
    """Of the marked ones, and of batch jobs under way."""
    services = call.services
    return await services.statistics.rollups.days_left(project_id) + await services.batch.jobs.days_left(project_id)


async def _known(call: Call, project_id: str) -> Known:
    name = call.request.path_params["name"]
    definitions = call.services.statistics.definitions
    known = (await definitions.of(project_id)).get(name)
    if known is None:
        # Another worker may have made it a moment ago.
        definitions.forget(project_id)
        known = (await definitions.of(project_id)).get(name)
    if known is None:
        raise ApiError("not_found", "There is no metric of this name.", hint="GET /v1/metrics-definitions lists them.")
    return known


async def _detail(call: Call, project_id: str, known: Known, *, status: int = 200) -> Answer:
    days_left = await _days_left(call, project_id)
    view = _view(known)
    fields = {name: getattr(view, name) for name in view.__struct_fields__}
    return json_answer(DefinitionDetail(days_left=days_left, **fields), status=status)


async def _checked(call: Call) -> tuple[str, MetricDefinition]:
    """The project and the definition of a body. Raises `ApiError` with what to change."""
    body: DefinitionBody = call.body
    if None not in (body.project_id, call.query.project_id) and body.project_id != call.query.project_id:
        raise ApiError("invalid_body", "The body names another project than the URL.", pointer="/projectId")
    project_id = await call.project(body.project_id or call.query.project_id)
    fields = {name: getattr(body, name) for name in MetricDefinition.__struct_fields__}
    definition = MetricDefinition(**fields)
    try:
        validate(definition)
    except ValueError as error:
        raise _invalid(error) from error
    _check_patterns(definition, call.services.statistics.settings.webhook_hosts)
    return project_id, definition


def _invalid(error: ValueError) -> ApiError:
    """What `storage.metric_definitions` says begins with the field."""
    field, _, _ = str(error).partition(":")
    pointer = "/" + field.replace("[", "/").replace("]", "")
    return ApiError("invalid_body", f"{error}.", pointer=pointer, hint=_HINT)


_HINT = "See /openapi.json for the form of a definition."


def _check_patterns(definition: MetricDefinition, webhook_hosts: list[str]) -> None:
    try:
        patterns = msgspec.convert(definition.patterns, PatternSettings)
        check_pattern_settings(patterns)
    except ValueError as error:
        raise ApiError("invalid_body", f"patterns: {error}.", pointer="/patterns", hint=_HINT) from error
    if not patterns.webhook_url:
        return
    try:
        WebhookHosts(webhook_hosts).check(URL(patterns.webhook_url))
    except (Refused, ValueError) as error:
        hint = "The operator lists the hosts that are allowed in the setting windows.webhook_hosts."
        raise ApiError("invalid_body", f"patterns: {error}.", pointer="/patterns/webhookUrl", hint=hint) from error


_BODY_ERRORS = ("invalid_json", "invalid_body", "invalid_parameter", "project_mismatch", "body_too_large")

ENDPOINTS = [
    Endpoint(
        method="GET",
        path="/v1/metrics-definitions",
        summary="List the metrics of a project",
        access="read",
        query=ProjectQuery,
        answers={200: Definitions},
        errors=("invalid_parameter", "project_mismatch", "not_found"),
        handler=list_definitions,
    ),
    Endpoint(
        method="POST",
        path="/v1/metrics-definitions",
        summary="Define a metric",
        access="admin",
        query=ProjectQuery,
        body=Annotated[DefinitionBody, Meta(examples=[_EXAMPLE])],
        answers={201: DefinitionDetail},
        errors=(*_BODY_ERRORS, "conflict", "not_found"),
        handler=create_definition,
    ),
    Endpoint(
        method="GET",
        path="/v1/metrics-definitions/{name}",
        summary="One metric, and the progress of its project's backfill",
        access="read",
        query=ProjectQuery,
        answers={200: DefinitionDetail},
        errors=("invalid_parameter", "project_mismatch", "not_found"),
        handler=get_definition,
    ),
    Endpoint(
        method="PUT",
        path="/v1/metrics-definitions/{name}",
        summary="Replace a metric's definition",
        access="admin",
        query=ProjectQuery,
        body=DefinitionBody,
        answers={200: DefinitionDetail},
        errors=(*_BODY_ERRORS, "not_found"),
        handler=replace_definition,
    ),
    Endpoint(
        method="DELETE",
        path="/v1/metrics-definitions/{name}",
        summary="Delete a metric; what was counted stays until it is recomputed",
        access="admin",
        query=ProjectQuery,
        answers={200: DeletedDefinition},
        errors=("invalid_parameter", "project_mismatch", "not_found"),
        handler=delete_definition,
    ),
    Endpoint(
        method="POST",
        path="/v1/metrics-definitions/{name}/backfill",
        summary="Count a metric for the time before its definition, from stored events",
        access="admin",
        query=ProjectQuery,
        answers={202: Backfill},
        errors=("invalid_parameter", "project_mismatch", "not_found"),
        handler=start_backfill,
    ),
]
