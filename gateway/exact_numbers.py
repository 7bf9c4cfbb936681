"""Columns of exact sums, and of the means that are made of them, as JSON.

A sum is the text that the database has of it until something is added to it: to make a Decimal of each of 36,000, and
a text of it again, would take as long as all the rest of their answer.
"""

from collections.abc import Sequence
from decimal import Decimal

import msgspec
import numpy as np

from storage.aggregate import ZERO

Sum = str | Decimal
"""Of a text: digits, at most one point among them, perhaps a minus sign."""

_WHOLE = 2.0**53
"""Whole numbers below are floats as they are; those above are none that is below."""

_encode = msgspec.json.Encoder().encode


def sums_json(sums: Sequence[Sum | None], counts: np.ndarray) -> bytes:
    """A JSON array with `decimal_text`'s text for each number, and null where the count is 0."""
    texts = [text.rstrip("0").rstrip(".") if text[-1] == "0" and "." in text else text for text in _texts(sums)]
    for row in np.flatnonzero(counts == 0).tolist():
        texts[row] = "null"
    return f"[{','.join(texts)}]".encode()


def means_json(sums: Sequence[Sum | None], counts: np.ndarray) -> bytes:
    """A JSON array with the float that is nearest to each quotient, as `Aggregate.value` has it, and null where the
    count is 0. Whole numbers are divided: where both are floats as they are, that rounds once; else Python does it."""
    texts = _texts(sums)
    joined = f"{' '.join(texts)} "
    scales = _digits_after_point(joined)
    # What is too large for an integer comes as the largest one, which is no float as it is.
    units = np.fromstring(joined.replace(".", ""), np.int64, sep=" ")
    divisors = counts * 10.0**scales
    is_whole = (units > -_WHOLE) & (units < _WHOLE) & (divisors < _WHOLE)
    means = np.divide(units, divisors, out=np.full(len(texts), np.nan), where=counts > 0)
    for row in np.flatnonzero(~is_whole & (counts > 0)).tolist():
        means[row] = int(texts[row].replace(".", "")) / (int(counts[row]) * 10 ** int(scales[row]))
    return _encode(means.tolist())


def _texts(sums: Sequence[Sum | None]) -> list[str]:
    return [each if type(each) is str else format(each or ZERO, "f") for each in sums]


def _digits_after_point(texts: str) -> np.ndarray:
    """Of numbers with a space behind each."""
    signs = np.frombuffer(texts.encode(), np.uint8)
    ends, points = np.flatnonzero(signs == ord(" ")), np.flatnonzero(signs == ord("."))
    digits = np.zeros(len(ends), np.int64)
    rows = np.searchsorted(ends, points)
    digits[rows] = ends[rows] - points - 1
    return digits
