"""Projects and keys in PostgreSQL, and how gateways follow their changes."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import asyncpg
import pytest

from storage.embedded.postgres import EmbeddedPostgres
from storage.errors import Conflict, NotFound
from storage.key_text import hash_key, is_well_formed
from storage.migrate import migrate
from storage.postgres import Postgres
from storage.registry import KeyRecord, Registry


@pytest.fixture
async def registry(postgres_url: str) -> AsyncIterator[Registry]:
    await migrate(postgres_url)
    postgres = Postgres(postgres_url, owner="test", pool_size=4, deadline_s=10)
    yield Registry(postgres)
    await postgres.close()


@pytest.mark.parametrize("name", ["en.wikipedia", "bit.ly", "KenanSulayman", "a", "9-_.", "x" * 100])
async def test_a_project_is_made_once(registry: Registry, name: str) -> None:
    made = await registry.create_project(name)
    assert made.project_id == name
    with pytest.raises(Conflict):
        await registry.create_project(name)
    assert await registry.list_projects(limit=10) == [made]
    assert await registry.has_project(name) and not await registry.has_project(name + "y")


@pytest.mark.parametrize("name", ["", ".a", "-a", "a b", "a/b", "ä", "x" * 101, "a\n", "a\0"])
async def test_other_names_are_refused(registry: Registry, name: str) -> None:
    with pytest.raises(ValueError, match="no project id"):
        await registry.create_project(name)
    assert await registry.list_projects(limit=10) == []


async def test_projects_are_listed_by_page(registry: Registry) -> None:
    for name in ("b", "a", "C", "d"):
        await registry.create_project(name)
    first = [project.project_id for project in await registry.list_projects(limit=3)]
    assert first == ["C", "a", "b"]
    assert [project.project_id for project in await registry.list_projects(limit=3, after="b")] == ["d"]
    with pytest.raises(ValueError, match="no project id"):
        await registry.list_projects(limit=3, after="\0")


async def test_a_key_is_found_by_its_hash_and_its_text_is_nowhere(registry: Registry, postgres_url: str) -> None:
    await registry.create_project("shop")
    expires_at = datetime.now(UTC) + timedelta(hours=1)
    made = await registry.create_key("shop", "write", expires_at=expires_at)
    assert is_well_formed(made.key)
    [found] = await registry.find_keys([hash_key(made.key + "x"), hash_key(made.key)])
    assert (found.key_id, found.project_id, found.kind, found.expires_at) == (made.key_id, "shop", "write", expires_at)
    assert found.is_valid(datetime.now(UTC)) and not found.is_valid(expires_at)
    assert await registry.find_keys([hash_key(made.key + "x")]) == []
    connection = await asyncpg.connect(postgres_url)
    kept = await connection.fetchval("SELECT string_agg(api_keys::text, '') FROM api_keys")
    await connection.close()
    assert made.key not in kept and made.key.encode().hex() not in kept


async def test_keys_need_a_project_except_the_systems(registry: Registry) -> None:
    for name in ("nowhere", "no\0where"):
        with pytest.raises(NotFound):
            await registry.create_key(name, "read")
    with pytest.raises(ValueError, match="needs a project"):
        await registry.create_key(None, "write")
    [system] = await registry.find_keys([hash_key((await registry.create_key(None, "admin")).key)])
    assert system.project_id is None


async def test_keys_are_listed_by_page_and_project(registry: Registry) -> None:
    await registry.create_project("a")
    await registry.create_project("b")
    made = [(await registry.create_key(project, "read")).key_id for project in ("a", "b", "a", "a")]
    assert [key.key_id for key in await registry.list_keys("a", limit=2)] == [made[0], made[2]]
    assert [key.key_id for key in await registry.list_keys("a", limit=2, after=made[2])] == [made[3]]
    assert [key.key_id for key in await registry.list_keys(limit=9)] == made
    with pytest.raises(ValueError, match="UUID"):
        await registry.list_keys(limit=9, after="not a key id")


async def test_a_revoked_key_stays_revoked_since_the_first_time(registry: Registry) -> None:
    await registry.create_project("shop")
    await registry.create_project("other")
    made = await registry.create_key("shop", "write")
    for key_id, project in ((made.key_id, "other"), ("nonsense", None), ("01a1f944-8c37-7de1-b89c-4d33526adb7c", None)):
        with pytest.raises(NotFound):
            await registry.revoke_key(key_id, project_id=project)
    revoked = await registry.revoke_key(made.key_id, project_id="shop")
    assert revoked.revoked_at is not None and not revoked.is_valid(datetime.now(UTC))
    assert await registry.revoke_key(made.key_id) == revoked
    assert await registry.find_keys([hash_key(made.key)]) == [revoked]


async def test_changes_are_told_once_and_completely(registry: Registry) -> None:
    await registry.create_project("shop")
    one = await registry.create_key("shop", "write")
    told, since = await told_until_none_is_left(registry, 0)
    assert told == {one.key_id}
    two = await registry.create_key("shop", "read")
    await registry.revoke_key(one.key_id)
    assert (await told_until_none_is_left(registry, since))[0] == {one.key_id, two.key_id}


async def told_until_none_is_left(registry: Registry, since: int) -> tuple[set[str], int]:
    """All keys that are told, and from where on none is. What changed is told again as long as a transaction runs that
    is older, be it of another database of the server: autovacuum's are enough."""
    told: set[str] = set()
    async with asyncio.timeout(60):
        while (changes := await registry.changed_keys(since)).keys:
            told |= _ids(changes.keys)
            since = changes.since
            await asyncio.sleep(0.01)
    return told, since


async def test_a_transaction_elsewhere_on_the_server_makes_changes_be_told_again(
    registry: Registry, postgres_server: EmbeddedPostgres
) -> None:
    await registry.create_project("shop")
    connection = await asyncpg.connect(postgres_server.url)
    async with connection.transaction():
        await connection.execute("SELECT pg_current_xact_id()")
        made = await registry.create_key("shop", "write")
        changes = await registry.changed_keys()
        assert _ids((await registry.changed_keys(changes.since)).keys) == {made.key_id}
    await connection.close()
    assert (await told_until_none_is_left(registry, changes.since))[0] == {made.key_id}


async def test_a_change_that_commits_late_is_not_missed(registry: Registry, postgres_url: str) -> None:
    await registry.create_project("shop")
    late, soon = [await registry.create_key("shop", "write") for _ in range(2)]
    connection = await asyncpg.connect(postgres_url)
    transaction = connection.transaction()
    await transaction.start()
    await connection.execute(
        "UPDATE api_keys SET revoked_at = now(), changed_by = pg_current_xact_id() WHERE key_id = $1", late.key_id
    )
    await registry.revoke_key(soon.key_id)
    changes = await registry.changed_keys()
    assert [key.key_id for key in changes.keys if key.revoked_at] == [soon.key_id]
    changes = await registry.changed_keys(changes.since)
    await transaction.commit()
    await connection.close()
    assert late.key_id in _ids((await registry.changed_keys(changes.since)).keys)


async def test_a_database_that_counts_anew_is_read_from_the_beginning(registry: Registry) -> None:
    await registry.create_project("shop")
    made = await registry.create_key("shop", "write")
    assert _ids((await registry.changed_keys(1 << 60)).keys) == {made.key_id}


async def test_a_new_system_gets_its_first_keys_once(registry: Registry) -> None:
    made = [first for first in await asyncio.gather(*(registry.ensure_bootstrap() for _ in range(3))) if first]
    assert len(made) == 1
    [bootstrap] = made
    found = {key.key_hash: key for key in await registry.find_keys([hash_key(key) for key in bootstrap[1:]])}
    keys = [found[hash_key(key)] for key in bootstrap[1:]]
    assert [(key.project_id, key.kind) for key in keys] == [
        ("default", "write"),
        ("default", "read"),
        (None, "admin"),
    ]
    assert await registry.ensure_bootstrap() is None


async def test_a_system_with_a_project_gets_no_keys(registry: Registry) -> None:
    await registry.create_project("shop")
    assert await registry.ensure_bootstrap() is None
    assert await registry.list_keys(limit=10) == []


async def test_a_fact_is_fixed_by_the_first_who_says_it(registry: Registry) -> None:
    assert await registry.fix_at_creation("partitions", 64) == 64
    assert await registry.fix_at_creation("partitions", 32) == 64
    assert await registry.fix_at_creation("other", {"a": [1]}) == {"a": [1]}


def _ids(keys: list[KeyRecord]) -> set[str]:
    return {key.key_id for key in keys}
