"""The partition log in Redis or Valkey streams. The contract is `storage.partition_log`.

Stored format, version 1. Three keys a partition, which share a hash tag and so a node of a cluster:

- `log:{p007}`    stream of records, entry id `<offset>-1` (0-0 is none), field `r`: a `LogRecord`
- `ids:{p007}`    stream of fingerprints, entry id `<appended_ms>-<offset>`, field `f`: 8 bytes little endian each.
                  The server's clock; while it is behind the last entry, entries keep the last entry's time
- `state:{p007}`  hash: epoch, owner, first_offset, next_offset, ids_since_ms, ids_last_ms

Everything that writes is one Lua script (`storage/lua`), so that the fence and what it guards are one step.

`storage.redis_client` never sends a command twice by itself: a second append would be answered "fenced" by the
first.
"""

import uuid
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

from redis.exceptions import NoPermissionError, OutOfMemoryError, RedisError

from config.settings import LogSettings
from storage.errors import Fenced, LogLost, Misconfigured
from storage.partition_log import Append, AppendOutcome, IdsEntry, LogState, Trim
from storage.redis_client import RedisClient, Script, checked

CONNECTIONS = 8
"""At most, per process: an append, some reads and trims at once. More calls wait, within their deadline."""

IDS_PAGE_BYTES = 4 * 1024 * 1024
"""Of fingerprints in one answer of `read_ids`: large enough that the round trip does not count."""

FIRST_IDS_PAGE, SMALLEST_IDS_PAGE, LARGEST_IDS_PAGE = 200, 16, 20_000
"""Entries; an entry has from one id to some ten thousands, so the page follows what the last one held."""

FORGOTTEN_AT_ONCE = 1000
"""Entries: Redis does nothing else meanwhile."""

REQUIRED_SETTINGS = {"appendonly": "yes", "appendfsync": "always", "maxmemory-policy": "noeviction"}
OLDEST_VERSION = 7

_STATE_FIELDS = ("epoch", "first_offset", "next_offset", "ids_since_ms")
_OUTCOMES: dict[bytes, AppendOutcome] = {b"appended": "appended", b"fenced": "fenced", b"lost": "lost"}


_APPEND, _ACQUIRE, _RENEW, _TRIM, _IDS_OF = (Script(name) for name in ("append", "acquire", "renew", "trim", "ids_of"))


class RedisLog:
    """`owner` names this writer, and this life of it alone; None makes a name up. See `renew`."""

    def __init__(self, url: str, settings: LogSettings, *, owner: str | None = None) -> None:
        self._owner = owner or uuid.uuid4().hex
        self._redis = RedisClient(url, connections=CONNECTIONS, timeout_s=settings.command_timeout_s)

    async def check(self) -> None:
        async with self._redis.deadline("check of its settings"):
            [info] = await self._redis.send([("INFO", "server")])
            try:
                answers = await self._redis.send([("CONFIG", "GET", name) for name in REQUIRED_SETTINGS])
            except RedisError as error:
                if not _is_refusal(error):
                    raise
                raise Misconfigured(
                    f"CONFIG GET is not allowed on this Redis ({error}), so nobody can tell whether it keeps what it "
                    "acknowledges: allow it to this user (ACL +config|get)"
                ) from error
        _require_version(info.decode())
        _require_settings({name: _value(answer) for name, answer in zip(REQUIRED_SETTINGS, answers, strict=True)})

    async def state(self, partitions: Sequence[int]) -> list[LogState | None]:
        commands = [("HMGET", state_key(partition), *_STATE_FIELDS) for partition in partitions]
        async with self._redis.deadline("state"):
            replies = await self._redis.send(commands)
        return [_to_state(reply) for reply in replies]

    async def acquire(self, partition: int, *, at_least: LogState | None) -> LogState:
        known = at_least or LogState(-1, 0, 0, 0)
        async with self._redis.deadline("acquire"):
            reply = await self._redis.run(_ACQUIRE, _keys(partition), (self._owner, *known))
        if reply is None:
            raise LogLost(f"Redis has no state of partition {partition}")
        return LogState(*map(int, reply))

    async def renew(self, partition: int, *, epoch: int) -> LogState:
        async with self._redis.deadline("renew"):
            reply = await self._redis.run(_RENEW, [state_key(partition)], (self._owner, epoch))
        if reply == b"fenced":
            raise Fenced(f"partition {partition} has an owner after epoch {epoch}")
        if reply == b"lost":
            raise LogLost(f"Redis has no state of partition {partition}, or one before epoch {epoch}")
        return LogState(*map(int, reply))

    async def append(self, appends: Sequence[Append]) -> list[AppendOutcome]:
        calls = [(_keys(a.partition), (a.epoch, a.offset, a.record, a.fingerprints)) for a in appends]
        async with self._redis.deadline("append"):
            replies = await self._redis.run_each(_APPEND, calls)
            return [_to_outcome(reply) for reply in replies]

    async def read(self, partition: int, from_offset: int, *, max_records: int) -> list[tuple[int, bytes]]:
        async with self._redis.deadline("read"):
            entries = await self._range(log_key(partition), f"{from_offset}-0", max_records)
        return [(int(entry_id.split(b"-")[0]), fields[1]) for entry_id, fields in entries]

    async def read_ids(self, partition: int) -> AsyncIterator[IdsEntry]:
        start, count = "-", FIRST_IDS_PAGE
        while True:
            async with self._redis.deadline("read of ids"):
                page = await self._range(_ids_key(partition), start, count)
            for entry_id, fields in page:
                yield IdsEntry(int(entry_id.split(b"-")[0]), fields[1])
            if len(page) < count:
                return
            start = f"({page[-1][0].decode()}"
            page_bytes = sum(len(fields[1]) for _, fields in page)
            count = min(max(IDS_PAGE_BYTES * len(page) // page_bytes, SMALLEST_IDS_PAGE), LARGEST_IDS_PAGE)

    async def ids_of(self, partition: int, offset: int) -> bytes:
        async with self._redis.deadline("ids of a record"):
            return await self._redis.run(_IDS_OF, _ids_keys(partition), (offset, "")) or b""

    async def forget_ids(self, partition: int, offsets: range, *, epoch: int) -> None:
        dropped = FORGOTTEN_AT_ONCE
        while dropped == FORGOTTEN_AT_ONCE:
            async with self._redis.deadline("forgetting ids"):
                arguments = (offsets.start, epoch, offsets.stop, FORGOTTEN_AT_ONCE)
                dropped = await self._redis.run(_IDS_OF, _ids_keys(partition), arguments)

    async def trim(self, trims: Sequence[Trim]) -> None:
        calls = [(_keys(t.partition), (t.epoch, t.below_offset, t.ids_before_ms)) for t in trims]
        async with self._redis.deadline("trim"):
            for reply in await self._redis.run_each(_TRIM, calls):
                checked(reply)

    async def close(self) -> None:
        await self._redis.close()

    async def _range(self, key: str, start: str, count: int) -> list[tuple[bytes, list[bytes]]]:
        entries: list[tuple[bytes, list[bytes]]]
        [entries] = await self._redis.send([("XRANGE", key, start, "+", "COUNT", count)])
        return entries


def state_key(partition: int) -> str:
    return f"state:{{p{partition:03}}}"


def log_key(partition: int) -> str:
    return f"log:{{p{partition:03}}}"


def _ids_key(partition: int) -> str:
    return f"ids:{{p{partition:03}}}"


def _ids_keys(partition: int) -> tuple[str, str]:
    return state_key(partition), _ids_key(partition)


def _keys(partition: int) -> tuple[str, str, str]:
    return state_key(partition), log_key(partition), _ids_key(partition)


def _to_outcome(reply: Any) -> AppendOutcome:
    """A server that is full refuses one call, and others of the same round trip may have been taken."""
    return "full" if isinstance(reply, OutOfMemoryError) else _OUTCOMES[checked(reply)]


def _to_state(values: list[bytes | None]) -> LogState | None:
    return None if values[0] is None else LogState(*(int(value or 0) for value in values))


def _is_refusal(error: RedisError) -> bool:
    return isinstance(error, NoPermissionError) or "unknown command" in str(error).lower()


def _value(answer: Sequence[bytes]) -> str | None:
    """Of CONFIG GET: name and value; nothing when the server has no such setting."""
    return answer[1].decode() if answer else None


def _require_version(info: str) -> None:
    lines = dict(line.split(":", maxsplit=1) for line in info.splitlines() if ":" in line)
    version = lines["redis_version"]
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
