"""What each gateway worker of a machine says of itself, known to all of them: a question meets any one.

As `gateway.counted_offsets`: shared memory, in which each worker writes a slot of its own and reads all. A slot is JSON
and then spaces; who reads it while it is written reads it again.
"""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from gateway.shared_map import shared_map

_SLOT_BYTES = 4096
"""A row has some 100 bytes, and a dozen for each shard."""
_TRIES = 3


class WorkerRows:
    """One per worker."""

    def __init__(self, path: Path, *, worker: int, workers: int, clock: Callable[[], float] = time.time) -> None:
        self._map = shared_map(path, workers * _SLOT_BYTES)
        self._worker = worker
        self._workers = workers
        self._clock = clock

    def tell(self, row: Mapping[str, Any]) -> None:
        """To be called some times a second, so that a worker that hangs is seen to."""
        text = msgspec.json.encode((self._clock(), row))
        if len(text) <= _SLOT_BYTES:
            start = self._worker * _SLOT_BYTES
            self._map[start : start + _SLOT_BYTES] = text.ljust(_SLOT_BYTES)

    def rows(self) -> list[dict[str, Any]]:
        """Those of all workers that have told one, with `silentSeconds`: for how long none has come."""
        found = [self._row(worker) for worker in range(self._workers)]
        return [row for row in found if row is not None]

    def _row(self, worker: int) -> dict[str, Any] | None:
        for _ in range(_TRIES):
            text = self._map[worker * _SLOT_BYTES : (worker + 1) * _SLOT_BYTES].rstrip(b" \0")
            try:
                at, row = msgspec.json.decode(text, type=tuple[float, dict[str, Any]])
            except msgspec.DecodeError:
                continue
            return row | {"silentSeconds": max(0, int(self._clock() - at))}
        return None
