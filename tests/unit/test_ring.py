"""Placement: stable, balanced within the bound, and little moves when shards come or go."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from analytics_actors.ring import LOAD_FACTOR, HashRing
from storage.fingerprint import partition_of


@given(shards=st.integers(1, 64), partitions=st.integers(1, 256))
def test_every_partition_has_one_owner_and_no_shard_is_overloaded(shards: int, partitions: int) -> None:
    ring = HashRing(range(shards), partitions=partitions)
    owned = [ring.partitions_of(shard) for shard in range(shards)]
    assert sorted(p for ps in owned for p in ps) == list(range(partitions))
    assert max(map(len, owned)) <= math.ceil(LOAD_FACTOR * partitions / shards)


@given(shards=st.integers(1, 20))
def test_a_shard_that_joins_moves_about_its_share(shards: int) -> None:
    before = HashRing(range(shards), partitions=256).shard_of
    after = HashRing(range(shards + 1), partitions=256).shard_of
    moved = sum(b != a for b, a in zip(before, after, strict=True))
    # Its own share, and what the bound on the others' load pushes on; a modulo would move (N-1)/N of all.
    assert moved <= 256 / (shards + 1) * 2.5 + 8


def test_placement_never_changes_between_releases() -> None:
    ring = HashRing(range(4), partitions=16)
    assert ring.shard_of == (3, 1, 2, 1, 3, 0, 1, 3, 1, 2, 3, 0, 3, 1, 2, 0)
    assert [partition_of(p, 64) for p in ("default", "en.wikipedia", "")] == [25, 14, 39]


def test_projects_spread_over_the_partitions() -> None:
    counts = [0] * 64
    for number in range(6400):
        counts[partition_of(f"project-{number}", 64)] += 1
    assert min(counts) > 50
    assert max(counts) < 160


def test_a_ring_without_shards_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one shard"):
        HashRing([], partitions=4)
