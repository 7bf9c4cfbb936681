"""Jobs that count whole days of roll-ups again: the daily one, and those that are asked for here."""

from datetime import date, datetime
from typing import Annotated

import msgspec
from msgspec import Meta

from gateway.answers import Answer, json_answer
from gateway.endpoint import Call, Endpoint
from gateway.errors import ApiError
from storage.batch_jobs import Job, Kind, Request, State

Limit = Annotated[int, Meta(ge=1, le=1000, description="most jobs, the newest first")]
Day = Annotated[date, Meta(description="day in UTC")]


class BatchQuery(msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    limit: Limit = 20


class NewJob(msgspec.Struct, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """From `firstDay` to `lastDay`, both included; without them every day that holds events. With `dryRun` differences
    are counted and nothing is written."""

    first_day: Day | None = None
    last_day: Day | None = None
    project_id: str | None = None
    metric: Annotated[str | None, Meta(description="only days not counted with it yet; needs projectId")] = None
    dry_run: bool = False


class ProgressView(msgspec.Struct, rename="camel"):
    """Days are those of projects: two projects on one day are two. `daysSuperseded`: somebody began to count them
    later. `daysOpen`: left out, because late events may still change their windows. `rowsChanged`: roll-ups that were
    not there, were otherwise, or are no more. `seconds` of all workers together."""

    days: int
    days_left: int
    days_superseded: int
    days_failed: int
    days_open: int
    projects: int
    events: int
    rows: int
    rows_changed: int
    seconds: float
    errors: Annotated[list[str], Meta(description="what days wait for, or failed by")]


class JobView(msgspec.Struct, rename="camel"):
    """`incomplete`: some days could not be counted; the next daily job has them again."""

    job_id: int
    kind: Kind
    state: State
    daily: date | None
    first_day: date | None
    last_day: date | None
    project_id: str | None
    metric: str | None
    dry_run: bool
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    progress: ProgressView


class Jobs(msgspec.Struct, rename="camel"):
    """`runAt`: when the daily job is due, UTC; null when it is turned off."""

    run_at: str | None
    jobs: list[JobView]


class AskedJob(msgspec.Struct, rename="camel"):
    """It is begun within some seconds, one job after the other: GET /v1/batch shows it."""

    job_id: int


def _view(job: Job) -> JobView:
    request, progress = job.request, job.progress
    return JobView(
        job_id=job.job_id,
        kind=request.kind,
        state=job.state,
        daily=request.daily,
        first_day=request.first_day,
        last_day=request.last_day,
        project_id=request.project_id,
        metric=request.metric,
        dry_run=request.dry_run,
        created_at=job.created_at,
        started_at=job.started_at,
        ended_at=job.ended_at,
        progress=ProgressView(*progress[:-1], list(progress.errors)),
    )


async def list_jobs(call: Call) -> Answer:
    batch = call.services.batch
    jobs = await batch.jobs.jobs(limit=call.query.limit)
    run_at = batch.settings.run_at if batch.settings.enabled else None
    return json_answer(Jobs(run_at, [_view(job) for job in jobs]))


async def ask_job(call: Call) -> Answer:
    body: NewJob = call.body
    if not call.services.statistics.settings.enabled:
        message = "Without windows there are no roll-ups: metrics are counted from stored events."
        raise ApiError("conflict", message)
    if body.metric is not None and body.project_id is None:
        raise ApiError("invalid_body", "A metric is one of a project: name it.", pointer="/projectId")
    if body.first_day is not None and body.last_day is not None and body.first_day > body.last_day:
        raise ApiError("invalid_body", "firstDay is after lastDay.", pointer="/firstDay")
    project_id = await call.optional_project(body.project_id)
    await _check_metric(call, body)
    request = Request(
        "command" if body.metric is None else "backfill",
        first_day=body.first_day,
        last_day=body.last_day,
        project_id=project_id,
        metric=body.metric,
        dry_run=body.dry_run,
    )
    job_id = await call.services.batch.jobs.ask(request)
    assert job_id is not None, "only daily jobs are there once"
    return json_answer(AskedJob(job_id), status=202)


async def _check_metric(call: Call, body: NewJob) -> None:
    if body.metric is None or body.project_id is None:
        return
    definitions = call.services.statistics.definitions
    definitions.forget(body.project_id)
    if body.metric not in await definitions.of(body.project_id):
        raise ApiError("not_found", "The project has no metric of this name.", pointer="/metric")


ENDPOINTS = [
    Endpoint(
        method="GET",
        path="/v1/batch",
        summary="Jobs that count days of roll-ups again, and what they found",
        access="system",
        query=BatchQuery,
        answers={200: Jobs},
        errors=("invalid_parameter",),
        handler=list_jobs,
    ),
    Endpoint(
        method="POST",
        path="/v1/batch",
        summary="Count days of roll-ups again from all stored events",
        access="system",
        body=NewJob,
        answers={202: AskedJob},
        errors=("invalid_json", "invalid_body", "body_too_large", "conflict", "not_found"),
        handler=ask_job,
    ),
]
