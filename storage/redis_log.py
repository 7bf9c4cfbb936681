"""The partition log in Redis or Valkey streams. The contract is `storage.partition_log`.

Stored format, version 1. Three keys a partition, which share a hash tag and so a node of a cluster:

- `log:{p007}`    stream of records, entry id `<offset>-1` (0-0 is none), field `r`: a `LogRecord`
- `ids:{p007}`    stream of fingerprints, entry id `<appended_ms>-<offset>`, field `f`: 8 bytes little endian each.
                  The server's clock; while it is behind the last entry, entries keep the last entry's time
- `state:{p007}`  hash: epoch, owner, first_offset, next_offset, ids_since_ms, ids_last_ms

Everything that writes is one Lua script (`storage/lua`), so that the fence and what it guards are one step.

The client never sends a command twice by itself: a second append would be answered "fenced" by the first.
A script that the server does not have (NOSCRIPT: it was restarted) was not run, so only that is sent again,
in full. A connection on which something went wrong, a deadline included, is closed: a late answer can never be
taken for another command's.
"""

import asyncio
import hashlib
import uuid
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, NoPermissionError, NoScriptError, OutOfMemoryError, RedisError

from config.settings import LogSettings
from storage.errors import Fenced, LogLost, Misconfigured, Unavailable
from storage.partition_log import Append, AppendOutcome, IdsEntry, LogState

CONNECTIONS = 8
"""At most, per process: an append, some reads and trims at once. More calls wait, within their deadline."""

IDS_PAGE_BYTES = 4 * 1024 * 1024
"""Of fingerprints in one answer of `read_ids`: large enough that the round trip does not count."""

FIRST_IDS_PAGE, SMALLEST_IDS_PAGE, LARGEST_IDS_PAGE = 200, 16, 20_000
"""Entries; an entry has from one id to some ten thousands, so the page follows what the last one held."""

REQUIRED_SETTINGS = {"appendonly": "yes", "appendfsync": "always", "maxmemory-policy": "noeviction"}
OLDEST_VERSION = 7

_STATE_FIELDS = ("epoch", "first_offset", "next_offset", "ids_since_ms")
_OUTCOMES: dict[bytes, AppendOutcome] = {b"appended": "appended", b"fenced": "fenced", b"lost": "lost"}


class Script:
    """A Lua script of `storage/lua`, and the name by which the server knows it once it has it."""

    def __init__(self, name: str) -> None:
        self.source = (Path(__file__).parent / "lua" / f"{name}.lua").read_bytes()
        self.sha = hashlib.sha1(self.source, usedforsecurity=False).hexdigest()


_APPEND, _ACQUIRE, _RENEW, _TRIM = (Script(name) for name in ("append", "acquire", "renew", "trim"))


class RedisLog:
    """`owner` names this writer, and this life of it alone; None makes a name up. See `renew`."""

    def __init__(self, url: str, settings: LogSettings, *, owner: str | None = None) -> None:
        self._timeout_s = settings.command_timeout_s
        self._owner = owner or uuid.uuid4().hex
        self._pool = BlockingConnectionPool.from_url(
            url,
            max_connections=CONNECTIONS,
            timeout=self._timeout_s,
            retry=Retry(NoBackoff(), 0),
            protocol=2,
            # One deadline for the whole call, see `_translated`; these would be several.
            socket_timeout=None,
            socket_connect_timeout=self._timeout_s,
        )
        self._redis = Redis(connection_pool=self._pool)
        # The client's own would make a dictionary of every entry.
        self._redis.set_response_callback("XRANGE", _as_it_is)

    async def check(self) -> None:
        async with self._translated("check of its settings"):
            info = await self._redis.info("server")
            try:
                found = {name: (await self._redis.config_get(name)).get(name) for name in REQUIRED_SETTINGS}
            except RedisError as error:
                if not _is_refusal(error):
                    raise
                raise Misconfigured(
                    f"CONFIG GET is not allowed on this Redis ({error}), so nobody can tell whether it keeps what it "
                    "acknowledges: allow it to this user (ACL +config|get)"
                ) from error
        _require_version(str(info["redis_version"]))
        _require_settings(found)

    async def state(self, partitions: Sequence[int]) -> list[LogState | None]:
        commands = [("HMGET", _state_key(partition), *_STATE_FIELDS) for partition in partitions]
        async with self._translated("state"):
            replies = await self._send(commands)
        return [_to_state(_checked(reply)) for reply in replies]

    async def acquire(self, partition: int, *, at_least: LogState | None) -> LogState:
        known = at_least or LogState(-1, 0, 0, 0)
        async with self._translated("acquire"):
            [reply] = await self._run(_ACQUIRE, [(_keys(partition), (self._owner, *known))])
        if reply is None:
            raise LogLost(f"Redis has no state of partition {partition}")
        return LogState(*map(int, reply))

    async def renew(self, partition: int, *, epoch: int) -> LogState:
        async with self._translated("renew"):
            [reply] = await self._run(_RENEW, [((_state_key(partition),), (self._owner, epoch))])
        if reply == b"fenced":
            raise Fenced(f"partition {partition} has an owner after epoch {epoch}")
        if reply == b"lost":
            raise LogLost(f"Redis has no state of partition {partition}, or one before epoch {epoch}")
        return LogState(*map(int, reply))

    async def append(self, appends: Sequence[Append]) -> list[AppendOutcome]:
        calls = [(_keys(a.partition), (a.epoch, a.offset, a.record, a.fingerprints)) for a in appends]
        async with self._translated("append"):
            replies = await self._run(_APPEND, calls, full_is_a_reply=True)
        return ["full" if isinstance(reply, OutOfMemoryError) else _OUTCOMES[reply] for reply in replies]

    async def read(self, partition: int, from_offset: int, *, max_records: int) -> list[tuple[int, bytes]]:
        async with self._translated("read"):
            entries = await self._range(_log_key(partition), f"{from_offset}-0", max_records)
        return [(int(entry_id.split(b"-")[0]), fields[1]) for entry_id, fields in entries]

    async def read_ids(self, partition: int) -> AsyncIterator[IdsEntry]:
        start, count = "-", FIRST_IDS_PAGE
        while True:
            async with self._translated("read of ids"):
                page = await self._range(_ids_key(partition), start, count)
            for entry_id, fields in page:
                yield IdsEntry(int(entry_id.split(b"-")[0]), fields[1])
            if len(page) < count:
                return
            start = f"({page[-1][0].decode()}"
            page_bytes = sum(len(fields[1]) for _, fields in page)
            count = min(max(IDS_PAGE_BYTES * len(page) // page_bytes, SMALLEST_IDS_PAGE), LARGEST_IDS_PAGE)

    async def trim(self, partition: int, *, epoch: int, below_offset: int, ids_before_ms: int) -> None:
        async with self._translated("trim"):
            await self._run(_TRIM, [(_keys(partition), (epoch, below_offset, ids_before_ms))])

    async def close(self) -> None:
        await self._pool.aclose()

    async def _run(
        self, script: Script, calls: Sequence[tuple[Sequence[str], Sequence[Any]]], *, full_is_a_reply: bool = False
    ) -> list[Any]:
        """Run a script for each of (keys, arguments) in one round trip."""
        arguments = [(len(keys), *keys, *values) for keys, values in calls]
        replies = await self._send([("EVALSHA", script.sha, *each) for each in arguments])
        unknown = [index for index, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
        if unknown:
            in_full = await self._send([("EVAL", script.source, *arguments[index]) for index in unknown])
            for index, reply in zip(unknown, in_full, strict=True):
                replies[index] = reply
        return [
            reply if full_is_a_reply and isinstance(reply, OutOfMemoryError) else _checked(reply) for reply in replies
        ]

    async def _send(self, commands: Sequence[Sequence[Any]]) -> list[Any]:
        """One pipeline without MULTI. A command's error is its reply; a broken connection is raised."""
        if not commands:
            return []
        pipeline = self._redis.pipeline(transaction=False)
        for command in commands:
            pipeline.execute_command(*command)
        return await pipeline.execute(raise_on_error=False)

    async def _range(self, key: str, start: str, count: int) -> list[tuple[bytes, list[bytes]]]:
        [reply] = await self._send([("XRANGE", key, start, "+", "COUNT", count)])
        entries: list[tuple[bytes, list[bytes]]] = _checked(reply)
        return entries

    @asynccontextmanager
    async def _translated(self, what: str) -> AsyncIterator[None]:
        """The deadline of a whole call, and the driver's errors as ours. Whatever interrupts a call, the driver
        closes the connection that it was on."""
        try:
            async with asyncio.timeout(self._timeout_s):
                yield
        except TimeoutError as error:
            raise Unavailable(f"Redis: no answer to {what} within {self._timeout_s} s") from error
        except (AuthenticationError, NoPermissionError) as error:
            raise Misconfigured(f"Redis refuses {what}: {error}; check user, password and ACL") from error
        except (RedisError, OSError) as error:
            raise Unavailable(f"Redis: {what}: {error}") from error


def _state_key(partition: int) -> str:
    return f"state:{{p{partition:03}}}"


def _log_key(partition: int) -> str:
    return f"log:{{p{partition:03}}}"


def _ids_key(partition: int) -> str:
    return f"ids:{{p{partition:03}}}"


def _keys(partition: int) -> tuple[str, str, str]:
    return _state_key(partition), _log_key(partition), _ids_key(partition)


def _as_it_is(response: Any, **_: Any) -> Any:
    return response


def _checked(reply: Any) -> Any:
    if isinstance(reply, RedisError):
        raise reply
    return reply


def _to_state(values: list[bytes | None]) -> LogState | None:
    return None if values[0] is None else LogState(*(int(value or 0) for value in values))


def _is_refusal(error: RedisError) -> bool:
    return isinstance(error, NoPermissionError) or "unknown command" in str(error).lower()


def _require_version(version: str) -> None:
    if int(version.split(".", maxsplit=1)[0]) < OLDEST_VERSION:
        raise Misconfigured(f"Redis {version} is too old: {OLDEST_VERSION} or later is needed, or any Valkey")


def _wrong_settings(found: dict[str, str | None]) -> Iterator[str]:
    for name, wanted in REQUIRED_SETTINGS.items():
        if found[name] != wanted:
            yield f"`{name} {wanted}` (it is {found[name]})"


def _require_settings(found: dict[str, str | None]) -> None:
    wrong = list(_wrong_settings(found))
    if wrong:
        raise Misconfigured(f"Redis would not keep what it acknowledges: set {', '.join(wrong)}")
