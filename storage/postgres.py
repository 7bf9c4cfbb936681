"""PostgreSQL's driver, and where it ends: every use has a deadline, every error is a storage error.

`Postgres` is a pool that connects when it is first needed, so that a process starts while the server is
away. Within `session` and `transaction`:
- the whole block, waiting for a connection included, ends at its deadline;
- an error that the server answered with leaves the connection usable; after anything else (deadline,
  cancellation, a lost server) the connection is cut at once, never waited for;
- what leaves the block is an error of storage.errors.

The server has the same deadline (statement, lock and transaction timeout), so that it does not go on with
what nobody waits for.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import TypeAlias

import asyncpg
from asyncpg.pool import PoolConnectionProxy

from storage.errors import StorageError, Unavailable, is_broken_transport

_DEADLINES = ("statement_timeout", "lock_timeout", "transaction_timeout")
_SET_DEADLINE = "SELECT " + ", ".join(f"set_config('{name}', $1, true)" for name in _DEADLINES)

Connection: TypeAlias = "PoolConnectionProxy[asyncpg.Record]"


class Postgres:
    """A pool of connections of one owner, made when first needed. Close it."""

    def __init__(
        self, url: str, *, owner: str, pool_size: int, deadline_s: float, connect_timeout_s: float = 5.0
    ) -> None:
        """`owner` is what pg_stat_activity shows (application_name); `deadline_s` holds where none is given."""
        self._url = url
        self._pool_size = pool_size
        self._deadline_s = deadline_s
        self._connect_timeout_s = connect_timeout_s
        self._server_settings = _server_settings(owner, deadline_s)
        self._pool: asyncpg.Pool[asyncpg.Record] | None = None
        self._opening = asyncio.Lock()

    @asynccontextmanager
    async def session(self) -> AsyncIterator[Connection]:
        """A connection on which every statement is a transaction of its own."""
        async with self._lease(self._deadline_s) as connection:
            yield connection

    @asynccontextmanager
    async def _lease(self, deadline_s: float) -> AsyncIterator[Connection]:
        with translated():
            async with asyncio.timeout(deadline_s):
                pool = await self._opened()
                connection = await pool.acquire()
                try:
                    yield connection
                except (asyncpg.PostgresError, StorageError):
                    raise
                except BaseException:
                    connection.terminate()
                    raise
                finally:
                    await pool.release(connection)

    @asynccontextmanager
    async def transaction(
        self, *, deadline_s: float | None = None, snapshot: bool = False
    ) -> AsyncIterator[Connection]:
        """One transaction, committed at the block's end; with `snapshot` all of it sees one state, read only."""
        async with self._lease(deadline_s or self._deadline_s) as connection:
            transaction = connection.transaction(
                isolation="repeatable_read" if snapshot else "read_committed", readonly=snapshot
            )
            await transaction.start()
            try:
                if deadline_s is not None:
                    await connection.execute(_SET_DEADLINE, str(int(deadline_s * 1000)))
                yield connection
            except (asyncpg.PostgresError, StorageError):
                if not connection.is_closed():
                    await transaction.rollback()
                raise
            await transaction.commit()

    async def check(self) -> None:
        """Raises `Unavailable` unless the server answers a query."""
        async with self.session() as connection:
            await connection.execute("SELECT 1")

    async def _opened(self) -> "asyncpg.Pool[asyncpg.Record]":
        async with self._opening:
            if self._pool is None:
                self._pool = await asyncpg.create_pool(
                    self._url,
                    min_size=0,
                    max_size=self._pool_size,
                    timeout=self._connect_timeout_s,
                    reset=_nothing_to_reset,
                    server_settings=self._server_settings,
                )
            return self._pool

    async def close(self, *, deadline_s: float = 5.0) -> None:
        """Close the connections; those still busy after the deadline are cut."""
        if self._pool is None:
            return
        try:
            async with asyncio.timeout(deadline_s):
                await self._pool.close()
        except TimeoutError:
            self._pool.terminate()


async def _nothing_to_reset(_: object) -> None:
    """Sessions change nothing but by SET LOCAL, so that a round trip at each release is saved."""


def _server_settings(owner: str, deadline_s: float) -> dict[str, str]:
    deadline_ms = str(int(deadline_s * 1000))
    return {
        "application_name": owner,
        "timezone": "UTC",
        "synchronous_commit": "on",
        **dict.fromkeys(_DEADLINES, deadline_ms),
        # A client whose machine is gone is noticed after a minute, also in the middle of COPY.
        "tcp_keepalives_idle": "30",
        "tcp_keepalives_interval": "10",
        "tcp_keepalives_count": "3",
        # Short queries over daily partitions: compiling them would cost more than running them.
        "jit": "off",
    }


@contextmanager
def translated() -> Iterator[None]:
    """What asyncpg raises, deadlines and lost connections leave this block as `Unavailable`.

    All of it: whoever runs for long (batcher, gateway) tries again until a person has put right what is
    wrong. Errors that say something about the data are caught where they are expected.
    """
    try:
        yield
    except asyncpg.PostgresError as error:
        raise Unavailable(f"PostgreSQL: {error} (SQLSTATE {error.sqlstate})") from error
    except (asyncpg.InterfaceError, asyncpg.InternalClientError, TimeoutError, OSError) as error:
        # The driver's internal error is what it says of a session that the server has just ended.
        raise Unavailable(f"PostgreSQL did not answer: {type(error).__name__} {error}".rstrip()) from error
    except RuntimeError as error:
        if not is_broken_transport(error):
            raise
        raise Unavailable("PostgreSQL did not answer: the connection broke") from error
