"""The law of `storage.destinations`, kept in memory and in PostgreSQL alike; and the documents' own queries agree."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from storage.destinations import Delivered, Delivery, Destination, Destinations, Source, Stretch
from storage.errors import Conflict, NotFound
from storage.fingerprint import partition_of
from storage.lake_manifest import OffsetRange
from storage.memory_destinations import MemoryDestinations
from storage.postgres_destinations import PostgresDestinations
from storage.registry import Registry
from tests.contract.lake_subject import (
    BLOG,
    ELSEWHERE,
    HOUR,
    PARTITIONS,
    SHOP,
    LakeSubject,
    MemoryLake,
    PostgresLake,
    merged,
    named,
    postgres_lake,
)

EU = "eu-west-1"
LATE = next(f"late{n}" for n in range(99) if partition_of(f"late{n}", PARTITIONS) == SHOP)
OF_SHOP = Destination("d-shop", "project", "shop", "client", "s3://shop/events", region=EU)
OF_ACME = Destination("d-acme", "client", "acme", "client", "s3://acme/events", region=EU)
OF_OTHER = Destination("d-other", "client", "other", "client", "s3://other/events", region=EU)
OF_ALL = Destination("d-all", "all", "", "backup", "s3://all/events", region=EU)


@pytest.fixture
def subject(lake_subject: LakeSubject) -> LakeSubject:
    return lake_subject


@pytest.fixture
async def destinations(subject: LakeSubject) -> Destinations:
    """The shop is acme's, the blog its own."""
    if isinstance(subject, MemoryLake):
        memory = MemoryDestinations(subject.memory)
        memory.add_project("shop", "acme")
        memory.add_project(BLOG)
        return memory
    assert isinstance(subject, PostgresLake)
    registry = Registry(subject.postgres)
    await registry.create_project("shop", client_id="acme")
    await registry.create_project(BLOG)
    return PostgresDestinations(subject.postgres, partitions=PARTITIONS)


async def export(subject: LakeSubject, first: int, next_: int, project: str = "shop") -> str:
    """Store and export events of one project; the file's key."""
    partition = SHOP if project == "shop" else ELSEWHERE
    await subject.store_numbered(next_ - first, project=project, first=first)
    claimed = await subject.manifest.claim([partition])
    offset = claimed[partition].next_offset
    range_ = OffsetRange(partition, offset, offset + next_ - first)
    return (await subject.export(claimed, range_, events=named(first, next_, project))).key


async def deliver(destinations: Destinations, destination: Destination) -> Sequence[Stretch]:
    """As if all of it were put."""
    delivery = await destinations.begin(destination.destination_id)
    if delivery is None:
        return []
    for hour in await destinations.hours(delivery.delivery_id):
        await destinations.record(delivery.delivery_id, Delivered(hour, 10, {"shop": 2}, {"shop": 10}))
    await destinations.finish(delivery.delivery_id)
    return delivery.stretches


async def begun(destinations: Destinations, destination: Destination) -> Delivery:
    delivery = await destinations.begin(destination.destination_id)
    assert delivery is not None
    return delivery


async def test_a_destination_is_kept_as_it_was_made(destinations: Destinations) -> None:
    made = Destination("d-1", "client", "acme", "backup", "s3://a/b", "http://s3.example", EU, True, "acme")
    await destinations.create(made)
    await destinations.create(OF_SHOP)
    assert await destinations.get("d-1") == made
    assert await destinations.listed() == [made, OF_SHOP]
    assert await destinations.listed(after="d-1", limit=1) == [OF_SHOP]
    for again in (made, replace(made, destination_id="d-9", region="us-west-1")):
        with pytest.raises(Conflict):
            await destinations.create(again)
    await destinations.create(replace(made, destination_id="d-9", owner_id="other"))
    await destinations.remove("d-9")
    with pytest.raises(NotFound):
        await destinations.create(Destination("d-2", "project", "nobody", "client", "s3://a/b"))
    changed = Destination("d-1", "client", "acme", "backup", "s3://a/b", "", "us-west-1", False, "other", False)
    await destinations.change(changed)
    assert await destinations.get("d-1") == changed
    await destinations.remove("d-1")
    for call in (destinations.get, destinations.remove, destinations.status):
        with pytest.raises(NotFound):
            await call("d-1")
    with pytest.raises(NotFound):
        await destinations.change(changed)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (("s3://a/b", ""), ("s3://a/b/", "")),
        (("s3://a/b", ""), ("s3://a/b", "https://s3.eu-west-1.amazonaws.com")),
        (("s3://a/b", "https://s3.example.com"), ("s3://a/b", "https://S3.example.com.:443/")),
        (("file:///a/b%20c", ""), ("file:///a//x/../b c/", "http://s3.example.com")),
    ],
)
async def test_a_place_is_one_however_it_is_written(
    destinations: Destinations, first: tuple[str, str], second: tuple[str, str]
) -> None:
    made = [Destination(f"d-{n}", "client", "acme", "client", *place) for n, place in enumerate((first, second))]
    await destinations.create(made[0])
    with pytest.raises(Conflict):
        await destinations.create(made[1])
    await destinations.create(replace(made[1], owner="project", owner_id="shop"))
    await destinations.create(replace(made[1], destination_id="d-2", url=f"{second[0]}/x"))


async def test_no_destination_comes_to_another_ones_place(destinations: Destinations) -> None:
    there = Destination("d-1", "client", "acme", "client", "s3://a/b", "http://s3.example")
    await destinations.create(there)
    other = replace(there, destination_id="d-2", endpoint_url="")
    await destinations.create(other)
    with pytest.raises(Conflict):
        await destinations.change(replace(other, endpoint_url="http://s3.example:80/"))
    await destinations.change(replace(there, endpoint_url="http://s3.example:80/", region=EU))
    assert (await destinations.get("d-1")).region == EU and await destinations.get("d-2") == other


async def test_a_delivery_goes_on_where_the_last_one_ended(subject: LakeSubject, destinations: Destinations) -> None:
    await export(subject, 0, 2)
    await destinations.create(OF_SHOP)
    assert await destinations.begin("d-shop") is None
    key = await export(subject, 2, 4)
    assert (await destinations.status("d-shop")).pending_files == 1
    delivery = await begun(destinations, OF_SHOP)
    assert delivery.stretches == (Stretch("shop", SHOP, 2, 4),)
    await export(subject, 4, 5)
    assert await destinations.begin("d-shop") == delivery, "one that is open stays as it is"
    assert await destinations.hours(delivery.delivery_id) == [HOUR]
    [source] = await destinations.sources(delivery.delivery_id, HOUR)
    assert source.key == key
    done = Delivered(HOUR, 10, {"shop": 2}, {"shop": 10})
    for _ in range(2):
        await destinations.record(delivery.delivery_id, done)
    assert await destinations.hours(delivery.delivery_id) == []
    for _ in range(2):
        await destinations.finish(delivery.delivery_id)
    await destinations.record(delivery.delivery_id, done)
    status = await destinations.status("d-shop")
    assert (status.files, status.rows, status.bytes, status.pending_files, status.open_delivery) == (1, 2, 10, 1, 0)
    assert status.fresh_at == delivery.created_at and status.delivered_at is not None
    following = await begun(destinations, OF_SHOP)
    assert following.stretches == (Stretch("shop", SHOP, 4, 5),)
    assert following.delivery_id > delivery.delivery_id


async def test_what_was_merged_meanwhile_is_read_from_the_new_file(
    subject: LakeSubject, destinations: Destinations
) -> None:
    await destinations.create(OF_SHOP, since="beginning")
    await export(subject, 0, 2)
    delivery = await begun(destinations, OF_SHOP)
    await export(subject, 2, 4)
    files = await subject.listing.load([entry.file_id for entry in await subject.listing.files()])
    plan = await subject.manifest.plan_swap("compact", list(files))
    assert plan is not None
    new = merged("events/compact-1.parquet", *files.values())
    assert await subject.manifest.swap(plan, [new]) == "committed"
    assert await destinations.sources(delivery.delivery_id, HOUR) == [Source(new.key, new.bytes, new.checksum)]
    await deliver(destinations, OF_SHOP)
    assert await deliver(destinations, OF_SHOP) == (Stretch("shop", SHOP, 2, 4),)


@pytest.mark.parametrize(("since", "first"), [("now", 2), ("beginning", 0)])
async def test_where_a_client_begins(subject: LakeSubject, destinations: Destinations, since: str, first: int) -> None:
    await export(subject, 0, 2)
    await export(subject, 0, 1, BLOG)
    await destinations.create(OF_ACME, since=since)  # type: ignore[arg-type]
    await export(subject, 2, 3)
    await export(subject, 1, 2, BLOG)
    assert await deliver(destinations, OF_ACME) == (Stretch("shop", SHOP, first, 3),)


async def test_where_a_time_begins(subject: LakeSubject, destinations: Destinations) -> None:
    await export(subject, 0, 2)
    between = datetime.now(UTC)
    await export(subject, 2, 3)
    for number, (since, first) in enumerate(
        [(between, 2), (between - timedelta(days=1), 0), (between + timedelta(1), 3)]
    ):
        made = Destination(f"d-{number}", "project", "shop", "client", f"s3://a/{number}")
        await destinations.create(made, since=since)
        wanted = (Stretch("shop", SHOP, first, 3),) if first < 3 else []
        assert await deliver(destinations, made) == wanted


async def test_all_projects_are_delivered_by_partition(subject: LakeSubject, destinations: Destinations) -> None:
    await destinations.create(OF_ALL, since="beginning")
    await export(subject, 0, 2)
    await export(subject, 0, 1, BLOG)
    found = await deliver(destinations, OF_ALL)
    assert sorted(found) == sorted([Stretch("", SHOP, 0, 2), Stretch("", ELSEWHERE, 0, 1)])
    assert await deliver(destinations, OF_ALL) == []


async def test_a_project_that_changes_hands(subject: LakeSubject, destinations: Destinations) -> None:
    await destinations.create(OF_ACME)
    await destinations.create(OF_OTHER, since="beginning")
    await export(subject, 0, 2)
    # Stored and not exported yet: of the former client, as it was when it was stored.
    await subject.store_numbered(1, first=2)
    await destinations.set_client("shop", "other")
    assert await destinations.clients(["shop", BLOG, "nobody"]) == {"shop": "other", BLOG: BLOG}
    claimed = await subject.manifest.claim([SHOP])
    await subject.export(claimed, OffsetRange(SHOP, 2, 3), events=named(2, 3))
    await export(subject, 3, 5)
    assert await deliver(destinations, OF_ACME) == (Stretch("shop", SHOP, 0, 3),)
    assert await deliver(destinations, OF_OTHER) == (Stretch("shop", SHOP, 3, 5),)
    await destinations.set_client("shop", "acme")
    await destinations.set_client("shop", "other")
    await destinations.set_client("shop", "acme")
    await export(subject, 5, 6)
    assert await deliver(destinations, OF_OTHER) == []
    assert await deliver(destinations, OF_ACME) == (Stretch("shop", SHOP, 5, 6),)
    late = Destination("d-late", "client", "acme", "client", "s3://late/events")
    await destinations.create(late, since="beginning")
    assert await deliver(destinations, late) == (Stretch("shop", SHOP, 5, 6),), "of the time before it is another's"
    with pytest.raises(NotFound):
        await destinations.set_client("nobody", "acme")


async def test_a_project_that_is_made_later(subject: LakeSubject, destinations: Destinations) -> None:
    await destinations.create(OF_OTHER)
    await export(subject, 0, 1)
    if isinstance(destinations, MemoryDestinations):
        destinations.add_project(LATE, "other")
    else:
        assert isinstance(subject, PostgresLake)
        await Registry(subject.postgres).create_project(LATE, client_id="other")
    assert await deliver(destinations, OF_OTHER) == (Stretch(LATE, SHOP, 0, 1),)


async def test_what_is_disabled_waits(subject: LakeSubject, destinations: Destinations) -> None:
    await destinations.create(OF_SHOP)
    await export(subject, 0, 1)
    off = Destination("d-shop", "project", "shop", "client", "s3://shop/events", region=EU, enabled=False)
    await destinations.change(off)
    assert await destinations.begin("d-shop") is None
    await destinations.change(OF_SHOP)
    assert await deliver(destinations, OF_SHOP) == (Stretch("shop", SHOP, 0, 1),)


async def test_a_failure_is_shown_until_something_is_delivered(
    subject: LakeSubject, destinations: Destinations
) -> None:
    await destinations.create(OF_SHOP)
    await export(subject, 0, 1)
    await destinations.failed("d-shop", "first")
    since = (await destinations.status("d-shop")).failing_since
    await destinations.failed("d-shop", "second")
    status = await destinations.status("d-shop")
    assert (status.last_error, status.failing_since) == ("second", since) and since is not None
    await deliver(destinations, OF_SHOP)
    assert (await destinations.status("d-shop")).failing_since is None


async def test_volumes_are_of_the_day_of_delivery_and_stay(subject: LakeSubject, destinations: Destinations) -> None:
    await destinations.create(OF_SHOP)
    for first in (0, 2):
        await export(subject, first, first + 2)
        await deliver(destinations, OF_SHOP)
    await destinations.remove("d-shop")
    [volume] = await destinations.volumes(client_id="acme")
    assert volume[:3] == ("d-shop", "shop", "acme") and volume[4:] == (2, 4, 20)
    assert await destinations.volumes(project_id="shop", start=volume.day, end=volume.day + timedelta(1)) == [volume]
    assert await destinations.volumes(client_id="other") == []
    assert await destinations.volumes(project_id=BLOG) == []
    assert await destinations.volumes(destination_id="d") == []
    assert await destinations.volumes(end=volume.day) == []


async def test_an_ended_delivery_asks_for_nothing(subject: LakeSubject, destinations: Destinations) -> None:
    await destinations.create(OF_SHOP)
    await export(subject, 0, 1)
    delivery = await begun(destinations, OF_SHOP)
    await destinations.remove("d-shop")
    assert not await destinations.hours(delivery.delivery_id)
    assert not await destinations.sources(delivery.delivery_id, HOUR)
    await destinations.record(delivery.delivery_id, Delivered(HOUR, 1, {"shop": 1}, {"shop": 1}))
    await destinations.finish(delivery.delivery_id)
    assert await destinations.volumes() == []


@pytest.fixture
async def lake(postgres_url: str) -> AsyncIterator[PostgresLake]:
    async for made in postgres_lake(postgres_url):
        yield made


BILLING = """
SELECT client_id,
       COUNT(*) as total_events,
       COUNT(CASE WHEN export_status = 'exported' THEN 1 END) as exported_events,
       MAX(processed_at) as last_export
FROM events_log
WHERE created_at >= DATE_TRUNC('day', NOW())
GROUP BY client_id;
"""
"""As the documents have it."""


async def test_the_documents_query_for_billing_runs_as_it_is_written(lake: PostgresLake) -> None:
    registry, clients = Registry(lake.postgres), PostgresDestinations(lake.postgres, partitions=PARTITIONS)
    await registry.create_project("shop", client_id="acme")
    await registry.create_project(BLOG)
    await export(lake, 0, 3)
    await export(lake, 0, 2, BLOG)
    await lake.store_numbered(1, first=3)
    await lake.connection.execute("SET search_path = documented, public")
    found = {row["client_id"]: row for row in await lake.connection.fetch(BILLING)}
    assert {name: (row["total_events"], row["exported_events"]) for name, row in found.items()} == {
        "acme": (4, 3),
        BLOG: (2, 2),
    }
    volumes = await lake.listing.volumes()
    owners = await clients.clients([volume.project_id for volume in volumes])
    assert {owners[volume.project_id]: volume.rows for volume in volumes} == {
        name: row["exported_events"] for name, row in found.items()
    }
    await clients.set_client(BLOG, "acme")
    assert [row["exported_events"] for row in await lake.connection.fetch(BILLING)] == [5]
    # What its domain would tell of an event stands before its project.
    await lake.connection.execute("UPDATE public.events_log SET client_id = 'domain' WHERE event_id = 'e0'")
    assert {row["client_id"] for row in await lake.connection.fetch(BILLING)} == {"acme", "domain"}


async def test_no_client_and_no_project_share_a_bad_name(lake: PostgresLake) -> None:
    registry = Registry(lake.postgres)
    with pytest.raises(ValueError, match="client id"):
        await registry.create_project("shop", client_id="a b")
    await registry.create_project("shop")
    assert [(each.project_id, each.client_id) for each in await registry.list_projects(limit=9)] == [("shop", "shop")]
