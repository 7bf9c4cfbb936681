"""Tiers by folder: `unit` (no Ray, no socket), `contract` (fake and real service), `integration`
(the whole system through HTTP), `faults` (processes are killed). Services are the embedded ones."""

import asyncio
import socket
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import redis

from storage.embedded.postgres import EmbeddedPostgres
from storage.embedded.valkey import EmbeddedValkey
from tests.object_servers import ObjectServer, start_moto, start_swift
from tests.system import Client, RunningSystem


@pytest.fixture(autouse=True)
def _unit_tests_stay_inside(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "unit" not in Path(request.node.path).parts:
        return

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a unit test opened a socket or Ray; it belongs to another tier")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr("ray.init", refuse)


@pytest.fixture(scope="session")
def postgres_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedPostgres]:
    server = EmbeddedPostgres(tmp_path_factory.mktemp("postgres"))
    server.start()
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture
def postgres_url(postgres_server: EmbeddedPostgres) -> Iterator[str]:
    """An empty database of its own for each test."""
    name = f"test_{uuid.uuid4().hex}"
    asyncio.run(_execute(postgres_server.url, f"CREATE DATABASE {name}"))
    yield f"{postgres_server.url.rsplit('/', 1)[0]}/{name}"
    asyncio.run(_execute(postgres_server.url, f"DROP DATABASE {name} WITH (FORCE)"))


async def _execute(url: str, statement: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


@pytest.fixture(scope="session")
def valkey_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedValkey]:
    server = EmbeddedValkey(tmp_path_factory.mktemp("valkey"), max_memory_bytes=1 << 30)
    server.start()
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture
def valkey_url(valkey_server: EmbeddedValkey) -> str:
    """The session's Valkey, emptied."""
    with redis.Redis.from_url(valkey_server.url) as client:
        client.flushall()
    return valkey_server.url


@pytest.fixture(scope="session")
def moto_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectServer]:
    """S3 in memory; credentials are not looked at."""
    server = start_moto(tmp_path_factory.mktemp("moto"))
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="session")
def swift_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectServer]:
    """S3 on disk."""
    server = start_swift(tmp_path_factory.mktemp("swift"))
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="session")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningSystem]:
    """One system for all tests that need one: starting it takes ten seconds."""
    folder = tmp_path_factory.mktemp("system") / "data"
    with_dashboard = {"ANALYTICS_ACTORS_DASHBOARD": "true"}
    running = RunningSystem(folder, arguments=("--port", "0"), environment=with_dashboard)
    try:
        running.start()
        yield running
    finally:
        running.close()


@pytest.fixture
def client(system: RunningSystem) -> Client:
    """A project of its own on a healthy system."""
    system.wait_healthy()
    made = Client(system)
    made.create_project()
    return made
