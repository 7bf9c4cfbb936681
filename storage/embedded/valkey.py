"""An embedded Valkey that keeps what it acknowledges: AOF, fsync before every answer, no eviction.

It listens on loopback and asks for the password in `directory/password`. Options and password are handed
over in a file of mode 0600, because a command line can be read by every user of the machine.
"""

import re
import signal
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

from storage.embedded.binaries import valkey_binary
from storage.embedded.process import (
    OnSpawn,
    free_port,
    kept_secret,
    never,
    nobody_asked,
    run,
    spawn,
    stop,
    wait_ready,
    write_private,
)
from storage.errors import Misconfigured


class EmbeddedValkey:
    """Data and options lie in `directory`. `start` may be called again after the server has died."""

    def __init__(self, directory: Path, *, max_memory_bytes: int, port: int = 0, log_path: Path | None = None) -> None:
        self._directory = directory
        self._max_memory_bytes = max_memory_bytes
        self._password_path = directory / "password"
        self.log_path = log_path or directory / "valkey.log"
        self.port = port
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Complete once `start` has returned."""
        return f"redis://:{self._password_path.read_text()}@127.0.0.1:{self.port}/0"

    def start(
        self, *, deadline_s: float = 60.0, on_spawn: OnSpawn = nobody_asked, given_up: Callable[[], bool] = never
    ) -> None:
        """Start and return when it has loaded its data. Raises `Misconfigured` with the log's end; what did not get
        ready, or is `given_up()` meanwhile, is stopped."""
        self.stop()
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._check_version()
        self.port = self.port or free_port()
        options_path = self._directory / "valkey.conf"
        write_private(options_path, self._options().encode())
        self.process = spawn([str(valkey_binary()), str(options_path)], log_path=self.log_path)
        try:
            on_spawn(self.process.pid)
            wait_ready(
                self.process,
                self._answers,
                log_path=self.log_path,
                deadline_s=deadline_s,
                recovering=lambda: b"-LOADING" in self._answer(),
                given_up=given_up,
            )
        except BaseException:
            # The next start could not take its place.
            self.stop()
            raise

    def _options(self) -> str:
        options = {
            "bind": "127.0.0.1",
            "port": str(self.port),
            "requirepass": kept_secret(self._password_path),
            "dir": str(self._directory.absolute()),
            "appendonly": "yes",
            "appendfsync": "always",
            "save": "",
            "maxmemory": str(self._max_memory_bytes),
            "maxmemory-policy": "noeviction",
            "daemonize": "no",
        }
        return "".join(f"{name} {_quoted(value)}\n" for name, value in options.items())

    def _check_version(self) -> None:
        """A newer server's AOF cannot be read by an older one: the version that wrote it stands beside it."""
        done = run([str(valkey_binary()), "--version"])
        match = re.search(r" v=(\d+)\.(\d+)", done.stdout)
        if match is None:
            raise Misconfigured(f"{valkey_binary()} does not tell its version: {done.stdout!r}")
        ours = (int(match[1]), int(match[2]))
        path = self._directory / "VERSION"
        if path.exists():
            found = tuple(int(part) for part in path.read_text().split("."))
            if found > ours:
                raise Misconfigured(
                    f"{self._directory} was written by Valkey {path.read_text()}; this release embeds "
                    f"{ours[0]}.{ours[1]}. Start it with the release that wrote it or a later one; nothing was changed."
                )
        write_private(path, f"{ours[0]}.{ours[1]}".encode())

    def _answers(self) -> bool:
        return self._answer() == b"+OK\r\n+PONG\r\n"

    def _answer(self) -> bytes:
        """Empty when nobody is there."""
        hello = f"AUTH {self._password_path.read_text()}\r\nPING\r\n"
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
                connection.sendall(hello.encode())
                connection.shutdown(socket.SHUT_WR)
                return b"".join(iter(lambda: connection.recv(256), b""))
        except OSError:
            return b""

    def stop(self, *, deadline_s: float = 20.0) -> None:
        if self.process is not None:
            stop(self.process, with_signal=signal.SIGTERM, deadline_s=deadline_s)


def _quoted(value: str) -> str:
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
