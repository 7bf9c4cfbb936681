"""As whom an embedded server runs: PostgreSQL refuses uid 0, and a container often knows no other user.

An ordinary user runs it as himself. Root runs it in a user namespace in which it is nobody: nothing is
created or chmodded, and files stay root's. Where namespaces are forbidden root runs it as nobody, if
nobody can reach the binaries and the folder; the folder is then nobody's, and stays so.
"""

import os
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

from storage.errors import Misconfigured

NOBODY = 65534


class Account(NamedTuple):
    """How a command is started: what goes before it, and the uid that it gets (None: ours)."""

    prefix: tuple[str, ...] = ()
    uid: int | None = None


OURS = Account()
AS_NOBODY = Account(uid=NOBODY)
IN_A_NAMESPACE = Account(prefix=("unshare", "--user", f"--map-user={NOBODY}", f"--map-group={NOBODY}"))


def account_for(directory: Path, binary: Path) -> Account:
    """The account for a server of `binary` on `directory`, which exists. Raises `Misconfigured`."""
    if os.geteuid() != 0:
        return OURS
    is_nobodys = directory.stat().st_uid == NOBODY
    if not is_nobodys and namespaces_work():
        return IN_A_NAMESPACE
    if not nobody_reaches(directory, binary):
        raise Misconfigured(
            f"PostgreSQL does not run as root, user namespaces are not to be had here, and nobody (uid {NOBODY}) "
            f"cannot reach {binary} and {directory}: run as an ordinary user, or move both out of closed folders"
        )
    os.chown(directory, NOBODY, NOBODY)
    return AS_NOBODY


def namespaces_work() -> bool:
    """Whether the kernel and the container let us make a user namespace, and `unshare` (util-linux) is there."""
    if shutil.which("unshare") is None:
        return False
    return subprocess.run([*IN_A_NAMESPACE.prefix, "true"], check=False, capture_output=True).returncode == 0


def nobody_reaches(directory: Path, binary: Path) -> bool:
    """Whether a process of nobody can run `binary` and enter the folder that `directory` lies in."""
    commands = (["test", "-x", str(directory.parent)], [str(binary), "--version"])
    return all(_runs_as_nobody(command) for command in commands)


def _runs_as_nobody(command: list[str]) -> bool:
    try:
        done = subprocess.run(
            command, check=False, capture_output=True, user=NOBODY, group=NOBODY, extra_groups=[], cwd="/"
        )
    except OSError:
        return False
    return done.returncode == 0
