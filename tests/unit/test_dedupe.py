"""The dedupe window against a plain dictionary, with rotation, rebuild and clocks that step back (ND-1)."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from analytics_actors.dedupe import DedupeWindow
from analytics_actors.fingerprint_set import Fingerprints, FingerprintSet, filter_patterns
from storage.partition_log import IdsEntry

WINDOW_S = 10.0
WINDOW_MS = 10_000
LARGEST = 2**64 - 1

# Few distinct values, so that repeats are common, with both ends of the range among them.
values = st.one_of(st.integers(0, 40), st.integers(LARGEST - 20, LARGEST), st.sampled_from([1 << 63, (1 << 63) - 1]))
value_lists = st.lists(values, max_size=30)


def fingerprints(*wanted: int) -> Fingerprints:
    return np.array(wanted, np.uint64)


def random_fingerprints(count: int, *, seed: int) -> Fingerprints:
    return np.random.default_rng(seed).integers(0, 2**64, count, dtype=np.uint64)


class WindowModel(RuleBasedStateMachine):
    """The model remembers when each id was added last, and decides with two comparisons what must be known."""

    def __init__(self) -> None:
        super().__init__()
        self.window = DedupeWindow(WINDOW_S, memtable_limit=8)
        self.added_ms: dict[int, int] = {}
        self.now_ms = 1_000_000
        self.latest_ms = self.now_ms

    @rule(step_ms=st.integers(-3_000, 12_000))
    def pass_time(self, step_ms: int) -> None:
        self.now_ms += step_ms

    @rule(wanted=value_lists)
    def append(self, wanted: list[int]) -> None:
        """What the owner of a partition does: add what was not known."""
        self._look_at_clock()
        known = self.window.known(fingerprints(*wanted))
        fresh = [value for value, is_known in zip(wanted, known, strict=True) if not is_known]
        assert len(set(fresh)) == len(fresh)
        self.window.add(fingerprints(*fresh), self.now_ms)
        self.added_ms |= dict.fromkeys(fresh, self.latest_ms)

    @rule(entries=st.lists(st.tuples(st.integers(0, 30_000), value_lists), max_size=5))
    def load(self, entries: list[tuple[int, list[int]]]) -> None:
        self._look_at_clock()
        aged = [(self.latest_ms - age_ms, wanted) for age_ms, wanted in entries]
        self.window.load([IdsEntry(at_ms, fingerprints(*wanted).tobytes()) for at_ms, wanted in aged], self.now_ms)
        for at_ms, wanted in aged:
            for value in wanted:
                self.added_ms[value] = max(at_ms, self.added_ms.get(value, 0))

    @rule()
    def clear(self) -> None:
        self.window.clear()
        self.added_ms.clear()

    @rule(wanted=value_lists)
    def look(self, wanted: list[int]) -> None:
        self._look_at_clock()
        found = self.window.known(fingerprints(*wanted)).tolist()
        for index, value in enumerate(wanted):
            if value in wanted[:index]:
                assert found[index]
            else:
                self._check_one(value, found[index])
                assert self.window.contains(value) == found[index]

    @invariant()
    def every_id_is_kept_long_enough_and_not_too_long(self) -> None:
        self._look_at_clock()
        for value in self.added_ms:
            self._check_one(value, self.window.contains(value))

    def _look_at_clock(self) -> None:
        self.window.advance(self.now_ms)
        self.latest_ms = max(self.latest_ms, self.now_ms)

    def _check_one(self, value: int, found: bool) -> None:
        if value not in self.added_ms:
            assert not found
        elif self.latest_ms - self.added_ms[value] <= WINDOW_MS:
            assert found
        elif self.latest_ms - self.added_ms[value] > 2 * WINDOW_MS:
            assert not found


WindowModel.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestWindowModel = WindowModel.TestCase


def test_looking_does_not_add() -> None:
    window = DedupeWindow(WINDOW_S)
    assert window.known(fingerprints(5, 6)).tolist() == [False, False]
    assert window.known(fingerprints(5, 6)).tolist() == [False, False]
    assert len(window) == 0


def test_repeats_within_one_array_are_marked_after_the_first() -> None:
    window = DedupeWindow(WINDOW_S)
    assert window.known(fingerprints(9, 1, 9, 1, 2, 9)).tolist() == [False, False, True, True, False, True]
    window.add(fingerprints(2), 0)
    assert window.known(fingerprints(9, 2, 9)).tolist() == [False, True, True]


def test_nothing_at_all() -> None:
    window = DedupeWindow(WINDOW_S)
    window.add(fingerprints(), 0)
    window.load([], 0)
    window.load([IdsEntry(0, b"")], 0)
    assert window.known(fingerprints()).tolist() == []
    assert len(window) == 0


def test_an_id_is_kept_to_the_end_of_the_next_generation() -> None:
    window = DedupeWindow(WINDOW_S)
    window.add(fingerprints(1), WINDOW_MS)
    window.add(fingerprints(2), 2 * WINDOW_MS - 1)
    window.advance(3 * WINDOW_MS - 1)
    assert window.known(fingerprints(1, 2)).tolist() == [True, True]
    window.advance(3 * WINDOW_MS)
    assert window.known(fingerprints(1, 2)).tolist() == [False, False]


def test_after_a_long_silence_everything_is_forgotten() -> None:
    window = DedupeWindow(WINDOW_S)
    window.add(fingerprints(1), 0)
    window.advance(100 * WINDOW_MS)
    assert not window.contains(1)
    assert len(window) == 0


@pytest.mark.parametrize("at_once", [1, 7, 100, 5000, 60_000])
def test_many_ids_are_found_among_many(at_once: int) -> None:
    """Enough for merged runs and a filter that has grown several times."""
    count = 3_000 if at_once == 1 else 120_000
    held, others = random_fingerprints(count, seed=1), random_fingerprints(count, seed=2)
    window = DedupeWindow(WINDOW_S, memtable_limit=256)
    for start in range(0, count, at_once):
        window.add(held[start : start + at_once], 0)
    assert len(window) == count
    assert window.known(held).all()
    assert not window.known(others).any()
    mixed = np.where(np.arange(count) % 3 == 0, held, others)
    assert (window.known(mixed) == (np.arange(count) % 3 == 0)).all()


def test_loading_equals_adding() -> None:
    held, others = random_fingerprints(50_000, seed=3), random_fingerprints(50_000, seed=4)
    entries = [IdsEntry(WINDOW_MS // 2 + n, held[n * 100 : n * 100 + 100].tobytes()) for n in range(500)]
    window = DedupeWindow(WINDOW_S)
    window.load(entries[:200], WINDOW_MS)
    window.load(entries[200:], WINDOW_MS)
    assert len(window) == 50_000
    assert window.known(held).all()
    assert not window.known(others).any()
    window.advance(2 * WINDOW_MS)
    assert len(window) == 0


def test_ids_that_were_lost_are_forgotten_wherever_they_are() -> None:
    """In a run of either generation, and among the newest."""
    held, newer, newest = (random_fingerprints(count, seed=count) for count in (50_000, 6_000, 100))
    window = DedupeWindow(WINDOW_S)
    window.load([IdsEntry(WINDOW_MS // 2, held.tobytes())], WINDOW_MS)
    window.add(newer, WINDOW_MS)
    window.add(newest, WINDOW_MS)
    lost = np.concatenate([held[::5], newer[::5], newest[::5], random_fingerprints(50, seed=1)])
    window.remove(lost)
    assert not window.known(lost).any()
    for ids in (held, newer, newest):
        assert (window.known(ids) == (np.arange(ids.size) % 5 != 0)).all()
    assert len(window) == 50_000 + 6_000 + 100 - 10_000 - 1_200 - 20
    window.add(lost, WINDOW_MS)
    assert window.known(lost).all()


def test_bytes_an_id_are_near_the_eight_of_the_fingerprint() -> None:
    window = DedupeWindow(WINDOW_S)
    window.add(random_fingerprints(1_000_000, seed=5), 0)
    assert 8.5 * 1_000_000 < window.resident_bytes < 11 * 1_000_000


@given(st.integers(0, 20_000))
@settings(max_examples=30, deadline=None)
def test_few_new_ids_pass_the_filter(held: int) -> None:
    """What passes it costs a search: 0.5 to 3 % by design, whatever the size."""
    ids = FingerprintSet(memtable_limit=1)
    if held:
        ids.add(random_fingerprints(held, seed=6))
    asked = random_fingerprints(20_000, seed=7)
    passed = ids._filter.candidates(asked, filter_patterns(asked)).size
    assert passed < 0.06 * asked.size


def test_runs_stay_few() -> None:
    ids = FingerprintSet(memtable_limit=100)
    for start in range(0, 200_000, 100):
        ids.add(np.arange(start, start + 100, dtype=np.uint64))
    assert len(ids._runs) <= 8
    assert len(ids) == 200_000
