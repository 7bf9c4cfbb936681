"""How far the lake is, for whoever trims the log."""

from collections.abc import Awaitable, Callable, Mapping, Sequence

from analytics_actors.store_sink import OtherSinks

LakeCheckpoints = Callable[[Sequence[int]], Awaitable[Mapping[int, int]]]
"""By partition the lake's next offset; one that was never claimed may be left out."""


def lake_progress(checkpoints: LakeCheckpoints) -> OtherSinks:
    """For `Batcher`: the records below the lake's checkpoints may be trimmed, none of a partition without one."""

    async def progress(partitions: Sequence[int]) -> Mapping[int, int]:
        found = await checkpoints(partitions)
        return {partition: found.get(partition, 0) for partition in partitions}

    return progress


def all_sinks(*sinks: OtherSinks) -> OtherSinks:
    """The lowest checkpoint of several sinks holds."""

    async def progress(partitions: Sequence[int]) -> Mapping[int, int]:
        lowest: dict[int, int] = {}
        for sink in sinks:
            for partition, next_offset in (await sink(partitions)).items():
                lowest[partition] = min(next_offset, lowest.get(partition, next_offset))
        return lowest

    return progress
