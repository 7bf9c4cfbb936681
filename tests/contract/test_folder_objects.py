"""What is a folder's own: names given by links, what is on disk when a call returns, disks that refuse."""

import asyncio
import errno
import os
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from storage import folder_objects
from storage.errors import Misconfigured, Unavailable
from storage.folder_objects import ABANDONED_AFTER_S, FolderObjects
from storage.object_store import PutResult

KEY = "events/hour=07/part-1.parquet"
OTHER_KEY = "events/hour=08/part-1.parquet"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "lake"


@pytest.fixture
async def store(root: Path) -> AsyncIterator[FolderObjects]:
    made = FolderObjects(root)
    yield made
    await made.close()


def files(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


async def test_file_and_all_folders_are_synced_before_a_put_returns(
    store: FolderObjects, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[Path] = []
    fsync = os.fsync

    def note(descriptor: int) -> None:
        synced.append(Path(f"/proc/self/fd/{descriptor}").readlink().relative_to(root))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    folders = [Path("events/hour=07"), Path("events"), Path()]
    assert await store.put_if_absent(KEY, b"x") is PutResult.WRITTEN
    assert [synced[0].parent, *synced[1:]] == [Path(".partial"), *folders]
    synced.clear()
    # Whoever put it may have died before he could do so.
    assert await store.put_if_absent(KEY, b"x") is PutResult.SAME
    assert synced == folders


@pytest.mark.parametrize("content", [b"", b"abcd", b"abcdefghij"])
async def test_a_file_is_written_piece_by_piece(
    store: FolderObjects, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    monkeypatch.setattr(folder_objects, "PIECE_BYTES", 4)
    source = tmp_path / "source"
    source.write_bytes(content)
    await store.put_if_absent(KEY, source)
    await store.put_if_absent(OTHER_KEY, content)
    assert [await store.get(key) for key in (KEY, OTHER_KEY)] == [content, content]


def refuse(number: int) -> Callable[..., Any]:
    def call(*_: Any, **__: Any) -> Any:
        raise OSError(number, os.strerror(number))

    return call


@pytest.mark.parametrize(
    ("function", "number", "raised"),
    [
        ("link", errno.EPERM, Misconfigured),
        ("link", errno.EIO, Unavailable),
        ("fsync", errno.ENOSPC, Unavailable),
        ("fsync", errno.EROFS, Misconfigured),
    ],
)
async def test_a_disk_that_refuses(
    store: FolderObjects,
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    function: str,
    number: int,
    raised: type[Exception],
) -> None:
    await store.check()
    with monkeypatch.context() as broken:
        broken.setattr(os, function, refuse(number))
        with pytest.raises(raised, match="the lake's folder: putting events"):
            await store.put_if_absent(KEY, b"x")
    assert files(root) == []
    assert await store.put_if_absent(KEY, b"x") is PutResult.WRITTEN


async def test_a_put_that_was_killed_leaves_nothing_under_its_name(store: FolderObjects, root: Path) -> None:
    script = (
        "import asyncio, sys; from pathlib import Path; from storage.folder_objects import FolderObjects\n"
        "asyncio.run(FolderObjects(Path(sys.argv[1])).put_if_absent(sys.argv[2], Path(sys.argv[3])))"
    )
    source = root.parent / "source"
    with source.open("wb") as file:
        file.truncate(1 << 30)
    child = await asyncio.create_subprocess_exec(sys.executable, "-c", script, str(root), KEY, str(source))
    try:
        until_s = time.monotonic() + 20
        while not any((root / ".partial").glob("*")) and time.monotonic() < until_s:
            await asyncio.sleep(0.001)
    finally:
        child.kill()
        await child.wait()
    source.unlink()
    assert await store.head(KEY) is None
    [left] = files(root)
    assert left.startswith(".partial/")
    assert [info async for info in store.list("")] == []
    await store.check()
    assert files(root) == [left]
    old_s = time.time() - ABANDONED_AFTER_S - 60
    os.utime(root / left, (old_s, old_s))
    await store.check()
    assert files(root) == []


async def test_a_broken_download_leaves_what_was_there(
    store: FolderObjects, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.put_if_absent(KEY, b"new")
    target = tmp_path / "target"
    target.write_bytes(b"old")
    with monkeypatch.context() as broken:
        broken.setattr("shutil.copyfile", refuse(errno.ENOSPC))
        with pytest.raises(Unavailable):
            await store.download(KEY, target)
    assert target.read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lake", "target"]


async def test_files_of_others_are_not_listed(store: FolderObjects, root: Path) -> None:
    await store.put_if_absent(KEY, b"x")
    (root / ".hidden").write_bytes(b"")
    (root / ".folder").mkdir()
    (root / ".folder" / "file").write_bytes(b"")
    (root / "empty").mkdir()
    assert [info.key async for info in store.list("")] == [KEY]


async def test_names_that_are_no_text_are_not_listed(store: FolderObjects, root: Path) -> None:
    await store.put_if_absent(KEY, b"x")
    for folder in ("", "events", "events/hour=07"):
        strange = root / folder / os.fsdecode(b"caf\xe9")
        try:
            strange.mkdir()
        except OSError:
            pytest.skip("the file system's names are text")
        (strange / "part-1.parquet").write_bytes(b"")
        strange.with_suffix(".parquet").write_bytes(b"")
    await store.check()
    assert [info.key async for info in store.list("")] == [KEY]
    assert [info.key async for info in store.list("events/hour=07/")] == [KEY]
