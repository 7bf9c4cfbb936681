"""The Ray actor around `Aggregator`; see `analytics_actors.actors`, whose way with calls and restarts it follows."""

import logging
import uuid
from typing import Any

import msgspec
import ray

from analytics_actors.aggregator import Aggregator
from analytics_actors.background import end_if_failed
from analytics_actors.messages import AggregatorView, aggregator_name
from analytics_actors.patterns.watch import PatternWatch
from analytics_actors.resting import rest_between_calls
from analytics_actors.ring import HashRing
from analytics_actors.webhook import Webhooks
from analytics_actors.webhook_hosts import WebhookHosts
from analytics_actors.windows.definition_book import DefinitionBook
from config import logs
from config.garbage import collect_seldom
from config.heap import keep_freed_memory
from config.settings import Settings
from storage.event_columns import PostgresEventColumns
from storage.fingerprint import partition_of
from storage.log_tail import LogTail
from storage.metric_registry import MetricRegistry
from storage.past_events import open_past_events
from storage.pattern_store import PostgresPatterns
from storage.postgres import Postgres
from storage.postgres_rollups import PostgresRollups
from storage.postgres_store import PostgresStore
from storage.redis_log import RedisLog
from storage.redis_windows import RedisWindows
from storage.set_aside import PostgresSetAside

CONNECTIONS = 6
"""To PostgreSQL, beside one for checkpoints: roll-ups, a rebuild, a build, a recomputation, patterns and webhooks."""

_log = logging.getLogger(__name__)


class AggregatorActor:
    """`Aggregator` of one shard. It takes no events: it follows the log."""

    def __init__(self, shard: int, settings_json: bytes) -> None:
        self._shard = shard
        self._settings = Settings.from_json(settings_json)
        logs.configure(aggregator_name(shard))
        self._aggregator: Aggregator | None = None

    def __repr__(self) -> str:
        return f"Aggregator(shard={self._shard})"

    async def ready(self) -> bool:
        """Start if need be; whether every partition is followed."""
        if self._aggregator is None:
            try:
                self._aggregator = self._start()
            except Exception as error:
                _log.error("the aggregator could not be started", exc_info=error, extra={"action": "open_failed"})
                raise
        return self._aggregator.ready

    @ray.method(concurrency_group="control")
    async def observe(self) -> bytes:
        """An encoded `AggregatorView`; empty while the actor is starting. One that has failed ends instead."""
        if self._aggregator is None:
            return b""
        end_if_failed(self._aggregator.failure, "the aggregator")
        return msgspec.msgpack.encode(self._aggregator.observe())

    def _start(self) -> Aggregator:
        settings = self._settings
        ring = HashRing(range(settings.actors.shards), partitions=settings.log.partitions)
        # Of this incarnation alone, as for the batcher.
        owner = f"{aggregator_name(self._shard)}-{uuid.uuid4().hex[:12]}"
        partitions = ring.partitions_of(self._shard)
        postgres = Postgres(
            settings.store.postgres_url,
            owner=owner,
            pool_size=CONNECTIONS,
            deadline_s=settings.store.write_timeout_seconds,
            connect_timeout_s=settings.store.connect_timeout_s,
        )
        count = settings.log.partitions
        book = DefinitionBook(MetricRegistry(postgres), settings.windows)
        rollups = PostgresRollups(postgres, partitions=count, aggregation_of=book.aggregation)
        patterns = PostgresPatterns(postgres)
        hosts = WebhookHosts(settings.windows.webhook_hosts)
        past, _ = open_past_events(settings, postgres)
        webhooks = Webhooks(patterns, hosts, deadline_s=settings.windows.webhook_deadline_s)
        watch = PatternWatch(
            patterns,
            rollups,
            book.definition,
            owns=lambda project_id: partition_of(project_id, count) in partitions,
            close_after_s=settings.windows.close_after_s,
            on_found=lambda _: webhooks.wake(),
            webhooks=webhooks.observe,
        )
        aggregator = Aggregator(
            self._shard,
            partitions,
            tail=LogTail(settings.log.redis_url, settings.log),
            store=RedisWindows(settings.log.redis_url, settings, owner=owner),
            rollups=rollups,
            events=PostgresEventColumns(
                postgres, partitions=count, max_event_ahead_s=settings.gateway.max_event_ahead_s
            ),
            past=past,
            stored=PostgresStore(settings.store, owner=owner).checkpoints,
            log_states=RedisLog(settings.log.redis_url, settings.log, owner=owner).state,
            book=book,
            set_aside=PostgresSetAside(postgres),
            watch=watch,
            settings=settings,
        )
        aggregator.start(webhooks.run())
        collect_seldom()
        keep_freed_memory()
        rest_between_calls()
        return aggregator


def decode_view(raw: bytes) -> AggregatorView | None:
    return msgspec.msgpack.decode(raw, type=AggregatorView) if raw else None


AGGREGATOR_OPTIONS: dict[str, Any] = {
    "num_cpus": 0,
    "max_restarts": -1,
    "max_task_retries": 0,
    "concurrency_groups": {"control": 8},
    "enable_task_events": False,
}
