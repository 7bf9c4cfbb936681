"""Files of the lake as readers on this machine get them: whole, and as the manifest has them (`storage.lake_checks`).

In a folder a file is read where it lies. Files from afar are kept on this machine's disk, bounded, and shared by the
processes of the machine.

There a file lies in the folder under the digest of its key, and is whole: it gets its name when it has all its bytes. A
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
from storage.lake_checks import DAMAGED, NOT_IN_TIME, FileChecks, Wanted
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


class NotFetched(NamedTuple):
    """A file that could not be had, and why, in a few words."""

    key: str
    reason: str


class Fetched(NamedTuple):
    """Paths of what was wanted, in its order, and what is missing among it."""

    paths: list[str]
    missing: list[NotFetched]


class LakeCache:
    """`folder` and the readers' folders are on one disk."""

    def __init__(self, store: ObjectStore, folder: Path, *, max_bytes: int) -> None:
        self._store = store
        self._folder = folder
        self._checks = FileChecks()
        self.max_bytes = max_bytes

    def far_bytes(self, files: Sequence[Wanted]) -> int:
        """How much of them does not lie on this machine by itself."""
        return sum(file.bytes for file in files if self._store.local_path(file.key) is None)

    async def fetch(
        self, files: Sequence[Wanted], into: Path, *, deadline_s: float, unchecked_after_s: float | None = None
    ) -> Fetched:
        """Files from afar are linked into a folder of the reader's, which is made when it is needed. What is not there,
        and checked, by the deadline is missing; when the store is away it is not asked for the rest.

        With `unchecked_after_s` a file that lies in the store's folder in its size is given unchecked when its check
        takes longer; one that is doubted, only at the deadline."""
        until = asyncio.get_running_loop().time() + deadline_s
        places = [self._store.local_path(file.key) for file in files]
        if None in places:
            paths = [into / f"{number:06d}{_SUFFIX}" for number in range(len(files))]
            reasons = await self._fetch_far(files, paths, into, until)
        else:
            paths = [place for place in places if place is not None]
            reasons = await self._checks.wrong(files, paths, until=until, patience_s=unchecked_after_s)
            if unchecked_after_s is not None:
                reasons = [None if reason == NOT_IN_TIME else reason for reason in reasons]
        return Fetched(
            [str(path) for path, reason in zip(paths, reasons, strict=True) if reason is None],
            [NotFetched(file.key, reason) for file, reason in zip(files, reasons, strict=True) if reason is not None],
        )

    def doubt(self, files: Sequence[Wanted]) -> None:
        """One of these, which were given, could not be read."""
        self._checks.doubt(files)

    async def _fetch_far(
        self, files: Sequence[Wanted], links: Sequence[Path], into: Path, until: float
    ) -> list[str | None]:
        for folder in (self._folder, into):
            await asyncio.to_thread(folder.mkdir, parents=True, exist_ok=True, mode=0o700)
        fetching = _Fetching(self, until)
        reasons = await asyncio.gather(*(fetching.one(file, link) for file, link in zip(files, links, strict=True)))
        await asyncio.to_thread(self._trim)
        return reasons

    async def take(self, file: Wanted, link: Path, *, until: float) -> bool:
        """Whether it was there as it should be: then it is linked, and used now. Raises `TimeoutError`."""
        if not await asyncio.to_thread(self._link, file, link):
            return False
        reason = await self._wrong(file, link, until)
        if reason is not None:
            # The store may have it as it was put.
            for path in (link, self._path(file.key)):
                await asyncio.to_thread(path.unlink, missing_ok=True)
        return reason is None

    def _link(self, file: Wanted, link: Path) -> bool:
        try:
            os.link(self._path(file.key), link)
        except FileNotFoundError:
            return False
        # When it was used, not when it was changed: by that it is known to be checked.
        os.utime(link, ns=(time.time_ns(), link.stat().st_mtime_ns))
        return True

    async def download(self, file: Wanted, link: Path, *, until: float) -> None:
        """Raises `StorageError` and `TimeoutError`."""
        partial = self._folder / f"{uuid.uuid4().hex}{_PARTIAL}"
        try:
            await self._store.download(file.key, partial)
            reason = await self._wrong(file, partial, until)
            if reason is not None:
                raise FormatError(f"{file.key} is {reason}")
            os.link(partial, link)
            partial.replace(self._path(file.key))
        finally:
            with suppress(FileNotFoundError):
                partial.unlink()

    async def _wrong(self, file: Wanted, path: Path, until: float) -> str | None:
        [reason] = await self._checks.wrong([file], [path], until=until)
        if reason == NOT_IN_TIME:
            raise TimeoutError
        return reason

    def _path(self, key: str) -> Path:
        return self._folder / (hashlib.sha256(key.encode()).hexdigest() + _SUFFIX)

    def _trim(self) -> None:
        """Other processes may be doing the same: what is gone is gone."""
        found: list[tuple[float, int, Path]] = []
        for path in self._folder.iterdir():
            with suppress(FileNotFoundError):
                status = path.stat()
                if path.suffix == _SUFFIX:
                    found.append((status.st_atime, status.st_size, path))
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

    def __init__(self, cache: LakeCache, until: float) -> None:
        self._cache = cache
        self._until = until
        self._turns = asyncio.Semaphore(DOWNLOADS)
        self._given_up: str | None = None

    async def one(self, file: Wanted, link: Path) -> str | None:
        """None when it is linked, else the reason."""
        async with self._turns:
            try:
                if await self._cache.take(file, link, until=self._until):
                    return None
                if self._given_up is None:
                    async with asyncio.timeout_at(self._until):
                        await self._cache.download(file, link, until=self._until)
                    return None
            except TimeoutError:
                self._given_up = "not fetched in time"
            except StorageError as error:
                return self._reason(file, error)
            return self._given_up

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
        return DAMAGED
