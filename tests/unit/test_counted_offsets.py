"""What the workers of a machine know of each other's answers."""

from pathlib import Path

from gateway.counted_offsets import CountedOffsets


def test_workers_know_of_each_other(tmp_path: Path) -> None:
    path = tmp_path / "counted"
    one, other = (CountedOffsets(path, worker=number, workers=2, partitions=4) for number in range(2))
    assert [one[3], other[3]] == [0, 0]
    one.reached(3, 1 << 40)
    other.reached(3, 7)
    other.reached(0, 5)
    assert [one[3], other[3], one[0], one[1]] == [1 << 40, 1 << 40, 5, 0]


def test_nothing_goes_back_also_not_by_a_new_worker(tmp_path: Path) -> None:
    path = tmp_path / "counted"
    old = CountedOffsets(path, worker=0, workers=1, partitions=2)
    old.reached(1, 9)
    old.reached(1, 4)
    new = CountedOffsets(path, worker=0, workers=1, partitions=2)
    assert new[1] == 9
    new.reached(1, 10)
    assert old[1] == 10


def test_without_a_path_it_is_ones_own() -> None:
    one, other = CountedOffsets(partitions=2), CountedOffsets(partitions=2)
    one.reached(0, 3)
    assert [one[0], other[0]] == [3, 0]
