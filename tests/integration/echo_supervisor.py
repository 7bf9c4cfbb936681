"""`python -m gateway` with echo workers in the place of real ones; with FAIL_AT_START they die at once."""

import os
import sys
from pathlib import Path

from gateway.__main__ import main


def echo_command(settings_file: Path, fd: int, worker: int) -> list[str]:
    if "FAIL_AT_START" in os.environ:
        return [sys.executable, "-c", "raise SystemExit(3)"]
    command = [sys.executable, "-m", "tests.integration.echo_worker", "--settings", str(settings_file)]
    return [*command, "--fd", str(fd), "--worker", str(worker)]


if __name__ == "__main__":
    sys.exit(main(command=echo_command))
