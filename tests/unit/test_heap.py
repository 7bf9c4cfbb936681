"""What is kept of freed memory, seen by the kernel's counts. In processes of their own: it is a setting of one."""

import os
import platform
import subprocess
import sys

import pytest

from config.heap import ARROW_IN_HEAP

glibc_only = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another malloc")

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


@glibc_only
def test_freed_blocks_are_had_again_without_page_faults() -> None:
    assert faults("kept") < faults("as it is") / 10


_THREADS_SCRIPT = """
import resource
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa


def resident_mb():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1e6


def work():
    blocks = [pa.allocate_buffer((number % 50 + 1) * 20_000) for number in range(400)]
    for block in blocks:
        np.frombuffer(block, np.uint8)[:] = 1
    return resident_mb()


with ThreadPoolExecutor(1) as threads:
    threads.submit(lambda: None).result()
    before = resident_mb()
    used = threads.submit(work).result()
    pa.default_memory_pool().release_unused()
    print(used - before, resident_mb() - before)
"""


@glibc_only
def test_what_one_thread_has_freed_another_gives_back() -> None:
    command = [sys.executable, "-c", _THREADS_SCRIPT]
    environment = os.environ | ARROW_IN_HEAP
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60, env=environment)
    used_mb, kept_mb = map(float, done.stdout.split())
    assert used_mb > 100
    assert kept_mb < used_mb / 10
