"""Events in columns → what they add to 1-minute windows, for every metric of every project at once.

No Python runs per event, except where a value must be dug out of JSON, and that only for events that some metric
wants. Metrics that ask the same of the same projects are computed once (`unique_users` and `daily_active_users`).

The result depends only on the set of rows: any order and any split, merged, give the same windows (WM-1).
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import repeat
from typing import NamedTuple, Protocol

import msgspec
import numpy as np
import pyarrow as pa

from analytics_actors.windows.batch_columns import (
    COLUMN_PATHS,
    JSON_COLUMNS,
    BatchColumns,
    Codes,
    Grouped,
    JsonColumn,
    Mask,
    Rows,
    dimension_texts,
    distinct,
    group,
)
from analytics_actors.windows.digging import Keys
from analytics_actors.windows.numbers import Numbers, compared, read_numbers
from storage.aggregate import QUANTILES, Aggregate, Aggregation
from storage.metric_definitions import Dimension, Filter, MetricDefinition, Path, predicate, resolve_path
from storage.quantile_sketch import QuantileSketch
from storage.unique_sketch import Hashes, UniqueSketch
from storage.window_key import SIZE_S, TOTAL, Dimensions, Size, WindowKey

Definitions = Callable[[str], Sequence[MetricDefinition]]
Deltas = dict[WindowKey, Aggregate]
Skipped = Counter[tuple[str, str]]
"""By (project, metric): events whose value was there and was no number, or one too large to be summed exactly."""


def aggregate(rows: pa.RecordBatch | pa.Table, definitions: Definitions, *, skipped: Skipped | None = None) -> Deltas:
    """What the rows add to each 1-minute window; the windows share nothing with each other.

    `rows` are in `storage.event_batch.COLUMNS`, without duplicates and without events that are too late.
    `definitions` gives a project's metrics; it answers fastest with the same sequence for projects that have the same.
    Raises `FormatError` when properties or context are no JSON. `skipped` is added to."""
    table = rows if isinstance(rows, pa.Table) else pa.Table.from_batches([rows])
    deltas: Deltas = {}
    if table.num_rows:
        _BatchGrouping(BatchColumns(table), deltas, Counter() if skipped is None else skipped).run(definitions)
    return deltas


def coarser(key: WindowKey, size: Size) -> WindowKey:
    """The window of this size that the key's window lies in."""
    return WindowKey(key.project_id, key.metric, size, key.start - key.start % SIZE_S[size], key.dimensions)


Paths = tuple[Path, ...]
Projects = tuple[int, ...]
"""Project codes of a batch, ascending."""
_ShapeFields = tuple[Aggregation, list[str], str, list[str], list[str], list[Filter]]


@dataclass(frozen=True, eq=False)
class _Shape:
    """A definition without its name, ready for use."""

    aggregation: Aggregation
    event_types: frozenset[str] | None
    paths: Paths
    dimensions: tuple[Dimension, ...]
    filters: tuple[tuple[Filter, Path], ...]
    selection: bytes
    """Equal for definitions that take the same events."""

    @property
    def dug(self) -> frozenset[Path]:
        """What must be read from JSON."""
        dimensions = (dimension.path for dimension in self.dimensions)
        filters = (path for _, path in self.filters)
        return frozenset({*self.paths, *dimensions, *filters} - COLUMN_PATHS)


def _encode_shape(definition: MetricDefinition) -> bytes:
    fields: _ShapeFields = (
        definition.aggregation,
        definition.event_types,
        definition.property,
        definition.fallbacks,
        definition.dimensions,
        definition.filters,
    )
    return msgspec.msgpack.encode(fields)


@lru_cache(maxsize=4096)
def _shape(encoded: bytes) -> _Shape:
    fields = msgspec.msgpack.decode(encoded, type=_ShapeFields)
    definition = MetricDefinition("", *fields)
    types = sorted(set(definition.event_types))
    return _Shape(
        aggregation=definition.aggregation,
        event_types=frozenset(types) or None,
        paths=definition.paths,
        dimensions=definition.dimension_paths,
        filters=tuple((each, resolve_path(each.path)) for each in definition.filters),
        selection=msgspec.msgpack.encode([types, definition.filters]),
    )


@dataclass
class _Work:
    """One shape for some projects, and the metrics that want it."""

    shape: _Shape
    projects: Projects
    names: list[str] = field(default_factory=list)


class _Need(NamedTuple):
    """What must be dug out of the properties or the context of the events of these types."""

    source: JsonColumn
    keys: frozenset[Keys]
    event_types: frozenset[str] | None


def _needs(shapes: Collection[_Shape], occurring: Collection[str], source: JsonColumn) -> list[_Need]:
    """Of every event no more than what is wanted of its type; `occurring` are the types that there are."""
    dug = {shape: frozenset(path.keys for path in shape.dug if path.source == source) for shape in shapes}
    for_all = frozenset[Keys]().union(*(keys for shape, keys in dug.items() if shape.event_types is None))
    wanted: dict[str, frozenset[Keys]] = {}
    for shape, keys in dug.items():
        for event_type in shape.event_types or ():
            wanted[event_type] = wanted.get(event_type, for_all) | keys
    types: defaultdict[frozenset[Keys], set[str]] = defaultdict(set)
    for event_type in occurring:
        types[wanted.get(event_type, for_all)].add(event_type)
    are_alike = len(types) == 1
    return [_Need(source, keys, None if are_alike else frozenset(some)) for keys, some in types.items() if keys]


def _plan(columns: BatchColumns, definitions: Definitions) -> tuple[list[_Work], dict[_Need, list[int]]]:
    """What is to be computed, and what must be dug out before for which projects."""
    same: dict[int, tuple[Sequence[MetricDefinition], list[int]]] = {}
    for code, project in enumerate(columns.projects.texts):
        asked = definitions(project)
        same.setdefault(id(asked), (asked, []))[1].append(code)
    metrics: dict[tuple[str, bytes], list[int]] = {}
    needs: dict[_Need, list[int]] = {}
    for asked, codes in same.values():
        encoded = {each.name: _encode_shape(each) for each in asked}
        for metric in encoded.items():
            metrics.setdefault(metric, []).extend(codes)
        digging = [shape for shape in map(_shape, encoded.values()) if shape.dug]
        if digging:
            for source in JSON_COLUMNS:
                for need in _needs(digging, columns.event_types.texts, source):
                    needs.setdefault(need, []).extend(codes)
    works: dict[tuple[bytes, Projects], _Work] = {}
    for (name, shape), codes in metrics.items():
        of_projects = tuple(sorted(codes))
        works.setdefault((shape, of_projects), _Work(_shape(shape), of_projects)).names.append(name)
    return list(works.values()), needs


@dataclass(frozen=True)
class _Selection:
    """The rows that a metric takes; None is all of the batch."""

    key: tuple[bytes, Projects]
    rows: Rows | None

    def of(self, column: Codes) -> Codes:
        return column if self.rows is None else column[self.rows]


class _Measure(Protocol):
    """What is aggregated. `positions`: those in the selection that have a value; None is all."""

    positions: Rows | None

    def aggregates(self, grouped: Grouped) -> list[Aggregate]:
        """One a group of the positions."""


class _Counting:
    def __init__(self, positions: Rows | None) -> None:
        self.positions = positions

    def aggregates(self, grouped: Grouped) -> list[Aggregate]:
        return list(map(Aggregate, grouped.counts.tolist()))


class _Uniques:
    def __init__(self, ranks: Codes, hashes: Hashes) -> None:
        self.positions = _positions(ranks >= 0)
        self._ranks = ranks if self.positions is None else ranks[self.positions]
        self._hashes = hashes

    def aggregates(self, grouped: Grouped) -> list[Aggregate]:
        # Ranks ascend with the hashes, so each group's are sorted and different here.
        pairs = distinct(grouped.groups * len(self._hashes) + self._ranks, len(grouped.ids) * len(self._hashes))
        groups, ranks = np.divmod(pairs, len(self._hashes))
        hashes = self._hashes[ranks]
        ends = np.cumsum(np.bincount(groups, minlength=len(grouped.ids))).tolist()
        return [
            Aggregate(count, unique=UniqueSketch.of_distinct(hashes[start:end]))
            for count, start, end in zip(grouped.counts.tolist(), [0, *ends[:-1]], ends, strict=True)
        ]


class _Statistics:
    def __init__(self, numbers: Numbers, positions: Rows | None, *, quantiles: bool) -> None:
        self.positions = positions
        self._numbers = numbers
        self._quantiles = quantiles

    def aggregates(self, grouped: Grouped) -> list[Aggregate]:
        order, starts, groups = grouped.order, grouped.starts, grouped.groups
        if self.positions is not None:
            order = self.positions[order]
            groups = np.full(len(self._numbers.floats), -1)
            groups[self.positions] = grouped.groups
        floats = self._numbers.floats[order]
        aggregates = list(
            map(
                Aggregate,
                grouped.counts.tolist(),
                self._numbers.sums(order, starts, groups),
                np.minimum.reduceat(floats, starts).tolist(),
                np.maximum.reduceat(floats, starts).tolist(),
            )
        )
        if self._quantiles:
            for each, part in zip(aggregates, np.split(floats, starts[1:]), strict=True):
                each.quantiles = QuantileSketch()
                each.quantiles.add(part)
        return aggregates


def _positions(mask: Mask) -> Rows | None:
    return None if bool(mask.all()) else np.flatnonzero(mask)


class _BatchGrouping:
    """The grouping of one batch into `deltas`."""

    def __init__(self, columns: BatchColumns, deltas: Deltas, skipped: Skipped) -> None:
        self._columns = columns
        self._deltas = deltas
        self._skipped = skipped
        self._selections: dict[tuple[bytes, Projects], _Selection] = {}
        self._numbers: dict[tuple[bytes, Projects, Paths], Numbers] = {}

    def run(self, definitions: Definitions) -> None:
        works, needs = _plan(self._columns, definitions)
        for need, projects in needs.items():
            rows = self._columns.rows_of(projects, need.event_types)
            if rows is None or len(rows):
                self._columns.dig(need.source, need.keys, rows)
        for work in works:
            selection = self._select(work)
            if selection.rows is None or len(selection.rows):
                self._count(work, selection)

    def _select(self, work: _Work) -> _Selection:
        shape = work.shape
        key = (shape.selection, work.projects)
        known = self._selections.get(key)
        if known is None:
            rows = self._columns.rows_of(work.projects, shape.event_types)
            for condition, path in shape.filters:
                rows = self._filter(rows, condition, path)
            known = self._selections[key] = _Selection(key, rows)
        return known

    def _filter(self, rows: Rows | None, condition: Filter, path: Path) -> Rows:
        holds = predicate(condition)
        if path in COLUMN_PATHS:
            codes, texts = self._columns.texts((path,))
            table = np.array([*map(holds, texts), holds(None)], np.bool_)  # the last is for code -1
            passed = table[codes if rows is None else codes[rows]]
        else:
            values = self._columns.values((path,), rows)
            vector = compared(values, condition)
            passed = np.fromiter(map(holds, values), np.bool_, len(values)) if vector is None else vector
        return np.flatnonzero(passed) if rows is None else rows[passed]

    def _count(self, work: _Work, selection: _Selection) -> None:
        """The total, and the full tuple of all dimensions."""
        measure = self._measure(work, selection)
        cells = self._at(selection, measure, self._columns.cells.codes)
        if not len(cells):
            return
        grouped = group(cells, len(self._columns.cells.starts))
        self._add(work, grouped.ids, repeat(TOTAL), measure.aggregates(grouped))
        if not work.shape.dimensions:
            return
        # Dimension by dimension, so that the keys stay small however many values there are.
        group_cells, tuples = grouped.ids, [TOTAL] * len(grouped.ids)
        for name, path in work.shape.dimensions:
            column = self._columns.texts((path,))
            pairs = [(name, text) for text in dimension_texts(column)]
            codes = self._at(selection, measure, column.codes)
            keys = grouped.groups * len(pairs) + np.where(codes < 0, len(pairs) - 1, codes)
            grouped = group(keys, len(grouped.ids) * len(pairs))
            parents, values = np.divmod(grouped.ids, len(pairs))
            group_cells = group_cells[parents]
            tuples = [
                (*tuples[parent], pairs[value]) for parent, value in zip(parents.tolist(), values.tolist(), strict=True)
            ]
        self._add(work, group_cells, tuples, measure.aggregates(grouped))

    @staticmethod
    def _at(selection: _Selection, measure: _Measure, column: Codes) -> Codes:
        chosen = selection.of(column)
        return chosen if measure.positions is None else chosen[measure.positions]

    def _measure(self, work: _Work, selection: _Selection) -> _Measure:
        shape = work.shape
        if not shape.paths:
            return _Counting(None)
        if shape.aggregation == "count":
            return _Counting(_positions(selection.of(self._columns.texts(shape.paths).codes) >= 0))
        if shape.aggregation == "unique":
            ranks, hashes = self._columns.hashed(shape.paths)
            return _Uniques(selection.of(ranks), hashes)
        numbers = self._read_numbers(work, selection)
        return _Statistics(numbers, _positions(~np.isnan(numbers.floats)), quantiles=shape.aggregation in QUANTILES)

    def _read_numbers(self, work: _Work, selection: _Selection) -> Numbers:
        key = (*selection.key, work.shape.paths)
        known = self._numbers.get(key)
        if known is None:
            known = self._numbers[key] = read_numbers(self._columns.values(work.shape.paths, selection.rows))
        if known.unusable:
            projects = self._columns.projects
            for code in selection.of(projects.codes)[known.unusable].tolist():
                self._skipped.update((projects.texts[code], name) for name in work.names)
        return known

    def _add(self, work: _Work, cells: Codes, tuples: Iterable[Dimensions], aggregates: Sequence[Aggregate]) -> None:
        columns = self._columns
        projects = [columns.projects.texts[code] for code in columns.cells.projects]
        starts = columns.cells.starts
        merged: dict[tuple[int, Dimensions], Aggregate] = {}
        for cell, dimensions, value in zip(cells.tolist(), tuples, aggregates, strict=False):
            known = merged.setdefault((cell, dimensions), value)
            if known is not value:  # values of a dimension that are the same when they are cut, or absent and empty
                known.merge(value)
        for number, name in enumerate(work.names):
            for (cell, dimensions), value in merged.items():
                key = WindowKey(projects[cell], name, "1m", starts[cell], dimensions)
                self._deltas[key] = value.copy() if number else value
