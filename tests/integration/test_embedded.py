"""The embedded servers: kept data, passwords, deaths, and folders that must be refused."""

import asyncio
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import pytest
import redis

from storage.embedded.postgres import EmbeddedPostgres
from storage.embedded.valkey import EmbeddedValkey
from storage.errors import Misconfigured

MIB = 1 << 20


@pytest.fixture
def valkey(tmp_path: Path) -> Iterator[EmbeddedValkey]:
    server = EmbeddedValkey(tmp_path / "val key", max_memory_bytes=64 * MIB)
    yield server
    server.stop()


@pytest.fixture
def postgres(tmp_path: Path) -> Iterator[EmbeddedPostgres]:
    server = EmbeddedPostgres(tmp_path / "post gres")
    yield server
    server.stop()


def postgres_value(url: str, statement: str) -> object:
    async def ask() -> object:
        connection = await asyncpg.connect(url)
        try:
            return await connection.fetchval(statement)
        finally:
            await connection.close()

    return asyncio.run(ask())


def without_password(url: str) -> str:
    parts = urlsplit(url)
    return parts._replace(netloc=f"postgres:wrong@{parts.hostname}:{parts.port}").geturl()


def listeners_of(pid: int, port: int) -> set[str]:
    """Local addresses on which that port is listened on, from the kernel's table."""
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            local, state = line.split()[1], line.split()[3]
            if state == "0A" and int(local.rsplit(":", 1)[1], 16) == port:
                found.add(local.rsplit(":", 1)[0])
    return found


def test_postgres_keeps_its_data_over_a_stop_and_a_kill(postgres: EmbeddedPostgres) -> None:
    postgres.start()
    postgres_value(postgres.url, "CREATE TABLE kept AS SELECT 1 AS n")
    postgres.stop()
    postgres.start()
    assert postgres.process is not None
    postgres_value(postgres.url, "INSERT INTO kept VALUES (2) RETURNING n")
    postgres.process.send_signal(signal.SIGKILL)
    postgres.process.wait()
    postgres.start()
    assert postgres_value(postgres.url, "SELECT count(*) FROM kept") == 2


def test_postgres_wants_its_password_and_listens_on_loopback(postgres: EmbeddedPostgres, tmp_path: Path) -> None:
    postgres.start()
    with pytest.raises(asyncpg.InvalidPasswordError):
        postgres_value(without_password(postgres.url), "SELECT 1")
    assert postgres.process is not None
    assert listeners_of(postgres.process.pid, postgres.port) == {"0100007F"}
    password = tmp_path / "post gres" / "password"
    assert password.stat().st_mode & 0o777 == 0o600
    assert password.read_text() not in Path(f"/proc/{postgres.process.pid}/cmdline").read_text()


def test_postgres_refuses_a_cluster_of_another_version(postgres: EmbeddedPostgres, tmp_path: Path) -> None:
    cluster = tmp_path / "post gres" / "pgdata"
    cluster.mkdir(parents=True)
    (cluster / "PG_VERSION").write_text("17\n")
    with pytest.raises(Misconfigured, match="is of PostgreSQL 17; this release embeds 18"):
        postgres.start()
    assert [path.name for path in cluster.iterdir()] == ["PG_VERSION"]


def test_postgres_says_that_its_password_is_gone(postgres: EmbeddedPostgres, tmp_path: Path) -> None:
    postgres.start()
    postgres.stop()
    (tmp_path / "post gres" / "password").unlink()
    with pytest.raises(Misconfigured, match="password is gone"):
        postgres.start()


def test_postgres_shows_why_it_did_not_start(postgres: EmbeddedPostgres) -> None:
    postgres.start()
    postgres.stop()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        postgres.port = taken.getsockname()[1]
        with pytest.raises(Misconfigured, match="Address already in use"):
            postgres.start()


def test_valkey_keeps_what_it_acknowledged_over_a_kill(valkey: EmbeddedValkey) -> None:
    valkey.start()
    with redis.Redis.from_url(valkey.url) as client:
        client.set("kept", "1")
    assert valkey.process is not None
    valkey.process.send_signal(signal.SIGKILL)
    valkey.process.wait()
    valkey.start()
    with redis.Redis.from_url(valkey.url) as client:
        assert client.get("kept") == b"1"
        assert client.config_get("append*")["appendfsync"] == "always"
        assert client.config_get("maxmemory")["maxmemory"] == str(64 * MIB)
        assert client.config_get("maxmemory-policy")["maxmemory-policy"] == "noeviction"


def test_valkey_wants_its_password_and_listens_on_loopback(valkey: EmbeddedValkey, tmp_path: Path) -> None:
    valkey.start()
    with (
        redis.Redis(host="127.0.0.1", port=valkey.port) as client,
        pytest.raises(redis.exceptions.AuthenticationError),
    ):
        client.ping()
    assert valkey.process is not None
    assert listeners_of(valkey.process.pid, valkey.port) == {"0100007F"}
    assert (tmp_path / "val key" / "valkey.conf").stat().st_mode & 0o777 == 0o600


def test_valkey_refuses_a_folder_of_a_newer_version(valkey: EmbeddedValkey, tmp_path: Path) -> None:
    valkey.start()
    valkey.stop()
    (tmp_path / "val key" / "VERSION").write_text("99.0")
    with pytest.raises(Misconfigured, match=r"written by Valkey 99\.0"):
        valkey.start()


def test_valkey_shows_why_it_did_not_start(valkey: EmbeddedValkey, tmp_path: Path) -> None:
    valkey.start()
    valkey.stop()
    manifest = tmp_path / "val key" / "appendonlydir" / "appendonly.aof.manifest"
    manifest.write_text("nonsense\n")
    with pytest.raises(Misconfigured, match="the end of"):
        valkey.start()


@pytest.mark.parametrize("kind", ["valkey", "postgres"])
def test_a_server_that_does_not_get_ready_is_stopped_and_can_be_started_again(
    kind: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    server: EmbeddedValkey | EmbeddedPostgres = request.getfixturevalue(kind)
    spawned: list[int] = []
    with monkeypatch.context() as patch:
        patch.setattr(server, "_answers", lambda: False)
        with pytest.raises(Misconfigured, match="did not get ready in time"):
            server.start(deadline_s=0.5, on_spawn=spawned.append)
    assert is_gone(server.process)
    server.start(on_spawn=spawned.append)
    abandoned = server.process
    # One that lives gives its place to the next.
    server.start(on_spawn=spawned.append)
    assert is_gone(abandoned)
    assert not is_gone(server.process)
    assert len(set(spawned)) == 3


@pytest.mark.parametrize("kind", ["valkey", "postgres"])
def test_a_server_that_cannot_be_recorded_is_stopped(kind: str, request: pytest.FixtureRequest) -> None:
    server: EmbeddedValkey | EmbeddedPostgres = request.getfixturevalue(kind)

    def disk_full(_pid: int) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        server.start(on_spawn=disk_full)
    assert is_gone(server.process)


def is_gone(process: "subprocess.Popen[bytes] | None") -> bool:
    return process is not None and process.poll() is not None
