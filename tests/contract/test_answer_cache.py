"""Answers kept in Redis, and what PostgreSQL says of a range's roll-ups."""

from collections.abc import AsyncIterator
from datetime import UTC, date, datetime
from decimal import Decimal

import pytest
import redis.asyncio

from storage import answer_cache
from storage.aggregate import Aggregate
from storage.answer_cache import RedisAnswers
from storage.embedded.process import free_port
from storage.errors import Unavailable
from storage.metric_definitions import MetricDefinition
from storage.metric_reads import MetricReads
from storage.metric_registry import MetricRegistry
from storage.migrate import migrate
from storage.postgres import Postgres
from storage.postgres_rollups import PostgresRollups
from storage.registry import Registry
from storage.window_key import Size, WindowKey

DAY = int(datetime(2026, 1, 1, tzinfo=UTC).timestamp())


@pytest.fixture
async def answers(valkey_url: str) -> AsyncIterator[RedisAnswers]:
    made = RedisAnswers(valkey_url, timeout_s=5)
    yield made
    await made.close()


async def test_an_answer_is_kept_for_its_question_alone(answers: RedisAnswers, valkey_url: str) -> None:
    body = b'{"points":[]}' * 1000
    assert await answers.get("a") is None
    await answers.put("a", body, ttl_s=60)
    assert await answers.get("a") == body
    assert await answers.get("b") is None
    async with redis.asyncio.Redis.from_url(valkey_url) as client:
        [key] = await client.keys("answers:*")
        assert 0 < await client.ttl(key) <= 60
        assert await client.strlen(key) < 1000
        await client.set(key, b"damaged")
    assert await answers.get("a") is None


async def test_questions_of_one_slot_never_get_each_others_answer(
    answers: RedisAnswers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answer_cache, "SLOTS", 1)
    await answers.put("a", b"1", ttl_s=60)
    await answers.put("b", b"2", ttl_s=60)
    assert (await answers.get("a"), await answers.get("b")) == (None, b"2")


async def test_large_answers_are_not_kept(answers: RedisAnswers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answer_cache, "MAX_INFLATED_BYTES", 10)
    await answers.put("a", b"x" * 11, ttl_s=60)
    assert await answers.get("a") is None


async def test_redis_away_is_told() -> None:
    away = RedisAnswers(f"redis://127.0.0.1:{free_port()}/0", timeout_s=1)
    with pytest.raises(Unavailable):
        await away.get("a")
    with pytest.raises(Unavailable):
        await away.put("a", b"1", ttl_s=1)
    await away.close()


def row(
    hour: int, count: int, *, size: Size = "1h", dimensions: tuple[tuple[str, str], ...] = ()
) -> tuple[WindowKey, Aggregate]:
    return WindowKey("shop", "events", size, DAY + hour * 3600, dimensions), Aggregate(count, Decimal(count))


async def test_a_ranges_version_changes_with_its_rollups(postgres_url: str) -> None:
    await migrate(postgres_url)
    postgres = Postgres(postgres_url, owner="test", pool_size=2, deadline_s=10)
    rollups, reads = PostgresRollups(postgres, partitions=64), MetricReads(postgres)
    seen: list[str | None] = []

    async def version(start_hour: int = 0, end_hour: int = 24) -> str | None:
        return await reads.range_version("shop", "events", DAY + start_hour * 3600, DAY + end_hour * 3600)

    async def is_new() -> bool:
        seen.append(await version())
        return seen[-1] is not None and seen.count(seen[-1]) == 1

    assert await is_new()
    assert not await is_new()
    await rollups.upsert([row(5, 1)], epoch=1, next_offset=1)
    assert await is_new()
    await rollups.upsert([row(5, 2)], epoch=1, next_offset=2)
    assert await is_new()
    ticket = await rollups.begin_recount(["shop"], DAY, DAY + 86400)
    await rollups.replace(["shop"], DAY, DAY + 86400, [row(5, 2)], ticket=ticket)
    assert await is_new()
    later = await version(24, 48)
    # As a backfill does, which may have changed groups alone.
    ticket = await rollups.begin_recount(["shop"], DAY, DAY + 86400)
    await rollups.replace(["shop"], DAY, DAY + 86400, [row(5, 2)], ticket=ticket)
    assert await is_new()
    assert await version(24, 48) == later
    await rollups.mark_days("shop", [date(2026, 1, 1)])
    assert await version() is None
    assert await version(48, 72) is not None
    assert await reads.range_version("other", "events", DAY, DAY + 86400) is not None
    await postgres.close()


async def test_with_which_metrics_days_were_counted(postgres_url: str) -> None:
    """Those that all projects have are told only of a project that has, or had, others."""
    await migrate(postgres_url)
    postgres = Postgres(postgres_url, owner="test", pool_size=2, deadline_s=10)
    await Registry(postgres).create_project("shop")
    rollups, reads, metrics = PostgresRollups(postgres, partitions=64), MetricReads(postgres), MetricRegistry(postgres)

    async def after(built: str) -> dict[int, str]:
        ticket = await rollups.begin_recount(["shop"], DAY, DAY + 86400)
        await rollups.end_recount(DAY, DAY + 86400, {"shop": built}, ticket=ticket)
        return await reads.counted_days("shop", DAY, DAY + 86400)

    assert await after("x") == {}
    assert await after("x;m=1") == {DAY: "x;m=1"}
    assert await after("x") == {}
    await metrics.create("shop", MetricDefinition("sessions"))
    await metrics.delete("shop", "sessions")
    assert await after("x") == {DAY: "x"}
    await postgres.close()


async def test_how_far_the_event_store_is(postgres_url: str) -> None:
    await migrate(postgres_url)
    postgres = Postgres(postgres_url, owner="test", pool_size=1, deadline_s=10)
    reads = MetricReads(postgres)
    assert await reads.stored_below(3) == 0
    async with postgres.session() as connection:
        await connection.execute(
            "INSERT INTO checkpoints (sink, partition_id, epoch, next_offset) VALUES ('event_store', 3, 1, 8)"
        )
    assert await reads.stored_below(3) == 8
    await postgres.close()
