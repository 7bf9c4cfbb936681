"""The Ray task of a batch job: a process of its own that counts pieces again for a while, and ends.

So what it takes of memory is there while a job runs, and its end, whatever the reason, ends nothing else."""

import asyncio
import os
from typing import Any

import ray
from ray.exceptions import RayError

from analytics_actors.batch.worker import BatchWorker
from analytics_actors.lake.crash import crash_point
from analytics_actors.windows.definition_book import DefinitionBook
from analytics_actors.windows.recount import Recount
from analytics_actors.windows.sources import in_thread
from config import logs
from config.settings import Settings
from storage.metric_registry import MetricRegistry
from storage.past_events import open_past_events
from storage.postgres import Postgres
from storage.postgres_batch_jobs import PostgresBatchJobs
from storage.postgres_rollups import PostgresRollups

NAME = "batch"
NICE = 10
"""It may wait for everything else on the machine."""
CONNECTIONS = 3
"""To PostgreSQL: what is read, what is written, and the job."""
CRASH_FILE = "BATCH_CRASH_FILE"
"""For tests, in the environment: see `analytics_actors.lake.crash`."""

RESULT_DEADLINE_S = 5.0
"""It is there already; what went with its machine meanwhile is a task that has failed."""

TASK_OPTIONS: dict[str, Any] = {
    "num_cpus": 0,
    # The driver starts another: it knows what is left to do.
    "max_retries": 0,
    # The process ends with its task.
    "max_calls": 1,
    "enable_task_events": False,
}


def count_pieces(settings_json: bytes, job_id: int, worker: str) -> int:
    """How many were counted."""
    settings = Settings.from_json(settings_json)
    logs.configure(NAME)
    os.nice(NICE)
    return asyncio.run(_count_pieces(settings, job_id, worker))


async def _count_pieces(settings: Settings, job_id: int, worker: str) -> int:
    owner = f"{NAME}-{worker[:12]}"
    postgres = Postgres(
        settings.store.postgres_url,
        owner=owner,
        pool_size=CONNECTIONS,
        deadline_s=settings.store.write_timeout_seconds,
        connect_timeout_s=settings.store.connect_timeout_s,
    )
    book = DefinitionBook(MetricRegistry(postgres), settings.windows)
    rollups = PostgresRollups(postgres, partitions=settings.log.partitions, aggregation_of=book.aggregation)
    past, files = open_past_events(settings, postgres, prefer="lake")
    recount = Recount(past, rollups, book, settings=settings.windows, compute=in_thread)
    counting = BatchWorker(PostgresBatchJobs(postgres), recount, book.refresh, reached=crash_point(CRASH_FILE))
    try:
        return await counting.run(job_id, worker, budget_s=settings.batch.task_budget_s)
    finally:
        if files is not None:
            await files.close()
        await postgres.close()


class RayWorkers:
    """`analytics_actors.batch.driver.Workers` of Ray tasks; within a process that has joined the cluster."""

    def __init__(self, settings: Settings) -> None:
        self._settings_json = settings.to_json()
        self._task = ray.remote(**TASK_OPTIONS)(count_pieces)

    def start(self, job_id: int, worker: str) -> "RayWorker":
        return RayWorker(self._task.remote(self._settings_json, job_id, worker))


class RayWorker:
    def __init__(self, reference: Any) -> None:
        self._reference = reference

    def ended(self) -> str | None:
        done, _ = ray.wait([self._reference], timeout=0)
        if not done:
            return None
        try:
            ray.get(self._reference, timeout=RESULT_DEADLINE_S)
        except RayError as error:
            return str(error).strip() or type(error).__name__
        return ""

    def kill(self) -> None:
        ray.cancel(self._reference, force=True)
