"""Values out of JSON texts: only the wanted paths are built, whatever else the objects hold is skipped over.

A msgspec struct is made for each set of paths and kept. Everywhere in it any JSON value is allowed, because clients
send what they like: an object where a value is wanted, or a value where an object is, is an absent value.
"""

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from operator import attrgetter
from types import NoneType
from typing import Any, Union

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from storage.errors import FormatError

Keys = tuple[str, ...]
Scalar = str | int | float | bool | None

# Texts are joined to be decoded in one call; the joined copy and what is decoded from it stay in the processor's cache.
_PIECE_BYTES = 256 * 1024
_SCALARS = frozenset({str, int, float, bool, NoneType})


class _Node:
    """One level of the wanted paths: the struct that reads it, and what is below each of its fields."""

    def __init__(self, paths: Iterable[Keys]) -> None:
        below: dict[str, list[Keys]] = {}
        self.is_leaf = False
        for keys in paths:
            if keys:
                below.setdefault(keys[0], []).append(keys[1:])
            else:
                self.is_leaf = True
        self.children = {key: _Node(rest) for key, rest in below.items()}
        fields = [
            (f"f{number}", Union[child.struct, str, int, float, bool, list, None], None)  # noqa: UP007 (not a constant)
            for number, child in enumerate(self.children.values())
        ]
        names = {f"f{number}": key for number, key in enumerate(self.children)}
        self.struct: type[Any] = msgspec.defstruct("Wanted", fields, rename=names, gc=False)

    def collect(self, objects: Sequence[Any], path: Keys, found: dict[Keys, list[Scalar]]) -> None:
        """Add the values below these objects, of which any may be of another type than `struct`."""
        if self.is_leaf:
            found[path] = _scalars(objects)
        if not self.children:
            return
        empty = self.struct()
        if not {self.struct}.issuperset(map(type, objects)):
            objects = [each if type(each) is self.struct else empty for each in objects]
        for number, (key, child) in enumerate(self.children.items()):
            values = list(map(attrgetter(f"f{number}"), objects))
            child.collect(values, (*path, key), found)


def _scalars(values: Sequence[Any]) -> list[Scalar]:
    if _SCALARS.issuperset(map(type, values)):
        return list(values)
    return [value if type(value) in _SCALARS else None for value in values]


class Digger:
    """Reads the values of some paths from JSON objects."""

    def __init__(self, paths: Iterable[Keys]) -> None:
        self._root = _Node(paths)
        any_of: Any = Union[self._root.struct, str, int, float, bool, list, None]  # noqa: UP007
        self._decoder: msgspec.json.Decoder[list[Any]] = msgspec.json.Decoder(list[any_of])

    def dig(self, texts: pa.ChunkedArray) -> dict[Keys, list[Scalar]]:
        """For each path a value a text; None where it is absent, null, an object or an array, or the text is null.

        Raises `FormatError` when a text is no JSON: the gateway lets none through."""
        found: dict[Keys, list[Scalar]] = {}
        for piece in _pieces(texts):
            part: dict[Keys, list[Scalar]] = {}
            self._root.collect(self._decode(piece), (), part)
            for path, values in part.items():
                found.setdefault(path, []).extend(values)
        return found

    def _decode(self, texts: pa.Array) -> list[Any]:
        together = pa.ListArray.from_arrays(pa.array([0, len(texts)], pa.int32()), pc.fill_null(texts, "null"))
        joined = pc.binary_join(together, ",")[0].as_buffer().to_pybytes()
        try:
            decoded = self._decoder.decode(b"[%b]" % joined)
        except msgspec.MsgspecError as error:
            raise FormatError(f"properties or context of an event cannot be read: {error}") from error
        if len(decoded) != len(texts):
            raise FormatError("properties or context of an event are not one JSON value")
        return decoded


def _pieces(texts: pa.ChunkedArray) -> Iterator[pa.Array]:
    rows = max(len(texts) * _PIECE_BYTES // (texts.nbytes + 1), 1)
    # One empty piece for no rows: every path has its (empty) list then.
    return (texts.slice(start, rows).combine_chunks() for start in range(0, max(len(texts), 1), rows))


@lru_cache(maxsize=256)
def digger(paths: frozenset[Keys]) -> Digger:
    return Digger(sorted(paths))
