"""The gateway's spool: batches that could not be appended in time, on disk until they can.

SQLite in WAL mode with `synchronous=FULL`: a batch is on disk when `put` returns (NL-1). One file a gateway
worker, so that no two writers meet. Format, version 1 (`PRAGMA user_version`): table `spool(id INTEGER
PRIMARY KEY, partition, bytes, batch)` with `batch` as in `storage.event_batch.EventBatch`, in order of `id`. A batch
that cannot be read when the file is opened is set aside into table `damaged(id, partition, bytes, batch, reason)`,
where it stays for whoever can repair it; the others go on.

Not thread safe: all calls come from one thread at a time.
"""

import logging
import shutil
import sqlite3
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import numpy as np

from storage.errors import FormatError, SpoolFull, Unavailable
from storage.event_batch import EventBatch, decode_batch, encode_batch
from storage.fingerprint import fingerprint

SPOOL_VERSION = 1
MIN_FREE_BYTES = 1024 * 1024
"""A disk with less does not take batches for long; `put` tries all the same."""
_ADOPT_BYTES = 4 * 1024 * 1024
_BUSY_MS = 5000

_log = logging.getLogger(__name__)


class SpooledBatch(NamedTuple):
    id: int
    batch: EventBatch


class SpooledHour(NamedTuple):
    """Key of `Spool.counts`: whose events, received in which hour since the Unix epoch."""

    project_id: str
    hour: int


class SpoolDepth(NamedTuple):
    """What waits in a spool, and what of it cannot be read."""

    batches: int
    bytes: int
    damaged: int


class Spool:
    """A bounded queue on disk. `depth`, `bytes` and the counts are known without asking the disk."""

    def __init__(self, path: Path, *, max_bytes: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.path = path
        self._max_bytes = max_bytes
        self.depth: Counter[int] = Counter()
        """Waiting batches by partition."""
        self.bytes = 0
        self.events: Counter[SpooledHour] = Counter()
        self.rejected: Counter[SpooledHour] = Counter()
        self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=_BUSY_MS / 1000)
        self._open()

    def _open(self) -> None:
        [version] = self._db.execute("PRAGMA user_version").fetchone()
        if version not in (0, SPOOL_VERSION):
            raise FormatError(f"{self.path} has version {version}; this release reads {SPOOL_VERSION}: upgrade it")
        # Before anything is written: to a file that has pages it is a wish, fulfilled by the next VACUUM.
        self._db.execute("PRAGMA auto_vacuum=INCREMENTAL")
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=FULL")
        self._db.execute(
            "CREATE TABLE IF NOT EXISTS spool"
            " (id INTEGER PRIMARY KEY AUTOINCREMENT, partition INTEGER NOT NULL, bytes INTEGER NOT NULL,"
            " batch BLOB NOT NULL)"
        )
        self._db.execute(f"PRAGMA user_version={SPOOL_VERSION}")
        self._db.execute(
            "CREATE TABLE IF NOT EXISTS damaged"
            " (id INTEGER PRIMARY KEY, partition INTEGER NOT NULL, bytes INTEGER NOT NULL, batch BLOB NOT NULL,"
            " reason TEXT NOT NULL)"
        )
        unreadable: list[tuple[str, int]] = []
        for row_id, size, raw in self._db.execute("SELECT id, bytes, batch FROM spool"):
            try:
                self._count(size, decode_batch(raw), sign=1)
            except FormatError as error:
                unreadable.append((str(error), row_id))
        self._set_aside(unreadable)
        if not self.bytes:
            self._give_space_back()

    def _set_aside(self, unreadable: Sequence[tuple[str, int]]) -> None:
        if not unreadable:
            return
        self._db.execute("BEGIN IMMEDIATE")
        self._db.executemany(
            "INSERT INTO damaged SELECT id, partition, bytes, batch, ? FROM spool WHERE id = ?", unreadable
        )
        self._db.executemany("DELETE FROM spool WHERE id = ?", [(row_id,) for _, row_id in unreadable])
        self._db.execute("COMMIT")
        fields = {"action": "spool_damaged", "path": str(self.path), "batches": len(unreadable)}
        _log.error("batches of the spool cannot be read and were set aside", extra=fields | {"error": unreadable[0][0]})

    @property
    def has_room(self) -> bool:
        """Whether a batch can be put now: below the bound, and on the disk."""
        return self.bytes < self._max_bytes and shutil.disk_usage(self.path.parent).free >= MIN_FREE_BYTES

    def put(self, batches: Sequence[EventBatch]) -> None:
        """All of them on disk, or `SpoolFull` and none."""
        encoded = [encode_batch(batch) for batch in batches]
        if self.bytes + sum(map(len, encoded)) > self._max_bytes:
            raise SpoolFull(f"the spool holds {self.bytes} of {self._max_bytes} bytes")
        try:
            self._db.execute("BEGIN IMMEDIATE")
            self._db.executemany(
                "INSERT INTO spool (partition, bytes, batch) VALUES (?, ?, ?)",
                [(batch.partition, len(raw), raw) for batch, raw in zip(batches, encoded, strict=True)],
            )
            self._db.execute("COMMIT")
        except sqlite3.Error as error:
            self._roll_back()
            raise SpoolFull(f"the spool's disk does not take more: {error}") from error
        for batch, raw in zip(batches, encoded, strict=True):
            self._count(len(raw), batch, sign=1)

    def oldest(self, partitions: Sequence[int], *, max_bytes: int) -> list[SpooledBatch]:
        """The oldest batches of the partitions up to a size, one at least, or none. Raises `Unavailable`."""
        chosen: list[SpooledBatch] = []
        size = 0
        wanted = ",".join(str(int(partition)) for partition in partitions)
        try:
            rows = self._db.execute(f"SELECT id, bytes, batch FROM spool WHERE partition IN ({wanted}) ORDER BY id")
            for row_id, row_bytes, raw in rows:
                if chosen and size + row_bytes > max_bytes:
                    break
                chosen.append(SpooledBatch(row_id, decode_batch(raw)))
                size += row_bytes
            rows.close()
        except sqlite3.Error as error:
            raise Unavailable(f"the spool cannot be read: {error}") from error
        return chosen

    def adopt(self, path: Path) -> None:
        """Take over all of another spool. Raises `SpoolFull` and leaves the rest.

        Its file is then removed, unless damaged batches are left in it."""
        other = Spool(path, max_bytes=0)
        partitions = list(other.depth)
        while moved := other.oldest(partitions, max_bytes=_ADOPT_BYTES):
            self.put([spooled.batch for spooled in moved])
            other.remove(moved)
        [damaged] = other._db.execute("SELECT count(*) FROM damaged").fetchone()
        other.close()
        if not damaged:
            path.unlink()

    def remove(self, done: Sequence[SpooledBatch]) -> None:
        """Forget batches that are in the log now."""
        try:
            self._db.execute("BEGIN IMMEDIATE")
            self._db.executemany("DELETE FROM spool WHERE id = ?", [(spooled.id,) for spooled in done])
            self._db.execute("COMMIT")
        except sqlite3.Error as error:
            self._roll_back()
            raise SpoolFull(f"the spool's disk does not take a deletion: {error}") from error
        for spooled in done:
            self._count(len(encode_batch(spooled.batch)), spooled.batch, sign=-1)
        if not self.bytes:
            self._give_space_back()

    def _give_space_back(self) -> None:
        """To the disk, as far as that goes: what stays is used again, and the next time may do better."""
        try:
            if self._db.execute("PRAGMA auto_vacuum").fetchone() == (0,):
                # Made by a release that asked for it too late.
                self._db.execute("VACUUM")
            # `execute` would free one page: it does not step through a statement without columns.
            self._db.executescript("PRAGMA incremental_vacuum")
            # Puts wait meanwhile; a reader is no reason to.
            self._db.execute("PRAGMA busy_timeout=0")
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        except sqlite3.Error as error:
            fields = {"action": "spool_not_shrunk", "path": str(self.path), "error": str(error)}
            _log.warning("the spool keeps its space", extra=fields)
        finally:
            self._db.execute(f"PRAGMA busy_timeout={_BUSY_MS}")

    def close(self) -> None:
        self._db.close()

    def _roll_back(self) -> None:
        if self._db.in_transaction:
            self._db.execute("ROLLBACK")

    def _count(self, size: int, batch: EventBatch, *, sign: int) -> None:
        self.depth[batch.partition] += sign
        self.bytes += sign * size
        for segment in batch.segments:
            key = SpooledHour(segment.project_id, segment.hour)
            for counter, amount in ((self.events, segment.events), (self.rejected, segment.rejected)):
                counter[key] += sign * amount
                if not counter[key]:
                    del counter[key]


def read_counts(path: Path) -> tuple[Counter[SpooledHour], Counter[SpooledHour]]:
    """Events and refused ones in a spool, whoever writes it. Reads all of it. Raises `Unavailable`."""
    events, rejected = Counter[SpooledHour](), Counter[SpooledHour]()
    for batch in _batches_of(path):
        for segment in batch.segments:
            key = SpooledHour(segment.project_id, segment.hour)
            events[key] += segment.events
            rejected[key] += segment.rejected
    return events, rejected


def read_depth(path: Path) -> SpoolDepth:
    """How much is in a spool, whoever writes it. Raises `Unavailable`."""
    with _read_only(path) as db:
        batches, size = db.execute("SELECT count(*), coalesce(sum(bytes), 0) FROM spool").fetchone()
        [damaged] = db.execute("SELECT count(*) FROM damaged").fetchone()
    return SpoolDepth(batches, size, damaged)


def spool_holds(path: Path, project_id: str, event_id: str) -> bool:
    """Whether an event is in a spool, by its fingerprint. Reads all of it. Raises `Unavailable`."""
    wanted = fingerprint(project_id, event_id)
    return any(wanted in np.frombuffer(batch.fingerprints, dtype="<u8") for batch in _batches_of(path))


def _batches_of(path: Path) -> Iterator[EventBatch]:
    with _read_only(path) as db:
        for (raw,) in db.execute("SELECT batch FROM spool"):
            yield decode_batch(raw)


@contextmanager
def _read_only(path: Path) -> Iterator[sqlite3.Connection]:
    db: sqlite3.Connection | None = None
    try:
        db = sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True)
        yield db
    except (sqlite3.Error, FormatError) as error:
        raise Unavailable(f"{path} cannot be read: {error}") from error
    finally:
        if db is not None:
            db.close()
