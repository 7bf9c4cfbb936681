"""The parent of the gateway's workers: owns the listening sockets, keeps the workers running, drains them.

It imports nothing heavy and does no work of its own, so that it has no reason to die. The sockets are its own:
while a worker is replaced, connections wait in the backlog and are not refused. Workers notice when it dies
all the same (`gateway.server`), finish what they have, and free the port.

Each worker has a socket of its own on the one port (SO_REUSEPORT), so that the kernel spreads connections evenly.
From a shared socket the worker that wakes first takes all: 64 kept connections of one client were seen to come to one
of two workers, and the other had nothing to do.
"""

import asyncio
import errno
import logging
import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from config.settings import GatewaySettings, Settings

log = logging.getLogger(__name__)

BACKLOG = 2048
"""Connections that wait for one worker while it restarts; the kernel caps it at net.core.somaxconn."""
BIND_PATIENCE_S = 5.0
"""Workers of a supervisor that was killed hold the port until they have noticed."""
CLOSE_ALLOWANCE_S = 5.0
"""After its requests have drained a worker closes spool, pool and Ray."""
MIN_BACKOFF_S = 0.1
MAX_BACKOFF_S = 5.0
HEALTHY_AFTER_S = 10.0
"""A worker that lived this long is restarted without a grudge."""

SUPERVISOR_PID = "GATEWAY_SUPERVISOR_PID"
"""Environment variable in which workers are told whose children they are."""

COUNTED_OFFSETS = "counted.offsets"
"""The file in the gateway's folder in which workers tell one another what their answers have counted."""
DEFINITION_CHANGES = "definitions.changes"
"""The one in which they tell that metrics were changed."""
WORKER_ROWS = "workers.rows"
"""The one in which each says how it is."""


WorkerCommand = Callable[[Path, int, int], Sequence[str]]
"""From settings file, socket and number of a worker to the command that runs it."""


def listen(settings: GatewaySettings, *, patience_s: float = BIND_PATIENCE_S) -> list[socket.socket]:
    """A listening socket for each worker. Raises `OSError` when the address is taken for longer than the patience."""
    first = _claim(settings, patience_s=patience_s)
    sockets = [first]
    if sys.platform == "linux":
        # Only now: a port that was claimed with it could be another gateway's of the same account.
        first.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sockets += [_bound(first.family, first.getsockname(), shared=True) for _ in range(settings.workers - 1)]
    else:
        # Elsewhere the kernel gives all connections to one of them.
        sockets += [first] * (settings.workers - 1)
    for sock in sockets:
        sock.listen(BACKLOG)
    return sockets


def _claim(settings: GatewaySettings, *, patience_s: float) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    until = time.monotonic() + patience_s
    while True:
        try:
            return _bound(family, (settings.host, settings.port), shared=False)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or time.monotonic() > until:
                raise
            time.sleep(0.1)


def _bound(family: int, address: tuple[Any, ...], *, shared: bool) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(address)
    except OSError:
        sock.close()
        raise
    return sock


def write_port_file(path: Path, port: int) -> None:
    """Whoever sees the file sees a whole number in it."""
    partial = path.with_suffix(".partial")
    partial.write_text(f"{port}\n")
    partial.replace(path)


def worker_command(settings_file: Path, fd: int, worker: int) -> list[str]:
    command = [sys.executable, "-m", "gateway.worker", "--settings", str(settings_file)]
    return [*command, "--fd", str(fd), "--worker", str(worker)]


def worker_environment(settings: Settings) -> dict[str, str]:
    """With several workers their metrics meet in a folder of files, which starts empty. So do the files
    of their shared memory: this run's logs, for one, may be other ones than the last run's."""
    environment = os.environ | {SUPERVISOR_PID: str(os.getpid())}
    environment.pop("PROMETHEUS_MULTIPROC_DIR", None)
    shared = Path(settings.spool.directory or Path(settings.data) / "gateway")
    for name in (COUNTED_OFFSETS, DEFINITION_CHANGES, WORKER_ROWS):
        (shared / name).unlink(missing_ok=True)
    if settings.gateway.workers > 1:
        folder = shared / "metrics"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        environment["PROMETHEUS_MULTIPROC_DIR"] = str(folder)
    return environment


def backoff(failures: int) -> float:
    """Seconds before the next start: doubling with each early death in a row, and bounded."""
    return float(min(MIN_BACKOFF_S * 2 ** min(max(failures - 1, 0), 16), MAX_BACKOFF_S))


class Supervisor:
    """Runs a child for each of the sockets, from `command(index)`, until a stop is asked for."""

    def __init__(
        self,
        command: Callable[[int], Sequence[str]],
        sockets: Sequence[socket.socket],
        environment: dict[str, str],
        *,
        drain_deadline_s: float,
    ) -> None:
        self._command = command
        self._sockets = sockets
        self._environment = environment
        self._stop_deadline_s = drain_deadline_s + CLOSE_ALLOWANCE_S
        self._stopping = asyncio.Event()
        self._running: dict[int, asyncio.subprocess.Process] = {}

    async def run(self) -> None:
        """Return when SIGTERM or SIGINT has come and no worker is left. SIGHUP replaces the workers."""
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self._stopping.set)
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._replace_workers)
        keepers = [asyncio.create_task(self._keep(index)) for index in range(len(self._sockets))]
        await self._stopping.wait()
        log.info("draining the workers", extra={"action": "drain"})
        self._signal_all(signal.SIGTERM)
        _, late = await asyncio.wait(keepers, timeout=self._stop_deadline_s)
        if late:
            log.warning("workers did not drain in time", extra={"action": "drain_timeout", "workers": len(late)})
            self._signal_all(signal.SIGKILL)
        await asyncio.gather(*keepers)

    async def _keep(self, index: int) -> None:
        failures = 0
        while not self._stopping.is_set():
            started = time.monotonic()
            process = await self._spawn(index)
            exit_code = await process.wait()
            del self._running[index]
            if self._stopping.is_set():
                return
            failures = 0 if time.monotonic() - started > HEALTHY_AFTER_S else failures + 1
            backoff_s = backoff(failures)
            fields = {"action": "worker_ended", "worker": index, "pid": process.pid, "exit_code": exit_code}
            log.warning("worker ended; it is restarted", extra=fields | {"backoff_s": backoff_s})
            self._forget_gauges(process.pid)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), backoff_s)

    async def _spawn(self, index: int) -> asyncio.subprocess.Process:
        process = await asyncio.create_subprocess_exec(
            *self._command(index),
            pass_fds=(self._sockets[index].fileno(),),
            env=self._environment,
            stdin=asyncio.subprocess.DEVNULL,
        )
        self._running[index] = process
        log.info("worker started", extra={"action": "worker_started", "worker": index, "pid": process.pid})
        if self._stopping.is_set():
            process.terminate()
        return process

    def _replace_workers(self) -> None:
        """Each drains and is started anew; new connections wait in the backlog meanwhile."""
        log.info("replacing the workers", extra={"action": "replace_workers"})
        self._signal_all(signal.SIGTERM)

    def _signal_all(self, number: signal.Signals) -> None:
        for process in self._running.values():
            with suppress(ProcessLookupError):
                process.send_signal(number)

    def _forget_gauges(self, pid: int) -> None:
        """prometheus_client keeps the gauges of a live process in files named by its pid."""
        folder = self._environment.get("PROMETHEUS_MULTIPROC_DIR")
        for path in Path(folder).glob(f"gauge_live*_{pid}.db") if folder else ():
            path.unlink(missing_ok=True)
