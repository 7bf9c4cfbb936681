"""Tiers by folder: `unit` (no Ray, no socket), `contract` (fake and real service), `integration`
(the whole system through HTTP), `faults` (processes are killed). Services are the embedded ones.

Several processes share the tests of a tier by files (`--dist loadfile`); each that needs it has a session's system."""

import asyncio
import socket
import uuid
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import asyncpg
import hypothesis
import pytest
import redis
from xdist.remote import Producer
from xdist.scheduler import LoadFileScheduling

from storage.embedded.postgres import EmbeddedPostgres
from storage.embedded.valkey import EmbeddedValkey
from storage.migrate import migrate
from tests.clean_databases import CleanDatabases
from tests.metric_client import MetricClient
from tests.object_servers import ObjectServer, start_moto, start_swift
from tests.system import Client, RunningSystem

hypothesis.settings.register_profile("tests", deadline=None)
hypothesis.settings.load_profile("tests")
"""The machine may be busy with the other processes' tests: an example may take its time."""


LONGEST_FIRST = (
    # These start systems of their own: before the session's system is there.
    "tests/faults/test_starts_and_stops.py",
    "tests/faults/test_lake_keeper.py",
    "tests/integration/main_job",
    "tests/faults/test_killed_processes.py",
    "tests/faults/test_services_away.py",
    "tests/faults/test_lake.py",
    "tests/integration/test_ray_node.py",
    "tests/integration/test_metrics.py",
    "tests/faults/test_windows.py",
    "tests/faults/test_batch.py",
    "tests/integration/test_supervisor.py",
    "tests/faults/test_damaged_log.py",
    "tests/contract/test_s3_objects.py",
    "tests/contract/test_sql_sandbox.py",
    "tests/contract/test_lake_repair.py",
    "tests/contract/test_object_store.py",
    "tests/contract/test_lake_deliveries.py",
    "tests/contract/test_sql_queries.py",
    "tests/contract/test_sql_answers.py",
    "tests/contract/test_lake_keeper.py",
    "tests/unit/test_pattern_detector.py",
    "tests/unit/test_aggregator.py",
    "tests/unit/test_grouping.py",
)
"""Work that is begun early, so that no process is left alone with it at the end."""


def together(nodeid: str) -> str:
    """One process runs the tests of a file, or of a folder within a tier's folder: they share something costly."""
    return "/".join(Path(nodeid.split("::", 1)[0]).parts[:3])


class TogetherScheduling(LoadFileScheduling):  # type: ignore[misc]
    """By `together`."""

    def _split_scope(self, nodeid: str) -> str:
        return together(nodeid)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    turn = {scope: n for n, scope in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: turn.get(together(item.nodeid), len(turn)))


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadFileScheduling | None:
    return TogetherScheduling(config, log) if config.getvalue("dist") == "loadfile" else None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Who reads of a failure elsewhere does not have the data folder: what the system complained of goes with it."""
    report = yield
    if report.failed:
        fixtures = getattr(item, "funcargs", {}).values()
        for running in {each for each in fixtures if isinstance(each, RunningSystem)}:
            report.sections.append(("complaints of the system", running.complaints()))
    return report


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
        # Nobody cuts the power here, and a database for each test means many files.
        asyncio.run(_execute(server.url, "ALTER SYSTEM SET fsync = off"))
        asyncio.run(_execute(server.url, "SELECT pg_reload_conf()"))
        yield server
    finally:
        server.stop()


@pytest.fixture
def empty_postgres_url(postgres_server: EmbeddedPostgres) -> Iterator[str]:
    """A database of its own for each test, with nothing in it, not even a schema."""
    name = f"test_{uuid.uuid4().hex}"
    asyncio.run(_execute(postgres_server.url, f"CREATE DATABASE {name} STRATEGY FILE_COPY"))
    yield _url_of(postgres_server, name)
    asyncio.run(_execute(postgres_server.url, f"DROP DATABASE {name} WITH (FORCE)"))


@pytest.fixture
def postgres_url(clean_databases: CleanDatabases) -> Iterator[str]:
    """A database for each test alone, with this release's schema and no rows."""
    name = clean_databases.take()
    yield clean_databases.url_of(name)
    clean_databases.put_back(name)


@pytest.fixture(scope="session")
def clean_databases(postgres_server: EmbeddedPostgres) -> CleanDatabases:
    name = "migrated"
    asyncio.run(_execute(postgres_server.url, f"CREATE DATABASE {name}"))
    asyncio.run(migrate(_url_of(postgres_server, name)))
    return CleanDatabases(postgres_server.url, name)


def _url_of(server: EmbeddedPostgres, database: str) -> str:
    return f"{server.url.rsplit('/', 1)[0]}/{database}"


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
def exporter_crash_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A point written there is where the session's exporter ends next."""
    return tmp_path_factory.mktemp("crash") / "point"


@pytest.fixture(scope="session")
def system(tmp_path_factory: pytest.TempPathFactory, exporter_crash_file: Path) -> Iterator[RunningSystem]:
    """One system for all tests that need one: starting it takes ten seconds."""
    # Not above: unit tests are not to import Ray.
    from analytics_actors.exporter_actor import CRASH_FILE

    environment = {CRASH_FILE: str(exporter_crash_file)}
    folder = tmp_path_factory.mktemp("system") / "data"
    destinations = ("--set", f"destinations.folder={folder.parent / 'clients'}", "--set", "destinations.interval_s=2")
    running = RunningSystem(folder, arguments=("--port", "0", *destinations), environment=environment)
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


@pytest.fixture
def metric_client(system: RunningSystem) -> MetricClient:
    """A project of its own on a healthy system whose windows are live."""
    system.wait_healthy()
    system.wait_windows()
    made = MetricClient(system)
    made.create_project()
    return made
