"""One gateway process: the real services behind the app.

    python -m gateway.worker --settings FILE --fd N --worker I

Started by `gateway.supervisor`, which owns the listening socket. The port is served before Ray is joined
and while PostgreSQL or Redis are away: known keys come from disk, and events go to the spool.
"""

import argparse
import asyncio
import logging
import os
import re
import signal
import socket
import sys
from contextlib import AsyncExitStack
from pathlib import Path

import uvloop

from analytics_actors.background import Background
from analytics_actors.lake.places import Places
from config import logs
from config.garbage import collect_seldom
from config.heap import keep_freed_memory
from config.settings import Settings
from gateway.app import create_app
from gateway.decode import Decoder
from gateway.ingest import GatewayIngest
from gateway.keys import KeyCache
from gateway.known_projects import KnownProjects
from gateway.metrics import Metrics
from gateway.ray_link import RayLink
from gateway.server import serve
from gateway.services import Batch, Lake, Retention, Services
from gateway.spooler import Spooler
from gateway.sql import open_sql
from gateway.statistics import open_statistics
from gateway.status import WorkerStatus
from gateway.supervisor import CLOSE_ALLOWANCE_S, WORKER_ROWS
from gateway.worker_rows import WorkerRows
from storage.event_queries import EventQueries
from storage.key_cache_file import KeyCacheFile
from storage.ledger import Ledger
from storage.pattern_store import PostgresPatterns
from storage.postgres import Postgres
from storage.postgres_batch_jobs import PostgresBatchJobs
from storage.postgres_destinations import PostgresDestinations
from storage.postgres_lake_exports import PostgresLakeExports
from storage.postgres_lake_listing import PostgresLakeListing
from storage.postgres_retention import PostgresRetention
from storage.redis_log import RedisLog
from storage.registry import Registry
from storage.spool import Spool

METRICS_INTERVAL_S = 0.5
"""What other workers see of this one is no older."""

LAST_FLIGHTS_S = CLOSE_ALLOWANCE_S / 2
"""For appends that their requests no longer wait for. The other half is for closing, before the supervisor kills."""

_log = logging.getLogger(__name__)


class Worker:
    """Builds the services of one worker, serves, and takes them down in the opposite order."""

    def __init__(self, settings: Settings, *, number: int) -> None:
        self._settings = settings
        self._number = number
        self._folder = Path(settings.spool.directory or Path(settings.data) / "gateway")
        self._metrics = Metrics()
        self._link = RayLink(settings)
        self._spooler = Spooler(settings, self._open_spool(), self._link)
        self._ingest = GatewayIngest(settings, self._link, self._spooler)

    async def run(self, sock: socket.socket) -> None:
        """Return after SIGTERM, when every request that was taken has its answer or its deadline has passed."""
        settings, gateway = self._settings, self._settings.gateway
        async with AsyncExitStack() as stack:
            stack.callback(self._link.stop)
            stack.callback(self._spooler.close)
            postgres = Postgres(
                settings.store.postgres_url,
                owner=f"gateway-{self._number}",
                pool_size=settings.store.pool_size,
                deadline_s=gateway.query_deadline_s,
                connect_timeout_s=settings.store.connect_timeout_s,
            )
            stack.push_async_callback(postgres.close)
            log = RedisLog(settings.log.redis_url, settings.log)
            stack.push_async_callback(log.close)
            registry = Registry(postgres)
            keys = KeyCache(registry, KeyCacheFile(self._folder / f"keys-{self._number}.sqlite"), gateway)
            stack.callback(keys.close)
            status = WorkerStatus(
                settings,
                self._link,
                self._ingest,
                self._spooler,
                postgres=postgres,
                log=log,
                worker=self._number,
                workers=WorkerRows(self._folder / WORKER_ROWS, worker=self._number, workers=gateway.workers),
            )
            statistics = open_statistics(settings, postgres, stack, worker=self._number)
            app = create_app(
                Services(
                    settings=gateway,
                    decoder=Decoder(gateway),
                    ingest=self._ingest,
                    keys=keys,
                    registry=registry,
                    projects=KnownProjects(registry),
                    queries=EventQueries(postgres, max_event_ahead_s=gateway.max_event_ahead_s),
                    ledger=Ledger(postgres),
                    status=status,
                    metrics=self._metrics,
                    statistics=statistics,
                    patterns=PostgresPatterns(postgres),
                    sql=open_sql(settings, self._metrics, stack, worker=self._number),
                    lake=Lake(
                        PostgresLakeExports(postgres, partitions=settings.log.partitions),
                        PostgresLakeListing(postgres),
                        PostgresDestinations(postgres, partitions=settings.log.partitions),
                        Places(settings).open,
                        settings.destinations.behind_s,
                    ),
                    retention=Retention(PostgresRetention(postgres), settings),
                    batch=Batch(PostgresBatchJobs(postgres), settings.batch),
                )
            )
            background = Background()
            stack.push_async_callback(background.close)
            drainers = [self._spooler.run(shard) for shard in range(settings.actors.shards)]
            for run in (keys.run(), self._watch(background, status), *drainers):
                background.spawn(run)
            self._link.start()
            collect_seldom()
            keep_freed_memory()
            await serve(app, sock, gateway, begin=app.begin, on_shutdown=statistics.streams.close)
            if not await self._ingest.drain(deadline_s=LAST_FLIGHTS_S):
                _log.warning("requests are given up", extra={"action": "drain_timeout", "worker": self._number})
            self._metrics.flush()

    def _open_spool(self) -> Spool:
        spool = Spool(self._folder / f"spool-{self._number}.sqlite", max_bytes=self._settings.spool.max_bytes)
        if self._number == 0:
            for path in self._orphans():
                _log.info("taking over a spool", extra={"action": "spool_adopted", "path": str(path)})
                spool.adopt(path)
        return spool

    def _orphans(self) -> list[Path]:
        """Spools of workers that there were and are no more."""
        numbered = [(path, re.fullmatch(r"spool-(\d+)", path.stem)) for path in self._folder.glob("spool-*.sqlite")]
        return [path for path, match in numbered if match and int(match[1]) >= self._settings.gateway.workers]

    async def _watch(self, background: Background, status: WorkerStatus) -> None:
        """Keep the metrics up; end in good order when a background task has failed, for a fresh start."""
        while background.failure is None:
            self._metrics.inflight_bytes.set(self._ingest.inflight_bytes)
            self._metrics.spool_bytes.set(self._spooler.bytes)
            self._metrics.spool_batches.set(self._spooler.batches)
            self._metrics.flush()
            status.tell()
            await asyncio.sleep(METRICS_INTERVAL_S)
        os.kill(os.getpid(), signal.SIGTERM)


async def _run(settings: Settings, sock: socket.socket, *, number: int) -> None:
    await Worker(settings, number=number).run(sock)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m gateway.worker", description=__doc__)
    parser.add_argument("--settings", type=Path, required=True)
    parser.add_argument("--fd", type=int, required=True)
    parser.add_argument("--worker", type=int, required=True)
    arguments = parser.parse_args()
    logs.configure(f"gateway-{arguments.worker}")
    settings = Settings.from_json(arguments.settings.read_bytes())
    uvloop.run(_run(settings, socket.socket(fileno=arguments.fd), number=arguments.worker))
    return 0


if __name__ == "__main__":
    sys.exit(main())
