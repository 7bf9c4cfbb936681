"""A whole system on one machine: started in an order that lets things overlap, kept running, stopped in order.

    PostgreSQL, Valkey ─→ migrate, keys ─→ gateway ─┐
    Ray node ───────────────────────────→ actors ───┴→ ready

Data flows gateway → actors → PostgreSQL, and so the gateway is drained first and PostgreSQL stopped last.
"""

import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait

import msgspec
from msgspec.structs import replace

from analytics_actors.ray_node import RayNode
from analytics_actors.up.children import ChildFailed, run_module
from analytics_actors.up.connection import Connection, Prepared
from analytics_actors.up.folder import DataFolder
from analytics_actors.up.keeper import Keeper
from analytics_actors.up.run_file import RunFile
from analytics_actors.up.services import (
    Actors,
    ClusterActors,
    GatewayService,
    RayService,
    ServerService,
    Service,
    local_host,
)
from config.heap import ARROW_IN_HEAP
from config.settings import Settings
from storage.embedded.postgres import EmbeddedPostgres
from storage.embedded.process import write_private
from storage.embedded.valkey import EmbeddedValkey
from storage.errors import Misconfigured
from storage.object_store import lake_url

PREPARE_DEADLINE_S = 300.0
"""A migration of a large table takes its time."""

Report = Callable[[str], None]
"""Told a line for each step that is done."""

_log = logging.getLogger(__name__)


class Stopped(Exception):
    """A stop was asked for while the system was starting."""


class System:
    """Needs the lock of the folder. `start`, then `keep`, and `stop` whatever happened."""

    def __init__(self, folder: DataFolder, settings: Settings, stopping: threading.Event, *, report: Report) -> None:
        self._folder = folder
        self._settings = settings
        self._stopping = stopping
        self._report = report
        self._run_file = run_file = RunFile(folder.run_file)
        self._postgres = EmbeddedPostgres(folder.postgres, log_path=folder.logs / "postgres.log")
        self._valkey = EmbeddedValkey(
            folder.valkey,
            max_memory_bytes=settings.log.embedded_max_memory_bytes,
            log_path=folder.logs / "valkey.log",
        )
        self._stores: list[Service] = []
        if not settings.log.redis_url:
            self._stores.append(ServerService("valkey", self._valkey, run_file, stopping))
        if not settings.store.postgres_url:
            self._stores.append(ServerService("postgres", self._postgres, run_file, stopping))
        self._actors: Actors
        self._kept: list[Service] = [*self._stores]
        self._dashboard_url = ""
        if settings.actors.ray_address:
            self._actors = ClusterActors(folder, settings.actors.ray_address, stopping)
        else:
            node = RayNode(folder.ray, settings, log_path=folder.logs / "ray.log")
            self._dashboard_url = node.dashboard_url
            self._actors = ray = RayService(folder, node, run_file, stopping)
            self._kept.append(ray)
        environment = ARROW_IN_HEAP | os.environ | dict(self._actors.environment)
        self._gateway = GatewayService(folder, settings, run_file, environment, stopping)
        if isinstance(self._actors, RayService):
            self._actors.on_restart = self._gateway.replace_workers
        self._kept.append(self._gateway)

    def start(self) -> Connection:
        """Return when events are accepted and stored. Raises `StorageError`, `ChildFailed` or `Stopped`."""
        self._check_lake_is_shared()
        for name in self._run_file.stop_leftovers():
            self._report(f"stopped {name}, left behind by an `up` that was killed")
        with ThreadPoolExecutor(thread_name_prefix="start") as pool:
            try:
                return self._connect(self._start_all(pool))
            except BaseException:
                # Whoever still waits for something to get ready need not.
                self._stopping.set()
                self._actors.abandon()
                raise

    def _check_lake_is_shared(self) -> None:
        """Exporters and keeper are on any of a cluster's nodes: each would have a folder of this machine's name."""
        s = self._settings
        if s.actors.ray_address and s.lake.enabled and not s.lake.url:
            raise Misconfigured(
                "the actors of a Ray cluster write the lake from any of its machines; <data>/lake is this one's: set "
                "lake.url to s3://bucket/prefix or a file:///folder that all of them share, or lake.enabled to false"
            )

    def _start_all(self, pool: ThreadPoolExecutor) -> Prepared:
        ray = pool.submit(self._timed("Ray", self._actors.start))
        stores = [pool.submit(self._timed(store.name, store.start)) for store in self._stores]
        self._finish(stores, beside=[ray])
        self._save_settings(self._with_urls())
        prepared = self._prepare()
        gateway = pool.submit(self._timed("gateway", self._gateway.start))
        self._finish([ray], beside=[gateway])
        actors = pool.submit(self._timed("actors", self._actors.start_actors))
        self._finish([gateway, actors])
        return prepared

    def _finish(self, steps: "list[Future[None]]", *, beside: "Sequence[Future[None]]" = ()) -> None:
        """Return when the steps are done. Raises the first failure among them and those that run beside them."""
        waiting = set(steps)
        while waiting:
            done, waiting = wait(waiting, timeout=0.1, return_when=FIRST_EXCEPTION)
            # First: what is given up because of a stop ends with an error.
            if self._stopping.is_set():
                raise Stopped
            for step in [*done, *(other for other in beside if other.done())]:
                step.result()

    def _timed(self, title: str, step: Callable[[], None]) -> Callable[[], None]:
        def run() -> None:
            began_s = time.monotonic()
            step()
            self._report(f"{title} ready after {time.monotonic() - began_s:.1f} s")

        return run

    def _with_urls(self) -> Settings:
        """The settings with the URLs of what was started; absolute, because children have other folders."""
        s = self._settings
        return replace(
            s,
            data=str(self._folder.path),
            log=replace(s.log, redis_url=s.log.redis_url or self._valkey.url),
            store=replace(s.store, postgres_url=s.store.postgres_url or self._postgres.url),
            lake=replace(s.lake, url=lake_url(s.lake, data=self._folder.path)),
            actors=replace(s.actors, ray_address=self._actors.address),
        )

    def _save_settings(self, settings: Settings) -> None:
        self._settings = settings
        write_private(self._folder.settings_file, settings.to_json())

    def _prepare(self) -> Prepared:
        arguments = ["--settings", str(self._folder.settings_file)]
        if self._folder.connection_file.exists():
            arguments += ["--connection", str(self._folder.connection_file)]
        try:
            output = run_module(
                "analytics_actors.up.prepare",
                arguments,
                environment=os.environ,
                log_path=self._folder.logs / "prepare.log",
                deadline_s=PREPARE_DEADLINE_S,
                cancelled=self._stopping.is_set,
            )
        except ChildFailed:
            if self._stopping.is_set():
                raise Stopped from None
            raise
        prepared = msgspec.json.decode(output, type=Prepared)
        for name in prepared.migrations:
            self._report(f"database: {name} applied")
        for warning in prepared.warnings:
            self._report(warning)
        return prepared

    def _connect(self, prepared: Prepared) -> Connection:
        """Fix the port that the gateway got, for its restarts, and write down how to reach everything."""
        s = self._settings
        gateway = replace(s.gateway, port=self._gateway.port)
        self._save_settings(replace(s, gateway=gateway))
        host = local_host(gateway.host)
        connection = Connection(
            gateway_url=f"http://{f'[{host}]' if ':' in host else host}:{gateway.port}",
            dashboard_url=self._dashboard_url,
            project_id=prepared.project_id,
            admin_key=prepared.admin_key,
            write_key=prepared.write_key,
            read_key=prepared.read_key,
            postgres_url=s.store.postgres_url,
            redis_url=s.log.redis_url,
            lake_url=s.lake.url if s.lake.enabled else "",
            ray_address=s.actors.ray_address,
            ray_token_path=self._actors.environment.get("RAY_AUTH_TOKEN_PATH", ""),
            pid=os.getpid(),
        )
        connection.save(self._folder.connection_file)
        return connection

    def keep(self) -> None:
        """From now on services whose process ends are started again, until a stop is asked for."""
        for service in self._kept:
            keeper = Keeper(service, self._stopping)
            threading.Thread(target=keeper.run, name=f"keep-{service.name}", daemon=True).start()

    def stop(self) -> None:
        """Drain, then end everything that was started, and nothing else: first what takes events, last what keeps
        them. A part that cannot be stopped in order keeps none of the others from it; the first error is raised at the
        end."""
        self._stopping.set()
        parts: list[Service | Actors] = [self._gateway, self._actors, *self._stores]
        first_error: Exception | None = None
        for part in parts:
            name = type(part).__name__
            try:
                part.stop()
            except Exception as error:
                first_error = first_error or error
                _log.exception("a part did not stop in order", extra={"action": "stop_failed", "part": name})
            else:
                _log.info("a part is stopped", extra={"action": "stopped", "part": name})
        if first_error is not None:
            raise first_error
