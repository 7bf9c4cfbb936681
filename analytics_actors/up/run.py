"""What `up` and `down` do, apart from how the command line says it."""

import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType

from analytics_actors.process_identity import ProcessIdentity, identify, is_alive
from analytics_actors.ray_node import remove_last_session
from analytics_actors.up import logs
from analytics_actors.up.connection import Connection
from analytics_actors.up.folder import DataFolder, FolderInUse
from analytics_actors.up.run_file import RunFile
from analytics_actors.up.system import Report, Stopped, System
from config.settings import Settings
from storage.errors import Unavailable

LOOK_AT_LOGS_EVERY_S = 30.0
DOWN_DEADLINE_S = 180.0
"""The sum of what `up` grants its parts when it stops, with room."""

_log = logging.getLogger(__name__)


def run(folder: DataFolder, settings: Settings, *, ready: Callable[[Connection], None], report: Report) -> None:
    """Start a system, keep it running until SIGTERM, SIGINT or SIGHUP, and stop it.

    Raises `FolderInUse`, and `StorageError` or `ChildFailed` when it does not start; everything that was started is
    stopped then too.
    """
    os.umask(0o077)
    stopping = _stop_on_signals()
    folder.create()
    with folder.locked():
        logs.configure(folder.logs / "up.log")
        system = System(folder, settings, stopping, report=report)
        try:
            ready(system.start())
            _log.info("ready", extra={"action": "ready"})
            system.keep()
            while not stopping.wait(LOOK_AT_LOGS_EVERY_S):
                logs.bound(folder.logs)
            report("stopping: requests and events in flight are finished first")
        except Stopped:
            report("stopped before it was ready")
        except Exception:
            _log.exception("not started", extra={"action": "start_failed"})
            raise
        finally:
            system.stop()
            _log.info("stopped", extra={"action": "stopped"})


def _stop_on_signals() -> threading.Event:
    stopping = threading.Event()

    def stop(_number: int, _frame: FrameType | None) -> None:
        stopping.set()

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, stop)
    return stopping


def down(folder: DataFolder, *, deadline_s: float = DOWN_DEADLINE_S) -> list[str]:
    """Stop the `up` of that folder and wait for it, then end what it or a killed one left. Returns what was stopped.

    Another `down` is waited for. Raises `Unavailable` when the folder's holder has not ended at the deadline.
    """
    if not folder.path.is_dir():
        return []
    until = time.monotonic() + deadline_s
    up: ProcessIdentity | None = None
    while True:
        # An `up` gives the folder back a moment before it ends.
        if up is None or not is_alive(up):
            try:
                with folder.locked("down"):
                    leftovers = RunFile(folder.run_file).stop_leftovers()
                    remove_last_session(folder.ray)
                return ["up", *leftovers] if up else leftovers
            except FolderInUse as error:
                holder = error.holder
            if holder.role == "up" and holder.pid is not None:
                if up is not None and up.pid != holder.pid:
                    # The next one has begun already, and ends what was left itself.
                    return ["up"]
                up = identify(holder.pid)
                if up is not None:
                    os.kill(up.pid, signal.SIGTERM)
        if time.monotonic() > until:
            who = f"`{holder.role}` (pid {holder.pid})"
            raise Unavailable(f"{who} has not ended after {deadline_s:g} s; see {folder.logs}/up.log")
        time.sleep(0.05)
