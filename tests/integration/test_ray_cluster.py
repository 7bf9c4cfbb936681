"""A cluster that others run: it is waited for, and not for long."""

import socket
import threading
import time
from pathlib import Path

import pytest

from analytics_actors.up import services
from analytics_actors.up.folder import DataFolder
from analytics_actors.up.services import ClusterActors
from storage.errors import Misconfigured


def actors(folder: Path, address: str, stopping: threading.Event | None = None) -> ClusterActors:
    return ClusterActors(DataFolder(folder), address, stopping or threading.Event())


@pytest.mark.parametrize("address", ["127.0.0.1:{}", "localhost:{}", "ray://127.0.0.1:{}"])
def test_a_cluster_that_answers_is_there(tmp_path: Path, address: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        actors(tmp_path, address.format(server.getsockname()[1])).start()


@pytest.mark.parametrize("address", ["127.0.0.1:1", "127.0.0.1:99999", "nobody.invalid:6379"])
def test_one_that_does_not_is_told(tmp_path: Path, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(services, "CLUSTER_PATIENCE_S", 0.7)
    with pytest.raises(Misconfigured, match=f"no Ray cluster answers at actors.ray_address {address} "):
        actors(tmp_path, address).start()


def test_one_that_is_being_started_is_waited_for(tmp_path: Path) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        threading.Timer(0.7, server.listen).start()
        started = time.monotonic()
        actors(tmp_path, f"127.0.0.1:{server.getsockname()[1]}").start()
        assert time.monotonic() - started > 0.5


def test_a_stop_ends_the_wait(tmp_path: Path) -> None:
    stopping = threading.Event()
    threading.Timer(0.2, stopping.set).start()
    actors(tmp_path, "127.0.0.1:1", stopping).start()
