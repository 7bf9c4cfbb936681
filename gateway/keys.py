"""Which project a key stands for, without asking the database on the hot path.

The gateway holds a copy of all keys, by SHA-256: loaded from disk at the start, then kept up by reading the
registry's changes every `key_refresh_s`. A revoked key therefore stops working within `key_refresh_s` (plus
one query), while PostgreSQL can be reached; while it cannot, the copy serves.

A key that the copy does not have may just have been made: PostgreSQL is asked once, for all such keys together, and
the answer "unknown" is kept for `negative_key_ttl_s`. Text without the form of a key is refused without asking anybody.
"""

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from config.settings import GatewaySettings
from gateway.errors import ApiError
from gateway.services import KeyInfo
from storage.errors import StorageError
from storage.key_cache_file import CachedKey, KeyCacheFile
from storage.key_text import hash_key, is_well_formed
from storage.registry import KeyChanges, KeyRecord

log = logging.getLogger(__name__)

MAX_RECENT_KEYS = 10_000
"""Keys found by their very text, without hashing them; beyond it the oldest is hashed again."""
MAX_ASKED = 1000
"""Unknown keys that wait for PostgreSQL's word. There is one question at a time, so that invented keys cannot take the
database from everybody, and it is for all that wait, so that the keys of many new projects work at once."""


class KeySource(Protocol):
    """The part of `storage.registry.Registry` that the cache needs."""

    async def find_keys(self, key_hashes: Sequence[bytes]) -> list[KeyRecord]: ...

    async def changed_keys(self, since: int = 0) -> KeyChanges: ...


class _Recent(NamedTuple):
    info: KeyInfo
    expires_at: float


class KeyCache:
    """`gateway.services.Keys`. Run `run` beside the server; `close` ends nothing but the file."""

    def __init__(
        self,
        source: KeySource,
        file: KeyCacheFile,
        settings: GatewaySettings,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._source = source
        self._file = file
        self._refresh_s = settings.key_refresh_s
        self._unknown = _Unknown(settings.negative_key_cache, ttl_s=settings.negative_key_ttl_s)
        self._clock = clock
        loaded, self._since = file.load()
        # Bounded by the number of keys that were ever made: about 300 bytes each.
        self._keys = {key.key_hash: key for key in loaded}
        self._revoked: set[bytes] = set()
        self._recent: dict[str, _Recent] = {}
        self._answers: dict[bytes, asyncio.Future[CachedKey | None]] = {}
        self._asking: asyncio.Task[None] | None = None

    def known(self, key: str) -> KeyInfo | None:
        recent = self._recent.get(key)
        return recent.info if recent is not None and self._clock() < recent.expires_at else None

    async def lookup(self, key: str) -> KeyInfo:
        known = self.known(key)
        if known is not None:
            return known
        if not is_well_formed(key):
            raise ApiError("malformed_key")
        key_hash = hash_key(key)
        found = self._keys.get(key_hash) or await self._ask(key_hash)
        if found is None:
            raise ApiError("invalid_key")
        if self._clock() >= found.expires_at:
            raise ApiError("invalid_key", "This key has expired.")
        info = KeyInfo(found.project_id, found.kind, found.key_id)
        if key_hash in self._keys:
            self._remember(key, _Recent(info, found.expires_at))
        return info

    def _remember(self, key: str, recent: _Recent) -> None:
        if len(self._recent) >= MAX_RECENT_KEYS:
            self._recent.pop(next(iter(self._recent)))
        self._recent[key] = recent

    async def _ask(self, key_hash: bytes) -> CachedKey | None:
        """PostgreSQL's word on a key that the copy does not have."""
        if key_hash in self._revoked or self._unknown.has(key_hash, now=self._clock()):
            return None
        answer = self._answers.get(key_hash)
        if answer is None:
            if len(self._answers) >= MAX_ASKED:
                raise ApiError("overloaded", "Too many unknown keys are being looked up.")
            answer = self._answers[key_hash] = asyncio.get_running_loop().create_future()
            if self._asking is None or self._asking.done():
                self._asking = asyncio.create_task(self._ask_for_all())
        try:
            # A caller that goes away does not take the answer away from the others.
            return await asyncio.shield(answer)
        except StorageError as error:
            raise ApiError("unavailable", "Whether this key is valid cannot be told now.") from error

    async def _ask_for_all(self) -> None:
        """One question after the other, each for all keys that wait by then."""
        while self._answers:
            asked = list(self._answers)
            try:
                found = {record.key_hash: record for record in await self._source.find_keys(asked)}
            except Exception as error:
                for key_hash in asked:
                    answer = self._answers.pop(key_hash)
                    answer.set_exception(error)
                    # Marks it as seen: those who waited may all have gone away.
                    answer.exception()
            else:
                for key_hash in asked:
                    self._answers.pop(key_hash).set_result(self._take(key_hash, found.get(key_hash)))

    def _take(self, key_hash: bytes, record: KeyRecord | None) -> CachedKey | None:
        if record is None or record.revoked_at is not None:
            self._unknown.add(key_hash, now=self._clock())
            return None
        # A refresh that ran meanwhile may have seen it revoked: it knows better.
        if key_hash in self._revoked:
            return None
        return self._keys.setdefault(key_hash, _cached(record))

    async def run(self) -> None:
        """Follow the registry's changes until cancelled."""
        reachable = True
        while True:
            try:
                await self.refresh()
                reachable = True
            except StorageError as error:
                if reachable:
                    fields = {"action": "key_refresh_failed", "reason": str(error)}
                    log.warning("keys cannot be refreshed; the copy serves", extra=fields)
                reachable = False
            await asyncio.sleep(self._refresh_s)

    async def refresh(self) -> None:
        """Take over what has changed since the last time. Raises `StorageError`."""
        changes = await self._source.changed_keys(self._since)
        valid = {record.key_hash: _cached(record) for record in changes.keys if record.revoked_at is None}
        revoked = {record.key_hash for record in changes.keys if record.revoked_at is not None}
        if changes.since < self._since:
            # Another database: these are all of its keys, and what else the copy has is of the old one.
            revoked |= self._keys.keys() - valid.keys()
        news = {key_hash: key for key_hash, key in valid.items() if self._keys.get(key_hash) != key}
        gone = revoked - self._revoked
        self._since = changes.since
        self._keys |= news
        self._revoked |= gone
        for key_hash in gone:
            self._keys.pop(key_hash, None)
        if gone:
            self._recent.clear()
        if news or gone:
            await asyncio.to_thread(self._file.save, list(news.values()), list(gone), since=changes.since)

    def close(self) -> None:
        self._file.close()


class _Unknown:
    """Keys that PostgreSQL did not know, for a while; bounded, the oldest is forgotten first."""

    def __init__(self, max_keys: int, *, ttl_s: float) -> None:
        self._max_keys = max_keys
        self._ttl_s = ttl_s
        self._until: OrderedDict[bytes, float] = OrderedDict()

    def has(self, key_hash: bytes, *, now: float) -> bool:
        return self._until.get(key_hash, 0.0) > now

    def add(self, key_hash: bytes, *, now: float) -> None:
        self._until[key_hash] = now + self._ttl_s
        self._until.move_to_end(key_hash)
        if len(self._until) > self._max_keys:
            self._until.popitem(last=False)


def _cached(record: KeyRecord) -> CachedKey:
    expires_at = float("inf") if record.expires_at is None else record.expires_at.timestamp()
    return CachedKey(record.key_hash, record.key_id, record.project_id, record.kind, expires_at)
