"""A set of 64-bit fingerprints that hardly ever shrinks: sorted runs, a small memtable, and a filter before them.

Adding goes to the memtable (a Python set), which becomes a sorted run when it is full; runs are merged so
that each is at least `_RATIO` times as long as the next, which keeps them few and moves each id rarely.
A binary search in ten million ids is a chain of cache misses (about 1 µs an id), and nearly every id asked for
is new; so a Bloom filter in words of 64 bits, one cache miss, answers first, and only what passes it is searched.
Fingerprints are uniformly distributed already: their own bits are the filter's hash functions.
"""

import mmap
import sys

import numpy as np
from numpy.typing import NDArray

Fingerprints = NDArray[np.uint64]
Mask = NDArray[np.bool_]

_RATIO = 4
_MEMTABLE_INT_BYTES = 36  # a Python int of 64 bits

# A filter word holds 4 to 8 ids, three bits each: 0.5 to 3 % of new ids pass it.
_IDS_A_WORD = 8
_MIN_WORDS_LOG2 = 10
_CHUNK = 1 << 15  # ids: the temporary arrays of a chunk stay in the cache

_PATTERN_SEED = 1
_PATTERN_INDEX = np.uint64(4095)


def _make_patterns() -> Fingerprints:
    """All the sets of three bits that an id may have in its word; its low 12 bits choose one."""
    positions = np.random.default_rng(_PATTERN_SEED).random((4096, 64)).argsort(axis=1)[:, :3].astype(np.uint64)
    patterns: Fingerprints = np.bitwise_or.reduce(np.uint64(1) << positions, axis=1)
    return patterns


_PATTERNS = _make_patterns()


def filter_patterns(fingerprints: Fingerprints) -> Fingerprints:
    """The bits of each id in its filter word."""
    return _PATTERNS.take((fingerprints & _PATTERN_INDEX).view(np.int64), mode="clip")


def _own_pages(size: int) -> Fingerprints:
    """Zeros outside of the heap: what replaces them is longer, so that their place there would stay a hole."""
    return np.frombuffer(mmap.mmap(-1, size * 8, flags=mmap.MAP_PRIVATE), np.uint64)


class _Filter:
    """A Bloom filter in blocks: an id's high bits choose the word, its low bits the pattern in it."""

    def __init__(self, ids: int) -> None:
        words_log2 = max(_MIN_WORDS_LOG2, (max(ids - 1, 0) // _IDS_A_WORD).bit_length())
        self.capacity = _IDS_A_WORD << words_log2
        self.words = _own_pages(1 << words_log2)
        self._shift = np.uint64(64 - words_log2)

    def add(self, fingerprints: Fingerprints) -> None:
        for start in range(0, fingerprints.size, _CHUNK):
            chunk = fingerprints[start : start + _CHUNK]
            np.bitwise_or.at(self.words, (chunk >> self._shift).view(np.int64), filter_patterns(chunk))

    def candidates(self, fingerprints: Fingerprints, patterns: Fingerprints) -> NDArray[np.intp]:
        """Indices of the ids that may have been added; every id that was is among them."""
        words = self.words.take((fingerprints >> self._shift).view(np.int64), mode="clip")
        words &= patterns
        passed: Mask = words == patterns
        return passed.nonzero()[0]


class FingerprintSet:
    """An id that is added twice is counted twice: the caller adds what `mark` did not know.

    Another thread may read while one adds: what it reads is replaced, never changed half way."""

    def __init__(self, *, memtable_limit: int) -> None:
        self._memtable_limit = memtable_limit
        self._memtable: set[int] = set()
        self._runs: list[Fingerprints] = []  # longest first
        self._filter = _Filter(0)

    def __len__(self) -> int:
        return sum(run.size for run in self._runs) + len(self._memtable)

    @property
    def resident_bytes(self) -> int:
        memtable_bytes = sys.getsizeof(self._memtable) + _MEMTABLE_INT_BYTES * len(self._memtable)
        return sum(run.nbytes for run in self._runs) + self._filter.words.nbytes + memtable_bytes

    def mark(self, found: Mask, fingerprints: Fingerprints, patterns: Fingerprints) -> None:
        """Set `found` where an id is in the set. Fastest with ids in ascending order."""
        if self._memtable:
            self._mark_memtable(found, fingerprints)
        if not self._runs:
            return
        candidates = self._filter.candidates(fingerprints, patterns)
        if candidates.size:
            found[candidates] |= self._search_runs(fingerprints[candidates])

    def _search_runs(self, wanted: Fingerprints) -> Mask:
        found = np.zeros(wanted.size, np.bool_)
        for run in self._runs:
            found |= run.take(run.searchsorted(wanted), mode="clip") == wanted
            if np.count_nonzero(found) == found.size:
                break
        return found

    def _mark_memtable(self, found: Mask, fingerprints: Fingerprints) -> None:
        wanted = fingerprints.tolist()
        if not self._memtable.isdisjoint(wanted):
            found |= np.fromiter(map(self._memtable.__contains__, wanted), np.bool_, len(wanted))

    def add(self, fingerprints: Fingerprints) -> None:
        if fingerprints.size >= self._memtable_limit:
            self._add_run(np.sort(fingerprints))
            return
        self._memtable.update(fingerprints.tolist())
        if len(self._memtable) >= self._memtable_limit:
            self._add_run(np.sort(np.fromiter(self._memtable, np.uint64, len(self._memtable))))
            self._memtable = set()

    def remove(self, fingerprints: Fingerprints) -> None:
        """Forget these. The filter goes on to let them pass, which costs a search each."""
        self._memtable = self._memtable.difference(fingerprints.tolist())
        self._runs = [run[~np.isin(run, fingerprints)] for run in self._runs]

    def _add_run(self, run: Fingerprints) -> None:
        self._extend_filter(run)
        kept = len(self._runs)
        size = run.size
        while kept and self._runs[kept - 1].size < _RATIO * size:
            kept -= 1
            size += self._runs[kept].size
        merged = _own_pages(size)
        np.concatenate([*self._runs[kept:], run], out=merged)
        # A stable sort finds the sorted parts and only merges them.
        merged.sort(kind="stable")
        self._runs = [*self._runs[:kept], merged]

    def _extend_filter(self, run: Fingerprints) -> None:
        held = sum(earlier.size for earlier in self._runs)
        if held + run.size <= self._filter.capacity:
            self._filter.add(run)
            return
        larger = _Filter(held + run.size)
        for part in (*self._runs, run):
            larger.add(part)
        self._filter = larger
