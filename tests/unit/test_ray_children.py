"""The process that stays with a Ray node: it ends with the first of its children, or ends them in order."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from analytics_actors import ray_children
from analytics_actors.process_identity import end_session, identify, session_members

PARTS = ("gcs_server", "raylet", "dashboard")
PART = """#!/bin/sh
trap '{ends}' TERM
echo {name} >> started
while :; do sleep 0.02; done
"""
STARTS_AND_STAYS = """
import os, subprocess, sys
for path in sys.argv[2:]:
    subprocess.Popen([path])
os.execv(sys.executable, [sys.executable, "-I", "-S", sys.argv[1]])
"""


def wait_until(is_so: Callable[[], bool]) -> None:
    until = time.monotonic() + 20
    while not is_so():
        assert time.monotonic() < until
        time.sleep(0.01)


def lines(path: Path) -> list[str]:
    return path.read_text().split() if path.exists() else []


@contextmanager
def node(folder: Path, *, ends: str) -> Iterator["subprocess.Popen[str]"]:
    """With a child of each name, which does so at SIGTERM."""
    paths = [folder / name for name in PARTS]
    for path in paths:
        path.write_text(PART.format(name=path.name, ends=ends.format(name=path.name)))
        path.chmod(0o755)
    command = [sys.executable, "-c", STARTS_AND_STAYS, ray_children.__file__, *map(str, paths)]
    process = subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True, start_new_session=True)
    identity = identify(process.pid)
    assert identity is not None
    try:
        wait_until(lambda: len(lines(folder / "started")) == len(PARTS))
        # Until then a signal would meet the program before, whose children are nobody's.
        wait_until(lambda: _catches(process.pid, signal.SIGTERM))
        yield process
        # One that was killed a moment ago may still be on its way out.
        wait_until(lambda: not [member for member in session_members(identity) if _name(member.pid) in PARTS])
    finally:
        end_session(identity, with_signal=signal.SIGKILL, deadline_s=0)
        process.communicate()


def _catches(pid: int, number: signal.Signals) -> bool:
    [line] = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("SigCgt:")]
    return bool(int(line.split()[1], 16) >> (number - 1) & 1)


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except FileNotFoundError:
        return ""


def pid_of(process: "subprocess.Popen[str]", name: str) -> int:
    """Of the child; what its shell has just forked has its name for a moment, too."""
    [found] = [child.pid for child in psutil.Process(process.pid).children() if _name(child.pid) == name]
    return found


@pytest.mark.parametrize("name", PARTS)
def test_ends_with_the_first_child_that_ends_and_says_which(tmp_path: Path, name: str) -> None:
    with node(tmp_path, ends=":") as process:
        pid = pid_of(process, name)
        subprocess.run(["kill", "-9", str(pid)], check=True)
        assert process.wait(20) == 1
        assert process.stderr is not None
        assert process.stderr.readline() == f"{name} (pid {pid}) has ended: signal 9\n"


def test_at_sigterm_the_raylet_ends_first(tmp_path: Path) -> None:
    with node(tmp_path, ends="sleep 0.1; echo {name} >> ended; exit 0") as process:
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
        assert lines(tmp_path / "ended")[0] == "raylet"
        assert sorted(lines(tmp_path / "ended")) == sorted(PARTS)


def test_who_does_not_end_when_asked_is_killed(tmp_path: Path) -> None:
    with node(tmp_path, ends="[ {name} = raylet ] && exit 0") as process:
        process.send_signal(signal.SIGTERM)
        # A second request changes nothing.
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
