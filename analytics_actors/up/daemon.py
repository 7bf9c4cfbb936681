"""`up --detach`: the same `up` in a session of its own, which tells its starter through a pipe how it goes.

The child writes a line for each step, and `READY` when it is ready; the end of the pipe without that
word means that it failed.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from analytics_actors.up.system import Report

_READY = "READY"


class Progress:
    """The child's end of the pipe."""

    def __init__(self, descriptor: int) -> None:
        self._file = os.fdopen(descriptor, "w", buffering=1)

    def report(self, text: str) -> None:
        if not self._file.closed:
            self._file.write(text.replace("\n", " ") + "\n")

    def ready(self) -> None:
        self.report(_READY)
        self._file.close()


def start_detached(command: Sequence[str], *, log_path: Path, report: Report, option: str) -> "subprocess.Popen[bytes]":
    """Run the command with `option FD` added. Returns its process when it is ready, or has ended without: its
    `returncode` is 0 then when it was stopped.

    A Ctrl-C meanwhile stops it.
    """
    reader, writer = os.pipe()
    with log_path.open("ab") as log:
        # Its end is shown when this start fails: what an earlier one said would be taken for the reason.
        log.truncate(0)
        child = subprocess.Popen(
            [sys.executable, *command, option, str(writer)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            pass_fds=(writer,),
        )
    os.close(writer)
    try:
        with os.fdopen(reader) as lines:
            is_ready = _follow(lines, report)
    except KeyboardInterrupt:
        child.send_signal(signal.SIGTERM)
        child.wait()
        raise
    if not is_ready:
        child.wait()
    return child


def _follow(lines: Iterable[str], report: Report) -> bool:
    for line in lines:
        if line.rstrip("\n") == _READY:
            return True
        report(line.rstrip("\n"))
    return False
