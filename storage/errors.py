"""Errors of the storage layer. Errors of a driver (asyncpg, redis, sqlite3, botocore) never leave it.

StorageError
├── FormatError        stored bytes are damaged or of an unknown version
├── Unavailable        a service did not answer in time or refused the connection: try again
│   └── FileUnavailable    a file of the lake is missing or damaged; the message names it
├── Fenced             another owner has taken the partition over: stop writing
├── LogLost            the partition's log state is gone (FLUSHALL, lost disk): open it anew
├── LogFull            the log's memory is at its bound: slow down
├── SpoolFull          the spool is at its bound or its disk is full
├── NotFound           no such row
├── Missing            no such object
├── Conflict           such a row exists already
└── Misconfigured      a service is reachable and not usable as it is set up; the message says what to change
"""


class StorageError(Exception):
    """Any failure of a storage call as a whole."""


class FormatError(StorageError):
    """Stored bytes are damaged or of an unknown version."""


class Unavailable(StorageError):
    """A service did not answer in time or refused the connection; the call's outcome may be unknown."""


class FileUnavailable(Unavailable):
    """A file of the lake is not there, or not what was put there. The message names it, and no place beyond its key."""


class Fenced(StorageError):
    """Another owner has taken the partition over (FN-1)."""


class LogLost(StorageError):
    """The partition's state in Redis is gone or older than what this owner knows."""


class LogFull(StorageError):
    """The log cannot take more before something is trimmed."""


class SpoolFull(StorageError):
    """The spool is at its bound, or its disk is full."""


class NotFound(StorageError):
    """No such row."""


class Missing(StorageError):
    """No object of that key is in the object store."""


class Conflict(StorageError):
    """Such a row exists already."""


class Misconfigured(StorageError):
    """A service is reachable and not usable as it is set up."""


def is_broken_transport(error: RuntimeError) -> bool:
    """Whether this is uvloop's word for a write to a connection that has just broken.

    Drivers are written for asyncio's transports, which ignore such a write and let the reader say what happened.
    """
    return "the handler is closed" in str(error)
