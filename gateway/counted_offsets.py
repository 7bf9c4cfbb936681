"""How far the log of each partition was counted in answers, known to all workers of a machine.

A client may be answered by another worker each time. Counts must not go down then, so what one worker has counted no
other may fall short of. Each worker writes a row of its own in a mapped file, and reads all of them.
"""

import mmap
import os
from pathlib import Path

import numpy as np


class CountedOffsets:
    """One per worker. Without a path it is this worker's alone."""

    def __init__(self, path: Path | None = None, *, worker: int = 0, workers: int = 1, partitions: int) -> None:
        size = 8 * workers * partitions
        self._map = mmap.mmap(-1, size) if path is None else _map_file(path, size)
        self._rows = np.frombuffer(self._map, np.int64).reshape(workers, partitions)
        self._mine = self._rows[worker]

    def __getitem__(self, partition: int) -> int:
        """Some answer has counted everything below this offset; 0 where none has."""
        return int(self._rows[:, partition].max())

    def reached(self, partition: int, offset: int) -> None:
        """An answer of this worker counts everything below the offset."""
        # Aligned words of eight bytes are written, and read, at once.
        self._mine[partition] = max(int(self._mine[partition]), offset)


def _map_file(path: Path, size: int) -> mmap.mmap:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        # The first worker makes it; for the others it has this length already.
        os.ftruncate(descriptor, size)
        return mmap.mmap(descriptor, size)
    finally:
        os.close(descriptor)
