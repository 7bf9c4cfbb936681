"""JSON values as numbers in columns, summed exactly.

A sum must be what the decimals in the JSON texts add up to, and adding Python decimals one by one costs a microsecond
each. So each number is turned into an integer of 10^-scale where that is provably the same decimal, and integers are
added in columns; the few others are added as decimals.

Why that is exact: a float whose shortest text has at most 15 digits is the only float for that decimal, and dividing an
integer below 10^15 by a power of ten rounds correctly. If the quotient is the float again, the integer is the text.
"""

from collections.abc import Sequence
from decimal import Decimal
from types import NoneType
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from storage.aggregate import EXACT, SUM_SCALE, ZERO
from storage.metric_definitions import Filter, number_of

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

# Whole numbers, money, and what sensors send; the rest is tried with all digits that a sum keeps.
_SCALES = (0, 2, 4, 6)
_EXACT_BELOW = 1e15
_FLOAT_INTEGERS = 2.0**53
_ROUNDED_BELOW = 1e14
_SAFELY_ROUNDED = 0.4  # of a last digit: the error of float arithmetic below _ROUNDED_BELOW is under 0.05
_SUM_BELOW = 2.0**62
_PLAIN = frozenset({int, float, NoneType})
_COMPARISONS: dict[str, np.ufunc] = {
    "gt": np.greater,
    "gte": np.greater_equal,
    "lt": np.less,
    "lte": np.less_equal,
}


class Numbers(NamedTuple):
    """One number a value. `floats`: NaN where there is none.

    Its exact decimal is the integer of one of the `scaled` columns (which are 0 elsewhere), or in `others` by position.
    `unusable`: positions whose value is there and is no number, or too large."""

    floats: Floats
    scaled: list[tuple[int, Integers]]
    others: dict[int, Decimal]
    unusable: list[int]

    def sums(self, order: NDArray[np.intp], starts: NDArray[np.intp], groups: NDArray[np.intp]) -> list[Decimal]:
        """Exact sums of groups: `order` lists positions group by group, `starts` says where in it each begins.

        `groups` is each position's group, counted as in `starts`; -1 for positions that belong to none."""
        totals = [ZERO] * len(starts)
        for scale, column in self.scaled:
            parts = np.add.reduceat(column[order], starts).tolist()
            totals = [
                EXACT.add(total, Decimal(part).scaleb(-scale, EXACT)) if part else total
                for total, part in zip(totals, parts, strict=True)
            ]
        for position, number in self.others.items():
            group = int(groups[position])
            if group >= 0:
                totals[group] = EXACT.add(totals[group], number)
        return totals


def read_numbers(values: Sequence[object]) -> Numbers:
    """The values that are numbers, or strings that are; see `storage.metric_definitions.number_of`."""
    others: dict[int, Decimal] = {}
    floats = _plain_floats(values)
    if floats is None:
        floats = np.full(len(values), np.nan)
        for position, value in enumerate(values):
            if type(value) is float or (type(value) is int and abs(value) < _FLOAT_INTEGERS):
                floats[position] = value
            elif value is not None:
                _read_one(position, value, floats, others)
    scaled = []
    with np.errstate(invalid="ignore", over="ignore"):
        left = np.abs(floats) < _FLOAT_INTEGERS
        for position in np.flatnonzero(np.abs(floats) >= _FLOAT_INTEGERS).tolist():
            if position not in others:
                _read_one(position, values[position], floats, others)
        if others:
            left[list(others)] = False
        below = min(_EXACT_BELOW, _SUM_BELOW / max(len(values), 1))
        for scale in (*_SCALES, SUM_SCALE):
            if not left.any():
                break
            column, done = _scaled(floats, scale, below)
            done &= left
            if done.any():
                scaled.append((scale, np.where(done, column, 0.0).astype(np.int64)))
                left &= ~done
    for position in np.flatnonzero(left).tolist():
        _read_one(position, values[position], floats, others)
    unusable = [position for position in np.flatnonzero(np.isnan(floats)).tolist() if values[position] is not None]
    return Numbers(floats, scaled, others, unusable)


def compared(values: Sequence[object], condition: Filter) -> NDArray[np.bool_] | None:
    """Where values meet a condition that compares with a number. None when it is another condition, or when some value
    is no plain number: then `storage.metric_definitions.predicate` tells."""
    compare, limit = _COMPARISONS.get(condition.op), condition.value
    if (
        compare is None
        or isinstance(limit, bool)
        or not isinstance(limit, int | float)
        or abs(limit) >= _FLOAT_INTEGERS
    ):
        return None
    floats = _plain_floats(values)
    with np.errstate(invalid="ignore"):
        if floats is None or bool((np.abs(floats) >= _FLOAT_INTEGERS).any()):
            return None
        holds: NDArray[np.bool_] = compare(floats, limit)  # never for NaN, the absent value
    return holds


def _plain_floats(values: Sequence[object]) -> Floats | None:
    """The fast way, for what is only numbers and None; else None."""
    if not _PLAIN.issuperset(map(type, values)):
        return None
    try:
        return np.array(values, np.float64)
    except OverflowError:  # an integer beyond 1e308
        return None


def _read_one(position: int, value: object, floats: Floats, others: dict[int, Decimal]) -> None:
    number = number_of(value)
    if number is not None and isinstance(value, str | int | float):
        floats[position] = float(value)
        others[position] = number
    else:
        floats[position] = np.nan


def _scaled(floats: Floats, scale: int, below: float) -> tuple[Floats, NDArray[np.bool_]]:
    """The numbers times 10^scale as whole numbers, and where these are right."""
    power = 10.0**scale
    shifted = floats * power
    whole = np.rint(shifted)
    if scale < SUM_SCALE:
        return whole, (whole / power == floats) & (np.abs(whole) < below)
    close = np.abs(shifted - whole) < _SAFELY_ROUNDED
    return whole, close & (np.abs(whole) < min(below, _ROUNDED_BELOW))
