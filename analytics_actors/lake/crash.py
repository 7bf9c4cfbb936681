"""For tests: a process that ends at a named point.

The environment names a file; when the point that is written in it is reached, the file is removed and the process ends
as if it were killed.
"""

import os
import signal
from pathlib import Path

from analytics_actors.lake.carrying import CrashPoint, no_crash


def crash_point(variable: str) -> CrashPoint:
    """By the variable of the environment."""
    named = os.environ.get(variable)
    if not named:
        return no_crash
    file = Path(named)

    def reached(point: str) -> None:
        if file.exists() and file.read_text() == point:
            file.unlink()
            os.kill(os.getpid(), signal.SIGKILL)

    return reached
