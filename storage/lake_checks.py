"""Whether files of the lake on this machine's disk are, byte for byte, what the manifest has.

Parquet does not tell by itself: a byte that has changed within a page is another value as often as an error, and DuckDB
looks at no checksum of a page. So a file is read as a whole once, and again when it is not the file that was read any
more: another inode, size or time of change.

That reads half a gigabyte a second with one core. Only two are read at once, so that a wide first query does not take
all of a machine, nor the threads that others need.
"""

import asyncio
import hashlib
import logging
import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from storage.lake_manifest import FileEntry

AT_ONCE = 2
MAX_REMEMBERED = 10_000
"""Files that were read: two megabytes. The longest unused is read again."""
NOT_THERE = "not in the folder"
DAMAGED = "damaged"
UNREADABLE = "cannot be read"
NOT_IN_TIME = "not checked in time"
_CHUNK_BYTES = 1024 * 1024

_Identity = tuple[int, int, int, int]

_log = logging.getLogger(__name__)


class Wanted(NamedTuple):
    key: str
    bytes: int
    checksum: str

    @classmethod
    def of(cls, file: FileEntry) -> "Wanted":
        return cls(file.key, file.bytes, file.checksum)


class _Look(NamedTuple):
    """At a file without reading it: what is wrong with it, or else who it is and whether it was read before."""

    wrong: str | None
    identity: _Identity
    is_known: bool


class FileChecks:
    """One per process."""

    def __init__(self) -> None:
        self._known: OrderedDict[_Identity, str] = OrderedDict()
        self._turns = asyncio.Semaphore(AT_ONCE)

    async def wrong(self, files: Sequence[Wanted], paths: Sequence[Path], *, until: float) -> list[str | None]:
        """Of each file why it is not what it should be, in a few words; None when it is. `until` is the loop's time."""
        looks = await asyncio.to_thread(_look_at, files, paths, dict(self._known))
        reasons = [look.wrong for look in looks]
        unread = [number for number, look in enumerate(looks) if look.wrong is None and not look.is_known]
        found = await asyncio.gather(*(self._read(files[n], paths[n], looks[n].identity, until) for n in unread))
        for number, reason in zip(unread, found, strict=True):
            reasons[number] = reason
        for look in looks:
            if look.identity in self._known:
                self._known.move_to_end(look.identity)
        for file, reason in zip(files, reasons, strict=True):
            if reason is not None and reason != NOT_IN_TIME:
                fields = {"action": "lake_file_wrong", "key": file.key, "reason": reason}
                _log.error("a file of the lake is not what was put there", extra=fields)
        return reasons

    def forget(self, files: Sequence[Wanted]) -> None:
        """Read them again: somebody could not, although they were well."""
        checksums = {file.checksum for file in files}
        for identity in [identity for identity, checksum in self._known.items() if checksum in checksums]:
            del self._known[identity]

    async def _read(self, file: Wanted, path: Path, identity: _Identity, until: float) -> str | None:
        over = threading.Event()
        try:
            async with asyncio.timeout_at(until), self._turns:
                found = await asyncio.to_thread(_digest, path, over)
        except TimeoutError:
            return NOT_IN_TIME
        except FileNotFoundError:
            return NOT_THERE
        except OSError:
            return UNREADABLE
        finally:
            over.set()
        if found != file.checksum:
            return DAMAGED
        self._remember(identity, file.checksum)
        return None

    def _remember(self, identity: _Identity, checksum: str) -> None:
        self._known[identity] = checksum
        if len(self._known) > MAX_REMEMBERED:
            self._known.popitem(last=False)


def _look_at(files: Sequence[Wanted], paths: Sequence[Path], known: dict[_Identity, str]) -> list[_Look]:
    return [_look(file, path, known) for file, path in zip(files, paths, strict=True)]


def _look(file: Wanted, path: Path, known: dict[_Identity, str]) -> _Look:
    nobody = (0, 0, 0, 0)
    try:
        found = path.stat()
    except FileNotFoundError:
        return _Look(NOT_THERE, nobody, False)
    except OSError:
        return _Look(UNREADABLE, nobody, False)
    if found.st_size != file.bytes:
        return _Look(DAMAGED, nobody, False)
    identity = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)
    return _Look(None, identity, known.get(identity) == file.checksum)


def _digest(path: Path, over: threading.Event) -> str:
    """Of the whole file; anything, of a part of it, once nobody waits any more."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while not over.is_set() and (chunk := file.read(_CHUNK_BYTES)):
            digest.update(chunk)
    return digest.hexdigest()
