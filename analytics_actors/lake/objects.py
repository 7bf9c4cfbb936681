"""Objects of the lake, looked at by name and from within, wherever they lie."""

import asyncio
import re
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

from storage.errors import FormatError, Missing
from storage.lake_file import COLD
from storage.object_store import ObjectStore, sha256_of

AT_ONCE = 4
"""Each waits for the network or the disk, and one from afar lies on this machine's disk meanwhile."""

_NAME = re.compile(
    r"(?P<top>(?:[^/]+/)*)events/year=\d{4}/month=\d\d/day=\d\d/hour=\d\d/"
    r"(?P<kind>part|compact)-(?P<plan>\d{12,18})-(?P<number>\d{5,18})\.parquet",
    re.ASCII,
)


class Name(NamedTuple):
    """What a key says; see `storage.lake_file`."""

    kind: str
    plan_id: int
    is_cold: bool


def name_of(key: str) -> Name | None:
    """None for a key that no file of the lake has."""
    found = _NAME.fullmatch(key)
    if found is None or found["top"] not in ("", COLD):
        return None
    return Name(found["kind"], int(found["plan"]), found["top"] == COLD)


@asynccontextmanager
async def local_copy(objects: ObjectStore, key: str, folder: Path) -> AsyncIterator[Path]:
    """The object as a file: itself where it is one, else a copy that is there within the block. Raises `Missing`."""
    path = objects.local_path(key)
    if path is not None:
        if not await asyncio.to_thread(path.is_file):
            raise Missing(key)
        yield path
        return
    path = folder / uuid.uuid4().hex
    await objects.download(key, path)
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def check_bytes(path: Path, key: str, checksum: str) -> None:
    """Raises `FormatError` unless the file is what was put under the key: what is damaged is not written anew, under a
    checksum that fits it."""
    if sha256_of(path) != checksum:
        raise FormatError(f"{key} is damaged: its checksum is not the manifest's")
