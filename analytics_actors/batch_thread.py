"""The thread of the controller that drives batch jobs.

The controller is there once in every system, with a lake or without, and nothing waits for this thread; an actor of
its own would take 80 MB the whole day for what is done in some minutes. What counts are Ray tasks (`batch_task.py`)."""

import asyncio
import logging
import threading
import uuid
from typing import Any

from ray.exceptions import RayError

from analytics_actors.batch.driver import STEP_S, BatchDriver
from analytics_actors.batch_task import RayWorkers
from analytics_actors.windows.definition_book import DefinitionBook
from analytics_actors.windows.stepping import step_forever
from config.settings import Settings
from storage.errors import Unavailable
from storage.metric_registry import MetricRegistry
from storage.postgres import Postgres
from storage.postgres_batch_jobs import PostgresBatchJobs

PAUSE_AFTER_FAILURE_S = 30.0

_log = logging.getLogger(__name__)


class BatchThread:
    """Ends with the process: whoever comes next goes on with the job that is open."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._driver: BatchDriver | None = None
        self._thread = threading.Thread(target=self._run, name="batch", daemon=True)
        self._thread.start()

    def observe(self) -> dict[str, Any] | None:
        return self._driver.observe() if self._driver else None

    def _run(self) -> None:
        asyncio.run(self._drive())

    async def _drive(self) -> None:
        settings = self._settings
        postgres = Postgres(
            settings.store.postgres_url,
            owner=f"batch-{uuid.uuid4().hex[:12]}",
            pool_size=1,
            deadline_s=settings.store.write_timeout_seconds,
            connect_timeout_s=settings.store.connect_timeout_s,
        )
        book = DefinitionBook(MetricRegistry(postgres), settings.windows)
        jobs, workers = PostgresBatchJobs(postgres), RayWorkers(settings)
        while True:
            driver = BatchDriver(jobs, workers, book, settings=settings.batch, windows=settings.windows)
            self._driver = driver

            async def step(driver: BatchDriver = driver) -> None:
                try:
                    await driver.step()
                except RayError as error:
                    raise Unavailable(f"Ray: {error}") from error

            try:
                await step_forever(step, driver.counters, "batch", pause_s=STEP_S)
            except Exception as error:
                _log.error("batch jobs are not driven for a while", exc_info=error, extra={"action": "batch_failed"})
                await asyncio.sleep(PAUSE_AFTER_FAILURE_S)
