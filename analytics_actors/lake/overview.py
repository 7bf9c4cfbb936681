"""The lake in a few numbers: what it holds, what each shard has not exported yet, what is to be merged."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from analytics_actors.ring import HashRing
from config.settings import Settings
from storage.lake_listing import HourParts, LakeListing, PendingExport

MAX_HOURS = 1000


@dataclass(frozen=True)
class ShardBacklog:
    shard: int
    partitions: int
    """With anything stored."""
    pending_records: int
    partitions_behind: int
    since: datetime | None
    """What is pending was stored since then, as far as is known."""


@dataclass(frozen=True)
class LakeOverview:
    files: int
    rows: int
    bytes: int
    cold_files: int
    cold_bytes: int
    retired_files: int
    retired_bytes: int
    open_plans: int
    first_hour: datetime | None
    last_hour: datetime | None
    shards: Sequence[ShardBacklog]
    hours_to_compact: Sequence[HourParts]
    """`MAX_HOURS` at most."""


async def overview_of(listing: LakeListing, settings: Settings) -> LakeOverview:
    totals = await listing.totals()
    lake = settings.lake
    hours = await listing.hours_to_compact(
        small_bytes=lake.compact_below_bytes,
        quiet_s=lake.compact_quiet_s,
        max_parts=lake.compact_max_parts,
        limit=MAX_HOURS,
    )
    shards = _by_shard(await listing.pending(), settings)
    return LakeOverview(*totals, shards=shards, hours_to_compact=hours)


def _by_shard(pending: Sequence[PendingExport], settings: Settings) -> list[ShardBacklog]:
    ring = HashRing(range(settings.actors.shards), partitions=settings.log.partitions)
    return [
        _backlog(shard, [each for each in pending if ring.shard_of[each.partition] == shard])
        for shard in range(settings.actors.shards)
    ]


def _backlog(shard: int, partitions: Sequence[PendingExport]) -> ShardBacklog:
    behind = [each for each in partitions if each.exported_below < each.stored_below]
    times = [each.since for each in behind if each.since is not None]
    records = sum(each.stored_below - each.exported_below for each in behind)
    return ShardBacklog(shard, len(partitions), records, len(behind), min(times, default=None))
