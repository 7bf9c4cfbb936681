"""`/v1/exports/destinations`, and the clients of projects."""

from typing import Any

import pytest

from analytics_actors.lake.places import backup_of
from config.settings import DestinationSettings
from storage.destinations import Delivered
from storage.errors import Misconfigured, Unavailable
from storage.lake_manifest import OffsetRange
from tests.unit.fake_services import NOW, System
from tests.unit.test_app_exports import lake_of

ROUTE = "/v1/exports/destinations"
WANTED = {"clientId": "acme", "url": "s3://acme-events/raw", "region": "eu-west-1", "credentials": "acme"}


async def create(system: System, **fields: Any) -> dict[str, Any]:
    async with system.client("system") as client:
        answer = await client.post(ROUTE, json=WANTED | fields)
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.json()
    return made


async def test_a_destination_from_its_making_to_its_end() -> None:
    system = System()
    made = await create(system)
    assert {name: made[name] for name in WANTED} == WANTED
    assert (made["state"], made["enabled"], made["files"], made["pendingFiles"]) == ("ok", True, 0, 0)
    assert not system.places.objects.objects, "the try leaves nothing"
    path = f"{ROUTE}/{made['destinationId']}"
    async with system.client("system") as client:
        assert (await client.get(path)).json() == made
        assert (await client.get(ROUTE)).json() == {"destinations": [made]}
        changed = (await client.patch(path, json={"enabled": False, "region": "us-west-1"})).json()
        assert (changed["state"], changed["region"], changed["credentials"]) == ("disabled", "us-west-1", "acme")
        assert (await client.delete(path)).json() == {"destinationId": made["destinationId"]}
        gone = [await client.get(path), await client.patch(path, json={}), await client.delete(path)]
    assert [answer.status_code for answer in gone] == [404] * 3


async def test_a_second_one_at_the_same_place_and_another_word_about_the_settings_backup_are_refused() -> None:
    system = System()
    await create(system)
    backup = backup_of(DestinationSettings(backup_url="s3://copy/x"))
    assert backup is not None
    await system.destinations.create(backup)
    async with system.client("system") as client:
        again = await client.post(ROUTE, json=WANTED)
        path = f"{ROUTE}/{backup.destination_id}"
        changed = await client.patch(path, json={"endpointUrl": "http://169.254.169.254"})
        removed = await client.delete(path)
    refused = (again, changed, removed)
    assert [(each.status_code, each.json()["code"]) for each in refused] == [(409, "conflict")] * 3
    assert await system.destinations.get(backup.destination_id) == backup


@pytest.mark.parametrize("since", ["now", "beginning", "2026-11-20T00:00:00Z"])
async def test_since_when(since: str) -> None:
    assert (await create(System(), since=since))["state"] == "ok"


async def test_pages() -> None:
    system = System()
    names = sorted([(await create(system, url=f"s3://acme/{n}"))["destinationId"] for n in range(3)])
    async with system.client("system") as client:
        first = (await client.get(f"{ROUTE}?limit=2")).json()
        rest = (await client.get(f"{ROUTE}?limit=2&after={first['next']}")).json()
    assert [each["destinationId"] for each in first["destinations"] + rest["destinations"]] == names
    assert "next" not in rest


@pytest.mark.parametrize("error", [Misconfigured("there is no such bucket"), Unavailable("no answer within 5 s")])
async def test_where_nothing_can_be_put_no_destination_is_made(error: Exception) -> None:
    system = System()
    system.places.error = error
    async with system.client("system") as client:
        answer = await client.post(ROUTE, json=WANTED)
    assert (answer.status_code, answer.json()["pointer"]) == (400, "/url")
    assert str(error) in answer.json()["message"]
    assert not system.destinations.kept


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"projectId": "shop"}, 400),
        ({"clientId": "a b"}, 400),
        ({"clientId": None, "projectId": "nobody"}, 404),
        ({"since": "yesterday"}, 400),
        ({"since": "2026-11-20T00:00:00"}, 400),
        ({"kind": "x"}, 400),
        ({"destinationId": "d-1"}, 400),
    ],
)
async def test_bad_bodies(changes: dict[str, Any], status: int) -> None:
    async with System().client("system") as client:
        answer = await client.post(ROUTE, json=WANTED | changes)
    assert answer.status_code == status, answer.text


@pytest.mark.parametrize("key", ["read", "write", "admin"])
async def test_only_the_systems_admin_key_will_do(key: str) -> None:
    async with System().client(key) as client:
        answers = [
            await client.get(ROUTE),
            await client.post(ROUTE, json=WANTED),
            await client.get(f"{ROUTE}/d-1"),
            await client.patch(f"{ROUTE}/d-1", json={}),
            await client.delete(f"{ROUTE}/d-1"),
            await client.patch("/v1/projects/shop", json={"clientId": "acme"}),
        ]
    assert [answer.status_code for answer in answers] == [403] * 6


async def test_a_project_has_a_client() -> None:
    system = System()
    async with system.client("system") as client:
        made = (await client.post("/v1/projects", json={"projectId": "blog", "clientId": "acme"})).json()
        own = (await client.post("/v1/projects", json={"projectId": "own"})).json()
        bad = await client.post("/v1/projects", json={"projectId": "x", "clientId": "a b"})
        given = await client.patch("/v1/projects/shop", json={"clientId": "acme"})
        missing = await client.patch("/v1/projects/nobody", json={"clientId": "acme"})
    assert (made["clientId"], own["clientId"]) == ("acme", "own")
    assert (bad.status_code, bad.json()["pointer"]) == (400, "/clientId")
    assert given.json() == {"projectId": "shop", "clientId": "acme"}
    assert missing.status_code == 404


async def test_volumes_of_a_client() -> None:
    system = lake_of(2)
    await system.destinations.set_client("shop", "acme")
    async with system.client("system") as client:
        answer = (await client.get("/v1/exports/volumes?clientId=acme")).json()
        of_all = (await client.get("/v1/exports/volumes")).json()
        nobodys = (await client.get("/v1/exports/volumes?clientId=nobody")).json()
    [volume] = answer["volumes"]
    assert (volume["clientId"], volume["projectId"], volume["rows"]) == ("acme", "shop", 6)
    assert [each["clientId"] for each in of_all["volumes"]] == ["else", "acme"]
    assert nobodys["totals"] == {"rows": 0, "bytes": 0}


async def test_volumes_that_were_delivered() -> None:
    system = lake_of(1)
    made = await create(system, clientId=None, projectId="shop", since="beginning")
    system.manifest.files[1].file = system.manifest.files[1].file.__class__(
        **{**system.manifest.files[1].file.__dict__, "ranges": [OffsetRange(partition_of_shop(system), 0, 10)]}
    )
    destinations = system.destinations
    system.manifest.checkpoints[partition_of_shop(system)] = system.manifest.checkpoint(3)
    delivery = await destinations.begin(made["destinationId"])
    assert delivery is not None
    await destinations.record(delivery.delivery_id, Delivered(NOW, 90, {"shop": 3}, {"shop": 90}))
    async with system.client("read") as client:
        answer = (await client.get("/v1/exports/volumes?of=delivered")).json()
    [volume] = answer["volumes"]
    assert (volume["destinationId"], volume["rows"], volume["bytes"]) == (made["destinationId"], 3, 90)
    assert answer["totals"] == {"rows": 3, "bytes": 90}


def partition_of_shop(system: System) -> int:
    return system.destinations._partition("shop")
