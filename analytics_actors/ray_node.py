"""A local Ray head as a child of ours (`ray_head`): `ray start --head`, on loopback, small, and ended whole.

The child ends when the GCS or the raylet dies. What is left of the node then (and at a
stop) is the child's session, and only that is ended: `ray stop` would end every Ray process of the
machine. A node does not survive its head: `start` always makes a fresh one, on the same ports.
"""

import contextlib
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from analytics_actors.process_identity import ProcessIdentity, end_session, identify
from config.heap import ARROW_IN_HEAP
from config.settings import MIB, Settings
from storage.embedded.process import (
    OnSpawn,
    folder_mark,
    free_port,
    kept_secret,
    nobody_asked,
    spawn,
    wait_ready,
    write_private,
)
from storage.errors import Misconfigured

OBJECT_STORE_BYTES = 200 * MIB
"""Appends travel inline or are short-lived; the gateways bound what is in flight to a fraction of this."""
INLINE_BYTES = 1 * MIB
"""Arguments up to this size travel within the call (Ray's default: 100 kB), larger ones through the object store. Of
one machine measured, CPU a call: 120 kB 0.9 against 1.95 ms, 400 kB 1.9 against 2.0, 1.5 MB 4.3 against 2.9."""
DRIVER_PATIENCE_S = 10 * 365 * 86400
"""A driver ends itself when the GCS is away for this long (Ray's default: 60 s). A gateway must not."""
MAX_TEMP_DIR_CHARS = 24
"""A Unix socket's path holds 107 bytes, of which Ray's session and socket names take 78."""

_TEMP_DIR_PREFIX = "aa-"
_GAVE_UP = b"The current node timed out during startup"
_LOOPBACK = {
    # Not a cluster of many machines: every listener of Ray binds 127.0.0.1 instead of all interfaces.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
}
_QUIET_NODE = {
    "RAY_START_HOOK": "analytics_actors.ray_start_hook.trim",
    "RAY_preload_python_modules": "analytics_actors.ray_worker_start",
    # Actors share the machine with PostgreSQL and Valkey on equal terms; Ray's default is nice 15.
    "RAY_worker_niceness": "0",
    # Ray would kill a batcher to make room for another program's memory.
    "RAY_memory_monitor_refresh_ms": "0",
    # The actors are drained by us before the node is stopped.
    "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
    # An idle node shall be idle: no metrics of Ray's own, no statistics of its event loops, longer periods.
    "RAY_enable_metrics_collection": "0",
    "RAY_metrics_report_interval_ms": "60000",
    "RAY_event_stats": "0",
    "RAY_event_stats_print_interval_ms": "0",
    "RAY_debug_dump_period_milliseconds": "0",
    "RAY_raylet_report_resources_period_milliseconds": "1000",
    "RAY_gcs_pull_resource_loads_period_milliseconds": "5000",
    "RAY_raylet_check_gc_period_milliseconds": "1000",
    "RAY_object_manager_timer_freq_ms": "2000",
    "RAY_kill_idle_workers_interval_ms": "2000",
    "RAY_report_worker_backlog_interval_ms": "10000",
    "REPORTER_UPDATE_INTERVAL_MS": "15000",
    "METRICS_RECORD_INTERVAL_S": "60",
    "RAY_DASHBOARD_STATS_UPDATING_INTERVAL": "60",
    "SCAN_EVENT_DIR_INTERVAL_SECONDS": "60",
    "DASHBOARD_METRIC_PORT": "0",
    # Bounds of Ray's own logs, each.
    "RAY_ROTATION_MAX_BYTES": str(8 * MIB),
    "RAY_ROTATION_BACKUP_COUNT": "1",
}


class RayNode:
    """Token and log lie in `directory`; Ray's session lies in a short temporary folder of this node only."""

    def __init__(self, directory: Path, settings: Settings, *, port: int = 0, log_path: Path | None = None) -> None:
        self._directory = directory
        self.log_path = log_path or directory / "ray.log"
        self._token_path = directory.absolute() / "token"
        self._has_dashboard = settings.actors.dashboard
        self._dashboard_port = settings.actors.dashboard_port or free_port()
        self._port = port or free_port()
        self.temp_dir: Path | None = None
        self.process: subprocess.Popen[bytes] | None = None
        self.identity: ProcessIdentity | None = None

    @property
    def address(self) -> str:
        """What drivers pass to `ray.init`; the same after a restart."""
        return f"127.0.0.1:{self._port}"

    @property
    def dashboard_url(self) -> str:
        return f"http://127.0.0.1:{self._dashboard_port}" if self._has_dashboard else ""

    @property
    def session_logs(self) -> Path:
        """Where Ray and the actors write while the node runs."""
        return self._session_root() / "session_latest" / "logs"

    def env(self) -> dict[str, str]:
        """The environment that a process needs to join this node as a driver, or to use `ray list`."""
        return _LOOPBACK | {
            "RAY_max_direct_call_object_size": str(INLINE_BYTES),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self._token_path),
            "RAY_gcs_rpc_server_reconnect_timeout_s": str(DRIVER_PATIENCE_S),
        }

    def start(self, *, deadline_s: float = 90.0, on_spawn: OnSpawn = nobody_asked) -> None:
        """Return when drivers may join. Raises `Misconfigured` with the log's end."""
        until_s = time.monotonic() + deadline_s
        while not self._try_start(on_spawn, until_s=until_s):
            pass

    def _try_start(self, on_spawn: OnSpawn, *, until_s: float) -> bool:
        """False when Ray has given up on its own raylet, as it does after half a minute on a busy machine."""
        self.stop()
        remove_last_session(self._directory)
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        kept_secret(self._token_path)
        self.temp_dir = _short_temp_dir()
        try:
            write_private(_record(self._directory), f"{self.temp_dir}\n{folder_mark(self._directory)}".encode())
        except OSError:
            # Without a record nobody would find it.
            self.temp_dir.rmdir()
            raise
        said_before = self.log_path.stat().st_size if self.log_path.exists() else 0
        self.process = spawn(self._command(), log_path=self.log_path, environment=self._node_environment())
        self.identity = identify(self.process.pid)
        on_spawn(self.process.pid)
        # `ray start` writes the address there as its last step.
        complete = self._session_root() / "ray_current_cluster"
        try:
            wait_ready(self.process, complete.exists, log_path=self.log_path, deadline_s=until_s - time.monotonic())
        except Misconfigured:
            if _GAVE_UP in self.log_path.read_bytes()[said_before:] and time.monotonic() < until_s:
                return False
            raise
        return True

    def stop(self, *, deadline_s: float = 10.0) -> None:
        """End every process of this node, and no other; Ray's logs of it stay in `directory`/last_session."""
        if self.identity is not None:
            end_session(self.identity, with_signal=signal.SIGTERM, deadline_s=deadline_s)
            self.identity = None
        if self.process is not None:
            self.process.wait()
        remove_last_session(self._directory)

    def _session_root(self) -> Path:
        # Ray opens its folder to everybody (0777): it gets one inside ours, which stays closed (0700).
        assert self.temp_dir is not None
        return self.temp_dir / "r"

    def _command(self) -> list[str]:
        command = [sys.executable, "-m", "analytics_actors.ray_head", f"--port={self._port}"]
        command += [f"--temp-dir={self._session_root()}", "--num-cpus=1", f"--object-store-memory={OBJECT_STORE_BYTES}"]
        command += [f"--include-dashboard={str(self._has_dashboard).lower()}", "--dashboard-host=127.0.0.1"]
        command += [f"--dashboard-port={self._dashboard_port}", "--dashboard-agent-listen-port=0"]
        # No autoscaler, and nobody reads the workers' output through a driver: neither monitor is needed.
        command += ["--no-monitor", "--include-log-monitor=false", "--disable-usage-stats"]
        return [*command, "--log-style=record", "--log-color=false"]

    def _node_environment(self) -> dict[str, str]:
        environment = ARROW_IN_HEAP | os.environ | self.env() | _QUIET_NODE
        environment.pop("RAY_ADDRESS", None)
        # The patience is for drivers: actors of a dead head end with it.
        del environment["RAY_gcs_rpc_server_reconnect_timeout_s"]
        assert self.temp_dir is not None
        if self.temp_dir.parent == Path(tempfile.gettempdir()):
            # What a process that is killed leaves of its temporary files goes with the node; Ray's dashboard leaves a
            # folder every time.
            environment["TMPDIR"] = str(self.temp_dir)
        return environment


def _short_temp_dir() -> Path:
    wanted = tempfile.gettempdir()
    parent = wanted if len(wanted) <= MAX_TEMP_DIR_CHARS - len(f"/{_TEMP_DIR_PREFIX}12345678/r") else "/tmp"  # noqa: S108
    return Path(tempfile.mkdtemp(prefix=_TEMP_DIR_PREFIX, dir=parent))


def remove_last_session(directory: Path) -> None:
    """Remove what the last node of that directory left in its temporary folder; its logs stay in `last_session`.

    Only when no process of that node is left. In a copy of the directory the record names the folder of the original's
    node, which may run: then only the record is removed.
    """
    record = _record(directory)
    if not record.exists():
        return
    name, _, mark = record.read_text(errors="replace").partition("\n")
    temp_dir = Path(name)
    # Earlier releases wrote no mark.
    if _is_ours(temp_dir) and mark in ("", folder_mark(directory)):
        logs = temp_dir / "r" / "session_latest" / "logs"
        if logs.is_dir():
            shutil.rmtree(last_session(directory), ignore_errors=True)
            # On a full disk they are lost; the node's folder may be what fills it.
            with contextlib.suppress(OSError):
                shutil.copytree(logs, last_session(directory), symlinks=True, ignore_dangling_symlinks=True)
        shutil.rmtree(temp_dir, ignore_errors=True)
    record.unlink()


def _is_ours(temp_dir: Path) -> bool:
    """Whether this can be what `_short_temp_dir` has made. A damaged record may name anything: an empty one is the
    current directory."""
    if not temp_dir.is_absolute() or not temp_dir.name.startswith(_TEMP_DIR_PREFIX):
        return False
    try:
        found = temp_dir.lstat()
    except (OSError, ValueError):
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()


def last_session(directory: Path) -> Path:
    """Where the logs of the last node are once it has ended."""
    return directory / "last_session"


def _record(directory: Path) -> Path:
    return directory / "temp_dir"
