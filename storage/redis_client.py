"""One way to talk to Redis: pipelines of plain commands under a deadline, errors as those of storage.errors.

The client never sends a command twice by itself. A script that the server does not have (NOSCRIPT: it was
restarted) was not run, so only that is sent again, in full. A connection on which something went wrong, a deadline
included, is closed: a late answer can never be taken for another command's.
"""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from redis.asyncio import BlockingConnectionPool, Connection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, NoPermissionError, NoScriptError, RedisError, ResponseError

from storage.errors import Misconfigured, Unavailable, is_broken_transport


class Script:
    """A Lua script of `storage/lua`, and the name by which the server knows it once it has it."""

    def __init__(self, name: str) -> None:
        self.source = (Path(__file__).parent / "lua" / f"{name}.lua").read_bytes()
        self.sha = hashlib.sha1(self.source, usedforsecurity=False).hexdigest()


class RedisClient:
    """Answers are as the server gives them (RESP2): bytes, integers, lists, None. Close it.

    Commands go through redis-py's connections, not through its pipelines, which make Python objects of some answers.
    """

    def __init__(self, url: str, *, connections: int, timeout_s: float) -> None:
        """More calls than `connections` at once wait, within their deadline. Raises `Misconfigured` when the URL is
        none of Redis; the URL is not told, it may hold a password."""
        self._timeout_s = timeout_s
        try:
            self._pool = BlockingConnectionPool.from_url(
                url,
                max_connections=connections,
                timeout=timeout_s,
                retry=Retry(NoBackoff(), 0),
                protocol=2,
                # One deadline for the whole call, see `deadline`; these would be several.
                socket_timeout=None,
                socket_connect_timeout=timeout_s,
            )
        except ValueError:
            raise Misconfigured(
                "log.redis_url is no URL of a Redis: write it as redis://user:password@host:6379/0"
            ) from None

    @asynccontextmanager
    async def deadline(self, what: str, *, added_s: float = 0.0) -> AsyncIterator[None]:
        """Every use of the client is in such a block: it ends in time (`added_s` later), its errors are ours."""
        timeout_s = self._timeout_s + added_s
        try:
            async with asyncio.timeout(timeout_s):
                yield
        except TimeoutError as error:
            raise Unavailable(f"Redis: no answer to {what} within {timeout_s} s") from error
        except (AuthenticationError, NoPermissionError) as error:
            raise Misconfigured(f"Redis refuses {what}: {error}; check user, password and ACL") from error
        except (RedisError, OSError) as error:
            raise Unavailable(f"Redis: {what}: {error}") from error
        except RuntimeError as error:
            if not is_broken_transport(error):
                raise
            raise Unavailable(f"Redis: the connection broke during {what}") from error

    async def send(self, commands: Sequence[Sequence[Any]]) -> list[Any]:
        """The answers to commands that go out in one round trip; the first error among them is raised."""
        return [checked(reply) for reply in await self._send(commands)]

    async def run(self, script: Script, keys: Sequence[str], arguments: Sequence[Any]) -> Any:
        [reply] = await self.run_each(script, [(keys, arguments)])
        return checked(reply)

    async def run_each(self, script: Script, calls: Sequence[tuple[Sequence[str], Sequence[Any]]]) -> list[Any]:
        """Run a script for each of (keys, arguments) in one round trip. A call's error is its reply, see `checked`."""
        arguments = [(len(keys), *keys, *values) for keys, values in calls]
        replies = await self._send([("EVALSHA", script.sha, *each) for each in arguments])
        unknown = [index for index, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
        if unknown:
            in_full = await self._send([("EVAL", script.source, *arguments[index]) for index in unknown])
            for index, reply in zip(unknown, in_full, strict=True):
                replies[index] = reply
        return replies

    async def _send(self, commands: Sequence[Sequence[Any]]) -> list[Any]:
        """A command's error is its reply; a broken connection is raised."""
        if not commands:
            return []
        connection: Connection = await self._pool.get_connection()  # type: ignore[no-untyped-call]
        try:
            await connection.send_packed_command(connection.pack_commands(commands))
            return [await _reply(connection) for _ in commands]
        except BaseException:
            # Answers that were not read would be taken for those of the next commands.
            await connection.disconnect(nowait=True)
            raise
        finally:
            await self._pool.release(connection)

    async def close(self) -> None:
        await self._pool.aclose()


async def _reply(connection: Connection) -> Any:
    try:
        return await connection.read_response()
    except ResponseError as error:
        return error


def checked(reply: Any) -> Any:
    """The reply, if it is none; an error is raised."""
    if isinstance(reply, RedisError):
        raise reply
    return reply
