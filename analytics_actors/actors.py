"""The Ray actors: thin shells around plain classes, so that everything else is tested without Ray.

Batchers are async actors. Events reach them over connections of their own (`analytics_actors.append_stream`), whose
endpoint they tell; a `control` concurrency group of its own thread answers `observe` under load.
Constructor arguments are all that a restart by Ray has, so they say everything; the loops start with the
first call, since Ray runs the constructor outside of the event loop that serves the calls.
"""

import asyncio
import logging
import uuid
from functools import partial
from typing import Any

import msgspec
import ray

from analytics_actors.append_stream import APPEND, WAIT_STORED, AppendServer, Endpoint
from analytics_actors.background import end_if_failed
from analytics_actors.batcher import Batcher
from analytics_actors.event_folding import EventFolding
from analytics_actors.lake.progress import all_sinks, lake_progress
from analytics_actors.messages import BatcherView, batcher_name, encode_replies
from analytics_actors.resting import rest_between_calls
from analytics_actors.ring import HashRing
from analytics_actors.store_sink import OtherSinks
from analytics_actors.windows.progress import windows_progress
from config import logs
from config.garbage import collect_seldom
from config.heap import keep_freed_memory
from config.settings import Settings
from storage.aggregated import store_all
from storage.event_batch import decode_batches
from storage.lake_checkpoints import LakeCheckpoints
from storage.metric_registry import MetricRegistry
from storage.postgres import Postgres
from storage.postgres_store import PostgresStore
from storage.redis_log import RedisLog
from storage.redis_windows import RedisWindows
from storage.window_key import lateness_s

_wait_decoder = msgspec.msgpack.Decoder(tuple[int, int, float])

_log = logging.getLogger(__name__)


class BatcherActor:
    """`Batcher` of one shard. Every method takes and returns plain values or bytes, never client objects."""

    def __init__(self, shard: int, settings_json: bytes) -> None:
        self._shard = shard
        self._settings = Settings.from_json(settings_json)
        logs.configure(batcher_name(shard))
        self._batcher: Batcher | None = None
        self._started: asyncio.Task[Batcher] | None = None
        self._endpoint: Endpoint | None = None

    def __repr__(self) -> str:
        return f"Batcher(shard={self._shard})"

    async def endpoint(self) -> tuple[str, int, bytes]:
        """The fields of `Endpoint`: where appends are taken, once the partitions are open."""
        await self._start()
        assert self._endpoint is not None
        host, port, secret = self._endpoint
        return host, port, secret

    async def ready(self) -> bool:
        """Start if need be; True when the partitions are open."""
        await self._start()
        return True

    async def drain(self, deadline_s: float) -> bool:
        batcher = self._batcher or await self._start()
        return await batcher.drain(deadline_s=deadline_s)

    @ray.method(concurrency_group="control")
    async def observe(self) -> bytes:
        """An encoded `BatcherView`; empty while the actor is starting. One that has failed ends instead."""
        if self._batcher is None:
            return b""
        end_if_failed(self._batcher.failure, "the batcher")
        return msgspec.msgpack.encode(self._batcher.observe())

    @ray.method(concurrency_group="control")
    async def pending_of(self, project_id: str) -> list[tuple[int, int, int]]:
        """(hour, events, rejected) of a project's records that are not in the event store yet."""
        counts = self._batcher.pending_of(project_id) if self._batcher else []
        return [(count.hour, count.accepted + count.duplicate, count.rejected) for count in counts]

    @ray.method(concurrency_group="control")
    async def knows(self, project_id: str, event_id: str) -> bool:
        return self._batcher is not None and self._batcher.knows(project_id, event_id)

    async def _start(self) -> Batcher:
        if self._started is None:
            self._started = asyncio.ensure_future(self._open())
            self._started.add_done_callback(self._forget_failed_start)
        return await asyncio.shield(self._started)

    def _forget_failed_start(self, started: "asyncio.Task[Batcher]") -> None:
        if not started.cancelled() and (failure := started.exception()) is not None:
            _log.error("partitions could not be opened", exc_info=failure, extra={"action": "open_failed"})
            self._started = None

    async def _open(self) -> Batcher:
        settings = self._settings
        ring = HashRing(range(settings.actors.shards), partitions=settings.log.partitions)
        partitions = ring.partitions_of(self._shard)
        # Of this incarnation alone: it tells our epochs from those of another life of the same shard.
        owner = f"{batcher_name(self._shard)}-{uuid.uuid4().hex[:12]}"
        log = RedisLog(settings.log.redis_url, settings.log, owner=owner)
        late_after_s = lateness_s(settings.windows) if settings.windows.enabled else None
        folding = None
        postgres = _second_pool(settings, owner)
        sinks: list[OtherSinks] = []
        if late_after_s is not None:
            sinks.append(windows_progress(RedisWindows(settings.log.redis_url, settings, owner=owner)))
            folding = EventFolding(
                MetricRegistry(postgres), lateness_s=late_after_s, max_groups=settings.windows.max_groups
            )
        if settings.lake.enabled:
            sinks.append(lake_progress(LakeCheckpoints(postgres).read))
        fold = folding.fold if folding else store_all
        store = PostgresStore(settings.store, owner=owner, lateness_s=late_after_s, fold=fold)
        batcher = Batcher(self._shard, partitions, log, store, settings, folding=folding, other_sinks=all_sinks(*sinks))
        server = AppendServer(
            {APPEND: partial(_append, batcher), WAIT_STORED: partial(_wait_stored, batcher)},
        )
        host: str = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
        try:
            await batcher.open()
            self._endpoint = await server.start(host)
        except BaseException:
            # The next call begins anew, with loops and connections of its own.
            await batcher.close()
            await postgres.close()
            raise
        self._batcher = batcher
        collect_seldom()
        keep_freed_memory()
        rest_between_calls()
        _log.info("partitions are open", extra={"action": "opened", "partitions": len(partitions)})
        return batcher


def _second_pool(settings: Settings, owner: str) -> Postgres:
    """For what is asked every second or two: metrics' definitions, and how far the lake is."""
    store = settings.store
    return Postgres(
        store.postgres_url,
        owner=owner,
        pool_size=1,
        deadline_s=store.write_timeout_seconds,
        connect_timeout_s=store.connect_timeout_s,
    )


async def _append(batcher: Batcher, raw: bytes) -> bytes:
    return encode_replies(await batcher.append(decode_batches(raw)))


async def _wait_stored(batcher: Batcher, raw: bytes) -> bytes:
    partition, offset, deadline_s = _wait_decoder.decode(raw)
    return msgspec.msgpack.encode(await batcher.wait_stored(partition, offset, deadline_s=deadline_s))


def decode_view(raw: bytes) -> BatcherView | None:
    return msgspec.msgpack.decode(raw, type=BatcherView) if raw else None


BATCHER_OPTIONS: dict[str, Any] = {
    "num_cpus": 0,
    "max_restarts": -1,
    "max_task_retries": 0,
    "concurrency_groups": {"control": 8},
    "enable_task_events": False,
}
