"""The key cache: who is let in, what is asked of PostgreSQL, what an outage and a restart leave."""

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest

from config.settings import GatewaySettings
from gateway.errors import ApiError
from gateway.keys import MAX_ASKED, KeyCache
from gateway.services import KeyInfo
from storage.errors import Unavailable
from storage.key_cache_file import KeyCacheFile
from storage.key_text import KeyKind, hash_key, make_key
from storage.registry import KeyChanges, KeyRecord

START_S = 1_700_000_000.0
MADE_AT = datetime.fromtimestamp(START_S, UTC)


class Source:
    """A registry that counts what it is asked, and can be away or slow."""

    def __init__(self) -> None:
        self.records: dict[bytes, KeyRecord] = {}
        self.changed: list[bytes] = []
        self.asked = 0
        self.away = False
        self.gate = asyncio.Event()
        self.gate.set()

    def make(self, kind: KeyKind = "write", *, project_id: str | None = "shop", expires_at: float | None = None) -> str:
        key = make_key(kind)
        expires = None if expires_at is None else datetime.fromtimestamp(expires_at, UTC)
        self._put(KeyRecord(f"k{len(self.records)}", project_id, kind, hash_key(key), MADE_AT, expires, None))
        return key

    def revoke(self, key: str) -> None:
        self._put(self.records[hash_key(key)]._replace(revoked_at=MADE_AT))

    def _put(self, record: KeyRecord) -> None:
        self.records[record.key_hash] = record
        self.changed.append(record.key_hash)

    async def find_keys(self, key_hashes: Sequence[bytes]) -> list[KeyRecord]:
        self.asked += 1
        records = [self.records[key_hash] for key_hash in key_hashes if key_hash in self.records]
        await self.gate.wait()
        if self.away:
            raise Unavailable("PostgreSQL did not answer")
        return records

    async def changed_keys(self, since: int = 0) -> KeyChanges:
        if self.away:
            raise Unavailable("PostgreSQL did not answer")
        begin = since if since <= len(self.changed) else 0
        return KeyChanges([self.records[key_hash] for key_hash in self.changed[begin:]], len(self.changed))


class Clock:
    def __init__(self) -> None:
        self.now = START_S

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def source() -> Source:
    return Source()


@pytest.fixture
def clock() -> Clock:
    return Clock()


def open_cache(tmp_path: Path, source: Source, clock: Clock, settings: GatewaySettings | None = None) -> KeyCache:
    return KeyCache(source, KeyCacheFile(tmp_path / "keys.sqlite"), settings or GatewaySettings(), clock=clock)


async def code_of(cache: KeyCache, key: str) -> str:
    with pytest.raises(ApiError) as caught:
        await cache.lookup(key)
    return caught.value.code


async def test_known_key_is_found_without_a_question(tmp_path: Path, source: Source, clock: Clock) -> None:
    cache = open_cache(tmp_path, source, clock)
    key = source.make("read")
    await cache.refresh()
    for _ in range(3):
        assert await cache.lookup(key) == KeyInfo("shop", "read", "k0")
    assert source.asked == 0


async def test_new_key_works_at_once_and_is_asked_for_once(tmp_path: Path, source: Source, clock: Clock) -> None:
    cache = open_cache(tmp_path, source, clock)
    await cache.refresh()
    key = source.make(project_id=None, kind="admin")
    found = await asyncio.gather(*(cache.lookup(key) for _ in range(10)))
    assert set(found) == {KeyInfo(None, "admin", "k0")}
    await cache.lookup(key)
    assert source.asked == 1


async def test_unknown_key_is_remembered_for_a_while(tmp_path: Path, source: Source, clock: Clock) -> None:
    cache = open_cache(tmp_path, source, clock, GatewaySettings(negative_key_ttl_s=10))
    key = make_key("write")
    assert [await code_of(cache, key) for _ in range(3)] == ["invalid_key"] * 3
    assert source.asked == 1
    clock.now += 11
    assert await code_of(cache, key) == "invalid_key"
    assert source.asked == 2


async def test_negative_cache_is_bounded(tmp_path: Path, source: Source, clock: Clock) -> None:
    cache = open_cache(tmp_path, source, clock, GatewaySettings(negative_key_cache=2))
    first, *others = [make_key("write") for _ in range(4)]
    for key in (first, *others):
        assert await code_of(cache, key) == "invalid_key"
    asked = source.asked
    assert await code_of(cache, others[-1]) == "invalid_key"
    assert source.asked == asked
    assert await code_of(cache, first) == "invalid_key"
    assert source.asked == asked + 1


@pytest.mark.parametrize(
    "spoil", [lambda k: k[:-1], lambda k: k + "0", lambda k: k[::-1], lambda _: "", lambda _: "é\ud800"]
)
async def test_malformed_keys_ask_nobody(tmp_path: Path, source: Source, clock: Clock, spoil: object) -> None:
    assert callable(spoil)
    cache = open_cache(tmp_path, source, clock)
    assert await code_of(cache, spoil(source.make())) == "malformed_key"
    assert source.asked == 0


async def test_revoked_key_stops_at_the_next_refresh(tmp_path: Path, source: Source, clock: Clock) -> None:
    cache = open_cache(tmp_path, source, clock)
    key = source.make()
    other = source.make()
    await cache.refresh()
    await cache.lookup(key)
    source.revoke(key)
    await cache.refresh()
    assert await code_of(cache, key) == "invalid_key"
    assert (await cache.lookup(other)).key_id == "k1"
    assert source.asked == 0


async def test_expiry_holds_for_cached_keys(tmp_path: Path, source: Source, clock: Clock) -> None:
    cache = open_cache(tmp_path, source, clock)
    key = source.make(expires_at=START_S + 60)
    await cache.lookup(key)
    clock.now += 59
    await cache.lookup(key)
    clock.now += 1
    assert await code_of(cache, key) == "invalid_key"


async def test_outage_known_keys_serve_and_unknown_ones_get_503(tmp_path: Path, source: Source, clock: Clock) -> None:
    cache = open_cache(tmp_path, source, clock)
    known = source.make()
    await cache.refresh()
    source.away = True
    new = source.make()
    assert (await cache.lookup(known)).project_id == "shop"
    assert await code_of(cache, new) == "unavailable"
    source.away = False
    assert (await cache.lookup(new)).project_id == "shop"


async def test_restart_during_an_outage_serves_what_the_file_has(tmp_path: Path, source: Source, clock: Clock) -> None:
    first = open_cache(tmp_path, source, clock)
    known, revoked, expiring = source.make(), source.make(), source.make(expires_at=START_S + 60)
    await first.refresh()
    source.revoke(revoked)
    await first.refresh()
    first.close()
    source.away = True
    second = open_cache(tmp_path, source, clock)
    assert await second.lookup(known) == KeyInfo("shop", "write", "k0")
    assert await code_of(second, revoked) == "unavailable"
    clock.now += 61
    assert await code_of(second, expiring) == "invalid_key"


async def test_changes_after_a_restart_are_caught_up(tmp_path: Path, source: Source, clock: Clock) -> None:
    first = open_cache(tmp_path, source, clock)
    key = source.make()
    await first.refresh()
    first.close()
    source.revoke(key)
    second = open_cache(tmp_path, source, clock)
    await second.refresh()
    assert await code_of(second, key) == "invalid_key"


async def test_another_database_replaces_the_copy(tmp_path: Path, source: Source, clock: Clock) -> None:
    cache = open_cache(tmp_path, source, clock)
    old = [source.make(), source.make()]
    await cache.refresh()
    source.records.clear()
    source.changed.clear()
    new = source.make()
    await cache.refresh()
    assert (await cache.lookup(new)).key_id == "k0"
    assert [await code_of(cache, key) for key in old] == ["invalid_key"] * 2


async def test_revocation_seen_while_a_lookup_was_under_way_wins(tmp_path: Path, source: Source, clock: Clock) -> None:
    cache = open_cache(tmp_path, source, clock)
    key = source.make()
    source.gate.clear()
    lookup = asyncio.create_task(cache.lookup(key))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    source.revoke(key)
    await cache.refresh()
    source.gate.set()
    with pytest.raises(ApiError):
        await lookup
    assert await code_of(cache, key) == "invalid_key"


async def test_invented_keys_cannot_take_the_database(tmp_path: Path, source: Source, clock: Clock) -> None:
    cache = open_cache(tmp_path, source, clock)
    known = source.make()
    await cache.refresh()
    source.gate.clear()
    lookups = [asyncio.create_task(code_of(cache, make_key("write"))) for _ in range(MAX_ASKED + 5)]
    for _ in range(3):
        await asyncio.sleep(0)
    assert source.asked == 1
    assert (await cache.lookup(known)).key_id == "k0"
    source.gate.set()
    codes = await asyncio.gather(*lookups)
    assert (codes.count("invalid_key"), codes.count("overloaded")) == (MAX_ASKED, 5)


async def test_keys_of_many_new_projects_are_asked_for_together(tmp_path: Path, source: Source, clock: Clock) -> None:
    cache = open_cache(tmp_path, source, clock)
    first = source.make(project_id="first")
    source.gate.clear()
    lookups = [asyncio.create_task(cache.lookup(first))]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    # Made after that question was asked: its answer is not theirs.
    lookups += [asyncio.create_task(cache.lookup(source.make(project_id=f"p{number}"))) for number in range(100)]
    await asyncio.sleep(0)
    source.gate.set()
    found = await asyncio.gather(*lookups)
    assert [info.project_id for info in found] == ["first", *(f"p{number}" for number in range(100))]
    assert source.asked == 2


async def test_caller_that_goes_away_leaves_the_answer_to_the_others(
    tmp_path: Path, source: Source, clock: Clock
) -> None:
    cache = open_cache(tmp_path, source, clock)
    key = source.make()
    source.gate.clear()
    impatient, patient = asyncio.create_task(cache.lookup(key)), asyncio.create_task(cache.lookup(key))
    await asyncio.sleep(0)
    impatient.cancel()
    source.gate.set()
    assert (await patient).key_id == "k0"
    assert source.asked == 1


async def test_run_survives_outages(tmp_path: Path, source: Source, clock: Clock) -> None:
    cache = open_cache(tmp_path, source, clock, GatewaySettings(key_refresh_s=0.01))
    source.away = True
    running = asyncio.create_task(cache.run())
    await asyncio.sleep(0.05)
    key = source.make()
    source.away = False
    await asyncio.sleep(0.05)
    assert (await cache.lookup(key)).key_id == "k0"
    assert source.asked == 0
    running.cancel()


@pytest.mark.parametrize("damage", [b"not a database at all, not at all", b"SQLite format 3\x00" + b"\xff" * 200])
async def test_damaged_file_is_made_anew(tmp_path: Path, source: Source, clock: Clock, damage: bytes) -> None:
    (tmp_path / "keys.sqlite").write_bytes(damage)
    cache = open_cache(tmp_path, source, clock)
    key = source.make()
    await cache.refresh()
    cache.close()
    source.away = True
    assert (await open_cache(tmp_path, source, clock).lookup(key)).key_id == "k0"
