"""Publishing without following the log any further: what is published changes, the partition's offset does not."""

from collections.abc import Mapping, Sequence

from analytics_actors.windows.partition import WindowPartition, WindowState
from analytics_actors.windows.shared import WindowShard
from storage.aggregate import Aggregate
from storage.errors import StorageError
from storage.window_key import WindowKey
from storage.window_store import Publication, WindowStore


async def publish_in_place(
    shard: WindowShard,
    store: WindowStore,
    owner: WindowPartition,
    windows: Sequence[tuple[WindowKey, Aggregate]],
    built: Mapping[str, str],
    *,
    gone: Sequence[WindowKey] = (),
) -> bool:
    """Whether the partition is still ours; needs the turn. Raises what the store raises; then it is to be claimed."""
    if owner.state not in (WindowState.LIVE, WindowState.BUILDING):
        return False
    offset = owner.next_offset
    publication = Publication(owner.partition, owner.epoch, offset, offset, owner.watermark_ms, windows, built, gone)
    try:
        [outcome] = await store.publish([publication])
    except StorageError:
        owner.state = WindowState.OPENING
        raise
    if outcome != "published":
        owner.state = WindowState.FENCED if outcome == "fenced" else WindowState.LOST
        shard.forget(owner)
        return False
    owner.advance(offset, owner.watermark_ms, dict(built))
    return True
