"""Files of the lake for who reads them one by one (`storage.lake_cache`), each for as long as it is needed.

`FileUnavailable` is all that is raised: a file that is missing may be one that was replaced a moment ago, so a new
snapshot may name another; one that is damaged stays a reason not to answer from a part of the events.
"""

import asyncio
import shutil
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from storage.errors import FileUnavailable
from storage.lake_cache import LakeCache
from storage.lake_checks import Wanted
from storage.lake_manifest import FileEntry
from storage.object_store import ObjectStore

FETCH_DEADLINE_S = 120.0
"""A file of a gigabyte takes some ten seconds."""
ABANDONED_AFTER_S = 86400.0
"""Links this old were left by a process that is no more."""


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

    @asynccontextmanager
    async def path(self, file: FileEntry) -> AsyncIterator[Path]:
        """The file within the block. Raises `FileUnavailable` unless all of it is there and as it was put."""
        _, cache = await self._prepare()
        folder = self._folder / uuid.uuid4().hex
        try:
            fetched = await cache.fetch([Wanted.of(file)], folder, deadline_s=FETCH_DEADLINE_S)
            if fetched.missing:
                raise FileUnavailable(f"{file.key} of the lake: {fetched.missing[0].reason}")
            yield Path(fetched.paths[0])
        finally:
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)

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

    async def close(self) -> None:
        await asyncio.to_thread(shutil.rmtree, self._folder, ignore_errors=True)
        if self._opened is not None:
            await self._opened[0].close()
