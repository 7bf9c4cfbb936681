"""A batch of events as the columns that grouping works on; each is computed once, when it is first asked for."""

from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from xxhash import xxh3_64_intdigest

from analytics_actors.windows.digging import Keys, Scalar, digger
from storage.metric_definitions import COLUMN_NAMES, MAX_VALUE_CHARS, Path, text_of
from storage.window_key import microseconds

Codes = NDArray[np.int64]
Rows = NDArray[np.intp]
Mask = NDArray[np.bool_]
Paths = tuple[Path, ...]

_MINUTE_S = 60
_MINUTE_US = _MINUTE_S * 1_000_000
# So many groups are counted in an array of that length; more are sorted first.
_DENSE = 1 << 16
_BYTES_A_KEY = 64

JsonColumn = Literal["properties", "context"]
JSON_COLUMNS: tuple[JsonColumn, ...] = ("properties", "context")
COLUMN_PATHS = frozenset(Path("column", (column,)) for column in COLUMN_NAMES.values())


class Texts(NamedTuple):
    """A column of texts, each different one once. `codes`: the text's index a row; -1 where it is absent."""

    codes: Codes
    texts: list[str]


class Cells(NamedTuple):
    """The (project, minute) pairs that occur: `codes` a row, the project's code and the minute's start a cell."""

    codes: Codes
    projects: list[int]
    starts: list[int]


class Hashed(NamedTuple):
    """A column's texts as ascending hashes. `ranks`: the hash's index a row; -1 where the text is absent or empty."""

    ranks: Codes
    hashes: NDArray[np.uint64]


class Grouped(NamedTuple):
    """Rows in groups. `ids` ascending, `counts` a group, `groups` the group's index a row."""

    ids: NDArray[np.int64]
    counts: NDArray[np.int64]
    groups: Codes

    @property
    def order(self) -> Rows:
        """Positions of the rows, group by group."""
        if len(self.ids) == 1:
            return np.arange(len(self.groups))
        # NumPy sorts 16-bit integers by radix, which is several times faster.
        narrow = self.groups.astype(np.uint16) if len(self.ids) <= _DENSE else self.groups
        return np.argsort(narrow, kind="stable")

    @property
    def starts(self) -> Rows:
        """Where in `order` each group begins."""
        return np.cumsum(self.counts) - self.counts


def group(keys: Codes, size: int) -> Grouped:
    """Group rows by their keys, which are at least 0 and below `size`."""
    if size > _DENSE:
        ids, groups, counts = np.unique(keys, return_inverse=True, return_counts=True)
        return Grouped(ids, counts, groups)
    all_counts = np.bincount(keys, minlength=size)
    ids = np.flatnonzero(all_counts)
    if len(ids) == size:
        return Grouped(ids, all_counts, keys)
    index = np.empty(size, np.int64)
    index[ids] = np.arange(len(ids))
    return Grouped(ids, all_counts[ids], index[keys])


def distinct(keys: Codes, size: int) -> Codes:
    """The different ones among keys that are at least 0 and below `size`, ascending."""
    if size > _BYTES_A_KEY * len(keys):
        return np.unique(keys)
    # A table of all that there may be: a tenth of the time that sorting them takes.
    is_there = np.zeros(size, np.bool_)
    is_there[keys] = True
    return np.flatnonzero(is_there)


class BatchColumns:
    """Rows in `storage.event_batch.COLUMNS`; at least one."""

    def __init__(self, rows: pa.Table) -> None:
        self._rows = rows
        self.length = rows.num_rows
        self._texts: dict[Paths, Texts] = {}
        self._hashed: dict[Paths, Hashed] = {}
        self._values: dict[Path, NDArray[np.object_]] = {}

    @cached_property
    def projects(self) -> Texts:
        return _encode(self._rows.column("project_id"))

    @cached_property
    def event_types(self) -> Texts:
        return self.texts((Path("column", ("event_type",)),))

    @cached_property
    def cells(self) -> Cells:
        minutes = microseconds(self._rows, "timestamp") // _MINUTE_US
        first, projects = int(minutes.min()), len(self.projects.texts)
        span = int(minutes.max()) - first + 1
        grouped = group((minutes - first) * projects + self.projects.codes, span * projects)
        minute, project = np.divmod(grouped.ids, projects)
        return Cells(grouped.groups, project.tolist(), ((minute + first) * _MINUTE_S).tolist())

    def rows_of(self, projects: Sequence[int] | None, event_types: Iterable[str] | None) -> Rows | None:
        """The rows of these projects (codes) and types; None stands for all, also as the answer."""
        mask: Mask | None = None
        if projects is not None and len(projects) < len(self.projects.texts):
            wanted = np.zeros(len(self.projects.texts), np.bool_)
            wanted[list(projects)] = True
            mask = wanted[self.projects.codes]
        if event_types is not None:
            types = set(event_types)
            chosen = np.array([text in types for text in self.event_types.texts], np.bool_)
            of_type = chosen[self.event_types.codes]
            mask = of_type if mask is None else mask & of_type
        return None if mask is None or bool(mask.all()) else np.flatnonzero(mask)

    def dig(self, source: JsonColumn, wanted: frozenset[Keys], rows: Rows | None) -> None:
        """Read the values at these paths of properties or context, for these rows (None: all)."""
        column = self._rows.column(source)
        found = digger(wanted).dig(column if rows is None else column.take(pa.array(rows)))
        for keys, values in found.items():
            dug = np.fromiter(values, object, len(values))
            if rows is None:
                self._values[Path(source, keys)] = dug
            else:
                self._values.setdefault(Path(source, keys), np.full(self.length, None, object))[rows] = dug

    def values(self, paths: Paths, rows: Rows | None = None) -> list[Scalar]:
        """The value at the first of the paths that has one, for these rows; only rows that were dug have one."""
        found = self._column(paths[0], rows)
        for path in paths[1:]:
            further = self._column(path, rows)
            found = [second if first is None else first for first, second in zip(found, further, strict=True)]
        return found

    def _column(self, path: Path, rows: Rows | None) -> list[Scalar]:
        values: list[Scalar]
        if path in COLUMN_PATHS:
            column = self._rows.column(path.keys[0])
            values = (column if rows is None else column.take(pa.array(rows))).to_pylist()
            return values
        dug = self._values.get(path)
        if dug is None:
            return [None] * (self.length if rows is None else len(rows))
        values = (dug if rows is None else dug[rows]).tolist()
        return values

    def texts(self, paths: Paths) -> Texts:
        """The value at the first of the paths that has one, as text."""
        known = self._texts.get(paths)
        if known is None:
            if len(paths) == 1 and paths[0] in COLUMN_PATHS:
                known = _encode(self._rows.column(paths[0].keys[0]))
            else:
                known = _encode(_as_texts(self.values(paths)))
            self._texts[paths] = known
        return known

    def hashed(self, paths: Paths) -> Hashed:
        """The same as a hash. The empty text is no value."""
        known = self._hashed.get(paths)
        if known is None:
            codes, texts = self.texts(paths)
            hashes = np.fromiter(map(xxh3_64_intdigest, map(str.encode, texts)), np.uint64, len(texts))
            order = np.argsort(hashes)
            ranks = np.empty(len(texts) + 1, np.int64)
            ranks[order] = np.arange(len(texts))
            ranks[-1] = -1  # of code -1
            if "" in texts:
                ranks[texts.index("")] = -1
            known = self._hashed[paths] = Hashed(ranks[codes], hashes[order])
        return known


def dimension_texts(column: Texts) -> list[str]:
    """A column's texts as values of a dimension: cut, and with the empty one for the code -1 at the end."""
    return [text[:MAX_VALUE_CHARS] for text in column.texts] + [""]


def _encode(column: pa.Array | pa.ChunkedArray) -> Texts:
    whole = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    encoded = whole.dictionary_encode()
    codes = encoded.indices
    if codes.null_count:
        codes = pc.fill_null(codes, -1)
    return Texts(codes.to_numpy().astype(np.int64), encoded.dictionary.to_pylist())


def _as_texts(values: Sequence[Scalar]) -> pa.Array:
    try:
        return pa.array(values, pa.string())
    except (pa.ArrowInvalid, pa.ArrowTypeError):  # some are not strings
        return pa.array(list(map(text_of, values)), pa.string())
