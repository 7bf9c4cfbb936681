"""Files of an S3 lake on this machine's disk, for queries: bounded, and shared by the processes of the machine.

A file lies in the folder under the digest of its key, and is whole: it gets its name when it has all its bytes. A
reader does not read it there but gets a hard link of its own, so that nobody has to know who reads what: a file may be
thrown away at any time, and its bytes go with the last link. The file that was used longest ago goes first.

The bound holds for the folder. For the moment of a download it is exceeded by the files under way, and readers hold
what they have linked; a reader never gets more at once than the bound.
"""

import asyncio
import hashlib
import logging
import os
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from storage.errors import FormatError, Misconfigured, Missing, StorageError, Unavailable
from storage.object_store import ObjectStore

CACHE = "lake-cache"
"""Its folder under the data folder, for all processes of the machine."""
DOWNLOADS = 8
"""At once, for one reader: S3 gives a single connection a fraction of what a machine can take."""
ABANDONED_AFTER_S = 3600.0
"""A partial file this old was left by a process that is no more."""

_SUFFIX = ".parquet"
_PARTIAL = ".partial"

_log = logging.getLogger(__name__)


class Wanted(NamedTuple):
    key: str
    bytes: int


class NotFetched(NamedTuple):
    """A file that could not be had, and why, in a few words."""

    key: str
    reason: str


class Fetched(NamedTuple):
    """Paths of what was wanted, in its order, and what is missing among it."""

    paths: list[str]
    missing: list[NotFetched]


class LakeCache:
    """Over a store whose objects have no path on this machine. `folder` and the readers' folders are on one disk."""

    def __init__(self, store: ObjectStore, folder: Path, *, max_bytes: int) -> None:
        self._store = store
        self._folder = folder
        self.max_bytes = max_bytes

    async def fetch(self, files: Sequence[Wanted], into: Path, *, deadline_s: float) -> Fetched:
        """Link the files into a folder of the reader's. What is not there by the deadline is missing; when the store
        is away it is not asked for the rest."""
        await asyncio.to_thread(self._folder.mkdir, parents=True, exist_ok=True, mode=0o700)
        links = [into / f"{number:06d}{_SUFFIX}" for number in range(len(files))]
        fetching = _Fetching(self, deadline_s)
        reasons = await asyncio.gather(*(fetching.one(file, link) for file, link in zip(files, links, strict=True)))
        await asyncio.to_thread(self._trim)
        return Fetched(
            [str(link) for link, reason in zip(links, reasons, strict=True) if reason is None],
            [NotFetched(file.key, reason) for file, reason in zip(files, reasons, strict=True) if reason is not None],
        )

    def take(self, file: Wanted, link: Path) -> bool:
        """Whether it was there: then it is linked, and used now."""
        path = self._path(file.key)
        try:
            os.link(path, link)
        except FileNotFoundError:
            return False
        if link.stat().st_size != file.bytes:
            link.unlink()
            return False
        os.utime(link)
        return True

    async def download(self, file: Wanted, link: Path) -> None:
        """Raises `StorageError`."""
        partial = self._folder / f"{uuid.uuid4().hex}{_PARTIAL}"
        try:
            await self._store.download(file.key, partial)
            size = partial.stat().st_size
            if size != file.bytes:
                raise FormatError(f"{file.key} has {size} bytes, and should have {file.bytes}")
            os.link(partial, link)
            partial.replace(self._path(file.key))
        finally:
            with suppress(FileNotFoundError):
                partial.unlink()

    def _path(self, key: str) -> Path:
        return self._folder / (hashlib.sha256(key.encode()).hexdigest() + _SUFFIX)

    def _trim(self) -> None:
        """Other processes may be doing the same: what is gone is gone."""
        found: list[tuple[float, int, Path]] = []
        for path in self._folder.iterdir():
            with suppress(FileNotFoundError):
                status = path.stat()
                if path.suffix == _SUFFIX:
                    found.append((status.st_mtime, status.st_size, path))
                elif status.st_mtime < time.time() - ABANDONED_AFTER_S:
                    path.unlink()
        excess = sum(size for _, size, _ in found) - self.max_bytes
        for _, size, path in sorted(found):
            if excess <= 0:
                return
            with suppress(FileNotFoundError):
                path.unlink()
            excess -= size


class _Fetching:
    """One reader's files, with the reason why no further one is asked for, once there is one."""

    def __init__(self, cache: LakeCache, deadline_s: float) -> None:
        self._cache = cache
        self._until = asyncio.get_running_loop().time() + deadline_s
        self._turns = asyncio.Semaphore(DOWNLOADS)
        self._given_up: str | None = None

    async def one(self, file: Wanted, link: Path) -> str | None:
        """None when it is linked, else the reason."""
        async with self._turns:
            if await asyncio.to_thread(self._cache.take, file, link):
                return None
            if self._given_up is not None:
                return self._given_up
            try:
                async with asyncio.timeout_at(self._until):
                    await self._cache.download(file, link)
            except TimeoutError:
                self._given_up = "not fetched in time"
                return self._given_up
            except StorageError as error:
                return self._reason(file, error)
            return None

    def _reason(self, file: Wanted, error: StorageError) -> str:
        _log.warning(
            "a file of the lake cannot be had",
            extra={"action": "lake_file_missing", "key": file.key, "reason": str(error)},
        )
        match error:
            case Missing():
                return "not in the object store"
            case Unavailable() | Misconfigured():
                self._given_up = "the object store cannot be reached"
                return self._given_up
        return "damaged"
