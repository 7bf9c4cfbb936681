"""Deliveries over PostgreSQL and real object stores: killed at each point, merged meanwhile, away, two at once."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from analytics_actors.counters import Counters
from analytics_actors.lake.carrying import CrashPoint, no_crash
from analytics_actors.lake.delivery import Delivering
from analytics_actors.lake.objects import local_copy
from analytics_actors.lake.places import Places
from analytics_actors.lake.rebuilding import rebuild
from analytics_actors.windows.sources import in_thread
from config.settings import DestinationSettings, LakeSettings, Settings
from storage.destinations import Destination
from storage.errors import FormatError, Misconfigured, Unavailable
from storage.lake_file import SCHEMA, read_note
from storage.object_store import open_object_store
from storage.postgres_destinations import PostgresDestinations
from storage.registry import Registry
from tests.contract.lake_subject import BLOG, PARTITIONS, PostgresLake, postgres_lake
from tests.contract.real_lake import Crash, RealLake, crash_at
from tests.object_servers import ObjectServer

CRASH_POINTS = ("delivery begun", "delivery put", "delivery recorded", "delivery finished")


class Delivered:
    """A lake in a folder, and one destination: acme's, which has the shop and not the blog."""

    def __init__(self, lake: RealLake, places: Places, destination: Destination, folder: Path) -> None:
        self.lake = lake
        self.places = places
        self.destination = destination
        self.destinations = PostgresDestinations(lake.subject.postgres, partitions=PARTITIONS)
        self.folder = folder
        self.counters = Counters()

    def delivering(self, reached: CrashPoint = no_crash) -> Delivering:
        return Delivering(
            self.destination,
            self.destinations,
            self.lake.objects,
            self.places.open,
            self.counters,
            compression="zstd",
            folder=self.folder,
            slot=asyncio.Semaphore(1),
            compute=in_thread,
            reached=reached,
        )

    async def events(self) -> Counter[tuple[str, str]]:
        """What the destination's owner finds there."""
        place = await self.places.open(self.destination)
        found: Counter[tuple[str, str]] = Counter()
        try:
            async for info in place.list("events/"):
                async with local_copy(place, info.key, self.folder) as path:
                    table = pq.read_table(path)
                    assert table.schema.remove_metadata().equals(SCHEMA)
                    assert read_note(path).rows == table.num_rows
                    rows = table.select(["project_id", "event_id"]).to_pylist()
                found.update((row["project_id"], row["event_id"]) for row in rows)
        finally:
            await place.close()
        return found

    async def check(self, *projects: str) -> None:
        rows = await self.lake.subject.connection.fetch(
            "SELECT project_id, event_id FROM events_log WHERE project_id = ANY($1)", projects
        )
        assert await self.events() == Counter((row["project_id"], row["event_id"]) for row in rows)


@pytest.fixture
async def subject(postgres_url: str) -> AsyncIterator[PostgresLake]:
    async for made in postgres_lake(postgres_url):
        yield made


@pytest.fixture(params=["folder", "moto"])
async def delivered(
    request: pytest.FixtureRequest, subject: PostgresLake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Delivered]:
    folder = tmp_path / "work"
    folder.mkdir()
    policy = DestinationSettings(folder=str(tmp_path / "clients"))
    url, endpoint, credentials = f"file://{tmp_path}/clients/acme", "", ""
    if request.param == "moto":
        server: ObjectServer = request.getfixturevalue("moto_server")
        for name, value in (server.environment() | _profile(server, tmp_path)).items():
            monkeypatch.setenv(name, value)
        policy = DestinationSettings(endpoint_hosts=[server.endpoint_url.removeprefix("http://")])
        url, endpoint, credentials = f"s3://{server.make_bucket()}/of/acme", server.endpoint_url, "acme"
    places = Places(Settings(data=str(tmp_path / "data"), destinations=policy))
    objects = open_object_store(LakeSettings(), data=tmp_path / "data")
    destination = Destination(
        "d-acme", "client", "acme", "client", url, endpoint, "us-east-1", path_style=True, credentials=credentials
    )
    made = Delivered(RealLake(subject, objects, folder), places, destination, folder)
    registry = Registry(subject.postgres)
    await registry.create_project("shop", client_id="acme")
    await registry.create_project(BLOG)
    yield made
    await objects.close()


def _profile(server: ObjectServer, folder: Path) -> dict[str, str]:
    """The destination's own credentials; the system itself has others."""
    file = folder / "credentials"
    file.write_text(f"[acme]\naws_access_key_id = {server.access_key}\naws_secret_access_key = {server.secret_key}\n")
    return {"AWS_SHARED_CREDENTIALS_FILE": str(file)}


async def test_a_destinations_files_hold_its_events_alone(delivered: Delivered) -> None:
    lake = delivered.lake
    await lake.store(["shop", BLOG], hours=2)
    await lake.export()
    await delivered.destinations.create(delivered.destination, since="beginning")
    await delivered.delivering().step()
    await delivered.check("shop")
    await lake.store(["shop", BLOG], hours=2)
    await lake.export()
    await lake.compact()
    await delivered.delivering().step()
    await delivered.check("shop")
    status = await delivered.destinations.status("d-acme")
    assert (status.files, status.rows, status.pending_files, status.last_error) == (4, 12, 0, "")
    [volume] = await delivered.destinations.volumes(client_id="acme")
    assert (volume.project_id, volume.rows, volume.bytes) == ("shop", 12, status.bytes)


@pytest.mark.parametrize("point", CRASH_POINTS)
async def test_killed_at_a_point_it_goes_on_where_it_was(delivered: Delivered, point: str) -> None:
    lake = delivered.lake
    await delivered.destinations.create(delivered.destination)
    await lake.store(["shop", BLOG], hours=2)
    await lake.export()
    with pytest.raises(Crash):
        await delivered.delivering(crash_at(point)).step()
    await lake.store(["shop", BLOG], hours=2)
    await lake.export()
    await lake.compact()
    zombie = asyncio.create_task(delivered.delivering().step())
    await delivered.delivering().step()
    await zombie
    for _ in range(2):
        await delivered.delivering().step()
    await delivered.check("shop")
    status = await delivered.destinations.status("d-acme")
    assert (status.rows, status.pending_files, status.open_delivery) == (12, 0, 0)


async def test_a_place_that_cannot_be_had_is_told_and_tried_again(delivered: Delivered) -> None:
    lake = delivered.lake
    await delivered.destinations.create(delivered.destination)
    await lake.store(["shop", BLOG])
    await lake.export()
    there, delivered.places = delivered.places, Places(Settings(data=str(delivered.folder)))
    with pytest.raises((Misconfigured, Unavailable)):
        await delivered.delivering().step()
    assert "destinations." in (await delivered.destinations.status("d-acme")).last_error
    delivered.places = there
    await delivered.delivering().step()
    await delivered.check("shop")


async def test_what_is_damaged_in_the_lake_is_not_delivered(delivered: Delivered) -> None:
    lake = delivered.lake
    await delivered.destinations.create(delivered.destination)
    await lake.store(["shop"])
    await lake.export()
    [key] = await lake.keys()
    whole = await lake.objects.get(key)
    at = whole.index(b"amount")
    await lake.damage(key, lambda raw: raw[:at] + b"A" + raw[at + 1 :])
    with pytest.raises(FormatError, match="damaged"):
        await delivered.delivering().step()
    assert key in (await delivered.destinations.status("d-acme")).last_error
    assert not await delivered.events()
    await lake.damage(key, lambda _: whole)
    await delivered.delivering().step()
    await delivered.check("shop")


async def test_a_lake_can_be_made_again_from_a_backup(delivered: Delivered, tmp_path: Path) -> None:
    lake = delivered.lake
    delivered.destination = replace(delivered.destination, destination_id="d-copy", owner="all", owner_id="")
    await delivered.destinations.create(delivered.destination, since="beginning")
    for _ in range(2):
        await lake.store(["shop", BLOG], hours=2)
        await lake.export()
        await delivered.delivering().step()
    await delivered.check("shop", BLOG)
    copy = await delivered.places.open(delivered.destination)
    await lake.lose_manifest()
    lake.objects = copy
    found = await rebuild(lake.repair, copy, folder=tmp_path / "work", force=False)
    assert not found.missing and not found.unreadable
    assert not (await lake.verify()).problems
    await lake.check_each_event_once()
    await copy.close()
