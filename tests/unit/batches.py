"""Event batches for tests, made the way a gateway makes them."""

from datetime import UTC, datetime

from gateway.columns import Part, build_batch
from gateway.ingest import new_batch_id
from gateway.rows import Row
from storage.event_batch import EventBatch
from storage.fingerprint import partition_of

RECEIVED = datetime(2026, 5, 1, 12, 30, tzinfo=UTC)
HOUR = int(RECEIVED.timestamp()) // 3600


def make_row(event_id: str, *, event_type: str = "page_view", properties: bytes = b"{}") -> Row:
    return Row(event_id, event_type, None, None, None, None, RECEIVED, properties, None)


def make_batch(
    *event_ids: str,
    project: str = "p",
    partitions: int = 8,
    rejected: int = 0,
    batch_id: bytes | None = None,
) -> EventBatch:
    part = Part(project, RECEIVED, [make_row(event_id) for event_id in event_ids], rejected)
    return build_batch(partition_of(project, partitions), [part], batch_id=batch_id or new_batch_id())
