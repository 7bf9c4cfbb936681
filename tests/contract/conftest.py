"""What the suites have in common that a fake and the thing over PostgreSQL both pass."""

from collections.abc import AsyncIterator

import pytest

from tests.contract.lake_subject import LakeSubject, MemoryLake, postgres_lake


@pytest.fixture(params=["memory", "postgres"])
def url(request: pytest.FixtureRequest) -> str:
    """Of a database with this release's schema, "" for what is in memory. Not asynchronous, because databases are made
    with loops of their own."""
    return "" if request.param == "memory" else str(request.getfixturevalue("postgres_url"))


@pytest.fixture
async def lake_subject(url: str) -> AsyncIterator[LakeSubject]:
    """The event store and the lake's manifest over it."""
    if not url:
        yield MemoryLake()
        return
    async for made in postgres_lake(url):
        yield made
