"""The services of windowed metrics in one worker: put together here, closed by the stack that is given."""

from contextlib import AsyncExitStack
from pathlib import Path

import msgspec

from config.settings import Settings
from gateway.answer_cache import AnswerCache
from gateway.counted_offsets import CountedOffsets
from gateway.metric_definitions import Backfills, Changes, Definitions
from gateway.metric_reader import MetricReader
from gateway.metric_stream import MetricStreams
from gateway.services import Statistics
from gateway.supervisor import COUNTED_OFFSETS, DEFINITION_CHANGES
from storage.answer_cache import RedisAnswers
from storage.metric_reads import MetricReads
from storage.metric_registry import MetricRegistry
from storage.past_events import open_past_events
from storage.postgres import Postgres
from storage.postgres_rollups import PostgresRollups
from storage.redis_windows import RedisWindows

WINDOWS_TIMEOUT_S = 1.0
"""Windows that do not answer by then are gone without: the answer has other sources."""

CACHE_TIMEOUT_S = 0.25
"""Answers take some ten milliseconds to make."""


def open_statistics(settings: Settings, postgres: Postgres, stack: AsyncExitStack, *, worker: int) -> Statistics:
    """Connects to nothing yet. PostgreSQL's connections are shared with the other read routes."""
    partitions = settings.log.partitions
    max_ahead_s = settings.gateway.max_event_ahead_s
    timeout_s = min(WINDOWS_TIMEOUT_S, settings.log.command_timeout_s)
    hurried = msgspec.structs.replace(settings, log=msgspec.structs.replace(settings.log, command_timeout_s=timeout_s))
    windows = RedisWindows(settings.log.redis_url, hurried, owner=f"gateway-{worker}")
    stack.push_async_callback(windows.close)
    answers = RedisAnswers(settings.log.redis_url, timeout_s=CACHE_TIMEOUT_S)
    stack.push_async_callback(answers.close)
    rollups = PostgresRollups(postgres, partitions=partitions)
    reads = MetricReads(postgres)
    cache = AnswerCache(answers, reads, ttl_s=settings.windows.cache_ttl_s)
    stack.push_async_callback(cache.close)
    backfills = Backfills(rollups)
    stack.push_async_callback(backfills.close)
    past, files = open_past_events(settings, postgres)
    if files is not None:
        stack.push_async_callback(files.close)
    registry = MetricRegistry(postgres)
    folder = Path(settings.spool.directory or Path(settings.data) / "gateway")
    workers = settings.gateway.workers
    counted = CountedOffsets(folder / COUNTED_OFFSETS, worker=worker, workers=workers, partitions=partitions)
    changes = Changes(folder / DEFINITION_CHANGES, worker=worker, workers=workers)
    return Statistics(
        settings=settings.windows,
        definitions=Definitions(registry, settings.windows, changes=changes),
        registry=registry,
        rollups=rollups,
        backfills=backfills,
        reader=MetricReader(
            settings.windows,
            windows,
            rollups,
            past,
            reads,
            reads,
            partitions=partitions,
            max_ahead_s=max_ahead_s,
            rollup_days=settings.retention.rollup_days,
            counted=counted,
        ),
        answers=cache,
        streams=MetricStreams(),
    )
