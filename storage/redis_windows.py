"""The window store in Redis or Valkey. The contract is `storage.window_store`.

Stored format, version 1, readable with redis-cli:

- `metric:…`            one window each, `storage.window_key.redis_key`; its value is `storage.aggregate.window_json`
- `metric:…:groups`     set of the groups that a window has, each a JSON array of [dimension, value]
- `windows:{p007}`      hash of a partition's checkpoint: epoch, owner, next_offset, watermark_ms, state, and
                        `built:{project}` for each project that has any

Windows and groups expire `windows.ttl_s` after their window's end.

One script writes windows of several partitions and their checkpoints, so the keys have no hash tag in common: this
needs one server (with replicas, as you like), not a cluster. Windows share their server's memory with the log, and
its `noeviction`: a server that is full refuses windows, as it refuses appends.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import groupby
from typing import Any, TypeVar

import msgspec

from config.settings import Settings
from storage.aggregate import Aggregate, read_window_json, window_json
from storage.errors import Fenced, FormatError, LogLost
from storage.redis_client import RedisClient, Script
from storage.window_key import SIZE_S, Dimensions, Size, WindowKey, groups_key, redis_key
from storage.window_store import Publication, PublishOutcome, WindowsCheckpoint

CONNECTIONS = 8
"""At most, per process. More calls wait, within their deadline."""

KEYS_A_READ = 1000
"""Of one MGET: some milliseconds of the server's time when they all have sketches."""

SETS_A_READ = 100
_MEMBERS_A_CALL = 500
_KEPT_MEMBERS = 16_384

_PUBLISH, _CLAIM, _RESET = (Script(name) for name in ("publish_windows", "claim_windows", "reset_windows"))
_OUTCOMES: dict[bytes, PublishOutcome] = {b"published": "published", b"fenced": "fenced", b"lost": "lost"}
_BUILT = "built:"
_Item = TypeVar("_Item")
_members = msgspec.json.Decoder(Dimensions)


class RedisWindows:
    """`owner` names this process, and this life of it alone: two owners never hold the same epoch."""

    def __init__(self, url: str, settings: Settings, *, owner: str) -> None:
        self._redis = RedisClient(url, connections=CONNECTIONS, timeout_s=settings.log.command_timeout_s)
        self._ttl_s = settings.windows.ttl_s
        self._owner = owner

    async def checkpoints(self, partitions: Sequence[int]) -> list[WindowsCheckpoint | None]:
        async with self._redis.deadline("windows' checkpoints"):
            replies = await self._redis.send([("HGETALL", _checkpoint_key(partition)) for partition in partitions])
        return [_to_checkpoint(p, reply) if reply else None for p, reply in zip(partitions, replies, strict=True)]

    async def claim(self, partition: int, *, epoch: int) -> WindowsCheckpoint | None:
        reply = await self._claim(partition, epoch, "go on")
        return None if reply is None else _to_checkpoint(partition, reply)

    async def begin_rebuild(self, partition: int, *, epoch: int) -> None:
        await self._claim(partition, epoch, "rebuild")

    async def _claim(self, partition: int, epoch: int, how: str) -> Any:
        async with self._redis.deadline("claim of windows"):
            reply = await self._redis.run(_CLAIM, [_checkpoint_key(partition)], [self._owner, epoch, how])
        if reply == b"fenced":
            raise Fenced(f"the windows of partition {partition} have an owner of epoch {epoch} or later")
        return reply

    async def reset(self, partition: int, *, epoch: int, next_offset: int, built: Mapping[str, str]) -> None:
        arguments = [epoch, next_offset, *_fields(built)]
        async with self._redis.deadline("end of a rebuild of windows"):
            reply = await self._redis.run(_RESET, [_checkpoint_key(partition)], arguments)
        if reply == b"lost":
            raise LogLost(f"the windows of partition {partition} are gone")
        if reply == b"fenced":
            raise Fenced(f"the windows of partition {partition} have an owner after epoch {epoch}")

    async def publish(self, publications: Sequence[Publication]) -> list[PublishOutcome]:
        if not publications:
            return []
        keys: list[str] = []
        arguments: list[Any] = [len(publications)]
        for publication in publications:
            self._add(publication, keys, arguments)
        async with self._redis.deadline("publication of windows"):
            replies = await self._redis.run(_PUBLISH, keys, arguments)
        return [_OUTCOMES[reply] for reply in replies]

    def _add(self, publication: Publication, keys: list[str], arguments: list[Any]) -> None:
        """A publication's keys and arguments, as publish_windows.lua has them."""
        groups = _groups([key for key, _ in publication.windows])
        gone_groups = _groups(publication.gone)
        keys.append(_checkpoint_key(publication.partition))
        keys += [redis_key(key) for key, _ in publication.windows]
        keys += [groups_key(*first[:4]) for first, _ in groups]
        keys += map(redis_key, publication.gone)
        keys += [groups_key(*first[:4]) for first, _ in gone_groups]
        arguments += publication[1:5]
        arguments += [len(publication.windows), len(groups), len(publication.built)]
        arguments += [len(publication.gone), len(gone_groups)]
        for key, window in publication.windows:
            arguments += [window_json(window), self._expires_at(key)]
        for first, members in groups:
            arguments += [self._expires_at(first), len(members), *members]
        arguments += _fields(publication.built)
        for _, members in gone_groups:
            arguments += [len(members), *members]

    def _expires_at(self, key: WindowKey) -> int:
        return key.start + SIZE_S[key.size] + self._ttl_s

    async def load(self, keys: Sequence[WindowKey]) -> list[Aggregate | None]:
        """Raises `FormatError` for what this release cannot read: rebuild the partition then."""
        found: list[Aggregate | None] = []
        for some in _pieces(keys, KEYS_A_READ):
            async with self._redis.deadline("load of windows"):
                [values] = await self._redis.send([("MGET", *map(redis_key, some))])
            found += [None if value is None else read_window_json(value) for value in values]
        return found

    async def groups(self, project_id: str, metric: str, size: Size, starts: Sequence[int]) -> list[list[Dimensions]]:
        found: list[list[Dimensions]] = []
        for some in _pieces(starts, SETS_A_READ):
            async with self._redis.deadline("groups of windows"):
                replies = await self._redis.send(
                    [("SMEMBERS", groups_key(project_id, metric, size, start)) for start in some]
                )
            found += [sorted(map(_read_member, members)) for members in replies]
        return found

    async def close(self) -> None:
        await self._redis.close()


def _checkpoint_key(partition: int) -> str:
    return f"windows:{{p{partition:03}}}"


def _to_checkpoint(partition: int, reply: list[bytes]) -> WindowsCheckpoint:
    fields = {name.decode(): value.decode() for name, value in zip(reply[::2], reply[1::2], strict=True)}
    return WindowsCheckpoint(
        partition=partition,
        epoch=int(fields["epoch"]),
        next_offset=int(fields["next_offset"]),
        built={name.removeprefix(_BUILT): value for name, value in fields.items() if name.startswith(_BUILT)},
        watermark_ms=int(fields["watermark_ms"]),
        state="live" if fields["state"] == "live" else "rebuilding",
    )


def _fields(built: Mapping[str, str]) -> list[str]:
    return [text for project, value in built.items() for text in (f"{_BUILT}{project}", value)]


def _groups(windows: Sequence[WindowKey]) -> list[tuple[WindowKey, Sequence[bytes]]]:
    """The windows' members of each set of groups, with a window that names the set; large sets in pieces."""
    grouped = sorted(key for key in windows if key.dimensions)
    pieces: list[tuple[WindowKey, Sequence[bytes]]] = []
    for _, keys in groupby(grouped, key=lambda key: key[:4]):
        pieces += [
            (some[0], [_member(key.dimensions) for key in some]) for some in _pieces(list(keys), _MEMBERS_A_CALL)
        ]
    return pieces


@lru_cache(maxsize=_KEPT_MEMBERS)
def _member(dimensions: Dimensions) -> bytes:
    return msgspec.json.encode(dimensions)


def _pieces(items: Sequence[_Item], size: int) -> Iterator[Sequence[_Item]]:
    for first in range(0, len(items), size):
        yield items[first : first + size]


def _read_member(raw: bytes) -> Dimensions:
    try:
        return _members.decode(raw)
    except msgspec.MsgspecError as error:
        raise FormatError(f"not a group of a window: {error}") from error
