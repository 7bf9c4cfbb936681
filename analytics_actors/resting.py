"""Rest for Ray's main thread in an actor's process.

That thread looks for signals a hundred times a second, and no setting of Ray changes that: 0.6 % of a core in each
actor, the most that an idle system did. Beside that it only hands Ray calls to the threads that answer them, and events
do not come as Ray calls. So once an actor serves, its main thread sleeps most of the time. The one code of ours that
runs in it is a signal handler: it sleeps for `REST_S`, and has the kernel's timer call it again.

A Ray call may wait for so long. Signals do not: one that comes is handled within the sleep.
"""

import signal
import time
from types import FrameType

REST_S = 0.2

_SOON_S = 0.001
"""In which the main thread has left the handler, so that Ray's loop has a turn before the next rest."""


class _Rest:
    """The handler of SIGALRM."""

    def __init__(self) -> None:
        self._is_under_way = False

    def __call__(self, _signal: int, _frame: FrameType | None) -> None:
        if self._is_under_way:
            # The timer was quicker than this thread's way out of the last rest: no rest within a rest.
            signal.setitimer(signal.ITIMER_REAL, _SOON_S)
            return
        self._is_under_way = True
        try:
            time.sleep(REST_S)
            signal.setitimer(signal.ITIMER_REAL, _SOON_S)
        finally:
            self._is_under_way = False


_rest = _Rest()


def allow_rest() -> None:
    """In the main thread of a Ray worker, before it works: see `analytics_actors.ray_worker_start`."""
    signal.signal(signal.SIGALRM, _rest)


def rest_between_calls() -> None:
    """From now on, if it was allowed: a Ray that others have started may not have asked for it. From any thread."""
    if signal.getsignal(signal.SIGALRM) is _rest:
        signal.setitimer(signal.ITIMER_REAL, _SOON_S)
