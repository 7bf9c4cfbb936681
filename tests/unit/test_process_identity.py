"""Processes named beyond doubt, and sessions ended whole. The processes are real; they only sleep."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
from msgspec.structs import replace

from analytics_actors.process_identity import ProcessIdentity, end_session, identify, is_alive, session_members

# A session in which the leader's child outlives it: (leader, its child).
FAMILY = """
import signal, subprocess, sys, time
if "stubborn" in sys.argv:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print(child.pid, flush=True)
time.sleep(60)
"""


@pytest.fixture
def family() -> Iterator[tuple["subprocess.Popen[bytes]", int]]:
    yield from start_family()


@pytest.fixture
def stubborn_family() -> Iterator[tuple["subprocess.Popen[bytes]", int]]:
    yield from start_family("stubborn")


def start_family(*words: str) -> Iterator[tuple["subprocess.Popen[bytes]", int]]:
    command = [sys.executable, "-c", FAMILY, *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True) as leader:
        assert leader.stdout is not None
        child = int(leader.stdout.readline())
        yield leader, child
        for pid in (leader.pid, child):
            identity = identify(pid)
            if identity is not None and is_alive(identity):
                subprocess.run(["kill", "-9", str(pid)], check=False)


def known(pid: int) -> ProcessIdentity:
    identity = identify(pid)
    assert identity is not None
    return identity


def test_a_process_is_known_by_its_start(family: tuple["subprocess.Popen[bytes]", int]) -> None:
    leader, _ = family
    identity = known(leader.pid)
    assert is_alive(identity)
    assert not is_alive(replace(identity, start_ticks=identity.start_ticks - 1))
    assert not is_alive(replace(identity, boot_id="another"))
    leader.kill()
    time.sleep(0.05)
    assert not is_alive(identity), "a zombie does not run"
    leader.wait()
    assert identify(leader.pid) is None


def test_a_session_is_found_when_its_leader_is_gone(family: tuple["subprocess.Popen[bytes]", int]) -> None:
    leader, child = family
    identity = known(leader.pid)
    assert {member.pid for member in session_members(identity)} == {leader.pid, child}
    leader.kill()
    leader.wait()
    assert [member.pid for member in session_members(identity)] == [child]


def test_a_strangers_session_is_left_alone(family: tuple["subprocess.Popen[bytes]", int]) -> None:
    leader, _ = family
    identity = known(leader.pid)
    assert not session_members(replace(identity, start_ticks=identity.start_ticks - 1))
    assert not session_members(replace(identity, boot_id="another"))
    end_session(replace(identity, start_ticks=1), with_signal=signal.SIGKILL, deadline_s=1)
    assert is_alive(identity)


def test_ending_a_session_ends_what_its_leader_leaves(family: tuple["subprocess.Popen[bytes]", int]) -> None:
    leader, child = family
    identity, orphan = known(leader.pid), known(child)
    end_session(identity, with_signal=signal.SIGTERM, deadline_s=0.2)
    assert not is_alive(orphan)
    assert leader.wait() == -signal.SIGTERM


def test_orphans_are_not_waited_for_until_the_deadline(family: tuple["subprocess.Popen[bytes]", int]) -> None:
    leader, child = family
    identity, orphan = known(leader.pid), known(child)
    leader.kill()
    leader.wait()
    began_s = time.monotonic()
    end_session(identity, with_signal=signal.SIGTERM, deadline_s=60)
    assert time.monotonic() - began_s < 10
    assert not is_alive(orphan)


def test_a_stubborn_leader_is_killed_at_the_deadline(
    stubborn_family: tuple["subprocess.Popen[bytes]", int],
) -> None:
    leader, _ = stubborn_family
    end_session(known(leader.pid), with_signal=signal.SIGTERM, deadline_s=0.2)
    assert leader.wait() == -signal.SIGKILL
