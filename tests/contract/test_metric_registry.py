"""Metrics that users define, in memory and in PostgreSQL alike, and how their changes are followed."""

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import asyncpg
import pytest
from msgspec.structs import replace

from storage.errors import Conflict, FormatError, NotFound
from storage.metric_definitions import Filter, MetricDefinition
from storage.metric_registry import MemoryMetricRegistry, MetricRegistry, StoredDefinition
from storage.migrate import migrate
from storage.postgres import Postgres
from storage.registry import Registry

AnyRegistry = MetricRegistry | MemoryMetricRegistry

ORDERS = MetricDefinition(
    "orders",
    "sum",
    event_types=["purchase"],
    property="properties.amount",
    fallbacks=["value"],
    dimensions=["kind=properties.a.b", "context.page.path"],
    filters=[Filter("currency", "in", ["EUR", 1, 1.5, True]), Filter("x", "exists")],
    patterns={"spike": 2.5},
)


@pytest.fixture
async def metrics(url: str) -> AsyncIterator[AnyRegistry]:
    if not url:
        yield MemoryMetricRegistry(["shop", "zoo"])
        return
    async for made in _postgres_registry(url):
        yield made


@pytest.fixture
async def postgres_metrics(postgres_url: str) -> AsyncIterator[MetricRegistry]:
    async for made in _postgres_registry(postgres_url):
        yield made


async def _postgres_registry(url: str) -> AsyncIterator[MetricRegistry]:
    await migrate(url)
    postgres = Postgres(url, owner="test", pool_size=4, deadline_s=10)
    for project in ("shop", "zoo"):
        await Registry(postgres).create_project(project)
    yield MetricRegistry(postgres)
    await postgres.close()


async def test_a_metric_is_made_once_and_comes_back_as_it_was(metrics: AnyRegistry) -> None:
    made = await metrics.create("shop", ORDERS)
    assert made.definition == ORDERS and made.project_id == "shop" and made.deleted_at is None
    assert abs(datetime.now(UTC) - made.created_at) < timedelta(minutes=1)
    assert await metrics.list("shop") == [made]
    with pytest.raises(Conflict):
        await metrics.create("shop", ORDERS)
    assert (await metrics.create("zoo", ORDERS)).version != made.version
    assert await metrics.list("nobody") == []


async def test_metrics_are_listed_by_name(metrics: AnyRegistry) -> None:
    for name in ("b", "c", "Z", "a"):
        await metrics.create("shop", MetricDefinition(name))
    assert [each.definition.name for each in await metrics.list("shop")] == ["Z", "a", "b", "c"]


async def test_every_change_has_a_version_of_its_own(metrics: AnyRegistry) -> None:
    made = await metrics.create("shop", ORDERS)
    replaced = await metrics.replace("shop", MetricDefinition("orders"))
    assert replaced.definition == MetricDefinition("orders") and replaced.created_at == made.created_at
    deleted = await metrics.delete("shop", "orders")
    assert deleted.deleted_at is not None
    assert await metrics.list("shop") == [] == await metrics.list("shop", deleted=["other"])
    assert await metrics.list("shop", deleted=["orders"]) == [deleted]
    again = await metrics.create("shop", ORDERS)
    assert again.deleted_at is None and again.definition == ORDERS
    assert await metrics.list("shop", deleted=["orders"]) == [again]
    versions = [made.version, replaced.version, deleted.version, again.version]
    assert versions == sorted(set(versions))


async def test_other_patterns_keep_version_and_time_and_are_told(metrics: AnyRegistry) -> None:
    made = await metrics.create("shop", ORDERS)
    seen = await metrics.changes_since()
    watched = replace(ORDERS, patterns={"spikeFactor": 4, "webhookUrl": "https://hooks.example/x"})
    assert await metrics.replace("shop", watched) == made._replace(definition=watched)
    assert await metrics.list("shop") == [made._replace(definition=watched)]
    changes = await metrics.changes_since(seen.next_since)
    assert list(changes.definitions) == [made._replace(definition=watched)]
    assert (await metrics.changes_since(changes.next_since)).definitions == []
    other = replace(watched, filters=[], patterns={})
    counted = await metrics.replace("shop", other)
    assert (counted.definition, counted.created_at) == (other, made.created_at)
    assert counted.version > made.version and counted.changed_at > made.changed_at


async def test_what_is_not_there_is_told(metrics: AnyRegistry) -> None:
    await metrics.create("shop", ORDERS)
    await metrics.delete("shop", "orders")
    for missing in (
        metrics.delete("shop", "orders"),
        metrics.delete("zoo", "orders"),
        metrics.replace("shop", ORDERS),
        metrics.create("nowhere", ORDERS),
    ):
        with pytest.raises(NotFound):
            await missing


async def test_a_definition_that_is_none_is_refused(metrics: AnyRegistry) -> None:
    wrong = MetricDefinition("orders", "sum")
    with pytest.raises(ValueError, match="property"):
        await metrics.create("shop", wrong)
    with pytest.raises(ValueError, match="property"):
        await metrics.replace("shop", wrong)


async def test_changes_are_told_completely(metrics: AnyRegistry) -> None:
    one = await metrics.create("shop", ORDERS)
    two = await metrics.create("zoo", MetricDefinition("visits"))
    first = await metrics.changes_since()
    assert list(first.definitions) == [one, two]
    assert (await metrics.changes_since(first.next_since)).definitions == []
    deleted = await metrics.delete("shop", "orders")
    replaced = await metrics.replace("zoo", MetricDefinition("visits", "unique", property="userId"))
    second = await metrics.changes_since(first.next_since)
    assert list(second.definitions) == [deleted, replaced]
    assert (await metrics.changes_since(second.next_since)).definitions == []
    assert list((await metrics.changes_since(1 << 60)).definitions) == [deleted, replaced], "another count of changes"


async def test_a_change_that_commits_late_is_not_missed(postgres_metrics: MetricRegistry, postgres_url: str) -> None:
    connection = await asyncpg.connect(postgres_url)
    transaction = connection.transaction()
    await transaction.start()
    await connection.execute(
        "INSERT INTO metric_definitions (project_id, name, definition) VALUES ('shop', 'late', '{\"name\": \"late\"}')"
    )
    soon = await postgres_metrics.create("shop", MetricDefinition("soon"))
    changes = await postgres_metrics.changes_since()
    assert _names(changes.definitions) == {"soon"}
    changes = await postgres_metrics.changes_since(changes.next_since)
    await transaction.commit()
    await connection.close()
    late = await postgres_metrics.changes_since(changes.next_since)
    assert "late" in _names(late.definitions)
    assert min(each.version for each in late.definitions) < soon.version


async def test_a_definition_of_another_release_is_told(postgres_metrics: MetricRegistry, postgres_url: str) -> None:
    connection = await asyncpg.connect(postgres_url)
    await connection.execute(
        "INSERT INTO metric_definitions (project_id, name, definition) VALUES ('shop', 'new', $1)",
        '{"name": "new", "x": 1}',
    )
    await connection.close()
    with pytest.raises(FormatError, match="shop"):
        await postgres_metrics.list("shop")


async def test_a_definition_that_would_be_refused_today_is_left_out(
    postgres_metrics: MetricRegistry, postgres_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    connection = await asyncpg.connect(postgres_url)
    await connection.execute(
        "INSERT INTO metric_definitions (project_id, name, definition) VALUES ('shop', 'quoted', $1)",
        json.dumps({"name": "quoted", "dimensions": ['price="EUR"']}),
    )
    await connection.execute(
        "INSERT INTO metric_definitions (project_id, name, definition) VALUES ('shop', 'events', $1)",
        json.dumps({"name": "events", "eventTypes": ["click"]}),
    )
    await connection.close()
    await postgres_metrics.create("shop", ORDERS)
    assert _names(await postgres_metrics.list("shop")) == {"orders"}
    assert not caplog.records, "queries would fill the log"
    assert _names((await postgres_metrics.changes_since()).definitions) == {"orders"}
    assert len(caplog.records) == 2
    assert (await postgres_metrics.delete("shop", "quoted")).deleted_at is not None


async def test_metrics_of_one_name_made_at_once_are_one(postgres_metrics: MetricRegistry) -> None:
    made = await asyncio.gather(*(postgres_metrics.create("shop", ORDERS) for _ in range(5)), return_exceptions=True)
    assert sum(isinstance(each, StoredDefinition) for each in made) == 1
    assert sum(isinstance(each, Conflict) for each in made) == 4


def _names(definitions: object) -> set[str]:
    assert isinstance(definitions, list)
    return {each.definition.name for each in definitions}
