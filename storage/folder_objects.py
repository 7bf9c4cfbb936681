"""The object store in a folder: an object is a file, and its key the path to it.

A file is written under `.partial`, and gets its name by a hard link, which fails when the name is taken. File and
folders are fsynced before a call returns, also when the file was there already: whoever put it may have died before
he could do so.
"""

import asyncio
import errno
import io
import os
import shutil
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import TypeVar

from storage.errors import Misconfigured, Missing, Unavailable
from storage.object_probe import probe
from storage.object_store import ObjectInfo, PutResult, Source, checked_key, is_key, sha256_of

THREADS = 4
"""Copies at once: a disk is not faster with more."""
ABANDONED_AFTER_S = 86400.0
"""A partial file this old is nobody's any more."""
PIECE_BYTES = 4 * 1024 * 1024
"""Of a file that is given to the disk at once. On ext4 and its like an fsync waits for what others have written to new
blocks before: the log's, for each round of appends, would wait for a whole part. Measured with 64 MB files: 41 to 50 ms
at most, with pieces 8."""
_LISTED_AT_ONCE = 1000
_PARTIAL = ".partial"
_FOR_PEOPLE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EXDEV, errno.EOPNOTSUPP}
"""Errors that do not go away by themselves."""

T = TypeVar("T")


class FolderObjects:
    """Everything is under `root`, which is made when it is not there."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="folder-objects")

    async def _run(self, what: str, call: Callable[[], T]) -> T:
        def guarded() -> T:
            with _our_errors(what):
                return call()

        return await asyncio.get_running_loop().run_in_executor(self._pool, guarded)

    def _path(self, key: str) -> Path:
        return self._root / checked_key(key)

    async def check(self) -> None:
        await self._run(f"making {self._root}", self._make_root)
        await probe(self)

    def _make_root(self) -> None:
        self._root.mkdir(parents=True, exist_ok=True, mode=0o700)
        partial = self._root / _PARTIAL
        partial.mkdir(exist_ok=True)
        for left in partial.iterdir():
            if left.stat().st_mtime < time.time() - ABANDONED_AFTER_S:
                left.unlink()

    async def put_if_absent(self, key: str, source: Source, *, checksum: str | None = None) -> PutResult:
        path = self._path(key)
        return await self._run(f"putting {key}", lambda: self._put(path, source, checksum))

    def _put(self, path: Path, source: Source, checksum: str | None) -> PutResult:
        is_new = not path.exists() and self._place(source, path, os.link)
        self._sync_up(path.parent)
        if is_new:
            return PutResult.WRITTEN
        is_same = path.stat().st_size == _size(source) and sha256_of(path) == (checksum or sha256_of(source))
        return PutResult.SAME if is_same else PutResult.OTHER

    def _place(self, source: Source, path: Path, give_name: Callable[[Path, Path], None]) -> bool:
        """False if the name is taken."""
        partial = self._root / _PARTIAL / uuid.uuid4().hex
        partial.parent.mkdir(parents=True, exist_ok=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            _write(partial, source)
            give_name(partial, path)
        except FileExistsError:
            return False
        finally:
            partial.unlink(missing_ok=True)
        return True

    def _sync_up(self, folder: Path) -> None:
        """All the way: folders may be new too, and made by one who died since."""
        while folder != self._root.parent:
            _sync(folder)
            folder = folder.parent

    async def get(self, key: str) -> bytes:
        path = self._path(key)
        return await self._run(f"reading {key}", lambda: _found(key, path).read_bytes())

    async def download(self, key: str, target: Path) -> None:
        path = self._path(key)
        await self._run(f"copying {key} to {target}", lambda: _download(_found(key, path), target))

    async def head(self, key: str) -> ObjectInfo | None:
        path = self._path(key)
        return await self._run(f"looking at {key}", lambda: _look_at(key, path))

    async def copy(self, source: str, target: str, *, storage_class: str = "") -> None:
        there, path = self._path(source), self._path(target)
        await self._run(f"copying {source}", lambda: self._copy(_found(source, there), path))

    def _copy(self, source: Path, target: Path) -> None:
        if source != target:
            self._place(source, target, os.replace)
        self._sync_up(target.parent)

    async def delete(self, keys: Sequence[str]) -> None:
        paths = [self._path(key) for key in keys]
        await self._run("deleting", lambda: _unlink(paths))

    async def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        found = self._walk("", prefix)
        while some := await self._run(f"listing {prefix}", lambda: [*islice(found, _LISTED_AT_ONCE)]):
            for info in some:
                yield info

    def _walk(self, folder: str, prefix: str) -> Iterator[ObjectInfo]:
        """A folder's name ends with a slash here, so that names sort as whole keys do."""
        keys: list[tuple[bytes, str]] = []
        with suppress(FileNotFoundError), os.scandir(self._root / folder) as entries:
            keys = [
                (os.fsencode(key := folder + entry.name + "/" * entry.is_dir()), key)
                for entry in entries
                if _is_text(entry.name)
            ]
        for _, key in sorted(keys):
            if key.endswith("/") and (key.startswith(prefix) or prefix.startswith(key)) and key != f"{_PARTIAL}/":
                yield from self._walk(key, prefix)
            elif is_key(key) and key.startswith(prefix):
                with suppress(FileNotFoundError):
                    found = (self._root / key).stat()
                    yield ObjectInfo(key, found.st_size, "", found.st_mtime)

    def local_path(self, key: str) -> Path | None:
        return self._path(key)

    async def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)


@contextmanager
def _our_errors(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in _FOR_PEOPLE:
            raise Misconfigured(
                f"the lake's folder: {what}: {error}; its owner and file system must allow it"
            ) from error
        raise Unavailable(f"the lake's folder: {what}: {error}") from error


def _is_text(name: str) -> bool:
    """Names of files are bytes; those that are not UTF-8 are no part of a key, nor of a message or a record."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _found(key: str, path: Path) -> Path:
    if not path.is_file():
        raise Missing(key)
    return path


def _look_at(key: str, path: Path) -> ObjectInfo | None:
    if not path.is_file():
        return None
    found = path.stat()
    return ObjectInfo(key, found.st_size, sha256_of(path), found.st_mtime)


def _size(source: Source) -> int:
    return len(source) if isinstance(source, bytes) else source.stat().st_size


def _unlink(paths: Sequence[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)


def _write(path: Path, source: Source) -> None:
    reading = io.BytesIO(source) if isinstance(source, bytes) else source.open("rb")
    with reading, path.open("wb") as target:
        is_last = False
        while not is_last:
            piece = reading.read(PIECE_BYTES)
            is_last = len(piece) < PIECE_BYTES
            target.write(piece)
            target.flush()
            os.fsync(target.fileno())


def _download(path: Path, target: Path) -> None:
    partial = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        shutil.copyfile(path, partial)
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
