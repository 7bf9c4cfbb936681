"""The logs of a running system: ours in JSON lines, the children's as they write them, each file bounded."""

import logging
import os
import shutil
from logging.handlers import RotatingFileHandler
from pathlib import Path

from config.logs import JsonLines

MAX_LOG_BYTES = 16 * 1024 * 1024
"""A file's size, and that of the older part kept beside it: months of quiet running, or the start of a storm."""


def configure(path: Path) -> None:
    """Log to that file from now on."""
    handler = RotatingFileHandler(path, maxBytes=MAX_LOG_BYTES, backupCount=1)
    handler.setFormatter(JsonLines("up"))
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.INFO)


def bound(folder: Path, *, max_bytes: int = MAX_LOG_BYTES) -> list[str]:
    """Cut children's logs that have grown too large: the content moves to NAME.1, the file goes on empty.

    A child keeps its descriptor, which appends; so the file is copied and truncated, not renamed. Lines
    written between the two are lost.
    """
    cut = []
    for path in sorted(folder.glob("*.log")):
        if path.stat().st_size > max_bytes:
            shutil.copyfile(path, path.with_name(path.name + ".1"))
            os.truncate(path, 0)
            cut.append(path.name)
    return cut
