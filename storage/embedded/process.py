"""Small pieces that the embedded servers need: a free port, a secret, a child of ours, an orderly end."""

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from storage.errors import Misconfigured

PORTS = range(20_000, 32_768)
"""Below those that systems give to outgoing connections (Linux: from 32768; RFC 6335: from 49152). One of these could
take a port between our choice and the server's start, or while a server that will want it again is down. Above those
that Ray gives to its workers (10002 to 19999), which it does not let its other parts have."""


def free_port() -> int:
    """A loopback port that nobody had a moment ago. By chance, so that two who choose at once choose differently."""
    while True:
        port = secrets.choice(PORTS)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def kept_secret(path: Path) -> str:
    """The secret in the file, which is made (mode 0600) when there is none. Safe in URLs and configuration."""
    try:
        return path.read_text()
    except FileNotFoundError:
        secret = secrets.token_hex(24)
    write_private(path, secret.encode())
    return secret


def write_private(path: Path, content: bytes) -> None:
    """Replace the file atomically; nobody else can read it at any moment (mode 0600)."""
    partial = path.with_name(path.name + ".partial")
    partial.unlink(missing_ok=True)
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def folder_mark(path: Path) -> str:
    """Tells the folder from a copy of it: what a copied file says of processes and other folders is not the copy's."""
    found = path.stat()
    return f"{found.st_dev}:{found.st_ino}"


OnSpawn = Callable[[int], None]
"""Called with the pid of a child as soon as there is one, so that its starter can write it down."""


def nobody_asked(_pid: int) -> None:
    """The `OnSpawn` of those who keep no record."""


def never() -> bool:
    """The `given_up` of those who wait to the end."""
    return False


def run(
    command: Sequence[str], *, uid: int | None = None, directory: Path | None = None, deadline_s: float = 120.0
) -> "subprocess.CompletedProcess[str]":
    """Run a command to its end, in a session of its own: a Ctrl-C at the terminal would end it, and its failure be
    taken for an answer.

    Raises `Misconfigured` when it does not end in time; all of its session is ended then."""
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        user=uid,
        group=uid,
        extra_groups=None if uid is None else (),
        cwd=directory,
    ) as child:
        try:
            stdout, stderr = child.communicate(timeout=deadline_s)
        except BaseException as error:
            os.killpg(child.pid, signal.SIGKILL)
            if isinstance(error, subprocess.TimeoutExpired):
                raise Misconfigured(f"{command[0]} has not ended in {deadline_s:g} s") from error
            raise
    return subprocess.CompletedProcess(command, child.returncode, stdout, stderr)


def spawn(
    command: Sequence[str], *, log_path: Path, environment: Mapping[str, str] | None = None, uid: int | None = None
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
            user=uid,
            group=uid,
            extra_groups=None if uid is None else (),
        )


RECOVERY_PATIENCE_S = 600.0
"""So much longer a server is waited for that says that it reads its data. Ended, it would begin anew."""


def wait_ready(
    process: "subprocess.Popen[bytes]",
    ready: Callable[[], bool],
    *,
    log_path: Path,
    deadline_s: float,
    recovering: Callable[[], bool] = lambda: False,
    given_up: Callable[[], bool] = never,
) -> None:
    """Return when `ready()` holds and the process lives: another one may answer in its place. Raises `Misconfigured`
    with the log's last lines otherwise. One that is `recovering()` has `RECOVERY_PATIENCE_S` beyond the deadline.
    When it is `given_up()`, nobody waits for it any more."""
    until = time.monotonic() + deadline_s
    while not ready() or process.poll() is not None:
        late_s = time.monotonic() - until
        is_late = late_s > RECOVERY_PATIENCE_S or (late_s > 0 and not recovering())
        if process.poll() is not None or is_late or given_up():
            if process.poll() is not None:
                state = f"ended with {process.returncode}"
            else:
                state = "did not get ready in time" if is_late else "was given up before it was ready"
            # The log's name is the server's; its command may begin with what runs it as somebody else.
            raise Misconfigured(f"{log_path.stem} {state}; the end of {log_path}:\n{log_end(log_path)}")
        time.sleep(0.02)


def log_end(path: Path, *, lines: int = 15) -> str:
    """The last lines of a log, of which at most 64 KiB are read."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 65536))
            text = file.read().decode(errors="replace")
    except FileNotFoundError:
        return "(no log)"
    return "\n".join(text.splitlines()[-lines:])


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
