"""The Ray actor around `LakeKeeper` and `Deliveries`; see `analytics_actors.actors`, whose way with calls and restarts
it follows."""

import logging
import os
import uuid
from pathlib import Path
from typing import Any

import msgspec
import ray

from analytics_actors.background import end_if_failed
from analytics_actors.lake.crash import crash_point
from analytics_actors.lake.deliveries import Deliveries
from analytics_actors.lake.keeper import LakeKeeper, Retention
from analytics_actors.lake.places import Places
from analytics_actors.messages import DeliveriesView, KeeperView, keeper_name
from analytics_actors.resting import rest_between_calls
from config import logs
from config.garbage import collect_seldom
from config.settings import LakeSettings, Settings
from storage.object_store import open_object_store
from storage.postgres import Postgres
from storage.postgres_destinations import PostgresDestinations
from storage.postgres_lake_listing import PostgresLakeListing
from storage.postgres_manifest import PostgresManifest
from storage.postgres_retention import PostgresRetention

CRASH_FILE = "KEEPER_CRASH_FILE"
"""For tests, in the environment: see `analytics_actors.lake.crash`."""

NICE = 10
"""Merging may wait for everything else on the machine."""

CONNECTIONS = 2
"""A delivery's question need not wait for one of the keeper's."""

READERS_END_S = 5.0
"""After its deadline a query has certainly ended."""

_log = logging.getLogger(__name__)


class KeeperActor:
    """`LakeKeeper` of the lake, and the deliveries to its destinations."""

    def __init__(self, _: int, settings_json: bytes) -> None:
        self._settings = Settings.from_json(settings_json)
        logs.configure(keeper_name())
        self._keeper: LakeKeeper | None = None
        self._deliveries: Deliveries | None = None

    def __repr__(self) -> str:
        return "LakeKeeper()"

    async def ready(self) -> bool:
        """Start if need be."""
        if self._keeper is None or self._deliveries is None:
            try:
                self._keeper, self._deliveries = self._start()
            except Exception as error:
                _log.error("the lake keeper could not be started", exc_info=error, extra={"action": "open_failed"})
                raise
        return True

    @ray.method(concurrency_group="control")
    async def observe(self) -> bytes:
        """An encoded `KeeperView`; empty while the actor is starting. One that has failed ends instead."""
        if self._keeper is None or self._deliveries is None:
            return b""
        end_if_failed(self._keeper.failure or self._deliveries.failure, "the lake keeper")
        return msgspec.msgpack.encode(_together(self._keeper.observe(), self._deliveries.observe()))

    def _start(self) -> tuple[LakeKeeper, Deliveries]:
        settings = self._settings
        # Of this thread and those that it starts: the event loop's and its workers'.
        os.nice(NICE)
        postgres = Postgres(
            settings.store.postgres_url,
            # Of this incarnation alone, as for the batcher.
            owner=f"{keeper_name()}-{uuid.uuid4().hex[:12]}",
            pool_size=CONNECTIONS,
            deadline_s=settings.store.write_timeout_seconds,
            connect_timeout_s=settings.store.connect_timeout_s,
        )
        keeper = LakeKeeper(
            manifest=PostgresManifest(postgres, write_timeout_s=settings.store.write_timeout_seconds),
            listing=PostgresLakeListing(postgres),
            objects=open_object_store(settings.lake, data=Path(settings.data)),
            settings=_for_readers(settings),
            folder=Path(settings.data) / "keeper",
            retention=Retention(PostgresRetention(postgres), settings),
            reached=crash_point(CRASH_FILE),
        )
        deliveries = Deliveries(
            PostgresDestinations(postgres, partitions=settings.log.partitions),
            open_object_store(settings.lake, data=Path(settings.data)),
            Places(settings).open,
            policy=settings.destinations,
            compression=settings.lake.compression,
            folder=Path(settings.data) / "deliveries",
            reached=crash_point(CRASH_FILE),
        )
        keeper.start()
        deliveries.start()
        collect_seldom()
        rest_between_calls()
        return keeper, deliveries


def _for_readers(settings: Settings) -> LakeSettings:
    """What was replaced stays for at least as long as a query may take."""
    longest_s = settings.query.queue_wait_s + settings.query.deadline_s + READERS_END_S
    return msgspec.structs.replace(settings.lake, retired_grace_s=max(settings.lake.retired_grace_s, longest_s))


def _together(view: KeeperView, deliveries: DeliveriesView) -> KeeperView:
    return msgspec.structs.replace(
        view,
        destinations=deliveries.destinations,
        destinations_failing=deliveries.failing,
        counters=view.counters | deliveries.counters,
        trouble="; ".join(filter(None, (view.trouble, deliveries.trouble))),
    )


def decode_view(raw: bytes) -> KeeperView | None:
    return msgspec.msgpack.decode(raw, type=KeeperView) if raw else None


KEEPER_OPTIONS: dict[str, Any] = {
    "num_cpus": 0,
    "max_restarts": -1,
    "max_task_retries": 0,
    "concurrency_groups": {"control": 8},
    "enable_task_events": False,
}
