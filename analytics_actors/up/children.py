"""Short-lived children of `up`: started, waited for with a deadline, their last words shown when they fail."""

import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path


class ChildFailed(Exception):
    """A child did not do its work; the message holds what it said last."""


def run_module(
    module: str,
    arguments: Sequence[str],
    *,
    environment: Mapping[str, str],
    log_path: Path,
    deadline_s: float,
    cancelled: Callable[[], bool] = lambda: False,
) -> bytes:
    """Run `python -m module` to its end and return its stdout; stderr goes to the log. Raises `ChildFailed`."""
    # A session of its own: a Ctrl-C at the terminal is for `up`, which ends its children in order.
    child = subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        start_new_session=True,
    )
    with child:
        output, said = _finish(child, until_s=time.monotonic() + deadline_s, cancelled=cancelled)
    with log_path.open("ab") as log:
        log.write(said)
    if child.returncode != 0:
        last_words = said.decode(errors="replace").strip()[-2000:]
        raise ChildFailed(last_words or f"{module} ended with {child.returncode}")
    return output


def _finish(child: "subprocess.Popen[bytes]", *, until_s: float, cancelled: Callable[[], bool]) -> tuple[bytes, bytes]:
    """Both outputs; the child is killed at the deadline, or when nobody wants its work any more."""
    while True:
        try:
            return child.communicate(timeout=0.2)
        except subprocess.TimeoutExpired:
            is_late = time.monotonic() > until_s
            if is_late or cancelled():
                child.kill()
                output, said = child.communicate()
                return output, said + (b"\nit did not end in time" if is_late else b"\nit was cancelled")
