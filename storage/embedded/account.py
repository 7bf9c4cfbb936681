"""As whom an embedded server runs: PostgreSQL refuses uid 0, and a container often knows no other user.

An ordinary user runs it as himself. Root runs it in a user namespace in which it is nobody: nothing is
created or chmodded, and files stay root's. Where namespaces are forbidden root runs it as nobody, if
nobody can reach the binaries and the folder; the folder is then nobody's, and stays so. Whose a cluster is was decided
when it was made, for ever.
"""

import os
import shutil
from pathlib import Path
from typing import NamedTuple

from storage.embedded.process import run
from storage.errors import Misconfigured

NOBODY = 65534


class Account(NamedTuple):
    """How a command is started: what goes before it, and the uid that it gets (None: ours)."""

    prefix: tuple[str, ...] = ()
    uid: int | None = None


OURS = Account()
AS_NOBODY = Account(uid=NOBODY)
IN_A_NAMESPACE = Account(prefix=("unshare", "--user", f"--map-user={NOBODY}", f"--map-group={NOBODY}"))


def account_for(directory: Path, cluster: Path, binary: Path) -> Account:
    """The account for a server of `binary` on `directory`, which exists, with the cluster in it, which may not yet.
    Raises `Misconfigured`."""
    if os.geteuid() != 0:
        return OURS
    is_made = cluster.exists()
    is_nobodys = (cluster if is_made else directory).stat().st_uid == NOBODY
    if not is_nobodys and namespaces_work():
        return IN_A_NAMESPACE
    if not is_nobodys and is_made:
        raise Misconfigured(
            f"PostgreSQL does not run as root, and {cluster} was made where user namespaces are to be had, which they "
            "are not here: start it there, or as an ordinary user to whom you give the data folder (chown -R)"
        )
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
    return run([*IN_A_NAMESPACE.prefix, "true"]).returncode == 0


def nobody_reaches(directory: Path, binary: Path) -> bool:
    """Whether a process of nobody can run `binary` and enter the folder that `directory` lies in."""
    commands = (["test", "-x", str(directory.parent)], [str(binary), "--version"])
    return all(_runs_as_nobody(command) for command in commands)


def _runs_as_nobody(command: list[str]) -> bool:
    try:
        return run(command, uid=NOBODY, directory=Path("/")).returncode == 0
    except OSError:
        return False
