"""The data folder: where everything lies, and the lock that gives it to one `up` at a time.

    DATA/lock               held by the running `up` or `down`, with its pid and which of them it is
    DATA/run.json           the processes that it has started
    DATA/settings.json      the settings that all of them run on, URLs and ports filled in
    DATA/connection.json    how to reach the system, with keys
    DATA/logs/              what they write, each file bounded
    DATA/postgres, valkey, ray, gateway, and lake when that has no other place

The folder itself may be entered by others (0711), so that PostgreSQL can run as another user where it must;
what is in it is ours alone (`up` runs with umask 077). One that was there before loses no permission.
"""

import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal, NamedTuple

from storage.errors import Misconfigured

Role = Literal["up", "down"]


class Holder(NamedTuple):
    """Who holds a data folder."""

    pid: int | None
    """None when it has not written it: not yet, or because the disk is full."""
    role: Role


class FolderInUse(Misconfigured):
    """Another `up` runs on this data folder, or a `down` is about to stop what did."""

    def __init__(self, path: Path, holder: Holder) -> None:
        if holder.role == "down":
            super().__init__(
                f"{path} is being stopped by `analytics-actors down` (pid {holder.pid}); try again once that has ended"
            )
        else:
            super().__init__(
                f"{path} is in use by another `analytics-actors up` (pid {holder.pid}); stop that one with "
                f"`analytics-actors down --data {path}`, or choose another folder with --data"
            )
        self.holder = holder


class DataFolder:
    """Names of what lies in it. Nothing is created before `create`."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.run_file = self.path / "run.json"
        self.settings_file = self.path / "settings.json"
        self.connection_file = self.path / "connection.json"
        self.port_file = self.path / "gateway.port"
        self.logs = self.path / "logs"
        self.postgres = self.path / "postgres"
        self.valkey = self.path / "valkey"
        self.ray = self.path / "ray"
        self._lock_file = self.path / "lock"

    def create(self) -> None:
        """Raises `Misconfigured` when it cannot be made or nothing can be written there."""
        try:
            self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
            mode = stat.S_IMODE(self.path.stat().st_mode)
            if mode & 0o011 != 0o011:
                self.path.chmod(mode | 0o011)
            self.logs.mkdir(exist_ok=True, mode=0o700)
        except OSError as error:
            raise Misconfigured(
                f"cannot make {self.path}: {error.strerror}; choose another folder with --data"
            ) from error
        os.close(self._open_lock())

    @contextmanager
    def locked(self, role: Role = "up") -> Iterator[None]:
        """Hold the folder. Raises `FolderInUse`, and `Misconfigured` when nothing can be written there. The lock ends
        with the process, however that ends."""
        descriptor = self._open_lock()
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise FolderInUse(self.path, self.holder() or Holder(None, "up")) from None
            os.ftruncate(descriptor, 0)
            # On a full disk the lock holds without saying whose it is: what was left behind can be ended nevertheless.
            with suppress(OSError):
                os.write(descriptor, f"{os.getpid()} {role}".encode())
            try:
                yield
            finally:
                os.ftruncate(descriptor, 0)
        finally:
            os.close(descriptor)

    def _open_lock(self) -> int:
        try:
            return os.open(self._lock_file, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise Misconfigured(f"cannot write to {self.path}: {error.strerror}") from error

    def holder(self) -> Holder | None:
        """The `up` or `down` that holds the folder, or None when nobody does."""
        if not self._lock_file.exists():
            return None
        with self._lock_file.open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                pid, _, role = file.read().strip().partition(" ")
                return Holder(int(pid) if pid.isdigit() else None, "down" if role == "down" else "up")
        return None
