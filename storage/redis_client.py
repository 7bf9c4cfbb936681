"""One way to talk to Redis: pipelines of plain commands under a deadline, errors as those of storage.errors.

The client never sends a command twice by itself. A script that the server does not have (NOSCRIPT: it was
restarted) was not run, so only that is sent again, in full. A connection on which something went wrong, a deadline
included, is closed: a late answer can never be taken for another command's.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, NoPermissionError, NoScriptError, RedisError

from storage.errors import Misconfigured, Unavailable
from storage.redis_log import Script

_AS_THEY_ARE = ("XREAD", "XRANGE", "HGETALL", "SMEMBERS")
"""Answers that the client would make dictionaries and sets of."""


class RedisClient:
    """Answers are as the server gives them (RESP2): bytes, integers, lists, None. Close it."""

    def __init__(self, url: str, *, connections: int, timeout_s: float) -> None:
        self._timeout_s = timeout_s
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
        self._redis = Redis(connection_pool=self._pool)
        for command in _AS_THEY_ARE:
            self._redis.set_response_callback(command, _as_it_is)

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

    async def send(self, commands: Sequence[Sequence[Any]]) -> list[Any]:
        """The answers to commands that go out in one round trip; the first error among them is raised."""
        return [_checked(reply) for reply in await self._send(commands)]

    async def run(self, script: Script, keys: Sequence[str], arguments: Sequence[Any]) -> Any:
        call = (len(keys), *keys, *arguments)
        [reply] = await self._send([("EVALSHA", script.sha, *call)])
        if isinstance(reply, NoScriptError):
            [reply] = await self._send([("EVAL", script.source, *call)])
        return _checked(reply)

    async def _send(self, commands: Sequence[Sequence[Any]]) -> list[Any]:
        """One pipeline without MULTI. A command's error is its reply; a broken connection is raised."""
        if not commands:
            return []
        pipeline = self._redis.pipeline(transaction=False)
        for command in commands:
            pipeline.execute_command(*command)
        return await pipeline.execute(raise_on_error=False)

    async def close(self) -> None:
        await self._pool.aclose()


def _as_it_is(response: Any, **_: Any) -> Any:
    return response


def _checked(reply: Any) -> Any:
    if isinstance(reply, RedisError):
        raise reply
    return reply
