"""Percentiles of numbers: a KLL sketch of Apache DataSketches (doubles, k = 200).

Exact while no more than `EXACT_LIMIT` numbers were added; beyond that, the number that is returned for a rank q has a
true rank within q ± `RANK_ERROR`, in 99 of 100 sketches. KLL keeps a random sample, so two merges of the same numbers
may differ within that error; how many numbers there were is exact.

A percentile is the nearest rank: the smallest number that at least the share q of all numbers does not exceed.

**Written form, version 1**: one byte 1, eight bytes xxh3-64 (big endian) of what follows, the sketch as DataSketches
serialises it. DataSketches trusts its input: damaged bytes may keep it busy for ever, so they never reach it.
"""

from typing import Any

import numpy as np
from datasketches import kll_doubles_sketch  # type: ignore[import-untyped]
from numpy.typing import NDArray
from xxhash import xxh3_64_digest

from storage.errors import FormatError

_K = 200
EXACT_LIMIT = _K
RANK_ERROR = float(kll_doubles_sketch.get_normalized_rank_error(_K, True))
"""Of a rank, one sided or both, at 99 % confidence: 1.65 %."""

_VERSION = 1
_HEAD_BYTES = 9
_FIXED_BYTES = 400  # what the sketch allocates besides the numbers that it keeps


class QuantileSketch:
    __slots__ = ("_kll",)

    def __init__(self) -> None:
        self._kll: Any = kll_doubles_sketch(_K)

    @property
    def n(self) -> int:
        """How many numbers were added."""
        return int(self._kll.n)

    @property
    def resident_bytes(self) -> int:
        return 8 * int(self._kll.num_retained) + _FIXED_BYTES

    def copy(self) -> "QuantileSketch":
        copied = QuantileSketch()
        copied.merge(self)
        return copied

    def add(self, numbers: NDArray[np.float64]) -> None:
        """The numbers must be finite."""
        self._kll.update(np.ascontiguousarray(numbers))

    def merge(self, other: "QuantileSketch") -> None:
        """Take in the other's numbers; the other stays as it is."""
        self._kll.merge(other._kll)

    def quantile(self, q: float) -> float | None:
        """The number of rank q (0 to 1); None when there is none."""
        return None if self._kll.is_empty() else float(self._kll.get_quantile(q, True))

    def to_bytes(self) -> bytes:
        body: bytes = self._kll.serialize()
        return bytes((_VERSION,)) + xxh3_64_digest(body) + body

    @classmethod
    def from_bytes(cls, raw: bytes) -> "QuantileSketch":
        """The inverse of `to_bytes`. Raises `FormatError`."""
        if not raw or raw[0] != _VERSION:
            found = raw[0] if raw else "none"
            raise FormatError(f"quantile sketch has version {found}; this release reads version {_VERSION}")
        body = raw[_HEAD_BYTES:]
        if xxh3_64_digest(body) != raw[1:_HEAD_BYTES]:
            raise FormatError("a quantile sketch is damaged: its check digits do not match")
        sketch = cls()
        try:
            sketch._kll = kll_doubles_sketch.deserialize(body)
        except (RuntimeError, ValueError, IndexError) as error:
            raise FormatError(f"a quantile sketch cannot be read: {error}") from error
        return sketch
