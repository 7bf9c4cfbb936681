"""Windows, roll-ups and stored events for tests of the metrics API, made of the same few events."""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, NamedTuple

import msgspec
import pyarrow as pa

from analytics_actors.windows.grouping import aggregate, coarser
from storage.aggregate import Aggregate
from storage.event_batch import COLUMNS
from storage.fingerprint import partition_of
from storage.metric_definitions import DEFAULT_METRICS, MetricDefinition
from storage.window_key import Size, WindowKey
from storage.window_store import Publication
from tests.unit.fake_services import FakeStatistics

PROJECT = "shop"
PARTITION = partition_of(PROJECT, 64)


class Sent(NamedTuple):
    """An event; `at` and `received` in seconds since the epoch."""

    at: float
    event_type: str = "view"
    user: str = "u1"
    properties: Mapping[str, Any] = MappingProxyType({})
    received: float | None = None


def rows_of(events: Iterable[Sent]) -> pa.RecordBatch:
    columns: dict[str, list[Any]] = {name: [] for name in COLUMNS.names}
    for number, event in enumerate(events):
        at = datetime.fromtimestamp(event.at, UTC)
        received = at if event.received is None else datetime.fromtimestamp(event.received, UTC)
        values = {
            "project_id": PROJECT,
            "event_id": str(number),
            "event_type": event.event_type,
            "user_id": event.user,
            "timestamp": at,
            "received_at": received,
            "properties": msgspec.json.encode(dict(event.properties)).decode(),
        }
        for name in COLUMNS.names:
            columns[name].append(values.get(name))
    return pa.record_batch(columns, schema=COLUMNS)


def windows_of(
    events: Iterable[Sent], sizes: Iterable[Size], definitions: Iterable[MetricDefinition] = ()
) -> list[tuple[WindowKey, Aggregate]]:
    """What an aggregator makes of the events, in these sizes."""
    metrics = (*DEFAULT_METRICS, *definitions)
    merged: dict[WindowKey, Aggregate] = {}
    for key, delta in aggregate(rows_of(events), lambda _: metrics).items():
        for size in sizes:
            wanted = coarser(key, size)
            if wanted in merged:
                merged[wanted].merge(delta)
            else:
                merged[wanted] = delta.copy()
    return list(merged.items())


async def begin_windows(statistics: FakeStatistics, *, epoch: int = 1, offset: int = 0) -> None:
    """A partition whose windows are live and empty."""
    await statistics.windows.begin_rebuild(PARTITION, epoch=epoch)
    await statistics.windows.reset(PARTITION, epoch=epoch, next_offset=offset, built={})


async def publish(
    statistics: FakeStatistics,
    events: Iterable[Sent],
    *,
    definitions: Iterable[MetricDefinition] = (),
    built: str | None = None,
) -> None:
    """Count the events, all that there are so far, in the windows."""
    [checkpoint] = await statistics.windows.checkpoints([PARTITION])
    assert checkpoint is not None
    events = list(events)
    publication = Publication(
        PARTITION,
        checkpoint.epoch,
        checkpoint.next_offset,
        checkpoint.next_offset + 1,
        int(max(event.received or event.at for event in events) * 1000),
        windows_of(events, ("1m", "5m", "1h"), definitions),
        {} if built is None else {PROJECT: built},
    )
    assert await statistics.windows.publish([publication]) == ["published"]


async def roll_up(
    statistics: FakeStatistics,
    events: Iterable[Sent],
    sizes: Iterable[Size] = ("1m", "1h", "1d"),
    definitions: Iterable[MetricDefinition] = (),
) -> None:
    await statistics.rollups.upsert(windows_of(events, sizes, definitions), epoch=1, next_offset=1)
