"""Windows in memory: merged, bounded, and the same whatever is loaded again."""

import pytest

from analytics_actors.windows.closing import Closing
from analytics_actors.windows.window_set import GROUP_BYTES, WindowSet
from config.settings import WindowSettings
from storage.aggregate import Aggregate
from storage.memory_windows import MemoryWindows
from storage.window_key import OTHER, Size, WindowKey
from storage.window_store import Publication

HOUR = 1_777_633_200
"""2026-05-01 11:00:00 UTC."""


def minute(number: int, *, group: str = "", metric: str = "events", project: str = "p") -> WindowKey:
    dimensions = (("eventType", group),) if group else ()
    return WindowKey(project, metric, "1m", HOUR + 60 * number, dimensions)


class Store:
    """A window store with one partition, and sets that publish to it."""

    def __init__(self) -> None:
        self.windows = MemoryWindows(WindowSettings(), clock=lambda: float(HOUR))
        self.offset = 0

    async def begin(self) -> None:
        await self.windows.begin_rebuild(0, epoch=1)
        await self.windows.reset(0, epoch=1, next_offset=0, built={})

    async def publish(self, windows: WindowSet) -> None:
        self.offset += 1
        items = list(windows.unpublished.items())
        [outcome] = await self.windows.publish([Publication(0, 1, self.offset - 1, self.offset, 0, items, {})])
        assert outcome == "published"
        windows.published()

    def counts(self, size: Size) -> dict[tuple[int, str], int]:
        return {
            (key.start - HOUR, key.dimensions[0][1] if key.dimensions else ""): value.count
            for key, value in self.windows.windows.items()
            if key.size == size
        }


@pytest.fixture
async def store() -> Store:
    made = Store()
    await made.begin()
    return made


async def test_a_delta_goes_into_its_minute_5_minutes_and_hour(store: Store) -> None:
    windows = WindowSet(store.windows, max_bytes=1 << 20, max_groups=10)
    await windows.merge({minute(1): Aggregate(2), minute(4): Aggregate(3), minute(7): Aggregate(5)})
    await store.publish(windows)
    assert store.counts("1m") == {(60, ""): 2, (240, ""): 3, (420, ""): 5}
    assert store.counts("5m") == {(0, ""): 5, (300, ""): 5}
    assert store.counts("1h") == {(0, ""): 10}


async def test_windows_share_nothing_with_the_deltas_or_each_other(store: Store) -> None:
    windows = WindowSet(store.windows, max_bytes=1 << 20, max_groups=10)
    delta = Aggregate(1)
    await windows.merge({minute(1): delta})
    await windows.merge({minute(1): delta})
    assert delta.count == 1
    assert {key.size: value.count for key, value in windows.unpublished.items()} == {"1m": 2, "5m": 2, "1h": 2}


@pytest.mark.parametrize("max_bytes", [0, 3000, 1 << 20])
async def test_what_is_let_go_is_loaded_again(store: Store, max_bytes: int) -> None:
    windows = WindowSet(store.windows, max_bytes=max_bytes, max_groups=10)
    for _ in range(3):
        for number in range(20):
            await windows.merge({minute(number): Aggregate(1), minute(number, group="a"): Aggregate(1)})
            await store.publish(windows)
            assert windows.resident_bytes <= max_bytes
    assert set(store.counts("1m").values()) == {3}
    assert store.counts("1h") == {(0, ""): 60, (0, "a"): 60}


async def test_what_is_not_published_stays(store: Store) -> None:
    windows = WindowSet(store.windows, max_bytes=0, max_groups=10)
    await windows.merge({minute(1): Aggregate(1)})
    await windows.merge({minute(2): Aggregate(1)})
    assert windows.is_full
    await store.publish(windows)
    assert len(windows) == 0
    assert windows.resident_bytes == 0
    assert store.counts("1h") == {(0, ""): 2}


async def test_tuples_beyond_the_bound_are_counted_as_other(store: Store) -> None:
    windows = WindowSet(store.windows, max_bytes=1 << 20, max_groups=2)
    await windows.merge({minute(n, group=group): Aggregate(n + 1) for n, group in enumerate("abcd")})
    await store.publish(windows)
    assert store.counts("1h") == {(0, "a"): 1, (0, "b"): 2, (0, OTHER): 7}
    assert store.counts("1m")[180, OTHER] == 4
    assert (windows.overflow_events, windows.overflow_groups, windows.groups) == (7, 2, 2)


async def test_who_was_admitted_stays_so_for_the_next_owner(store: Store) -> None:
    first = WindowSet(store.windows, max_bytes=1 << 20, max_groups=2)
    await first.merge({minute(0, group=group): Aggregate(1) for group in "abc"})
    await store.publish(first)
    second = WindowSet(store.windows, max_bytes=1 << 20, max_groups=2)
    await second.merge({minute(1, group=group): Aggregate(1) for group in "cbad"})
    await store.publish(second)
    assert store.counts("1h") == {(0, "a"): 2, (0, "b"): 2, (0, OTHER): 3}
    next_hour = WindowSet(store.windows, max_bytes=1 << 20, max_groups=2)
    await next_hour.merge({minute(60 + n, group=group): Aggregate(1) for n, group in enumerate("cd")})
    assert OTHER not in {key.dimensions[0][1] for key in next_hour.unpublished}


async def test_a_partition_is_forgotten_and_its_bytes_with_it(store: Store) -> None:
    windows = WindowSet(store.windows, max_bytes=1 << 20, max_groups=10)
    await windows.merge({minute(1, project="p"): Aggregate(1), minute(1, project="p", group="a"): Aggregate(1)})
    before = windows.resident_bytes
    await windows.merge({minute(1, project="q"): Aggregate(1), minute(1, project="q", group="a"): Aggregate(1)})
    windows.drop(lambda project_id: project_id == "q")
    assert windows.resident_bytes == before
    assert {key.project_id for key in windows.unpublished} == {"p"}
    windows.drop(lambda project_id: project_id == "p")
    assert (windows.resident_bytes, windows.groups, len(windows)) == (0, 0, 0)
    assert GROUP_BYTES > 0


async def test_a_source_that_fails_changes_no_window(store: Store) -> None:
    windows = WindowSet(store.windows, max_bytes=1 << 20, max_groups=10)
    store.windows.available = False
    with pytest.raises(Exception, match="away"):
        await windows.merge({minute(1): Aggregate(1)})
    assert windows.unpublished == {}


def window(size: Size, start: int) -> WindowKey:
    return WindowKey("p", "events", size, HOUR + start, ())


def test_windows_close_after_their_end_in_order() -> None:
    closing = Closing(close_after_s=60)
    keys = [window("1h", 0), window("5m", 300), window("1m", 360), window("1m", 300)]
    closing.touched(keys, HOUR + 370)
    assert closing.open_windows == 4
    assert closing.due(HOUR + 419) == []
    assert closing.due(HOUR + 420) == [window("1m", 300)]
    assert closing.due(HOUR + 660) == [window("1m", 360), window("5m", 300)]
    assert closing.due(HOUR + 3659) == []
    assert closing.due(HOUR + 3660) == [window("1h", 0)]
    assert closing.open_windows == 0


def test_closed_windows_that_change_are_told_once() -> None:
    closing = Closing(close_after_s=60)
    closing.touched([window("1m", 0), window("1h", 0)], HOUR + 200)
    closing.touched([window("1m", 0)], HOUR + 210)
    assert closing.changed() == [window("1m", 0)]
    assert closing.changed() == []
    assert closing.open_windows == 1


def test_a_window_whose_time_has_come_is_not_told_twice() -> None:
    closing = Closing(close_after_s=60)
    closing.touched([window("1m", 0)], HOUR + 10)
    closing.touched([window("1m", 0)], HOUR + 130)
    assert closing.due(HOUR + 131) == [window("1m", 0)]
    assert closing.changed() == []


def test_a_dropped_project_closes_nothing() -> None:
    closing = Closing(close_after_s=60)
    closing.touched([window("1m", 0), window("1m", -600)], HOUR + 10)
    closing.drop(lambda project_id: project_id == "p")
    assert closing.open_windows == 0
    assert closing.due(HOUR + 5000) == closing.changed() == []
