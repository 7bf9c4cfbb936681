"""`run.json`: the processes that an `up` has started, so that the next one can end what a kill left behind.

Each entry names a process beyond doubt (`ProcessIdentity`) and stands for the session that it opened. An
entry is written as soon as its process exists and removed when the process was stopped. In a copy of the data
folder the file names the processes of the original, and counts for nothing.
"""

import contextlib
import signal
import threading
from pathlib import Path
from typing import NamedTuple

import msgspec

from analytics_actors.process_identity import ProcessIdentity, end_session, identify, session_members
from storage.embedded.process import folder_mark, write_private
from storage.errors import Misconfigured


class Manner(NamedTuple):
    """How a kind of process is asked to end, and how long it may take."""

    with_signal: signal.Signals
    deadline_s: float


MANNERS = {
    # In this order: first what takes events, last what keeps them.
    "gateway": Manner(signal.SIGTERM, 20.0),
    "ray": Manner(signal.SIGTERM, 10.0),
    "valkey": Manner(signal.SIGTERM, 20.0),
    # A fast shutdown: sessions end, a checkpoint is written.
    "postgres": Manner(signal.SIGINT, 30.0),
}


class Children(msgspec.Struct):
    """The file's content."""

    children: dict[str, ProcessIdentity] = {}
    folder: str = ""
    """The mark of the folder that it was written in; empty in those of earlier releases."""


class RunFile:
    """Written by several threads of one `up`, read by the next; what an `up` has to stop itself it knows without it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._own: dict[str, ProcessIdentity] = {}

    def record(self, name: str, pid: int) -> None:
        identity = identify(pid)
        if identity is not None:
            with self._lock:
                self._own[name] = identity
                self._write()

    def forget(self, name: str) -> None:
        """An entry that stays because the disk is full does no harm: its process is gone."""
        with self._lock, contextlib.suppress(OSError):
            if self._own.pop(name, None) is not None:
                self._write()

    def children(self) -> dict[str, ProcessIdentity]:
        """What the file names, if it was written here. Raises `Misconfigured`."""
        try:
            found = msgspec.json.decode(self._path.read_bytes(), type=Children)
        except FileNotFoundError:
            return {}
        except msgspec.DecodeError as error:
            raise Misconfigured(
                f"cannot read {self._path}: {error}. It names the processes that an `up` has left behind: end those of "
                "this folder, if there are any, and delete the file"
            ) from error
        return found.children if found.folder in ("", self._mark()) else {}

    def stop_leftovers(self) -> list[str]:
        """End what is left of an `up` that is gone, and return the names. Only the folder's holder may call it, and
        before it starts anything. Raises `Misconfigured`."""
        children = self.children()
        ended = []
        for name, manner in MANNERS.items():
            identity = children.get(name)
            if identity is not None and session_members(identity):
                end_session(identity, with_signal=manner.with_signal, deadline_s=manner.deadline_s)
                ended.append(name)
        self._path.unlink(missing_ok=True)
        return ended

    def _write(self) -> None:
        write_private(self._path, msgspec.json.encode(Children(self._own, self._mark())))

    def _mark(self) -> str:
        return folder_mark(self._path.parent)
