"""The dedupe window of one partition: which ids were accepted in the last hours (ND-1).

Time is cut into generations of `window_s`, aligned to the Unix epoch. An id is kept in the generation in which
it was appended, and the newest two generations are held: it is known for at least `window_s` and for at most
twice that. Forgetting is dropping a generation.

The window decides nothing alone: `known` only looks, and the owner of the partition calls `add` once the
append with those ids has succeeded. No call waits for anything; a call that merges large runs is the longest
(load_tests/measure_dedupe.py prints how long).
"""

from collections.abc import Iterable

import numpy as np

from analytics_actors.fingerprint_set import Fingerprints, FingerprintSet, Mask, filter_patterns
from storage.partition_log import IdsEntry

MEMTABLE_LIMIT = 4096
"""Small enough that the full memtables of 64 partitions stay under 25 MB, large enough that runs are rare."""


class DedupeWindow:
    """Ids are fingerprints as `storage.fingerprint` makes them, of events and of whole batches alike."""

    def __init__(self, window_s: float, *, memtable_limit: int = MEMTABLE_LIMIT) -> None:
        self._window_ms = max(1, round(window_s * 1000))
        self._memtable_limit = memtable_limit
        self._index = 0
        """Of the current generation: milliseconds since the Unix epoch // window."""
        self._current, self._previous = self._empty(), self._empty()

    def __len__(self) -> int:
        return len(self._current) + len(self._previous)

    @property
    def resident_bytes(self) -> int:
        return self._current.resident_bytes + self._previous.resident_bytes

    def known(self, fingerprints: Fingerprints) -> Mask:
        """True for each id that is in the window, and for each that stands earlier in the same array."""
        if fingerprints.size < 2:
            return self._marked(fingerprints)
        order = fingerprints.argsort(kind="stable")
        ordered = fingerprints[order]
        marked = self._marked(ordered)
        marked[1:] |= ordered[1:] == ordered[:-1]
        found = np.empty_like(marked)
        found[order] = marked
        return found

    def contains(self, fingerprint: int) -> bool:
        return bool(self._marked(np.array([fingerprint], np.uint64))[0])

    def _marked(self, fingerprints: Fingerprints) -> Mask:
        found = np.zeros(fingerprints.size, np.bool_)
        patterns = filter_patterns(fingerprints)
        for generation in (self._current, self._previous):
            generation.mark(found, fingerprints, patterns)
        return found

    def add(self, fingerprints: Fingerprints, now_ms: int) -> None:
        """Remember ids that were not known. While the clock is behind, they join the newest generation."""
        self.advance(now_ms)
        self._current.add(fingerprints)

    def load(self, entries: Iterable[IdsEntry], now_ms: int) -> None:
        """Add the ids of a log, each at its own time; what is too old by now is left out.

        May be called for one part of the entries after the other, in any order."""
        self.advance(now_ms)
        current: list[bytes] = []
        previous: list[bytes] = []
        current_from_ms = self._index * self._window_ms
        for appended_ms, fingerprints in entries:
            if appended_ms >= current_from_ms:
                current.append(fingerprints)
            elif appended_ms >= current_from_ms - self._window_ms:
                previous.append(fingerprints)
        self._current.add(np.frombuffer(b"".join(current), "<u8"))
        self._previous.add(np.frombuffer(b"".join(previous), "<u8"))

    def remove(self, fingerprints: Fingerprints) -> None:
        """Forget ids that were lost, so that their events may be sent again."""
        self._current.remove(fingerprints)
        self._previous.remove(fingerprints)

    def advance(self, now_ms: int) -> None:
        """Forget what is too old. `add` does it too; without traffic somebody has to call it."""
        steps = now_ms // self._window_ms - self._index
        if steps <= 0:
            return
        self._previous = self._current if steps == 1 else self._empty()
        self._current = self._empty()
        self._index += steps

    def clear(self) -> None:
        """Forget everything."""
        self._current, self._previous = self._empty(), self._empty()

    def _empty(self) -> FingerprintSet:
        return FingerprintSet(memtable_limit=self._memtable_limit)
