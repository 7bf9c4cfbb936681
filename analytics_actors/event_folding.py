"""Which events are only aggregated, and their folding into records: the batcher's part of `storage.aggregated`.

The declarations are polled from the registry of metrics every 2 seconds. A write uses those that are known when it
begins, so that one that has just been made takes effect within some seconds; events that are stored before it have
their rows, and count the same. Whoever counts windows takes a declaration up a little later than every batcher (see
`definition_book.SETTLED_S`), so that both speak of the same records.

While nothing is declared a write pays one look at an empty dictionary.
"""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from msgspec.structs import replace

from analytics_actors.counters import Counters
from analytics_actors.windows.aggregate_only import RECORDS_WINDOW, declared, own_types, shape_of
from analytics_actors.windows.definition_book import Registry
from analytics_actors.windows.grouping import aggregate
from storage.aggregate import Aggregate
from storage.aggregated import AggregatedRecord, Folded, RecordKey
from storage.errors import FormatError, StorageError, Unavailable
from storage.event_batch import COLUMNS
from storage.ledger_counts import RowKey
from storage.metric_definitions import MetricDefinition
from storage.window_key import Dimensions, late_mask, microseconds

POLL_S = 2.0
RETRY_S = 0.2
"""As long as nothing was read: until then no event can be stored."""

_TEXTS = [field.name for field in COLUMNS if field.type == pa.string()]
_JSON = ("properties", "context")
_TYPE = "__type"
"""The name of the first dimension that events are grouped by here."""


class _Declared(NamedTuple):
    """What is aggregate-only in one project."""

    types: pa.Array
    metrics: Sequence[MetricDefinition]
    """As declared."""
    counted: Sequence[MetricDefinition]
    """Those that rows are grouped by: of metric number n `e<n>` counts events, `v<n>` aggregates their values."""


class EventFolding:
    """`fold` is called in threads; what it reads is replaced, never changed."""

    def __init__(self, registry: Registry, *, lateness_s: float, max_groups: int) -> None:
        """`max_groups`: how many groups of a metric's minute have records of their own."""
        self._registry = registry
        self._lateness_s = lateness_s
        self._max_groups = max_groups
        self._since = 0
        self._own: dict[str, dict[str, MetricDefinition]] = {}
        self._declared: Mapping[str, _Declared] = {}
        self._loaded = False

    async def run(self, counters: Counters) -> None:
        """Follow the declarations until cancelled."""
        while True:
            try:
                await self.refresh()
            except StorageError as error:
                counters.trouble("declarations", str(error))
            else:
                counters.clear_trouble("declarations")
            await asyncio.sleep(POLL_S if self._loaded else RETRY_S)

    async def refresh(self) -> None:
        """Read what has changed. Raises what the registry raises."""
        changes = await self._registry.changes_since(self._since)
        changed = dict(self._declared)
        for stored in changes.definitions:
            own = self._own.setdefault(stored.project_id, {})
            if stored.deleted_at is None and stored.definition.aggregate_only:
                own[stored.definition.name] = stored.definition
            else:
                own.pop(stored.definition.name, None)
        for project_id in {stored.project_id for stored in changes.definitions}:
            changed.pop(project_id, None)
            if own := self._own[project_id]:
                changed[project_id] = _declare(own.values())
            else:
                del self._own[project_id]
        self._declared = changed
        self._since = changes.next_since
        self._loaded = True

    def fold(self, rows: pa.RecordBatch) -> Folded:
        """`storage.aggregated.Fold`."""
        if not self._loaded:
            raise Unavailable("it is not known yet which events are aggregate-only: the registry was not read")
        known = self._declared
        if not known or not rows.num_rows:
            return Folded(rows, {}, ())
        mask = _aggregate_only(rows, known)
        if not mask.any():
            return Folded(rows, {}, ())
        chosen = rows.filter(pa.array(mask))
        try:
            records = self._records(chosen, known)
        except FormatError:
            # What cannot be read is for the store to find: each becomes a row, or a dead letter.
            return Folded(rows, {}, ())
        names = zip(
            *(chosen.column(name).to_pylist() for name in ("partition_id", "log_offset", "row_number")), strict=True
        )
        keys = [RowKey(*name) for name in names]
        return Folded(rows.filter(pa.array(~mask)), records, keys, self._max_groups)

    def _records(self, rows: pa.RecordBatch, known: Mapping[str, _Declared]) -> dict[RecordKey, AggregatedRecord]:
        late = late_mask(rows, self._lateness_s)
        records: dict[RecordKey, AggregatedRecord] = {}
        for is_late in (False, True):
            mask = late == is_late
            if mask.any():
                _add_records(rows.filter(pa.array(mask)), known, records, is_late=is_late)
        return records


def _declare(own: Iterable[MetricDefinition]) -> _Declared:
    metrics = list(own)
    types = declared(metrics)
    counted = []
    for number, metric in enumerate(metrics):
        mine, dimensions = own_types(metric, types), [f"{_TYPE}=eventType", *metric.dimensions]
        if not mine:
            continue
        aggregation = metric.aggregation if metric.aggregation in RECORDS_WINDOW else "p50"
        values = replace(metric, name=f"v{number}", event_types=mine, dimensions=dimensions, aggregation=aggregation)
        counted += [MetricDefinition(f"e{number}", event_types=mine, dimensions=dimensions), values]
    return _Declared(pa.array(sorted(types), pa.string()), metrics, counted)


def _aggregate_only(rows: pa.RecordBatch, known: Mapping[str, _Declared]) -> np.ndarray:
    projects, types = rows.column("project_id"), rows.column("event_type")
    mask = np.zeros(rows.num_rows, bool)
    for project_id in pc.unique(projects).to_pylist():
        if project_id in known:
            of_type = pc.is_in(types, value_set=known[project_id].types)
            mask |= np.asarray(pc.and_(pc.equal(projects, project_id), of_type))
    if mask.any():
        mask &= ~_unusual(rows)
    return mask


def _unusual(rows: pa.RecordBatch) -> np.ndarray:
    """What PostgreSQL's text does not take is stored as a row, to become a dead letter."""
    found = np.zeros(rows.num_rows, bool)
    for name in _TEXTS:
        column = rows.column(name)
        found |= np.asarray(pc.fill_null(pc.match_substring(column, "\0"), False))
        if name in _JSON:
            found |= np.asarray(pc.fill_null(pc.match_substring(column, "\\u0000"), False))
    return found


def _add_records(
    rows: pa.RecordBatch, known: Mapping[str, _Declared], records: dict[RecordKey, AggregatedRecord], *, is_late: bool
) -> None:
    places = _places(rows)
    deltas = aggregate(rows.select(COLUMNS.names), lambda project_id: known[project_id].counted)
    values: dict[RecordKey, Aggregate] = {}
    for window, value in deltas.items():
        if not window.dimensions:
            continue
        metric = known[window.project_id].metrics[int(window.metric[1:])]
        dimensions: Dimensions = window.dimensions[1:]
        event_type = window.dimensions[0][1]
        key = RecordKey(window.project_id, window.start, metric.name, event_type, shape_of(metric), is_late, dimensions)
        if window.metric[0] == "v":
            values[key] = value
        else:
            partition, first, last, received_ms = places[window.project_id]
            records[key] = AggregatedRecord(partition, value.count, Aggregate(), first, last + 1, received_ms)
    for key, value in values.items():
        records[key].aggregate = value


def _places(rows: pa.RecordBatch) -> dict[str, tuple[int, int, int, int]]:
    """By project: its partition, the first and the last offset of its rows, their latest receipt."""
    table = pa.table(
        {
            "project": rows.column("project_id"),
            "partition": rows.column("partition_id"),
            "offset": rows.column("log_offset"),
            "received": pa.array(microseconds(rows, "received_at") // 1000),
        }
    )
    found = table.group_by("project").aggregate(
        [("partition", "min"), ("offset", "min"), ("offset", "max"), ("received", "max")]
    )
    columns = ("partition_min", "offset_min", "offset_max", "received_max")
    places = zip(*(found.column(name).to_pylist() for name in columns), strict=True)
    return dict(zip(found.column("project").to_pylist(), places, strict=True))
