"""What was detected in a project's metrics, and the secret that its webhooks are signed with."""

from datetime import datetime
from typing import Annotated

import msgspec
from msgspec import Meta

from analytics_actors.patterns.view import PatternView, fields_of
from analytics_actors.webhook import secret_text
from gateway.answers import Answer, json_answer
from gateway.endpoint import Call, Endpoint, ProjectQuery
from gateway.errors import ApiError
from gateway.routes.projects import PageLimit
from storage.pattern_store import InvalidPatternCursor, StoredPattern
from storage.patterns import Delivery, Kind

Time = Annotated[datetime, Meta(tz=True, description="RFC 3339 with Z or an offset, or Unix time in seconds")]


class PatternsQuery(ProjectQuery, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """`since` <= begin of the window < `until`"""

    metric: str | None = None
    kind: Annotated[Kind, Meta(description="an anomaly is what is neither spike nor drop")] | None = None
    since: Time | None = None
    until: Time | None = None
    limit: PageLimit = 100
    cursor: Annotated[str, Meta(description="nextCursor of the page before")] | None = None


class WebhookView(msgspec.Struct, rename="camel"):
    """How the delivery stands; `lastError` is why the last attempt failed."""

    state: Delivery
    attempts: int
    delivered_at: datetime | None
    last_error: str | None


class DetectedPattern(PatternView, rename="camel", kw_only=True):
    """A pattern, and the delivery of its webhook."""

    webhook: WebhookView


class Patterns(msgspec.Struct, rename="camel", omit_defaults=True):
    """A page, the newest windows first. `nextCursor` leads to the next."""

    patterns: list[DetectedPattern]
    next_cursor: str | None = None


class WebhookSecret(msgspec.Struct):
    """As libraries for Standard Webhooks take it."""

    secret: str


async def list_patterns(call: Call) -> Answer:
    query: PatternsQuery = call.query
    try:
        page = await call.services.patterns.list_patterns(
            await call.project(query.project_id),
            metric=query.metric,
            kind=query.kind,
            since=query.since,
            until=query.until,
            limit=query.limit,
            cursor=query.cursor,
        )
    except InvalidPatternCursor as error:
        raise ApiError("invalid_parameter", f"{error}.", pointer="/cursor") from error
    return json_answer(Patterns([_view(stored) for stored in page.patterns], page.next_cursor))


async def show_secret(call: Call) -> Answer:
    secret = await call.services.patterns.signing_secret(await call.project(call.query.project_id))
    return json_answer(WebhookSecret(secret_text(secret)))


async def replace_secret(call: Call) -> Answer:
    secret = await call.services.patterns.replace_secret(await call.project(call.query.project_id))
    return json_answer(WebhookSecret(secret_text(secret)), status=201)


def _view(stored: StoredPattern) -> DetectedPattern:
    webhook = WebhookView(stored.delivery, stored.attempts, stored.delivered_at, stored.last_error)
    return DetectedPattern(webhook=webhook, **fields_of(stored.detection))


ENDPOINTS = [
    Endpoint(
        method="GET",
        path="/v1/patterns",
        summary="Spikes, drops, anomalies and trends that were detected",
        access="read",
        query=PatternsQuery,
        answers={200: Patterns},
        errors=("invalid_parameter", "project_mismatch", "not_found"),
        handler=list_patterns,
    ),
    Endpoint(
        method="GET",
        path="/v1/patterns/webhook-secret",
        summary="The secret that webhooks are signed with, made when first asked for",
        access="admin",
        query=ProjectQuery,
        answers={200: WebhookSecret},
        errors=("invalid_parameter", "project_mismatch", "not_found"),
        handler=show_secret,
    ),
    Endpoint(
        method="POST",
        path="/v1/patterns/webhook-secret",
        summary="Replace the secret that webhooks are signed with",
        access="admin",
        query=ProjectQuery,
        answers={201: WebhookSecret},
        errors=("invalid_parameter", "project_mismatch", "not_found"),
        handler=replace_secret,
    ),
]
