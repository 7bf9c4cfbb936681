"""Columns of exact sums, and the means that are made of them.

A sum is the text that the database has of it until something is added to it: to make a Decimal of each of 36,000, and
a text of it again, would take as long as all the rest of their answer.
"""

from collections.abc import Iterable
from decimal import Decimal

import numpy as np

from storage.aggregate import decimal_text

Sum = str | Decimal
"""A text is one of `decimal_text`."""

_WHOLE = 2.0**53
"""Whole numbers below are floats as they are; those above are none that is below."""


def sum_texts(sums: Iterable[Sum]) -> list[str]:
    """`decimal_text`'s text for each number."""
    return [each if type(each) is str else decimal_text(Decimal(each)) for each in sums]


def means(sums: Iterable[Sum], counts: np.ndarray) -> np.ndarray:
    """The float that is nearest to each quotient, as `Aggregate.value` has it, and NaN where the count is 0. Whole
    numbers are divided: where both are floats as they are, that rounds once; else Python does it."""
    texts = sum_texts(sums)
    joined = f"{' '.join(texts)} "
    scales = _digits_after_point(joined)
    # What is too large for an integer comes as the largest one, which is no float as it is.
    units = np.fromstring(joined.replace(".", ""), np.int64, sep=" ")
    divisors = counts * 10.0**scales
    is_whole = (units > -_WHOLE) & (units < _WHOLE) & (divisors < _WHOLE)
    quotients = np.full(len(texts), np.nan)
    np.divide(units, divisors, out=quotients, where=counts > 0)
    for row in np.flatnonzero(~is_whole & (counts > 0)).tolist():
        quotients[row] = int(texts[row].replace(".", "")) / (int(counts[row]) * 10 ** int(scales[row]))
    return quotients


def _digits_after_point(texts: str) -> np.ndarray:
    """Of numbers with a space behind each."""
    signs = np.frombuffer(texts.encode(), np.uint8)
    ends, points = np.flatnonzero(signs == ord(" ")), np.flatnonzero(signs == ord("."))
    digits = np.zeros(len(ends), np.int64)
    rows = np.searchsorted(ends, points)
    digits[rows] = ends[rows] - points - 1
    return digits
