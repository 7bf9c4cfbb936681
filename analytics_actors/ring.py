"""Which shard owns which partition: consistent hashing with virtual nodes and bounded load.

Every shard has `virtual_nodes` points on a ring of 64-bit hashes; a partition belongs to the first shard at
or after its own point that still has room. No shard gets more than `ceil(load_factor * partitions /
shards)` partitions (Mirrokni, Thorup, Zadimoghaddam, "Consistent Hashing with Bounded Loads", 2016), and a
shard that joins or leaves moves about 1/N of them. The ring is a pure function of its arguments: gateways
and actors compute it, nobody stores it.
"""

import bisect
import math
from collections.abc import Sequence

from xxhash import xxh3_64_intdigest

VIRTUAL_NODES = 128
LOAD_FACTOR = 1.25


class HashRing:
    """The placement of `partitions` partitions on the given shards."""

    def __init__(
        self,
        shards: Sequence[int],
        *,
        partitions: int,
        virtual_nodes: int = VIRTUAL_NODES,
        load_factor: float = LOAD_FACTOR,
    ) -> None:
        if not shards:
            raise ValueError("a ring needs at least one shard")
        self._points = sorted((_point(f"shard {s} node {node}"), s) for s in shards for node in range(virtual_nodes))
        capacity = math.ceil(load_factor * partitions / len(shards))
        room = dict.fromkeys(shards, capacity)
        self.shard_of = tuple(self._place(partition, room) for partition in range(partitions))

    def _place(self, partition: int, room: dict[int, int]) -> int:
        start = bisect.bisect_left(self._points, (_point(f"partition {partition}"), -1))
        for step in range(len(self._points)):
            _, shard = self._points[(start + step) % len(self._points)]
            if room[shard] > 0:
                room[shard] -= 1
                return shard
        raise AssertionError("the shards' capacities sum to at least the number of partitions")

    def partitions_of(self, shard: int) -> list[int]:
        return [partition for partition, owner in enumerate(self.shard_of) if owner == shard]


def _point(name: str) -> int:
    return xxh3_64_intdigest(name.encode())
