"""What malloc keeps, seen by the pages that have to be had anew. In processes of their own: it is a setting of one."""

import platform
import subprocess
import sys

import pytest

_SCRIPT = """
import resource
import sys

from config.heap import keep_freed_memory

if sys.argv[1] == "kept":
    keep_freed_memory()


def work():
    blocks = [b"x" * (12 << 20) for _ in range(4)]
    del blocks


work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str) -> int:
    done = subprocess.run([sys.executable, "-c", _SCRIPT, how], check=True, capture_output=True, text=True, timeout=60)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another malloc")
def test_freed_blocks_are_had_again_without_page_faults() -> None:
    assert faults("kept") < faults("as it is") / 10
