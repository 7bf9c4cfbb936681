"""What was detected: stored once, listed by page, delivered at least once. Fake and PostgreSQL alike."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest

from storage.errors import NotFound, Unavailable
from storage.memory_patterns import MemoryPatterns
from storage.migrate import migrate
from storage.pattern_store import Found, InvalidPatternCursor, PatternStore, PostgresPatterns, SavedState
from storage.patterns import Detection, Kind
from storage.postgres import Postgres
from storage.registry import Registry

BEGIN = datetime(2026, 11, 20, 12, tzinfo=UTC)
FILTERED: list[tuple[int, Kind, str]] = [(0, "spike", "a"), (1, "drop", "a"), (2, "drop", "b")]
URL = "https://hooks.example.com/x"


@pytest.fixture
async def store(url: str) -> AsyncIterator[PatternStore]:
    if not url:
        yield MemoryPatterns()
        return
    await migrate(url)
    postgres = Postgres(url, owner="test", pool_size=4, deadline_s=10)
    await Registry(postgres).create_project("shop")
    yield PostgresPatterns(postgres)
    await postgres.close()


def detection(
    minute: int = 0, kind: Kind = "spike", *, project_id: str = "shop", metric: str = "events", value: float = 9.5
) -> Detection:
    return Detection(
        project_id=project_id,
        metric=metric,
        kind=kind,
        direction="up",
        size="1m",
        start=int(BEGIN.timestamp()) + 60 * minute,
        dimensions=(("country", "ä:\\"), ("b", "")),
        value=value,
        mean=1 / 3,
        expected=-1e300,
        sigmas=7.25,
        events=1 << 40,
        windows=60,
        seasonal=True,
        detected_at=BEGIN.timestamp() + 0.5,
    )


async def listed(store: PatternStore, project_id: str = "shop", **where: object) -> list[Detection]:
    return [stored.detection for stored in (await store.list_patterns(project_id, **where)).patterns]  # type: ignore[arg-type]


async def test_what_was_found_comes_back_as_it_was_and_once(store: PatternStore) -> None:
    assert await store.save([], [Found(detection(), "")]) == [detection()]
    assert await store.save([], [Found(detection(value=1.0), URL), Found(detection(1), "")]) == [detection(1)]
    assert await listed(store) == [detection(1), detection()]
    first = (await store.list_patterns("shop")).patterns[1]
    assert first[1:] == ("none", 0, None, None)


async def test_what_makes_a_pattern_another_one(store: PatternStore) -> None:
    others = [detection(1), detection(kind="drop"), detection(metric="m"), detection(project_id="blog")]
    assert len({other.id for other in [detection(), *others]}) == 5
    await store.save([], [Found(other, "") for other in [detection(), *others]])
    assert len(await listed(store)) == 4
    assert await listed(store, "blog") == [others[3]]


async def test_filters(store: PatternStore) -> None:
    found = [detection(m, k, metric=n) for m, k, n in FILTERED]
    await store.save([], [Found(one, "") for one in found])
    assert await listed(store, metric="a") == [found[1], found[0]]
    assert await listed(store, kind="drop") == [found[2], found[1]]
    minute = timedelta(minutes=1)
    assert await listed(store, since=BEGIN + minute, until=BEGIN + 2 * minute) == [found[1]]
    assert await listed(store, metric="a\0") == []
    assert await listed(store, "other") == []


async def test_pages_follow_a_key(store: PatternStore) -> None:
    kinds: list[Kind] = ["spike", "trend", "anomaly"]
    await store.save([], [Found(detection(minute, kind), "") for minute in range(3) for kind in kinds])
    seen: list[Detection] = []
    cursor = None
    while True:
        page = await store.list_patterns("shop", limit=4, cursor=cursor)
        seen += [stored.detection for stored in page.patterns]
        await store.save([], [Found(detection(99), "")])
        cursor = page.next_cursor
        if cursor is None:
            break
    assert len(seen) == len(set(seen)) == 9
    assert [one.start for one in seen] == sorted((one.start for one in seen), reverse=True)
    for wrong in ("?", "e30", "ä", "WyJ4IiwieSJd"):
        with pytest.raises(InvalidPatternCursor):
            await store.list_patterns("shop", cursor=wrong)


async def test_states_never_move_back(store: PatternStore) -> None:
    await store.save([SavedState("shop", "a", 60, b'{"x": 1}'), SavedState("shop", "b", 60, b"{}")], [])
    await store.save([SavedState("shop", "a", 0, b'{"x": 2}')], [])
    assert await store.states([("shop", "a"), ("blog", "b"), ("shop", "c")]) == [
        SavedState("shop", "a", 60, b'{"x": 1}')
    ]
    await store.save([SavedState("shop", "a", 60, b'{"x": 3}')], [])
    assert len(await store.states()) == 2
    await store.forget([("shop", "b"), ("shop", "c")])
    assert await store.states() == [SavedState("shop", "a", 60, b'{"x": 3}')]


async def test_a_delivery_is_handed_out_once_at_a_time(store: PatternStore) -> None:
    await store.save([], [Found(detection(), URL), Found(detection(1), ""), Found(detection(2), URL)])
    batches = await asyncio.gather(*(store.due(limit=1, lease_s=60) for _ in range(4)))
    assert sorted(one.detection.start for batch in batches for one in batch) == [detection().start, detection(2).start]
    assert {(one.url, one.attempt) for batch in batches for one in batch} == {(URL, 1)}
    await store.delivered(detection().id)
    await store.delivered(detection().id)
    states = {s.detection: (s.delivery, s.attempts) for s in (await store.list_patterns("shop")).patterns}
    assert states == {detection(): ("delivered", 1), detection(1): ("none", 0), detection(2): ("pending", 1)}


async def test_an_attempt_that_nobody_answers_for_is_made_again(store: PatternStore) -> None:
    await store.save([], [Found(detection(), URL)])
    await store.due(limit=9, lease_s=0)
    [again] = await store.due(limit=9, lease_s=0)
    assert again.attempt == 2
    await store.failed(again.detection.id, 1, "too late", retry_in_s=None)
    [third] = await store.due(limit=9, lease_s=60)
    assert third.attempt == 3


async def test_failures_are_retried_later_or_given_up(store: PatternStore) -> None:
    await store.save([], [Found(detection(), URL)])
    [first] = await store.due(limit=9, lease_s=60)
    await store.failed(first.detection.id, 1, "500\0\nno" + "x" * 9999, retry_in_s=0)
    [stored] = (await store.list_patterns("shop")).patterns
    assert stored.delivery == "pending"
    assert (stored.last_error or "").startswith("500��no")
    [second] = await store.due(limit=9, lease_s=60)
    await store.failed(second.detection.id, 2, "gone", retry_in_s=3600)
    assert await store.due(limit=9, lease_s=60) == []
    await store.failed(second.detection.id, 2, "gone for good", retry_in_s=None)
    [stored] = (await store.list_patterns("shop")).patterns
    assert stored[1:] == ("failed", 2, None, "gone for good")


async def test_a_secret_stays_until_it_is_replaced(store: PatternStore) -> None:
    first = await store.signing_secret("shop")
    assert len(first) == 32
    assert await store.signing_secret("shop") == first
    second = await store.replace_secret("shop")
    assert second != first
    assert await store.signing_secret("shop") == second
    for name in ("other", "\0"):
        with pytest.raises(NotFound):
            await store.signing_secret(name)


async def test_detection_and_state_are_one_transaction(postgres_url: str) -> None:
    await migrate(postgres_url)
    postgres = Postgres(postgres_url, owner="test", pool_size=1, deadline_s=10)
    store = PostgresPatterns(postgres)
    broken = detection(kind="nonsense")  # type: ignore[arg-type]
    with pytest.raises(Unavailable, match="23514"):
        await store.save([SavedState("shop", "events", 60, b"{}")], [Found(broken, "")])
    assert await store.states() == []
    await postgres.close()
