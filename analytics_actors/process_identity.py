"""Which process is meant, beyond its number: numbers are reused, a start time is not.

A process is named by pid and start time (clock ticks since boot) together with the boot's id, so what
was written down before a crash or a reboot never matches a stranger. A child that was started in a
session of its own stands for the whole session: its descendants are found by the session's id even
when their parents are gone. Reads /proc (Linux), like the embedded servers, which are Linux binaries.
"""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

ORPHANS_S = 1.0
"""Time to notice that one's parent is gone, and to end in order."""
_POLL_S = 0.02


class ProcessIdentity(msgspec.Struct, frozen=True):
    """A process as it can be written to a file and recognised later."""

    pid: int
    start_ticks: int
    boot_id: str


class _Stat(msgspec.Struct, frozen=True):
    session: int
    start_ticks: int
    is_zombie: bool


def identify(pid: int) -> ProcessIdentity | None:
    """The process that has this number now, or None."""
    stat = _read_stat(pid)
    return None if stat is None else ProcessIdentity(pid, stat.start_ticks, _boot_id())


def is_alive(identity: ProcessIdentity) -> bool:
    """Whether that very process still runs; a zombie does not."""
    stat = _read_stat(identity.pid)
    return (
        stat is not None
        and not stat.is_zombie
        and stat.start_ticks == identity.start_ticks
        and identity.boot_id == _boot_id()
    )


def session_members(leader: ProcessIdentity) -> list[ProcessIdentity]:
    """The live processes of the session that `leader` opened, itself included.

    The kernel does not hand a number out again while a session bears it; a number that now belongs to
    another process, or members older than the leader, mean that the session is a stranger's.
    """
    now = _read_stat(leader.pid)
    is_reused = now is not None and now.start_ticks != leader.start_ticks
    if is_reused or leader.boot_id != _boot_id():
        return []
    return list(_in_session(leader))


def end_session(leader: ProcessIdentity, *, with_signal: signal.Signals, deadline_s: float) -> None:
    """Signal the leader if it lives, wait for the session to empty, and kill what is left.

    A leader ends its own children. What it has left behind when it is gone gets `ORPHANS_S`, whatever the deadline.
    """
    _signal(leader, with_signal)
    until = time.monotonic() + deadline_s
    was_alive = True
    while (members := session_members(leader)) and time.monotonic() < until:
        if was_alive and not is_alive(leader):
            was_alive = False
            until = min(until, time.monotonic() + ORPHANS_S)
        time.sleep(_POLL_S)
    while members:
        for member in members:
            _signal(member, signal.SIGKILL)
        time.sleep(_POLL_S)
        members = session_members(leader)


def _signal(identity: ProcessIdentity, number: signal.Signals) -> None:
    """Signal that very process: the descriptor is taken first, then the start time is compared."""
    try:
        descriptor = os.pidfd_open(identity.pid)
    except ProcessLookupError:
        return
    try:
        if is_alive(identity):
            signal.pidfd_send_signal(descriptor, number)
    except ProcessLookupError:
        return
    finally:
        os.close(descriptor)


def _in_session(leader: ProcessIdentity) -> Iterator[ProcessIdentity]:
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        stat = _read_stat(int(entry.name))
        if stat is None or stat.is_zombie:
            continue
        if stat.session == leader.pid and stat.start_ticks >= leader.start_ticks:
            yield ProcessIdentity(int(entry.name), stat.start_ticks, leader.boot_id)


def _read_stat(pid: int) -> _Stat | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The name (second field) may hold spaces and brackets: count from its closing bracket.
    fields = text.rpartition(")")[2].split()
    return _Stat(session=int(fields[3]), start_ticks=int(fields[19]), is_zombie=fields[0] in "ZX")


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
