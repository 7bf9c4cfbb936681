"""How far the log of each partition was counted in answers, known to all workers of a machine.

A client may be answered by another worker each time. Counts must not go down then, so what one worker has counted no
other may fall short of.
"""

from pathlib import Path

from gateway.shared_map import shared_rows


class CountedOffsets:
    """One per worker. Without a path it is this worker's alone."""

    def __init__(self, path: Path | None = None, *, worker: int = 0, workers: int = 1, partitions: int) -> None:
        self._rows = shared_rows(path, workers=workers, words=partitions)
        self._mine = self._rows[worker]

    def __getitem__(self, partition: int) -> int:
        """Some answer has counted everything below this offset; 0 where none has."""
        return int(self._rows[:, partition].max())

    def reached(self, partition: int, offset: int) -> None:
        """An answer of this worker counts everything below the offset."""
        self._mine[partition] = max(int(self._mine[partition]), offset)
