"""Where destinations may be: servers and folders that whoever runs the system has named, never the lake's own place."""

from pathlib import Path

import pytest

from analytics_actors.lake.places import Places, backup_of, is_backup_id
from config.settings import DestinationSettings, LakeSettings, Settings
from storage.destinations import Destination
from storage.errors import Misconfigured
from storage.folder_objects import FolderObjects
from storage.s3_objects import S3Objects


def to(url: str, *, endpoint: str = "", region: str = "eu-west-1", credentials: str = "") -> Destination:
    return Destination("d-1", "all", "", "backup", url, endpoint, region, credentials=credentials)


def places(tmp_path: Path, *, lake: LakeSettings | None = None, hosts: list[str] | None = None) -> Places:
    policy = DestinationSettings(folder=str(tmp_path / "clients"), endpoint_hosts=hosts or [])
    return Places(Settings(data=str(tmp_path / "data"), lake=lake or LakeSettings(), destinations=policy))


async def test_a_bucket_of_amazons_and_one_of_a_named_server(tmp_path: Path) -> None:
    found = places(tmp_path, hosts=["127.0.0.1:9000"])
    for destination in (to("s3://acme/x", credentials="acme"), to("s3://acme/x", endpoint="http://127.0.0.1:9000")):
        opened = await found.open(destination)
        assert isinstance(opened, S3Objects)
        await opened.close()


async def test_a_folder_below_the_one_that_is_named(tmp_path: Path) -> None:
    opened = await places(tmp_path).open(to(f"file://{tmp_path}/clients/acme"))
    assert isinstance(opened, FolderObjects)
    await opened.close()


@pytest.mark.parametrize(
    "endpoint",
    [
        "http://127.0.0.1:9001",
        "http://169.254.169.254",
        "http://[::1]:9000",
        "http://localhost:9000",
        "ftp://127.0.0.1:9000",
        "http://user:pass@127.0.0.1:9000",
        "http://127.0.0.1:9000/path",
        "http://127.0.0.1:9000?x=1",
        "//127.0.0.1:9000",
        "nothing",
        "http://[",
    ],
)
async def test_other_servers_are_refused(tmp_path: Path, endpoint: str) -> None:
    with pytest.raises(Misconfigured):
        await places(tmp_path, hosts=["127.0.0.1:9000"]).open(to("s3://acme/x", endpoint=endpoint))


async def test_a_name_that_leads_to_a_private_address_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def resolve(*_: object, **__: object) -> list[tuple[object, ...]]:
        return [(0, 0, 0, "", ("10.0.0.5", 443))]

    found = places(tmp_path, hosts=["*.example.com"])
    monkeypatch.setattr("asyncio.base_events.BaseEventLoop.getaddrinfo", resolve)
    with pytest.raises(Misconfigured, match="not public"):
        await found.open(to("s3://acme/x", endpoint="https://s3.example.com"))


@pytest.mark.parametrize(
    ("url", "region"),
    [
        ("s3://acme/x", "evil.example.com/"),
        ("s3://acme/x", ""),
        ("s3://Acme/x", "eu-west-1"),
        ("s3://evil@acme/x", "eu-west-1"),
        ("http://acme/x", "eu-west-1"),
        ("s3://acme/x?y", "eu-west-1"),
    ],
)
async def test_names_that_are_none_are_refused(tmp_path: Path, url: str, region: str) -> None:
    with pytest.raises(Misconfigured):
        await places(tmp_path).open(to(url, region=region))


async def test_folders_elsewhere_are_refused_also_by_a_link(tmp_path: Path) -> None:
    (tmp_path / "clients").mkdir()
    (tmp_path / "clients" / "link").symlink_to(tmp_path / "elsewhere")
    for folder in ("elsewhere", "clients", "clients/../elsewhere", "clients/link", "clients/link/x"):
        with pytest.raises(Misconfigured):
            await places(tmp_path).open(to(f"file://{tmp_path}/{folder}"))
    with pytest.raises(Misconfigured):
        await Places(Settings(data=str(tmp_path))).open(to(f"file://{tmp_path}/clients/acme"))


@pytest.mark.parametrize("prefix", ["", "a", "a/b", "a/b/c"])
async def test_the_lakes_own_place_is_refused(tmp_path: Path, prefix: str) -> None:
    with pytest.raises(Misconfigured, match="lake itself"):
        await places(tmp_path, lake=LakeSettings(url="s3://lake/a/b")).open(to(f"s3://lake/{prefix}"))
    in_folder = LakeSettings(url=f"file://{tmp_path}/clients/a/b")
    if prefix:
        with pytest.raises(Misconfigured, match="lake itself"):
            await places(tmp_path, lake=in_folder).open(to(f"file://{tmp_path}/clients/{prefix}"))


@pytest.mark.parametrize(
    ("lake", "endpoint"),
    [
        ("http://127.0.0.1:9000", "http://127.0.0.1:9000/"),
        ("http://127.0.0.1", "http://127.0.0.1:80"),
        ("http://Store.example.com:9000", "https://store.example.com:9000"),
        ("https://s3.eu-west-1.amazonaws.com", ""),
        ("http://store.example.com:9000", "http://store.example.com.:9000"),
        ("https://s3.eu-west-1.amazonaws.com.", ""),
    ],
)
async def test_the_lakes_own_place_by_another_name_is_refused(tmp_path: Path, lake: str, endpoint: str) -> None:
    found = places(tmp_path, lake=LakeSettings(url="s3://lake/a", endpoint_url=lake), hosts=["127.0.0.1:9000"])
    with pytest.raises(Misconfigured, match="lake itself"):
        await found.open(to("s3://lake/a/b", endpoint=endpoint))


async def test_the_backup_of_the_settings_may_be_anywhere_but_in_the_lake(tmp_path: Path) -> None:
    policy = DestinationSettings(backup_url="s3://copy/x", backup_endpoint_url="http://10.0.0.5:9000")
    backup = backup_of(policy)
    assert backup is not None and is_backup_id(backup.destination_id) and backup_of(DestinationSettings()) is None
    opened = await places(tmp_path).open(backup)
    await opened.close()
    for lake in ("s3://copy/x/y", "s3://copy"):
        with pytest.raises(Misconfigured, match="lake itself"):
            settings = LakeSettings(url=lake, endpoint_url="http://10.0.0.5:9000")
            await places(tmp_path, lake=settings).open(backup)
