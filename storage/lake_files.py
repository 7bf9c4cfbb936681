"""Files of the lake as this machine's reader needs them: whole, and as the manifest has them.

In a folder a file is read where it lies; one from afar comes through the machine's cache (`storage.lake_cache`) and is
a link of the reader's own for as long as the reader needs it. Every byte is checked against the manifest's checksum
once a process: what is counted from a file must not be less, or other, than what was put.

`Unavailable` is all that is raised: a file that is missing may be one that was replaced a moment ago, so a new snapshot
may name another; one that is damaged stays a reason not to answer from a part of the events.
"""

import asyncio
import hashlib
import logging
import shutil
import time
import uuid
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from storage.errors import Unavailable
from storage.lake_cache import LakeCache, Wanted
from storage.lake_manifest import FileEntry
from storage.object_store import ObjectStore

FETCH_DEADLINE_S = 120.0
"""A file of a gigabyte takes some ten seconds."""
MAX_REMEMBERED = 10_000
"""Files that were checked: a megabyte. The longest unused is checked again."""

ABANDONED_AFTER_S = 86400.0
"""Links this old were left by a process that is no more."""

_log = logging.getLogger(__name__)


class LakeFiles:
    """Close it. The object store is opened when the first file is wanted."""

    def __init__(
        self, open_objects: Callable[[], ObjectStore], *, cache: Path, folder: Path, max_cache_bytes: int
    ) -> None:
        """`folder` and `cache` are the machine's, on one disk."""
        self._open_objects = open_objects
        self._cache_folder = cache
        self._root = folder
        self._folder = folder / uuid.uuid4().hex
        self._max_cache_bytes = max_cache_bytes
        self._opened: tuple[ObjectStore, LakeCache] | None = None
        self._opening = asyncio.Lock()
        self._checked: OrderedDict[tuple[str, str], None] = OrderedDict()

    @asynccontextmanager
    async def path(self, file: FileEntry) -> AsyncIterator[Path]:
        """The file within the block. Raises `Unavailable` unless all of it is there and as it was put."""
        objects, cache = await self._prepare()
        place = objects.local_path(file.key)
        if place is not None:
            await self._check(file, place)
            yield place
            return
        link = await self._fetch(cache, file)
        try:
            await self._check(file, link)
            yield link
        finally:
            await asyncio.to_thread(shutil.rmtree, link.parent, ignore_errors=True)

    async def _prepare(self) -> tuple[ObjectStore, LakeCache]:
        async with self._opening:
            if self._opened is None:
                await asyncio.to_thread(self._remove_abandoned)
                objects = await asyncio.to_thread(self._open_objects)
                self._opened = objects, LakeCache(objects, self._cache_folder, max_bytes=self._max_cache_bytes)
            return self._opened

    def _remove_abandoned(self) -> None:
        oldest = time.time() - ABANDONED_AFTER_S
        for folder in self._root.iterdir() if self._root.is_dir() else ():
            with suppress(FileNotFoundError):
                if folder.stat().st_mtime < oldest:
                    shutil.rmtree(folder, ignore_errors=True)

    async def _fetch(self, cache: LakeCache, file: FileEntry) -> Path:
        folder = self._folder / uuid.uuid4().hex
        await asyncio.to_thread(folder.mkdir, parents=True, mode=0o700)
        fetched = await cache.fetch([Wanted(file.key, file.bytes)], folder, deadline_s=FETCH_DEADLINE_S)
        if fetched.missing:
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
            raise Unavailable(f"{file.key} of the lake: {fetched.missing[0].reason}")
        return Path(fetched.paths[0])

    async def _check(self, file: FileEntry, path: Path) -> None:
        known = (file.key, file.checksum)
        if known in self._checked and path.is_file():
            self._checked.move_to_end(known)
            return
        try:
            found = await asyncio.to_thread(_digest, path)
        except FileNotFoundError as error:
            raise Unavailable(f"{file.key} of the lake: not in the folder") from error
        except OSError as error:
            raise Unavailable(f"{file.key} of the lake cannot be read: {error}") from error
        if found != file.checksum:
            fields = {"action": "lake_file_damaged", "key": file.key}
            _log.error("a file of the lake is not what was put there", extra=fields)
            raise Unavailable(f"{file.key} of the lake is damaged: its checksum is not the manifest's")
        self._checked[known] = None
        if len(self._checked) > MAX_REMEMBERED:
            self._checked.popitem(last=False)

    async def close(self) -> None:
        await asyncio.to_thread(shutil.rmtree, self._folder, ignore_errors=True)
        if self._opened is not None:
            await self._opened[0].close()


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
