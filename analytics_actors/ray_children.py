"""What `ray_head` becomes: waits for the processes of a Ray node, its children, and ends with the first that ends.

Then all of them are killed, and it exits with 1. At SIGTERM they are asked to end, the raylet first as Ray does it: it
ends its workers. Actors and agents are the raylet's children; whoever started this one looks after its session.

A script of its own that imports no package: it runs as long as the node.
"""

import contextlib
import os
import signal
import sys
import time

FIRST = "raylet"
FIRST_DEADLINE_S = 5.0
REST_DEADLINE_S = 3.0


class Asked(Exception):
    """By SIGTERM, to end the node."""


def main() -> int:
    signal.signal(signal.SIGTERM, _stop)
    try:
        ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    except Asked:
        _end_in_order()
        return 0
    assert ended is not None
    how = "exit code" if ended.si_code == os.CLD_EXITED else "signal"
    name = children().get(ended.si_pid)
    print(f"{name} (pid {ended.si_pid}) has ended: {how} {ended.si_status}", file=sys.stderr, flush=True)
    _signal(children(), signal.SIGKILL)
    return 1


def _stop(*_: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise Asked


def _end_in_order() -> None:
    _end({pid: name for pid, name in children().items() if name == FIRST}, deadline_s=FIRST_DEADLINE_S)
    _end(children(), deadline_s=REST_DEADLINE_S)
    _signal(children(), signal.SIGKILL)


def _end(some: dict[int, str], *, deadline_s: float) -> None:
    """Return when they have ended, or at the deadline."""
    _signal(some, signal.SIGTERM)
    until_s = time.monotonic() + deadline_s
    while some.keys() & children().keys() and time.monotonic() < until_s:
        time.sleep(0.02)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass


def _signal(some: dict[int, str], number: signal.Signals) -> None:
    """A child's number is nobody else's until it has been waited for."""
    for pid in some:
        os.kill(pid, number)


def children() -> dict[int, str]:
    """Names of this process's children by pid; those that have ended and were not waited for are among them."""
    found = {}
    # Without pathlib, whose imports are a fifth of this process.
    for entry in os.listdir("/proc"):  # noqa: PTH208
        if entry.isdigit():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError), open(f"/proc/{entry}/stat") as file:  # noqa: PTH123
                # The name, in brackets, may hold spaces and brackets.
                head, _, rest = file.read().rpartition(")")
                if int(rest.split()[1]) == os.getpid():
                    found[int(entry)] = head.partition("(")[2]
    return found


if __name__ == "__main__":
    sys.exit(main())
