"""The object store in memory, for tests: the law of `storage.object_store`, and faults on demand."""

import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

from storage.errors import Missing, Unavailable
from storage.object_store import ObjectInfo, PutResult, Source, checked_key, sha256_of


class MemoryObjects:
    """`objects` is what is there, for tests to look at and to change. `sharing` is another one's objects."""

    def __init__(self, *, sharing: "MemoryObjects | None" = None, clock_s: Callable[[], float] = time.time) -> None:
        self._clock_s = clock_s
        self.objects: dict[str, bytes] = sharing.objects if sharing else {}
        self._modified_s: dict[str, float] = sharing._modified_s if sharing else {}
        self.is_away = False
        """While it is set every call raises `Unavailable`."""
        self._lost_answers = 0

    def lose_next_answers(self, count: int) -> None:
        """The next puts take effect and raise `Unavailable`."""
        self._lost_answers = count

    def _reach(self) -> None:
        if self.is_away:
            raise Unavailable("the object store is away")

    async def check(self) -> None:
        self._reach()

    async def put_if_absent(self, key: str, source: Source, *, checksum: str | None = None) -> PutResult:
        checked_key(key)
        self._reach()
        content = source if isinstance(source, bytes) else source.read_bytes()
        if key in self.objects:
            return PutResult.SAME if self.objects[key] == content else PutResult.OTHER
        self._set(key, content)
        if self._lost_answers:
            self._lost_answers -= 1
            raise Unavailable("the answer was lost")
        return PutResult.WRITTEN

    def _set(self, key: str, content: bytes) -> None:
        self.objects[key] = content
        self._modified_s[key] = self._clock_s()

    async def get(self, key: str) -> bytes:
        checked_key(key)
        self._reach()
        if key not in self.objects:
            raise Missing(key)
        return self.objects[key]

    async def download(self, key: str, target: Path) -> None:
        target.write_bytes(await self.get(key))

    async def head(self, key: str) -> ObjectInfo | None:
        checked_key(key)
        self._reach()
        return self._info(key) if key in self.objects else None

    def _info(self, key: str) -> ObjectInfo:
        content = self.objects[key]
        return ObjectInfo(key, len(content), sha256_of(content), self._modified_s.get(key, 0.0))

    async def copy(self, source: str, target: str, *, storage_class: str = "") -> None:
        self._set(checked_key(target), await self.get(source))

    async def delete(self, keys: Sequence[str]) -> None:
        self._reach()
        for key in keys:
            self.objects.pop(checked_key(key), None)

    async def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        self._reach()
        for key in sorted(self.objects, key=str.encode):
            if key.startswith(prefix) and key in self.objects:
                yield self._info(key)

    def local_path(self, key: str) -> Path | None:
        return None

    async def close(self) -> None:
        """Nothing is held."""
