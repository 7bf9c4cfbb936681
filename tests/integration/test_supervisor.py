"""The supervisor with real workers and a real socket: restarts, drains, and what happens when it dies itself."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from config.settings import GatewaySettings, Settings
from gateway.supervisor import MAX_BACKOFF_S, MIN_BACKOFF_S, backoff
from tests.plain_http import web

PATIENCE_S = 20.0


class Gateway:
    """A supervisor process of ours."""

    def __init__(self, folder: Path, process: "subprocess.Popen[bytes]") -> None:
        self.process = process
        self._port_file = folder / "port"
        self._log_file = folder / "log"

    @property
    def port(self) -> int:
        wait_for(self._port_file.exists)
        return int(self._port_file.read_text())

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def workers(self) -> set[int]:
        return {child.pid for child in psutil.Process(self.process.pid).children()}

    def answering(self) -> int:
        """The pid of a worker that answers."""
        return int(web.get(f"{self.url}/pid", timeout=PATIENCE_S).text)

    def slow_request(self, pool: ThreadPoolExecutor) -> Future[httpx.Response]:
        """A request for `/slow` that has arrived and waits for its answer."""
        request = pool.submit(httpx.post, f"{self.url}/slow", content=b"hello", timeout=PATIENCE_S)
        wait_for(lambda: "slow" in self._log_file.read_text().split())
        return request

    def log(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self._log_file.read_text().splitlines() if line.startswith("{")]


def wait_for(condition: Callable[[], object]) -> None:
    until = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < until, "it did not happen in time"
        time.sleep(0.02)


def asked_over(connection: socket.socket) -> int:
    """The pid of the worker that has this connection, which is closed."""
    with connection, connection.makefile("rb") as answer:
        connection.sendall(b"GET /pid HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n")
        return int(answer.read().splitlines()[-1])


@contextmanager
def gateway(
    folder: Path, *, workers: int = 1, port: int = 0, environment: dict[str, str] | None = None
) -> Iterator[Gateway]:
    limits = GatewaySettings(port=port, workers=workers, drain_deadline_s=3.0)
    (folder / "settings.json").write_bytes(Settings(data=str(folder), gateway=limits).to_json())
    (folder / "port").unlink(missing_ok=True)
    command = [sys.executable, "-m", "tests.integration.echo_supervisor"]
    command += ["--settings", str(folder / "settings.json"), "--port-file", str(folder / "port")]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stderr=log, stdout=log, env=os.environ | (environment or {}))
    try:
        yield Gateway(folder, process)
    finally:
        process.kill()
        process.wait()


def test_serves_on_any_free_port_and_stops_clean(tmp_path: Path) -> None:
    with gateway(tmp_path) as system:
        assert system.answering() in system.workers()
        port = system.port
        system.process.terminate()
        assert system.process.wait(PATIENCE_S) == 0
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port))


def test_killed_worker_is_replaced_and_nobody_is_refused(tmp_path: Path) -> None:
    with gateway(tmp_path) as system:
        first = system.answering()
        os.kill(first, signal.SIGKILL)
        second = system.answering()
        assert second != first
        [ended] = [line for line in system.log() if line["action"] == "worker_ended"]
        assert (ended["pid"], ended["exit_code"]) == (first, -signal.SIGKILL)


def test_connections_are_spread_over_the_workers(tmp_path: Path) -> None:
    with gateway(tmp_path, workers=2) as system:
        wait_for(lambda: len({system.answering() for _ in range(10)}) == 2)
        kept = [socket.create_connection(("127.0.0.1", system.port)) for _ in range(100)]
        answering = Counter(asked_over(connection) for connection in kept)
        assert len(answering) == 2
        # With a fair coin one time in a hundred million comes lower.
        assert min(answering.values()) >= 22, answering
        assert (tmp_path / "gateway" / "metrics").is_dir()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stop_answers_the_request_in_flight(tmp_path: Path, number: signal.Signals) -> None:
    with gateway(tmp_path) as system, ThreadPoolExecutor(1) as pool:
        system.answering()
        request = system.slow_request(pool)
        system.process.send_signal(number)
        assert request.result().text == "5"
        assert system.process.wait(PATIENCE_S) == 0


def test_stuck_worker_is_killed_after_the_deadline(tmp_path: Path) -> None:
    with gateway(tmp_path) as system:
        worker = system.answering()
        os.kill(worker, signal.SIGSTOP)
        system.process.terminate()
        assert system.process.wait(PATIENCE_S) == 0
        assert not psutil.pid_exists(worker)


def test_workers_of_a_killed_supervisor_drain_and_free_the_port(tmp_path: Path) -> None:
    with gateway(tmp_path) as first, ThreadPoolExecutor(1) as pool:
        worker = first.answering()
        port = first.port
        request = first.slow_request(pool)
        first.process.kill()
        first.process.wait()
        with gateway(tmp_path, port=port) as second:
            assert request.result().text == "5"
            wait_for(lambda: not psutil.pid_exists(worker))
            assert second.answering() in second.workers()


def test_workers_that_cannot_start_are_tried_ever_more_slowly(tmp_path: Path) -> None:
    with gateway(tmp_path, environment={"FAIL_AT_START": "1"}) as system:
        wait_for(lambda: sum(line["action"] == "worker_ended" for line in system.log()) >= 4)
        pauses = [line["backoff_s"] for line in system.log() if line["action"] == "worker_ended"]
        assert pauses[:4] == [0.1, 0.2, 0.4, 0.8]
        system.process.terminate()
        assert system.process.wait(PATIENCE_S) == 0


def test_backoff_is_bounded() -> None:
    assert backoff(1) == MIN_BACKOFF_S
    assert backoff(10_000) == MAX_BACKOFF_S


def test_taken_port_is_a_clear_error(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, gateway(tmp_path, port=taken.getsockname()[1]) as system:
        assert system.process.wait(PATIENCE_S) == 1
        assert [line["action"] for line in system.log()] == ["listen_failed"]


def test_supervisor_imports_nothing_heavy() -> None:
    probe = "import sys, gateway.__main__; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True).stdout.split()
    assert not {"ray", "pyarrow", "numpy", "starlette", "uvicorn", "asyncpg", "redis"} & set(loaded)
