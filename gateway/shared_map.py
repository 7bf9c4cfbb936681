"""Memory that the workers of a machine share: a mapped file, which the supervisor sees to that it begins empty."""

import mmap
import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


def shared_map(path: Path | None, size: int) -> mmap.mmap:
    """All zero in a new file. Without a path it is this process's alone."""
    if path is None:
        return mmap.mmap(-1, size)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        # The first worker makes it; for the others it has this length already.
        os.ftruncate(descriptor, size)
        return mmap.mmap(descriptor, size)
    finally:
        os.close(descriptor)


def shared_rows(path: Path | None, *, workers: int, words: int) -> NDArray[np.int64]:
    """A row for each worker, which writes its own and reads all: aligned words of eight bytes are written, and read,
    at once."""
    return np.frombuffer(shared_map(path, 8 * workers * words), np.int64).reshape(workers, words)
