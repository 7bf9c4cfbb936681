"""The rest of a main thread, in a process of its own: it takes SIGALRM."""

import subprocess
import sys

_SCRIPT = """
import signal
import sys
import threading
import time

from analytics_actors import resting

resting.REST_S = 0.05
allowed, until_s = {allowed}, time.monotonic() + 1
if allowed:
    resting.allow_rest()
threading.Timer(0.1, resting.rest_between_calls).start()
turns = 0
while time.monotonic() < until_s:
    time.sleep(0.001)
    turns += 1
print(turns)


def ask_for_the_end():
    time.sleep(0.2)
    signal.raise_signal(signal.SIGTERM)


signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))
threading.Thread(target=ask_for_the_end).start()
while True:
    time.sleep(0.001)
"""


def turns(*, allowed: bool) -> int:
    """How often the main thread has run in a second, of which it might rest nine tenths; SIGTERM ends it anyway."""
    command = [sys.executable, "-c", _SCRIPT.format(allowed=allowed)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 3, done.stderr
    return int(done.stdout)


def test_the_main_thread_rests_again_and_again_where_it_is_allowed() -> None:
    assert turns(allowed=True) < turns(allowed=False) / 2
