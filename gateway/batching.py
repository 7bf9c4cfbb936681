"""The batching guide's figures, for `GET /v1/status`: what batching saves the database, over all shards.

They are counted by the batchers since their start, each for itself; a batcher that starts anew begins at 0 and stores
what the one before it had left, so that for a while more may be processed than was queued.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec


class Batching(msgspec.Struct, frozen=True, rename="camel"):
    """Sums over the shards that answer.

    - `events_queued`: accepted, no duplicates, and appended to the log.
    - `events_processed`: taken from the log into the database: stored, aggregated, or kept as dead letters.
    - `batches_processed`: writes that have taken them, each of many events.
    - `events_dropped`: lost with the log's memory; the ledger names them.
    - `events_sampled`: left out by sampling. There is none: every accepted event is counted.
    - `events_aggregated`: of those processed, the ones that became records of aggregate-only events.
    - `average_batch_size`: `events_processed` a batch.
    - `database_writes`: transactions that took events into the database; one a batch.
    - `write_reduction_percent`: (events_queued - database_writes) / events_queued * 100, 0 before the first event.
    """

    events_queued: int = 0
    events_processed: int = 0
    batches_processed: int = 0
    events_dropped: int = 0
    events_sampled: int = 0
    events_aggregated: int = 0
    average_batch_size: float = 0.0
    database_writes: int = 0
    write_reduction_percent: float = 0.0


def batching_of(shards: Iterable[Mapping[str, Any]]) -> Batching:
    """`shards` as the controller's status gives them."""
    counters = [(shard.get("view") or {}).get("counters", {}) for shard in shards]

    def total(*names: str) -> int:
        return int(sum(each.get(name, 0) for each in counters for name in names))

    queued, writes = total("events_appended"), total("writes")
    processed = total("events_stored", "events_aggregated", "events_dead_lettered")
    return Batching(
        events_queued=queued,
        events_processed=processed,
        batches_processed=writes,
        events_dropped=total("events_lost"),
        events_aggregated=total("events_aggregated"),
        average_batch_size=round(processed / writes, 1) if writes else 0.0,
        database_writes=writes,
        write_reduction_percent=round((queued - writes) / queued * 100, 2) if queued else 0.0,
    )
