"""What a gateway knows of API keys, on disk: with it a gateway that starts while PostgreSQL is away serves.

SQLite, format version 1 (`PRAGMA user_version`): `keys(key_hash BLOB PRIMARY KEY, key_id, project_id, kind,
expires_at)` with times as Unix seconds, only keys that are not revoked, and `progress(since)`, the position in the
registry's changes (`storage.registry.KeyChanges`). It is a copy: a file that cannot be read, or is of
another version, is made anew and filled from PostgreSQL. One file a gateway worker; one thread at a time.
"""

import logging
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from storage.key_text import KeyKind

VERSION = 1

log = logging.getLogger(__name__)


class CachedKey(NamedTuple):
    """`expires_at` is Unix time in seconds, infinite for a key that does not expire."""

    key_hash: bytes
    key_id: str
    project_id: str | None
    kind: KeyKind
    expires_at: float


class KeyCacheFile:
    """Close it. A failure to write is logged and leaves the file as it was: the copy is then older."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._path = path
        try:
            self._db = self._open()
        except sqlite3.DatabaseError as error:
            fields = {"action": "key_cache_recreated", "path": str(path), "reason": str(error)}
            log.warning("the key cache cannot be read and is made anew", extra=fields)
            self._remove()
            self._db = self._open()

    def _open(self) -> sqlite3.Connection:
        db = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
        try:
            [version] = db.execute("PRAGMA user_version").fetchone()
            if version not in (0, VERSION):
                raise sqlite3.DatabaseError(f"version {version}, this release has {VERSION}")
            db.execute("PRAGMA journal_mode=WAL")
            db.execute("PRAGMA synchronous=NORMAL")
            db.execute(
                "CREATE TABLE IF NOT EXISTS keys (key_hash BLOB PRIMARY KEY, key_id TEXT NOT NULL, project_id TEXT,"
                " kind TEXT NOT NULL, expires_at REAL NOT NULL) WITHOUT ROWID"
            )
            db.execute("CREATE TABLE IF NOT EXISTS progress (only INTEGER PRIMARY KEY CHECK (only = 1), since INTEGER)")
            db.execute(f"PRAGMA user_version={VERSION}")
        except sqlite3.DatabaseError:
            db.close()
            raise
        return db

    def _remove(self) -> None:
        for suffix in ("", "-wal", "-shm"):
            self._path.with_name(self._path.name + suffix).unlink(missing_ok=True)

    def load(self) -> tuple[list[CachedKey], int]:
        """All keys, and how far the registry's changes were followed (0: never)."""
        keys = [CachedKey(*row) for row in self._db.execute("SELECT * FROM keys")]
        progress = self._db.execute("SELECT since FROM progress").fetchone()
        return keys, progress[0] if progress else 0

    def save(self, valid: Sequence[CachedKey], revoked: Sequence[bytes], *, since: int) -> None:
        """Take over changes up to `since`, in one transaction."""
        try:
            self._db.execute("BEGIN IMMEDIATE")
            self._db.executemany("INSERT OR REPLACE INTO keys VALUES (?, ?, ?, ?, ?)", valid)
            self._db.executemany("DELETE FROM keys WHERE key_hash = ?", [(key_hash,) for key_hash in revoked])
            self._db.execute("INSERT OR REPLACE INTO progress VALUES (1, ?)", (since,))
            self._db.execute("COMMIT")
        except sqlite3.Error as error:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            fields = {"action": "key_cache_not_saved", "path": str(self._path), "reason": str(error)}
            log.warning("changes of keys were not saved to disk", extra=fields)

    def close(self) -> None:
        self._db.close()
