"""The Ray actor around `Exporter`; see `analytics_actors.actors`, whose way with calls and restarts it follows."""

import logging
import uuid
from pathlib import Path
from typing import Any

import msgspec
import ray

from analytics_actors.background import end_if_failed
from analytics_actors.exporter import Exporter
from analytics_actors.lake.crash import crash_point
from analytics_actors.messages import ExporterView, exporter_name
from analytics_actors.resting import rest_between_calls
from analytics_actors.ring import HashRing
from config import logs
from config.garbage import collect_seldom
from config.settings import Settings
from storage.folded_events import PostgresFolded
from storage.log_tail import LogTail
from storage.object_store import open_object_store
from storage.postgres import Postgres
from storage.postgres_lake_listing import PostgresLakeListing
from storage.postgres_manifest import PostgresManifest
from storage.stored_log import PostgresStoredLog

CONNECTIONS = 2
"""To PostgreSQL: what is done next, and how far the event store is meanwhile."""

CRASH_FILE = "EXPORTER_CRASH_FILE"
"""For tests, in the environment: see `analytics_actors.lake.crash`."""

_log = logging.getLogger(__name__)


class ExporterActor:
    """`Exporter` of one shard. It takes no events: it follows the event store and reads the log."""

    def __init__(self, shard: int, settings_json: bytes) -> None:
        self._shard = shard
        self._settings = Settings.from_json(settings_json)
        logs.configure(exporter_name(shard))
        self._exporter: Exporter | None = None

    def __repr__(self) -> str:
        return f"Exporter(shard={self._shard})"

    async def ready(self) -> bool:
        """Start if need be; whether the partitions are claimed."""
        if self._exporter is None:
            try:
                self._exporter = self._start()
            except Exception as error:
                _log.error("the exporter could not be started", exc_info=error, extra={"action": "open_failed"})
                raise
        return self._exporter.ready

    async def drain(self, deadline_s: float) -> bool:
        return self._exporter is None or await self._exporter.drain(deadline_s=deadline_s)

    @ray.method(concurrency_group="control")
    async def observe(self) -> bytes:
        """An encoded `ExporterView`; empty while the actor is starting. One that has failed ends instead."""
        if self._exporter is None:
            return b""
        end_if_failed(self._exporter.failure, "the exporter")
        return msgspec.msgpack.encode(self._exporter.observe())

    def _start(self) -> Exporter:
        settings = self._settings
        ring = HashRing(range(settings.actors.shards), partitions=settings.log.partitions)
        postgres = Postgres(
            settings.store.postgres_url,
            # Of this incarnation alone, as for the batcher.
            owner=f"{exporter_name(self._shard)}-{uuid.uuid4().hex[:12]}",
            pool_size=CONNECTIONS,
            deadline_s=settings.store.write_timeout_seconds,
            connect_timeout_s=settings.store.connect_timeout_s,
        )
        exporter = Exporter(
            self._shard,
            ring.partitions_of(self._shard),
            tail=LogTail(settings.log.redis_url, settings.log),
            stored=PostgresStoredLog(postgres),
            folded=PostgresFolded(postgres),
            pending=PostgresLakeListing(postgres).pending,
            manifest=PostgresManifest(postgres, write_timeout_s=settings.store.write_timeout_seconds),
            objects=open_object_store(settings.lake, data=Path(settings.data)),
            settings=settings.lake,
            reached=crash_point(CRASH_FILE),
        )
        exporter.start()
        collect_seldom()
        rest_between_calls()
        return exporter


def decode_view(raw: bytes) -> ExporterView | None:
    return msgspec.msgpack.decode(raw, type=ExporterView) if raw else None


EXPORTER_OPTIONS: dict[str, Any] = {
    "num_cpus": 0,
    "max_restarts": -1,
    "max_task_retries": 0,
    "concurrency_groups": {"control": 8},
    "enable_task_events": False,
}
