"""As whom an embedded server runs, for each kind of machine."""

import os
import sys
import time
from pathlib import Path

import psutil
import pytest

from storage.embedded import account
from storage.embedded.account import AS_NOBODY, IN_A_NAMESPACE, OURS, account_for
from storage.embedded.process import run
from storage.errors import Misconfigured

BINARY = Path("/opt/postgres")


@pytest.fixture
def chowned(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Path, int]]:
    """A machine on which we are root, with namespaces, and which nobody can reach; what was chowned."""
    calls: list[tuple[Path, int]] = []
    # Whoever runs the tests may be the real one.
    monkeypatch.setattr(account, "NOBODY", os.getuid() + 1)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(os, "chown", lambda path, uid, _: calls.append((path, uid)))
    monkeypatch.setattr(account, "namespaces_work", lambda: True)
    monkeypatch.setattr(account, "nobody_reaches", lambda *_: True)
    return calls


def test_an_ordinary_user_runs_it_as_himself(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert account_for(tmp_path, tmp_path / "pgdata", BINARY) is OURS


def test_root_runs_it_in_a_namespace(tmp_path: Path, chowned: list[tuple[Path, int]]) -> None:
    assert account_for(tmp_path, tmp_path / "pgdata", BINARY) is IN_A_NAMESPACE
    assert not chowned


def test_a_folder_that_is_nobodys_stays_so(
    tmp_path: Path, chowned: list[tuple[Path, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = tmp_path.stat().st_uid
    monkeypatch.setattr(account, "NOBODY", owner)
    assert account_for(tmp_path, tmp_path / "pgdata", BINARY) is AS_NOBODY
    assert chowned == [(tmp_path, owner)]


def test_root_without_namespaces_runs_it_as_nobody(
    tmp_path: Path, chowned: list[tuple[Path, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(account, "namespaces_work", lambda: False)
    assert account_for(tmp_path, tmp_path / "pgdata", BINARY) is AS_NOBODY
    assert chowned == [(tmp_path, account.NOBODY)]


def test_a_folder_that_nobody_cannot_reach_is_refused_and_left_alone(
    tmp_path: Path, chowned: list[tuple[Path, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(account, "namespaces_work", lambda: False)
    monkeypatch.setattr(account, "nobody_reaches", lambda *_: False)
    with pytest.raises(Misconfigured, match="run as an ordinary user"):
        account_for(tmp_path, tmp_path / "pgdata", BINARY)
    assert not chowned


def test_a_cluster_stays_whose_it_is(
    tmp_path: Path, chowned: list[tuple[Path, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the machine says of namespaces later: a folder given to nobody around it would be closed for ever."""
    cluster = tmp_path / "pgdata"
    cluster.mkdir()
    monkeypatch.setattr(account, "namespaces_work", lambda: False)
    with pytest.raises(Misconfigured, match="chown"):
        account_for(tmp_path, cluster, BINARY)
    assert not chowned


def test_a_command_is_not_reached_by_the_terminal() -> None:
    assert int(run([sys.executable, "-c", "import os; print(os.getsid(0))"]).stdout) != os.getsid(0)


def test_a_command_that_does_not_end_is_ended_with_all_that_it_started(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    with pytest.raises(Misconfigured, match="sh has not ended in 1 s"):
        run(["sh", "-c", f"sleep 60 & echo $! > {pid_file}; wait"], deadline_s=1.0)
    wait_until_gone(int(pid_file.read_text()))


def wait_until_gone(pid: int) -> None:
    until_s = time.monotonic() + 10
    while is_alive(pid):
        assert time.monotonic() < until_s, "the process lives on"
        time.sleep(0.01)


def is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
