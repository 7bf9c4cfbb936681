"""How far the windows are, for whoever trims the log."""

from collections.abc import Mapping, Sequence

from analytics_actors.store_sink import OtherSinks
from storage.window_store import WindowsCheckpoint, WindowStore


def windows_progress(store: WindowStore) -> OtherSinks:
    """For `Batcher`: the records below the windows' checkpoints may be trimmed, none of a partition without one."""

    async def progress(partitions: Sequence[int]) -> Mapping[int, int]:
        checkpoints = await store.checkpoints(partitions)
        return {p: _needed_from(checkpoint) for p, checkpoint in zip(partitions, checkpoints, strict=True)}

    return progress


def _needed_from(checkpoint: WindowsCheckpoint | None) -> int:
    # A rebuild goes on in the log where the event store was when it began, and nobody knows where that is.
    return checkpoint.next_offset if checkpoint and checkpoint.state == "live" else 0
