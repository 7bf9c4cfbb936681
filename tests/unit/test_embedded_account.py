"""As whom an embedded server runs, for each kind of machine."""

import os
from pathlib import Path

import pytest

from storage.embedded import account
from storage.embedded.account import AS_NOBODY, IN_A_NAMESPACE, OURS, account_for
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
    assert account_for(tmp_path, BINARY) is OURS


def test_root_runs_it_in_a_namespace(tmp_path: Path, chowned: list[tuple[Path, int]]) -> None:
    assert account_for(tmp_path, BINARY) is IN_A_NAMESPACE
    assert not chowned


def test_a_folder_that_is_nobodys_stays_so(
    tmp_path: Path, chowned: list[tuple[Path, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = tmp_path.stat().st_uid
    monkeypatch.setattr(account, "NOBODY", owner)
    assert account_for(tmp_path, BINARY) is AS_NOBODY
    assert chowned == [(tmp_path, owner)]


def test_root_without_namespaces_runs_it_as_nobody(
    tmp_path: Path, chowned: list[tuple[Path, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(account, "namespaces_work", lambda: False)
    assert account_for(tmp_path, BINARY) is AS_NOBODY
    assert chowned == [(tmp_path, account.NOBODY)]


def test_a_folder_that_nobody_cannot_reach_is_refused_and_left_alone(
    tmp_path: Path, chowned: list[tuple[Path, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(account, "namespaces_work", lambda: False)
    monkeypatch.setattr(account, "nobody_reaches", lambda *_: False)
    with pytest.raises(Misconfigured, match="run as an ordinary user"):
        account_for(tmp_path, BINARY)
    assert not chowned
