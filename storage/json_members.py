"""The members of many JSON objects at once, in columns: what a map<string, string> is made of.

The law:
- A row's members come in the text's order, those of the object itself and not of the objects in it.
- Keys and string values are what they mean (escapes resolved), JSON null is a null, and every other value is its JSON
  text, byte for byte as it stands there.
- A null row has no members.
- The texts are JSON that somebody has checked already. What is seen to be none (brackets or quotes without their
  partner) raises `FormatError`; no other fault is looked for.

Nothing runs for each member in Python: quotes, brackets, commas and colons are found in all bytes at once, and
everything after that is arithmetic on their positions. `python -m load_tests.measure_lake_file` has the cost beside
that of decoding with msgspec.
"""

from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from storage.errors import FormatError

_QUOTE, _OPEN, _CLOSE, _COMMA, _COLON = range(1, 6)
_KIND_OF = {'"': _QUOTE, "{": _OPEN, "[": _OPEN, "}": _CLOSE, "]": _CLOSE, ",": _COMMA, ":": _COLON}
_KINDS = bytes(_KIND_OF.get(chr(byte), 0) for byte in range(256))
_BACKSLASH = ord("\\")
_SPACES = np.frombuffer(b" \t\r\n", np.uint8)

_Positions = npt.NDArray[np.int64]
_texts_decoder = msgspec.json.Decoder(list[str])


class Members(NamedTuple):
    """Row i has the members [offsets[i], offsets[i + 1])."""

    offsets: npt.NDArray[np.int32]
    keys: pa.StringArray
    values: pa.StringArray

    def as_maps(self) -> pa.MapArray:
        return pa.MapArray.from_arrays(pa.array(self.offsets), self.keys, self.values)

    def values_of(self, key: str) -> pa.StringArray:
        """By row the value of its member of that name, null where it has none."""
        rows = len(self.offsets) - 1
        found = np.flatnonzero(np.asarray(pc.equal(self.keys, key).cast(pa.uint8())))
        where = np.searchsorted(self.offsets, found, side="right") - 1
        indices = np.full(rows, -1, np.int64)
        indices[where] = found
        return self.values.take(pa.array(indices, mask=indices < 0))


def members(texts: pa.StringArray) -> Members:
    """The members of one JSON object a row. The texts may have 2 GB together."""
    if texts.null_count:
        texts = pc.fill_null(texts, "{}")
    _, offsets_buffer, data_buffer = texts.buffers()
    starts = np.frombuffer(offsets_buffer, np.int32, len(texts) + 1, texts.offset * 4).astype(np.int64)
    if not len(texts) or data_buffer is None:
        return Members(np.zeros(len(texts) + 1, np.int32), pa.array([], pa.string()), pa.array([], pa.string()))
    data = np.frombuffer(data_buffer, np.uint8)[starts[0] : starts[-1]]
    return _members(data, starts - starts[0])


def _members(data: npt.NDArray[np.uint8], starts: _Positions) -> Members:
    kinds = np.frombuffer(data.tobytes().translate(_KINDS), np.uint8)
    backslashes = np.flatnonzero(data == _BACKSLASH)
    if len(backslashes):
        kinds = kinds.copy()
        kinds[_escaped(backslashes, len(data))] = 0
    at = np.flatnonzero(kinds != 0)
    kind = kinds[at]
    at, kind = _outside_of_strings(at, kind)
    depth = np.cumsum((kind == _OPEN).astype(np.int8) - (kind == _CLOSE).astype(np.int8), dtype=np.int32)
    colon = (kind == _COLON) & (depth == 1)
    ends = ((kind == _COMMA) & (depth == 1)) | ((kind == _CLOSE) & (depth == 0))
    if len(depth) and (depth[-1] != 0 or depth.min() < 0):
        raise FormatError("not JSON objects: brackets do not match")
    # Colons and ends take turns, but for objects without members.
    steps = np.flatnonzero(colon | ends)
    colons = np.flatnonzero(colon)
    value_end = at[steps[np.flatnonzero(colon[steps]) + 1]]
    value_start = at[colons] + 1
    key_start, key_end = at[colons - 2] + 1, at[colons - 1]
    offsets = np.searchsorted(key_start, starts).astype(np.int32)
    value_start, value_end = _without_spaces(data, value_start, value_end)
    first = data[value_start]
    is_text = first == ord('"')
    value_start = value_start + is_text
    value_end = value_end - is_text
    keys, values = _pieces(data, (key_start, key_end, value_start, value_end), is_null=first == ord("n"))
    if len(backslashes):
        keys = _unescaped(keys, _holding(backslashes, key_start, key_end))
        values = _unescaped(values, is_text & _holding(backslashes, value_start, value_end))
    return Members(offsets, keys, values)


def _escaped(backslashes: _Positions, size: int) -> _Positions:
    """Where the characters are that a backslash makes another meaning of."""
    begins_run = np.diff(backslashes, prepend=-2) != 1
    run_starts = np.flatnonzero(begins_run)
    number_in_run = np.arange(len(backslashes)) - run_starts[np.cumsum(begins_run) - 1]
    after: _Positions = backslashes[number_in_run % 2 == 0] + 1
    return after[after < size]


def _outside_of_strings(at: _Positions, kind: npt.NDArray[np.uint8]) -> tuple[_Positions, npt.NDArray[np.uint8]]:
    """The quotes, and what stands between no two of them."""
    is_quote = kind == _QUOTE
    within = np.cumsum(is_quote, dtype=np.int32) & 1
    if len(within) and within[-1]:
        raise FormatError("not JSON objects: a string does not end")
    kept = is_quote | (within == 0)
    return at[kept], kind[kept]


def _without_spaces(data: npt.NDArray[np.uint8], start: _Positions, end: _Positions) -> tuple[_Positions, _Positions]:
    """JSON is compact here but for what older files have of PostgreSQL, which puts a space behind each colon."""
    while len(spaced := np.flatnonzero(np.isin(data[start], _SPACES))):
        start[spaced] += 1
    while len(spaced := np.flatnonzero(np.isin(data[end - 1], _SPACES))):
        end[spaced] -= 1
    return start, end


def _pieces(
    data: npt.NDArray[np.uint8],
    bounds: tuple[_Positions, _Positions, _Positions, _Positions],
    *,
    is_null: npt.NDArray[np.bool_],
) -> tuple[pa.StringArray, pa.StringArray]:
    """Keys and values cut out of the bytes, which are seen as texts (key, gap, value, gap, …)."""
    count = len(is_null)
    if not count:
        return pa.array([], pa.string()), pa.array([], pa.string())
    offsets = np.stack(bounds, axis=1).astype(np.int32).ravel()
    texts = pa.StringArray.from_buffers(len(offsets) - 1, pa.py_buffer(offsets), pa.py_buffer(data))
    which = np.arange(count) * 4
    return texts.take(pa.array(which)), texts.take(pa.array(which + 2, mask=is_null))


def _holding(backslashes: _Positions, start: _Positions, end: _Positions) -> npt.NDArray[np.bool_]:
    held: npt.NDArray[np.bool_] = np.searchsorted(backslashes, start) < np.searchsorted(backslashes, end)
    return held


def _unescaped(texts: pa.StringArray, mask: npt.NDArray[np.bool_]) -> pa.StringArray:
    """The few texts with escapes are decoded in one call."""
    if not mask.any():
        return texts
    chosen = pa.array(mask)
    raw = texts.filter(chosen).cast(pa.binary()).to_pylist()
    try:
        decoded = _texts_decoder.decode(b'["' + b'","'.join(raw) + b'"]')
    except msgspec.MsgspecError as error:
        raise FormatError(f"not a JSON string: {error}") from error
    return pc.replace_with_mask(texts, chosen, pa.array(decoded, pa.string()))
