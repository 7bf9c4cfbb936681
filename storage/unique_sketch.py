"""How many different values there were: exact while they are few, an estimate from HyperLogLog registers beyond.

Up to `EXACT_LIMIT` values their 64-bit hashes are kept, sorted; with one more they become 4,096 registers. What is
kept depends only on the set of values: not on their order, nor on how they were split and merged, so the bytes and
the estimate are the same on every replay (WM-1).

The estimate is Ertl's ("New cardinality estimation algorithms for HyperLogLog sketches", 2017): one formula for all
sizes, with a standard error of `RELATIVE_ERROR`. It never falls when a value is added. Apache DataSketches' own
estimate of merged registers changes its formula near 2,600 values and falls there by up to 0.5 %; clients that poll
would see a count go down.

**Written form, version 1**: one byte 1, one byte of kind, then
- kind 0 (exact): the hashes, ascending, 8 bytes little endian each;
- kind 1 (registers): an Apache DataSketches HLL sketch (lg_k 12, HLL_8, updatable, out of order), which any
  DataSketches library reads and merges with others of this form. A hash's low 12 bits are its register, the
  leading zeros of the other 52 its value; DataSketches hashes again what it is given, so do not update them there.
"""

import math
import struct
import sys

import numpy as np
from numpy.typing import NDArray

from storage.errors import FormatError

Hashes = NDArray[np.uint64]
Registers = NDArray[np.uint8]

EXACT_LIMIT = 1024
_INDEX_BITS = 12
_REGISTERS = 1 << _INDEX_BITS
RELATIVE_ERROR = 1.04 / math.sqrt(_REGISTERS)
"""One standard deviation of the estimate, above EXACT_LIMIT values: 1.6 %."""

_VERSION = 1
_EXACT, _HLL = 0, 1
_VALUE_BITS = 64 - _INDEX_BITS
_LARGEST = _VALUE_BITS + 1  # of a register: all 52 bits are zero
_INDEX_MASK = np.uint64(_REGISTERS - 1)
_INDEX_SHIFT = np.uint64(_INDEX_BITS)

# preamble ints, serial version, family HLL, lg_k, lg_arr, flags (out of order, no compact), curMin, mode (HLL, HLL_8);
# then hipAccum (unused when out of order), kxq0, kxq1, number of zero registers, number of exceptions.
_HEADER = struct.Struct("<8sdddII")
_HEADER_START = bytes((10, 1, 7, _INDEX_BITS, 0, 0x10, 0, 0x0A))
_SMALL_VALUES = 32  # kxq0 sums the powers of smaller register values, kxq1 those of the others

_NOTHING: Hashes = np.empty(0, np.uint64)


class UniqueSketch:
    """A set of 64-bit hashes. Arrays are replaced, never changed, so that copies share them."""

    __slots__ = ("_hashes", "_registers")

    def __init__(self, hashes: Hashes | None = None) -> None:
        """Of these hashes, in any order and repeated as may be. They must be uniform (xxh3 is)."""
        self._hashes: Hashes | None = _NOTHING
        self._registers: Registers | None = None
        if hashes is not None:
            self.add_hashes(hashes)

    @classmethod
    def of_distinct(cls, hashes: Hashes) -> "UniqueSketch":
        """Of hashes that are ascending and different already; the array is copied."""
        sketch = cls()
        if hashes.size <= EXACT_LIMIT:
            sketch._hashes = hashes.copy()
        else:
            sketch._become_registers(_registers_of(hashes))
        return sketch

    @property
    def exact(self) -> bool:
        return self._hashes is not None

    @property
    def resident_bytes(self) -> int:
        kept = self._registers if self._hashes is None else self._hashes
        return sys.getsizeof(kept) + 64

    def copy(self) -> "UniqueSketch":
        copied = UniqueSketch()
        copied._hashes, copied._registers = self._hashes, self._registers
        return copied

    def add_hashes(self, hashes: Hashes) -> None:
        if self._hashes is None:
            self._raise_registers(_registers_of(hashes))
            return
        # Two ascending runs as a rule, which this sort merges: a tenth of what np.unique takes.
        together = np.concatenate((self._hashes, hashes))
        together.sort(kind="stable")
        is_first = np.ones(together.size, np.bool_)
        np.not_equal(together[1:], together[:-1], out=is_first[1:])
        together = together[is_first]
        if together.size <= EXACT_LIMIT:
            self._hashes = together
        else:
            self._become_registers(_registers_of(together))

    def merge(self, other: "UniqueSketch") -> None:
        """Take in the other's values; the other stays as it is."""
        if other._hashes is not None:
            if other._hashes.size:
                self.add_hashes(other._hashes)
            return
        assert other._registers is not None
        if self._hashes is None:
            self._raise_registers(other._registers)
        else:
            self._become_registers(np.maximum(_registers_of(self._hashes), other._registers))

    def estimate(self) -> float:
        """Exact up to EXACT_LIMIT; never below a former estimate of a subset."""
        if self._hashes is not None:
            return float(self._hashes.size)
        assert self._registers is not None
        return max(_estimate(self._registers), EXACT_LIMIT + 1.0)

    def to_bytes(self) -> bytes:
        if self._hashes is not None:
            return bytes((_VERSION, _EXACT)) + self._hashes.astype("<u8").tobytes()
        assert self._registers is not None
        return bytes((_VERSION, _HLL)) + _write_hll(self._registers)

    @classmethod
    def from_bytes(cls, raw: bytes) -> "UniqueSketch":
        """The inverse of `to_bytes`. Raises `FormatError`."""
        if len(raw) < 2:
            raise FormatError(f"a unique count has at least 2 bytes, not {len(raw)}")
        if raw[0] != _VERSION:
            raise FormatError(f"unique count has version {raw[0]}; this release reads version {_VERSION}")
        sketch = cls()
        if raw[1] == _EXACT:
            sketch._hashes = _read_hashes(raw[2:])
        elif raw[1] == _HLL:
            sketch._become_registers(_read_hll(raw[2:]))
        else:
            raise FormatError(f"unique count of unknown kind {raw[1]}")
        return sketch

    def _become_registers(self, registers: Registers) -> None:
        self._hashes, self._registers = None, registers

    def _raise_registers(self, registers: Registers) -> None:
        assert self._registers is not None
        self._registers = np.maximum(self._registers, registers)


def _registers_of(hashes: Hashes) -> Registers:
    # A float holds the 52 bits exactly, so its exponent is their length.
    lengths = np.frexp((hashes >> _INDEX_SHIFT).astype(np.float64))[1]
    registers = np.zeros(_REGISTERS, np.uint8)
    np.maximum.at(registers, (hashes & _INDEX_MASK).astype(np.intp), (_LARGEST - lengths).astype(np.uint8))
    return registers


def _estimate(registers: Registers) -> float:
    counts = np.bincount(registers, minlength=_LARGEST + 1).tolist()
    z = _REGISTERS * _tau(1 - counts[_LARGEST] / _REGISTERS)
    for count in reversed(counts[1:_LARGEST]):
        z = 0.5 * (z + count)
    z += _REGISTERS * _sigma(counts[0] / _REGISTERS)
    return _REGISTERS * _REGISTERS / (2 * math.log(2)) / z


def _sigma(x: float) -> float:
    """Ertl's correction for registers that are zero; x is their share, below 1."""
    power, result = 1.0, x
    while True:
        x *= x
        before = result
        result += x * power
        power += power
        if result == before:
            return result


def _tau(x: float) -> float:
    """Ertl's correction for registers at their largest value; x is the share of the others."""
    if x in (0.0, 1.0):
        return 0.0
    power, result = 1.0, 1 - x
    while True:
        x = math.sqrt(x)
        before = result
        power *= 0.5
        result -= (1 - x) ** 2 * power
        if result == before:
            return result / 3


def _write_hll(registers: Registers) -> bytes:
    counts = np.bincount(registers, minlength=_LARGEST + 1).tolist()
    kxq0 = sum(count * 2.0**-value for value, count in enumerate(counts[:_SMALL_VALUES]))
    kxq1 = sum(count * 2.0**-value for value, count in enumerate(counts) if value >= _SMALL_VALUES)
    return _HEADER.pack(_HEADER_START, 0.0, kxq0, kxq1, counts[0], 0) + registers.tobytes()


def _read_hll(raw: bytes) -> Registers:
    if len(raw) != _HEADER.size + _REGISTERS or raw[: len(_HEADER_START)] != _HEADER_START:
        raise FormatError("the registers of a unique count are damaged")
    registers = np.frombuffer(raw, np.uint8, offset=_HEADER.size).copy()
    if _write_hll(registers) != raw or int(registers.max()) > _LARGEST:
        raise FormatError("the registers of a unique count are damaged")
    return registers


def _read_hashes(raw: bytes) -> Hashes:
    if len(raw) % 8 or len(raw) > 8 * EXACT_LIMIT:
        raise FormatError(f"the hashes of a unique count take {len(raw)} bytes")
    hashes = np.frombuffer(raw, "<u8").astype(np.uint64)
    if not bool((hashes[1:] > hashes[:-1]).all()):
        raise FormatError("the hashes of a unique count are not in order")
    return hashes
