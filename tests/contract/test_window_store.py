"""The law of `storage.window_store`, kept by the windows in memory and by those in Redis alike."""

import time
from collections.abc import AsyncIterator, Mapping, Sequence
from decimal import Decimal
from typing import Any, Protocol

import numpy as np
import pytest
import redis.asyncio

from config.settings import Settings, WindowSettings
from storage.aggregate import AGGREGATIONS, Aggregate
from storage.errors import Fenced, LogLost, Unavailable
from storage.memory_windows import MemoryWindows
from storage.quantile_sketch import QuantileSketch
from storage.redis_windows import RedisWindows
from storage.unique_sketch import UniqueSketch
from storage.window_key import Dimensions, Size, WindowKey
from storage.window_store import Publication, WindowsCheckpoint, WindowStore
from tests.contract.cut_proxy import CutProxy

SETTINGS = Settings(windows=WindowSettings(ttl_s=3 * 3600))
HOUR = int(time.time()) // 3600 * 3600


class Subject(Protocol):
    """A store, another owner's on the same data, and what can happen to them."""

    store: WindowStore
    other: WindowStore

    def lose_next_publish(self, *, applied: bool) -> None: ...

    async def flush_all(self) -> None: ...

    async def close(self) -> None: ...


class MemorySubject:
    def __init__(self) -> None:
        self.memory = MemoryWindows(SETTINGS.windows, owner="one")
        self.store: WindowStore = self.memory
        self.other: WindowStore = MemoryWindows(SETTINGS.windows, owner="two", sharing=self.memory)

    def lose_next_publish(self, *, applied: bool) -> None:
        self.memory.fail_next(applied=applied)

    async def flush_all(self) -> None:
        self.memory.flush_all()

    async def close(self) -> None:
        await self.store.close()


class RedisSubject:
    def __init__(self, url: str, proxy: CutProxy) -> None:
        self._url = url
        self._proxy = proxy
        self.store: WindowStore = RedisWindows(proxy.url, SETTINGS, owner="one")
        self.other: WindowStore = RedisWindows(url, SETTINGS, owner="two")

    def lose_next_publish(self, *, applied: bool) -> None:
        self._proxy.cut_next("reply" if applied else "request", b"EVALSHA")

    async def flush_all(self) -> None:
        async with redis.asyncio.Redis.from_url(self._url) as client:
            await client.flushall()

    async def close(self) -> None:
        await self.store.close()
        await self.other.close()
        await self._proxy.stop()


@pytest.fixture(params=["memory", "redis"])
async def subject(request: pytest.FixtureRequest) -> AsyncIterator[Subject]:
    if request.param == "memory":
        yield MemorySubject()
        return
    url = str(request.getfixturevalue("valkey_url"))
    proxy = CutProxy(url)
    await proxy.start()
    made = RedisSubject(url, proxy)
    yield made
    await made.close()


def key(
    dimensions: Dimensions = (), *, metric: str = "m", size: Size = "1h", start: int = HOUR, project: str = "shop"
) -> WindowKey:
    return WindowKey(project, metric, size, start, dimensions)


def publication(
    windows: Sequence[tuple[WindowKey, Aggregate]] = (),
    *,
    partition: int = 7,
    epoch: int = 1,
    first: int = 0,
    following: int = 10,
    built: Mapping[str, str] | None = None,
    watermark_ms: int = 0,
) -> Publication:
    return Publication(partition, epoch, first, following, watermark_ms, windows, built or {})


async def go_live(
    store: WindowStore, partition: int = 7, *, epoch: int = 1, next_offset: int = 0, **built: str
) -> None:
    await store.begin_rebuild(partition, epoch=epoch)
    await store.reset(partition, epoch=epoch, next_offset=next_offset, built=built)


def told(aggregate: Aggregate | None) -> tuple[object, ...] | None:
    """Everything that it can answer; the bytes of a quantile sketch are not the same each time."""
    if aggregate is None:
        return None
    return aggregate.count, aggregate.total, *(aggregate.value(each) for each in AGGREGATIONS)


async def counts(store: WindowStore, *keys: WindowKey) -> list[int | None]:
    return [None if found is None else found.count for found in await store.load(keys)]


async def test_without_a_checkpoint_there_is_nothing_to_claim_or_to_move(subject: Subject) -> None:
    store = subject.store
    assert await store.checkpoints([7, 8]) == [None, None]
    assert await store.claim(7, epoch=1) is None
    assert await store.publish([publication([(key(), Aggregate(1))])]) == ["lost"]
    assert await counts(store, key()) == [None]
    with pytest.raises(LogLost):
        await store.reset(7, epoch=1, next_offset=0, built={})
    assert await store.checkpoints([7]) == [None]
    assert await store.publish([]) == [] and await store.load([]) == [] and await store.checkpoints([]) == []


async def test_a_partition_is_built_then_live(subject: Subject) -> None:
    store = subject.store
    await store.begin_rebuild(7, epoch=5)
    assert await store.checkpoints([8, 7]) == [None, WindowsCheckpoint(7, 5, 0, {}, 0, "rebuilding")]
    rebuilt = publication(
        [(key(), Aggregate(3))], epoch=5, first=100, following=100, built={"x": "1"}, watermark_ms=123
    )
    assert await store.publish([rebuilt, publication(partition=8)]) == ["published", "lost"]
    await store.reset(7, epoch=5, next_offset=100, built={"shop": "a,b", "döner": ""})
    live = WindowsCheckpoint(7, 5, 100, {"shop": "a,b", "döner": ""}, 123, "live")
    assert await store.checkpoints([7]) == [live]
    assert await counts(store, key()) == [3]
    await store.reset(7, epoch=5, next_offset=100, built={"shop": "a,b", "döner": ""})
    assert await store.claim(7, epoch=9) == live._replace(epoch=9)


async def test_values_come_back_as_they_were(subject: Subject) -> None:
    store = subject.store
    await go_live(store)
    exact, registers, quantiles = UniqueSketch(), UniqueSketch(), QuantileSketch()
    exact.add_hashes(np.arange(10, dtype=np.uint64))
    registers.add_hashes(np.random.default_rng(1).integers(1 << 63, size=9000, dtype=np.uint64))
    quantiles.add(np.arange(500.0))
    aggregates = [
        Aggregate(3, Decimal("12.30"), -1.5, 1e300),
        Aggregate(10, unique=exact),
        Aggregate(9000, unique=registers),
        Aggregate(500, Decimal("0.000000001"), 0.0, 499.0, quantiles=quantiles),
        Aggregate(),
    ]
    windows = [(key((("c", f"v:{n}% \n\x00ü"),)), aggregate) for n, aggregate in enumerate(aggregates)]
    assert await store.publish([publication(windows)]) == ["published"]
    found = await store.load([each for each, _ in windows] + [key((("c", "v"),))])
    assert [told(each) for each in found] == [told(each) for each in aggregates] + [None]


async def test_what_is_loaded_or_published_is_the_callers_own(subject: Subject) -> None:
    store = subject.store
    await go_live(store)
    mine = Aggregate(1)
    await store.publish([publication([(key(), mine)])])
    mine.merge(Aggregate(5))
    [loaded] = await store.load([key()])
    assert loaded is not None
    loaded.merge(Aggregate(5))
    assert await counts(store, key()) == [1]


async def test_a_checkpoint_moves_from_the_named_offset_only(subject: Subject) -> None:
    """CK-1."""
    store = subject.store
    await go_live(store, next_offset=10, shop="1")

    async def publish(first: int, following: int, count: int, **fields: Any) -> str:
        windows = [(key(), Aggregate(count))]
        [outcome] = await store.publish([publication(windows, first=first, following=following, **fields)])
        return str(outcome)

    assert await publish(10, 20, 1, watermark_ms=50, built={"other": "2"}) == "published"
    assert await publish(10, 20, 2, watermark_ms=40) == "published", "a repetition"
    assert await publish(20, 20, 3) == "published", "nothing new in the log"
    assert await publish(10, 15, 99) == "fenced"
    assert await publish(19, 30, 99) == "fenced"
    assert await publish(21, 30, 99) == "lost"
    assert await counts(store, key()) == [3]
    assert await store.checkpoints([7]) == [WindowsCheckpoint(7, 1, 20, {"shop": "1", "other": "2"}, 50, "live")]


async def test_a_stale_epoch_publishes_nothing(subject: Subject) -> None:
    """FN-1."""
    store, other = subject.store, subject.other
    await go_live(store)
    claimed = await other.claim(7, epoch=2)
    assert claimed == WindowsCheckpoint(7, 2, 0, {}, 0, "live")
    assert await store.publish([publication([(key(), Aggregate(1))])]) == ["fenced"]
    assert await other.publish([publication([(key(), Aggregate(2))], epoch=2)]) == ["published"]
    assert await store.publish([publication(epoch=3, first=10, following=11)]) == ["lost"], "never claimed"
    for stale in (store.claim(7, epoch=1), store.claim(7, epoch=2), store.begin_rebuild(7, epoch=2)):
        with pytest.raises(Fenced):
            await stale
    with pytest.raises(Fenced):
        await store.reset(7, epoch=1, next_offset=99, built={})
    assert await other.claim(7, epoch=2) == claimed._replace(next_offset=10), "may be repeated"
    assert await counts(store, key()) == [2]


async def test_a_rebuild_is_fenced_too(subject: Subject) -> None:
    store, other = subject.store, subject.other
    await store.begin_rebuild(7, epoch=1)
    await other.begin_rebuild(7, epoch=2)
    assert await store.publish([publication([(key(), Aggregate(1))])]) == ["fenced"]
    with pytest.raises(Fenced):
        await store.reset(7, epoch=1, next_offset=5, built={})
    await other.reset(7, epoch=2, next_offset=5, built={})
    with pytest.raises(Fenced):
        await other.reset(7, epoch=2, next_offset=4, built={})
    assert [each and each.next_offset for each in await store.checkpoints([7])] == [5]


async def test_a_rebuild_begins_from_nothing_but_names(subject: Subject) -> None:
    store = subject.store
    await go_live(store, next_offset=10, shop="1")
    await store.publish([publication(first=10, following=20, watermark_ms=5)])
    await store.begin_rebuild(7, epoch=1)
    assert await store.checkpoints([7]) == [WindowsCheckpoint(7, 1, 0, {"shop": "1"}, 0, "rebuilding")]
    assert await store.claim(7, epoch=2) == WindowsCheckpoint(7, 2, 0, {"shop": "1"}, 0, "rebuilding")
    await store.reset(7, epoch=2, next_offset=30, built={"zoo": "2"})
    assert await store.checkpoints([7]) == [WindowsCheckpoint(7, 2, 30, {"zoo": "2"}, 0, "live")]


async def test_each_partition_of_a_call_has_its_own_outcome(subject: Subject) -> None:
    store = subject.store
    for partition in (1, 2, 4):
        await go_live(store, partition)
    await subject.other.claim(2, epoch=2)
    names = {1: "a", 2: "b", 3: "c", 4: "d"}
    windows = {p: key((("who", name),), metric=name) for p, name in names.items()}
    outcomes = await store.publish(
        [
            publication(
                [(windows[p], Aggregate(p)), (key(metric=names[p]), Aggregate(10 * p))],
                partition=p,
                built={f"project{p}": "x"},
            )
            for p in names
        ]
    )
    assert outcomes == ["published", "fenced", "lost", "published"]
    assert await counts(store, *windows.values()) == [1, None, None, 4]
    assert await counts(store, *(key(metric=name) for name in names.values())) == [10, None, None, 40]
    assert [await store.groups("shop", name, "1h", [HOUR]) for name in names.values()] == [
        [[(("who", "a"),)]],
        [[]],
        [[]],
        [[(("who", "d"),)]],
    ]
    assert [each and (each.next_offset, each.built) for each in await store.checkpoints([1, 2, 3, 4])] == [
        (10, {"project1": "x"}),
        (0, {}),
        None,
        (10, {"project4": "x"}),
    ]


@pytest.mark.parametrize("applied", [True, False])
async def test_a_publication_of_unknown_outcome_is_repeated(subject: Subject, applied: bool) -> None:
    store = subject.store
    await go_live(store)
    unknown = publication([(key(), Aggregate(7))])
    subject.lose_next_publish(applied=applied)
    with pytest.raises(Unavailable):
        await store.publish([unknown])
    assert await store.publish([unknown]) == ["published"]
    assert await store.publish([publication(first=10, following=11)]) == ["published"]
    assert await store.publish([unknown]) == ["fenced"], "it comes too late now"
    assert await counts(store, key()) == [7]


async def test_loss_is_told(subject: Subject) -> None:
    store = subject.store
    await go_live(store)
    await store.publish([publication([(key(), Aggregate(1))])])
    await store.begin_rebuild(8, epoch=1)
    await subject.flush_all()
    assert await store.publish([publication(first=10, following=20), publication(partition=8)]) == ["lost", "lost"]
    with pytest.raises(LogLost):
        await store.reset(8, epoch=1, next_offset=0, built={})
    assert await store.claim(7, epoch=2) is None
    assert await store.checkpoints([7, 8]) == [None, None]
    assert await counts(store, key()) == [None]


async def test_groups_are_listed_by_window(subject: Subject) -> None:
    store = subject.store
    await go_live(store)
    two: Dimensions = (("country", "AT"), ("device", 'mo:bi"le'))
    other: Dimensions = (("country", "__other__"), ("device", "__other__"))
    windows = [
        (key(), Aggregate(9)),
        (key(two), Aggregate(1)),
        (key(other), Aggregate(2)),
        (key(two, size="1m"), Aggregate(3)),
        (key(two, start=HOUR - 3600), Aggregate(4)),
        (key((("x", "y"),), metric="m2"), Aggregate(4)),
        (key((("x", "y"),), project="other"), Aggregate(4)),
    ]
    await store.publish([publication(windows)])
    await store.publish([publication(windows[1:2], first=10)])
    starts = [HOUR - 3600, HOUR, HOUR + 3600]
    assert await store.groups("shop", "m", "1h", starts) == [[two], [two, other], []]
    assert await store.groups("shop", "m", "1m", [HOUR]) == [[two]]
    assert await store.groups("shop", "m", "1h", []) == []


async def test_what_is_gone_is_not_listed_either(subject: Subject) -> None:
    """Only in the window that it is gone from; again changes nothing, and a stale owner takes nothing away."""
    store = subject.store
    await go_live(store)
    one, two = (("country", "AT"),), (("country", 'D"E'),)
    keys = [key(dimensions, size=size) for size in ("1m", "5m", "1h") for dimensions in ((), one, two)]
    await store.publish([publication([(each, Aggregate(3)) for each in keys])])
    gone = [key(one, size="1m"), key(two, size="5m"), key(size="5m"), key(one, size="5m"), key(one, metric="never")]
    assert await store.publish([publication(first=10)._replace(epoch=0, gone=gone)]) == ["fenced"]
    assert await counts(store, *keys) == [3] * 9
    for _ in range(2):
        changed = publication([(keys[0], Aggregate(2))], first=10, built={"shop": "x"})._replace(gone=gone)
        assert await store.publish([changed, publication(partition=8)]) == ["published", "lost"]
        assert await counts(store, *keys) == [2, None, 3, None, None, None, 3, 3, 3]
    assert await store.groups("shop", "m", "1m", [HOUR]) == [[two]]
    assert await store.groups("shop", "m", "5m", [HOUR]) == [[]]
    assert await store.groups("shop", "m", "1h", [HOUR]) == [[one, two]]
    [checkpoint] = await store.checkpoints([7])
    assert checkpoint is not None and checkpoint.built == {"shop": "x"}
    await store.publish([publication([(gone[0], Aggregate(1))], first=10)])
    assert await store.groups("shop", "m", "1m", [HOUR]) == [[one, two]]


async def test_many_windows_and_groups_at_once(subject: Subject) -> None:
    store = subject.store
    await go_live(store)
    dimensions = [(("group", f"{n}"),) for n in range(2500)]
    windows = [(key(each), Aggregate(n)) for n, each in enumerate(dimensions)]
    assert await store.publish([publication(windows)]) == ["published"]
    assert await counts(store, *(each for each, _ in windows)) == list(range(2500))
    gone = [each for each, _ in windows[:2400]]
    assert await store.publish([publication(first=10)._replace(gone=gone)]) == ["published"]
    assert await store.groups("shop", "m", "1h", [HOUR]) == [sorted(dimensions[2400:])]
    await store.publish([publication(windows, first=10)])
    assert await store.groups("shop", "m", "1h", [HOUR] * 2) == [sorted(dimensions)] * 2


async def test_windows_whose_time_is_over_are_not_kept(subject: Subject) -> None:
    store = subject.store
    await go_live(store)
    old, ancient = HOUR - 4 * 3600, -86400
    windows = [(key((("a", "b"),), start=start), Aggregate(1)) for start in (old, ancient, HOUR)]
    assert await store.publish([publication(windows)]) == ["published"]
    assert await counts(store, *(each for each, _ in windows)) == [None, None, 1]
    assert await store.groups("shop", "m", "1h", [old, ancient, HOUR]) == [[], [], [(("a", "b"),)]]
