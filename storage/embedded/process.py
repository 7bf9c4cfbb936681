"""Small pieces that both embedded servers need: a free port, a child of ours, an orderly end."""

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from storage.errors import Misconfigured


def free_port() -> int:
    """A loopback port that nobody listened on a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def spawn(
    command: Sequence[str], *, log_path: Path, environment: Mapping[str, str] | None = None, user: int | None = None
) -> "subprocess.Popen[bytes]":
    """Start a server in a session of its own, so that a Ctrl-C at the terminal does not reach it."""
    with log_path.open("ab") as log:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            env=environment,
            user=user,
            group=user,
            extra_groups=None if user is None else [],
        )


def wait_ready(
    process: "subprocess.Popen[bytes]", ready: Callable[[], bool], *, log_path: Path, deadline_s: float
) -> None:
    """Return when `ready()` holds. Raises `Misconfigured` with the log's last lines otherwise."""
    until = time.monotonic() + deadline_s
    while not ready():
        if process.poll() is not None or time.monotonic() > until:
            tail = "\n".join(log_path.read_text(errors="replace").splitlines()[-15:])
            state = "did not get ready in time" if process.poll() is None else f"ended with {process.returncode}"
            raise Misconfigured(f"{Path(process.args[0]).name} {state}; the end of {log_path}:\n{tail}")  # type: ignore[index,arg-type]
        time.sleep(0.02)


def stop(process: "subprocess.Popen[bytes]", *, with_signal: signal.Signals, deadline_s: float) -> None:
    """End a process of ours: politely, and by SIGKILL after the deadline."""
    if process.poll() is not None:
        return
    process.send_signal(with_signal)
    try:
        process.wait(deadline_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def unprivileged() -> list[str]:
    """The prefix that runs a server which refuses uid 0 as nobody in a user namespace of its own.

    Nothing is created or chmodded, and files stay root's. Empty for an ordinary user.
    """
    if os.geteuid() != 0:
        return []
    unshare = shutil.which("unshare")
    if unshare is None:
        raise Misconfigured(
            "PostgreSQL does not run as root, and `unshare` (util-linux) is missing: install it or run as another user"
        )
    return [unshare, "--user", "--map-user=65534", "--map-group=65534"]
