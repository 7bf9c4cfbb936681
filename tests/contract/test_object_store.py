"""The law of `storage.object_store`, kept in memory, by a folder and by two S3 servers alike."""

import asyncio
import hashlib
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from config.settings import LakeSettings
from storage.errors import Misconfigured, Missing, Unavailable
from storage.memory_objects import MemoryObjects
from storage.object_store import ObjectStore, PutResult, lake_url, open_object_store
from tests.object_servers import ObjectServer

KEY = "events/year=2026/month=11/day=20/hour=07/part-000000000001-00000.parquet"
WRITTEN, SAME, OTHER = PutResult.WRITTEN, PutResult.SAME, PutResult.OTHER


class Subject:
    """Two stores over the same objects, as two processes have them."""

    def __init__(self, kind: str, store: ObjectStore, other: ObjectStore) -> None:
        self.kind = kind
        self.store = store
        self.other = other


def settings_of(server: ObjectServer) -> LakeSettings:
    url = f"s3://{server.make_bucket()}/the/lake"
    return LakeSettings(url=url, endpoint_url=server.endpoint_url, path_style=True, request_timeout_s=20.0)


@pytest.fixture(params=["memory", "folder", "moto", "swift"])
async def subject(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Subject]:
    if request.param == "memory":
        memory = MemoryObjects()
        yield Subject("memory", memory, MemoryObjects(sharing=memory))
        return
    settings = LakeSettings()
    if request.param != "folder":
        server: ObjectServer = request.getfixturevalue(f"{request.param}_server")
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        settings = settings_of(server)
    store, other = (open_object_store(settings, data=tmp_path / "data") for _ in range(2))
    yield Subject(request.param, store, other)
    await store.close()
    await other.close()


async def keys_of(store: ObjectStore, prefix: str = "") -> list[str]:
    return [info.key async for info in store.list(prefix)]


async def test_the_check_passes_and_leaves_nothing_behind(subject: Subject) -> None:
    await subject.store.check()
    assert await keys_of(subject.other) == []


@pytest.mark.parametrize("content", [b"", b"abc", bytes(range(256)) * 1000])
async def test_what_was_put_is_read_and_told(subject: Subject, content: bytes) -> None:
    assert await subject.store.put_if_absent(KEY, content) is WRITTEN
    assert await subject.other.get(KEY) == content
    info = await subject.other.head(KEY)
    assert info is not None
    assert info[:3] == (KEY, len(content), hashlib.sha256(content).hexdigest())
    [listed] = [info async for info in subject.other.list("events/")]
    assert (listed.key, listed.size) == (KEY, len(content))
    assert abs(listed.modified_s - info.modified_s) < 2


async def test_a_file_is_put_and_downloaded(subject: Subject, tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(b"x" * 3_000_000)
    target.write_bytes(b"what was there")
    checksum = hashlib.sha256(source.read_bytes()).hexdigest()
    assert await subject.store.put_if_absent(KEY, source, checksum=checksum) is WRITTEN
    await subject.other.download(KEY, target)
    assert target.read_bytes() == source.read_bytes()
    assert {path.name for path in tmp_path.iterdir()} <= {"source", "target", "data"}


async def test_an_object_is_never_replaced(subject: Subject) -> None:
    assert await subject.store.put_if_absent(KEY, b"one") is WRITTEN
    assert await subject.other.put_if_absent(KEY, b"one") is SAME
    assert await subject.other.put_if_absent(KEY, b"two") is OTHER
    assert await subject.other.put_if_absent(KEY, b"longer") is OTHER
    assert await subject.store.get(KEY) == b"one"


async def test_of_many_puts_at_once_one_has_written(subject: Subject) -> None:
    contents = [b"%d" % n * 20_000 for n in range(8)]
    for turn in range(5):
        key = f"events/race-{turn}"
        puts = [
            store.put_if_absent(key, content)
            for content, store in zip(contents, [subject.store, subject.other] * 4, strict=True)
        ]
        results = await asyncio.gather(*puts)
        there = await subject.store.get(key)
        if subject.kind == "swift":
            # It looks before it writes, without a lock. What is there is whole all the same, and stays.
            assert there in contents
            assert WRITTEN in results
        else:
            assert Counter(results) == {WRITTEN: 1, OTHER: 7}
            assert there == contents[results.index(WRITTEN)]
        assert await subject.other.put_if_absent(key, there) is SAME


async def test_equal_puts_at_once_are_written_or_the_same(subject: Subject) -> None:
    results = await asyncio.gather(*(subject.store.put_if_absent(KEY, b"same" * 10_000) for _ in range(8)))
    assert OTHER not in results
    assert WRITTEN in results


async def test_what_is_not_there(subject: Subject, tmp_path: Path) -> None:
    assert await subject.store.head(KEY) is None
    with pytest.raises(Missing):
        await subject.store.get(KEY)
    with pytest.raises(Missing):
        await subject.store.download(KEY, tmp_path / "target")
    with pytest.raises(Missing):
        await subject.store.copy(KEY, "events/copy")
    assert await keys_of(subject.store, "events/") == []
    await subject.store.delete([KEY])
    assert not (tmp_path / "target").exists()


async def test_a_copy_replaces_and_keeps_the_checksum(subject: Subject) -> None:
    await subject.store.put_if_absent(KEY, b"one")
    await subject.store.put_if_absent("events/copy", b"was there")
    await subject.store.copy(KEY, "events/copy")
    await subject.store.copy(KEY, KEY)
    assert await subject.store.get("events/copy") == b"one"
    assert await subject.store.get(KEY) == b"one"
    copy = await subject.store.head("events/copy")
    assert copy is not None
    assert copy.checksum == hashlib.sha256(b"one").hexdigest()
    assert await subject.store.put_if_absent("events/copy", b"one") is SAME


async def test_deleted_ones_are_gone_and_may_be_put_again(subject: Subject) -> None:
    for key in ("a/1", "a/2", "a/3"):
        await subject.store.put_if_absent(key, b"x")
    await subject.store.delete(["a/1", "a/nothing", "a/3"])
    await subject.store.delete([])
    assert await keys_of(subject.other) == ["a/2"]
    assert await subject.other.put_if_absent("a/1", b"y") is WRITTEN


async def test_listed_in_the_order_of_bytes(subject: Subject) -> None:
    keys = ["a", "a-b/c", "a/b", "a/b=1/x", "a0", "b/1", "b/10", "b/2", "b/ü", "b/ z", "b/%41+&", "b/zz/y"]
    for key in [key for key in keys if key != "a"]:
        await subject.store.put_if_absent(key, key.encode())
    expected = sorted((key for key in keys if key != "a"), key=str.encode)
    assert await keys_of(subject.store) == expected
    assert await keys_of(subject.store, "b/") == [key for key in expected if key.startswith("b/")]
    assert await keys_of(subject.store, "b/1") == ["b/1", "b/10"]
    assert await keys_of(subject.store, "a/b=") == ["a/b=1/x"]
    assert await keys_of(subject.store, "c/d/e") == []
    for key in expected:
        assert await subject.store.get(key) == key.encode()
    await subject.store.delete(expected)
    assert await keys_of(subject.store) == []


async def test_a_listing_has_many_pages(subject: Subject) -> None:
    if subject.kind == "swift":
        pytest.skip("it takes half a minute to put so many; its pages are the protocol's")
    keys = [f"events/{n:05d}" for n in range(1100)]
    await asyncio.gather(*(subject.store.put_if_absent(key, b"") for key in keys))
    assert await keys_of(subject.store, "events/") == keys
    await subject.store.delete(keys)
    assert await keys_of(subject.store) == []


async def test_what_is_no_key_is_refused(subject: Subject) -> None:
    store = subject.store
    for key in ("", "/a", "a/", "a//b", "../a", "a/../b", ".", ".partial/x", "a\n", "a/\x00"):
        for call in (store.put_if_absent(key, b""), store.get(key), store.head(key), store.delete([key])):
            with pytest.raises(ValueError, match="is no key"):
                await call
        with pytest.raises(ValueError, match="is no key"):
            await store.copy("a", key) if key else await store.copy(key, "a")


async def test_only_a_folder_has_local_paths(subject: Subject) -> None:
    await subject.store.put_if_absent(KEY, b"abc")
    path = subject.store.local_path(KEY)
    assert (path is not None) == (subject.kind == "folder")
    assert path is None or path.read_bytes() == b"abc"


async def test_the_memory_can_be_away_and_can_lose_answers() -> None:
    store = MemoryObjects()
    store.lose_next_answers(1)
    with pytest.raises(Unavailable):
        await store.put_if_absent(KEY, b"x")
    assert await store.put_if_absent(KEY, b"x") is SAME
    store.is_away = True
    with pytest.raises(Unavailable):
        await store.get(KEY)


def test_without_a_url_it_is_a_folder_of_the_data(tmp_path: Path) -> None:
    assert lake_url(LakeSettings(), data=tmp_path) == (tmp_path / "lake").as_uri()
    there = open_object_store(LakeSettings(url=(tmp_path / "my files").as_uri()), data=tmp_path)
    assert there.local_path("a/b") == tmp_path / "my files" / "a/b"


@pytest.mark.parametrize(
    "url",
    ["lake", "/srv/lake", "file://host/srv", "file:lake", "s3://", "s3:///x", "https://s3/x", "s3://me:secret@b/x"],
)
def test_a_url_that_names_no_store(url: str, tmp_path: Path) -> None:
    with pytest.raises(Misconfigured, match=r"lake\.url"):
        open_object_store(LakeSettings(url=url), data=tmp_path)
