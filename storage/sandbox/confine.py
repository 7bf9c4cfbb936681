"""What the kernel enforces on a sandbox process, whatever DuckDB thinks that it allows.

- no network: a network namespace of its own, in a user namespace (nothing is needed for that but the kernel's leave);
- no file but those of the query: Landlock, which a process puts on itself and can never take off;
- memory, CPU time, size of written files and core dumps: resource limits;
- it does not outlive whoever started it.

Namespaces and Landlock are had where kernel and container let us. Where they do not the process goes on without:
they stand behind DuckDB's own settings and the checker, and memory and time are limited everywhere. `leave_network`
and `restrict_files` say whether it worked. Both are for a process with one thread: others keep what they had.
"""

import ctypes
import os
import resource
import signal
import struct
from collections.abc import Iterable
from pathlib import Path

_CLONE_NEWUSER = 0x10000000
_CLONE_NEWNET = 0x40000000
_PR_SET_PDEATHSIG = 1
_PR_SET_NO_NEW_PRIVS = 38

# The same numbers on every architecture.
_LANDLOCK_CREATE_RULESET = 444
_LANDLOCK_ADD_RULE = 445
_LANDLOCK_RESTRICT_SELF = 446
_RULE_PATH_BENEATH = 1
_READ_FILE = 1 << 2
_EVERYTHING = (1 << 15) - 1
"""On files and folders, as of version 3, which was the first to restrict truncation."""
_EXECUTE = 1
_NETWORK = 3
"""TCP, as of version 4."""
_SCOPES = 3
"""Signals and abstract sockets of others, as of version 6."""

_libc = ctypes.CDLL(None, use_errno=True)


def die_with_parent(parent: int) -> None:
    """Be killed when the thread that started us ends; at once if it has already."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def leave_network() -> bool:
    return bool(_libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET) == 0)


def limit(*, memory_bytes: int, cpu_s: int, file_bytes: int) -> None:
    """`memory_bytes` are those that come on top of what the process has now."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    has_bytes = pages * os.sysconf("SC_PAGE_SIZE")
    _set(resource.RLIMIT_AS, has_bytes + memory_bytes)
    _set(resource.RLIMIT_CPU, cpu_s)
    _set(resource.RLIMIT_FSIZE, file_bytes)
    _set(resource.RLIMIT_CORE, 0)


def _set(which: int, value: int) -> None:
    _, hard = resource.getrlimit(which)
    bound = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(which, (bound, bound))


def restrict_files(readable: Iterable[str], folder: str) -> bool:
    """From now on this thread, and those that it starts, open these files for reading, and what is in the folder."""
    version = _libc.syscall(_LANDLOCK_CREATE_RULESET, None, 0, 1)
    if version < 3:
        return False
    restricted = (_EVERYTHING, *([_NETWORK] if version >= 4 else []), *([_SCOPES] if version >= 6 else []))
    attributes = struct.pack(f"<{len(restricted)}Q", *restricted)
    ruleset = _libc.syscall(_LANDLOCK_CREATE_RULESET, attributes, len(attributes), 0)
    if ruleset < 0:
        return False
    try:
        for path in readable:
            _allow(ruleset, path, _READ_FILE)
        _allow(ruleset, folder, _EVERYTHING & ~_EXECUTE)
        _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        return bool(_libc.syscall(_LANDLOCK_RESTRICT_SELF, ruleset, 0) == 0)
    finally:
        os.close(ruleset)


def _allow(ruleset: int, path: str, access: int) -> None:
    descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        rule = struct.pack("<Qi", access, descriptor)
        if _libc.syscall(_LANDLOCK_ADD_RULE, ruleset, _RULE_PATH_BENEATH, rule, 0) != 0:
            raise OSError(ctypes.get_errno(), "Landlock does not take the path")
    finally:
        os.close(descriptor)
