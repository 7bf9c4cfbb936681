"""Whether files of the lake on this machine's disk are, byte for byte, what the manifest has.

Parquet does not tell by itself: a byte that has changed within a page is another value as often as an error, and DuckDB
looks at no checksum of a page. So a file is read as a whole once, and again when it is not the file that was read any
more: another inode, size or time of change.

That reads some 0.8 GB a second with one core. Only two are read at once, so that a wide first query does not take all
of a machine, nor the threads that others need. Who cannot wait goes on without the verdict on what is being read; the
reading goes on too, and the next one has it. A file that somebody could not read is worth a longer wait.
"""

import asyncio
import hashlib
import logging
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
    """At a file without reading it: what is wrong with it, or None; who it is; whether it must be read to tell."""

    wrong: str | None
    identity: _Identity = (0, 0, 0, 0)
    is_unread: bool = False


class FileChecks:
    """One per process."""

    def __init__(self) -> None:
        # The digest that was found.
        self._known: OrderedDict[_Identity, str] = OrderedDict()
        self._turns = asyncio.Semaphore(AT_ONCE)
        self._reading: dict[_Identity, asyncio.Task[str | None]] = {}
        # By their checksums, until they have been read.
        self._doubted: set[str] = set()

    async def wrong(
        self, files: Sequence[Wanted], paths: Sequence[Path], *, until: float, patience_s: float | None = None
    ) -> list[str | None]:
        """Of each file why it is not what it should be, in a few words; None when it is. `until` is the loop's time: a
        file whose reading has not ended then is `NOT_IN_TIME`, and one whose reading has begun is read on. With
        `patience_s` it is waited for so long only, unless the file is doubted."""
        patient_until = until if patience_s is None else min(until, asyncio.get_running_loop().time() + patience_s)
        deadlines = [until if file.checksum in self._doubted else patient_until for file in files]
        looks = await asyncio.to_thread(_look_at, files, paths, dict(self._known))
        reasons = [look.wrong for look in looks]
        unread = [number for number, look in enumerate(looks) if look.is_unread]
        # The doubted ones first: the others would take their turns.
        unread.sort(key=lambda number: files[number].checksum not in self._doubted)
        found = await asyncio.gather(*(self._read(files[n], paths[n], looks[n].identity, deadlines[n]) for n in unread))
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

    def doubt(self, files: Sequence[Wanted]) -> None:
        """Somebody could not read one of these, none of which is known to be wrong: it is among those that nobody has
        read yet, or else any may have changed since, and all are read again."""
        well = set(self._known.values())
        doubted = {file.checksum for file in files if file.checksum not in well}
        if not doubted:
            doubted = {file.checksum for file in files}
            for identity in [identity for identity, checksum in self._known.items() if checksum in doubted]:
                del self._known[identity]
        # Files that are gone are never read, and would stay.
        if len(self._doubted) + len(doubted) > MAX_REMEMBERED:
            self._doubted.clear()
        self._doubted |= doubted

    async def _read(self, file: Wanted, path: Path, identity: _Identity, until: float) -> str | None:
        reading = self._reading.get(identity) or await self._begin(file, path, identity, until)
        if reading is None:
            return NOT_IN_TIME
        done, _ = await asyncio.wait({reading}, timeout=max(0.0, until - asyncio.get_running_loop().time()))
        return reading.result() if done else NOT_IN_TIME

    async def _begin(
        self, file: Wanted, path: Path, identity: _Identity, until: float
    ) -> "asyncio.Task[str | None] | None":
        """The file's reading, everybody's who wants it; None when no turn comes in time."""
        try:
            async with asyncio.timeout_at(until):
                await self._turns.acquire()
        except TimeoutError:
            return None
        if identity in self._reading:
            self._turns.release()
        else:
            reading = asyncio.get_running_loop().create_task(self._verdict(file, path, identity))
            self._reading[identity] = reading
            reading.add_done_callback(lambda _: self._reading.pop(identity, None))
        return self._reading[identity]

    async def _verdict(self, file: Wanted, path: Path, identity: _Identity) -> str | None:
        """Has a turn, and gives it back."""
        try:
            # Somebody may have read it while this one waited for its turn.
            found = self._known.get(identity, "")
            if not found:
                found = await asyncio.to_thread(_digest, path)
        except FileNotFoundError:
            return NOT_THERE
        except OSError:
            return UNREADABLE
        finally:
            self._turns.release()
        self._known[identity] = found
        self._doubted.discard(file.checksum)
        if len(self._known) > MAX_REMEMBERED:
            self._known.popitem(last=False)
        return None if found == file.checksum else DAMAGED


def _look_at(files: Sequence[Wanted], paths: Sequence[Path], known: dict[_Identity, str]) -> list[_Look]:
    return [_look(file, path, known) for file, path in zip(files, paths, strict=True)]


def _look(file: Wanted, path: Path, known: dict[_Identity, str]) -> _Look:
    try:
        found = path.stat()
    except FileNotFoundError:
        return _Look(NOT_THERE)
    except OSError:
        return _Look(UNREADABLE)
    if found.st_size != file.bytes:
        return _Look(DAMAGED)
    identity = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)
    if identity not in known:
        return _Look(None, identity, is_unread=True)
    return _Look(None if known[identity] == file.checksum else DAMAGED, identity)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
