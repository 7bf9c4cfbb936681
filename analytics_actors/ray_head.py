"""`ray start --head` that stays: its arguments are `ray start`'s.

`ray start --block` would stay as well, with all of Ray in its memory (80 MB) and a second process that watches it. Here
the process that has started the node becomes `ray_children`, a program of a few megabytes with the same pid, whose
children the node's processes still are.
"""

import os
import sys
from pathlib import Path

from ray.scripts.scripts import start


def main() -> None:
    try:
        start.main(args=["--head", *sys.argv[1:]], prog_name="ray start")
    except SystemExit as ended:
        if ended.code:
            raise
    sys.stdout.flush()
    sys.stderr.flush()
    program = Path(__file__).with_name("ray_children.py")
    os.execv(sys.executable, [sys.executable, "-I", "-S", str(program)])  # noqa: S606


if __name__ == "__main__":
    main()
