"""The long-lived children of `up`, each behind the same four words: start, wait, stop, name."""

import http.client
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

from analytics_actors.process_identity import ProcessIdentity, end_session, identify
from analytics_actors.ray_node import RayNode, last_session
from analytics_actors.up.children import ChildFailed, run_module
from analytics_actors.up.folder import DataFolder
from analytics_actors.up.run_file import MANNERS, RunFile
from config.settings import Settings
from storage.embedded.process import OnSpawn, log_end, spawn
from storage.errors import Misconfigured

ACTORS_DEADLINE_S = 90.0
"""Rebuilding the dedupe windows of 64 partitions from 10 million ids takes seconds; this leaves room."""
CLUSTER_PATIENCE_S = 10.0
"""For a cluster that is being started at the same time."""
DRAIN_DEADLINE_S = 30.0
"""What is not in PostgreSQL by then stays in the log, and is stored after the next start."""

_log = logging.getLogger(__name__)


class Service(Protocol):
    """One part of a running system. `start` and `stop` do not overlap; `start` may be called again."""

    name: str

    def start(self) -> None:
        """Return when it can be used. Raises `Misconfigured` or `ChildFailed` with the reason."""

    def wait(self) -> int:
        """Return the exit code when its process has ended by itself or was stopped."""

    def stop(self) -> None:
        """Return when it has ended. Without effect when it does not run."""


class Server(Protocol):
    """`EmbeddedPostgres` and `EmbeddedValkey`."""

    process: "subprocess.Popen[bytes] | None"

    def start(self, *, on_spawn: OnSpawn, given_up: Callable[[], bool]) -> None: ...

    def stop(self) -> None: ...


class ServerService:
    """An embedded server. One that reads its data for minutes is given up when a stop is asked for."""

    def __init__(self, name: str, server: Server, run_file: RunFile, stopping: threading.Event) -> None:
        self.name = name
        self._server = server
        self._run_file = run_file
        self._stopping = stopping
        self._turn = threading.Lock()

    def start(self) -> None:
        with self._turn:
            self._server.start(
                on_spawn=lambda pid: self._run_file.record(self.name, pid), given_up=self._stopping.is_set
            )

    def wait(self) -> int:
        assert self._server.process is not None
        return self._server.process.wait()

    def stop(self) -> None:
        with self._turn:
            self._server.stop()
            self._run_file.forget(self.name)


class GatewayService:
    """`python -m gateway`: the listening socket and its workers."""

    name = "gateway"

    def __init__(
        self,
        folder: DataFolder,
        settings: Settings,
        run_file: RunFile,
        environment: Mapping[str, str],
        stopping: threading.Event,
    ) -> None:
        self._folder = folder
        self._stopping = stopping
        self._settings = settings
        self._run_file = run_file
        self._environment = environment
        self._log_path = folder.logs / "gateway.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._identity: ProcessIdentity | None = None
        self._turn = threading.Lock()

    @property
    def port(self) -> int:
        """The real one, once started."""
        return int(self._folder.port_file.read_text())

    def start(self, *, deadline_s: float = 60.0) -> None:
        """Return when a worker answers. What does not get ready is stopped: the next start could not take its port."""
        with self._turn:
            self._end()
            self._folder.port_file.unlink(missing_ok=True)
            command = [sys.executable, "-m", "gateway", "--settings", str(self._folder.settings_file)]
            command += ["--port-file", str(self._folder.port_file)]
            self._process = spawn(command, log_path=self._log_path, environment=self._environment)
            # Taken now: once it has ended, its number may be another's.
            self._identity = identify(self._process.pid)
            try:
                self._run_file.record(self.name, self._process.pid)
                self._wait_ready(self._process, until_s=time.monotonic() + deadline_s)
            except BaseException:
                self._end()
                raise

    def _wait_ready(self, process: "subprocess.Popen[bytes]", *, until_s: float) -> None:
        while not self._answers() or process.poll() is not None:
            if process.poll() is not None or time.monotonic() > until_s or self._stopping.is_set():
                raise Misconfigured(f"the gateway did not start; the end of its log:\n{log_end(self._log_path)}")
            time.sleep(0.02)

    def _answers(self) -> bool:
        if not self._folder.port_file.exists():
            return False
        connection = http.client.HTTPConnection(local_host(self._settings.gateway.host), self.port, timeout=2)
        try:
            connection.request("GET", "/healthz")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def replace_workers(self) -> None:
        """New workers, which join the Ray that there is now."""
        with self._turn:
            if self._process is not None and self._process.poll() is None:
                self._process.send_signal(signal.SIGHUP)

    def wait(self) -> int:
        assert self._process is not None
        return self._process.wait()

    def stop(self) -> None:
        """Requests in flight finish first; then workers and supervisor end."""
        with self._turn:
            self._end()
            self._run_file.forget(self.name)

    def _end(self) -> None:
        """End the last process and its session, if there is one."""
        if self._process is None:
            return
        deadline_s = self._settings.gateway.drain_deadline_s + MANNERS[self.name].deadline_s
        if self._identity is not None:
            end_session(self._identity, with_signal=signal.SIGTERM, deadline_s=deadline_s)
        self._process.wait()


class Actors(Protocol):
    """The actors, and the Ray that they are on."""

    address: str
    environment: Mapping[str, str]
    """What a process needs to join as a driver."""

    def start(self) -> None:
        """Return when drivers may join; after a restart of Ray, with the actors."""

    def abandon(self) -> None:
        """Nobody wants it any more: a `start` under way ends soon, with an error. From any thread."""

    def start_actors(self) -> None:
        """Return when every shard is open. Raises `ChildFailed`."""

    def stop(self) -> None:
        """Return when the actors have drained and ended, and the Ray that is ours."""


class ClusterActors:
    """Actors on a cluster that others run."""

    def __init__(self, folder: DataFolder, address: str, stopping: threading.Event) -> None:
        self.address = address
        self.environment: Mapping[str, str] = {}
        self._folder = folder
        self._stopping = stopping
        self._has_actors = False

    def start(self) -> None:
        """The cluster runs without us: wait until it answers, for a while. Ray itself would wait for three minutes."""
        url = urlsplit(self.address if "://" in self.address else f"ray://{self.address}")
        until = time.monotonic() + CLUSTER_PATIENCE_S
        while not self._stopping.is_set():
            try:
                socket.create_connection((url.hostname, url.port), timeout=CLUSTER_PATIENCE_S).close()
            except (OSError, ValueError) as error:
                if isinstance(error, OSError) and time.monotonic() < until:
                    self._stopping.wait(0.5)
                    continue
                raise Misconfigured(
                    f"no Ray cluster answers at actors.ray_address {self.address} ({error}): start it, or leave the "
                    "address out for a local node"
                ) from error
            return

    def abandon(self) -> None:
        """There is nothing that takes long."""

    def start_actors(self) -> None:
        self._has_actors = True
        start_actors(self._folder, self.environment, self._stopping)

    def stop(self) -> None:
        if self._has_actors:
            drain_actors(self._folder, self.environment)


class RayService:
    """A local Ray node and the actors on it."""

    name = "ray"

    def __init__(self, folder: DataFolder, node: RayNode, run_file: RunFile, stopping: threading.Event) -> None:
        self.on_restart: Callable[[], None] = lambda: None
        """Called when a fresh node runs, before its actors are started: drivers of the one before cannot go on, and Ray
        lets them ask the fresh one a thousand times a second, which takes the time that the actors need."""
        self.address = node.address
        self.environment: Mapping[str, str] = node.env()
        self._folder = folder
        self._node = node
        self._run_file = run_file
        self._stopping = stopping
        self._has_actors = False
        self._turn = threading.Lock()

    def start(self) -> None:
        with self._turn:
            self._node.start(on_spawn=lambda pid: self._run_file.record(self.name, pid))
            self._link_logs(self._node.session_logs)
            if self._has_actors:
                self.on_restart()
                start_actors(self._folder, self.environment, self._stopping)

    def abandon(self) -> None:
        if self._node.process is not None:
            self._node.process.terminate()

    def start_actors(self) -> None:
        with self._turn:
            self._has_actors = True
            start_actors(self._folder, self.environment, self._stopping)

    def wait(self) -> int:
        assert self._node.process is not None
        return self._node.process.wait()

    def stop(self) -> None:
        with self._turn:
            if self._has_actors and self._node.process is not None and self._node.process.poll() is None:
                drain_actors(self._folder, self.environment)
            self._has_actors = False
            self._node.stop()
            self._run_file.forget(self.name)
            self._link_logs(last_session(self._folder.ray))

    def _link_logs(self, logs: Path) -> None:
        link = self._folder.logs / "ray"
        link.unlink(missing_ok=True)
        link.symlink_to(logs)


def start_actors(folder: DataFolder, environment: Mapping[str, str], stopping: threading.Event) -> None:
    _cluster(folder, environment, [], deadline_s=ACTORS_DEADLINE_S, cancelled=stopping.is_set)


def drain_actors(folder: DataFolder, environment: Mapping[str, str]) -> None:
    """What is not stored at the deadline is safe in the log, and is stored after the next start (NL-1)."""
    try:
        _cluster(folder, environment, ["--drain"], deadline_s=DRAIN_DEADLINE_S, cancelled=lambda: False)
    except (ChildFailed, OSError) as error:
        _log.warning("the actors were not drained", extra={"action": "drain_failed", "error": str(error)})


def _cluster(
    folder: DataFolder,
    environment: Mapping[str, str],
    arguments: list[str],
    *,
    deadline_s: float,
    cancelled: Callable[[], bool],
) -> None:
    run_module(
        "analytics_actors.cluster",
        ["--settings", str(folder.settings_file), "--deadline", str(deadline_s), *arguments],
        environment=os.environ | dict(environment),
        log_path=folder.logs / "actors.log",
        # It has its own deadline; this one is for a child that hangs, with time to import and to join.
        deadline_s=deadline_s + 30.0,
        cancelled=cancelled,
    )


def local_host(host: str) -> str:
    """The address by which we reach our own gateway when it listens on `host`."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104
