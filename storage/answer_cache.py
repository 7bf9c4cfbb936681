"""Answers of the metrics API, kept in Redis for a while.

Stored format, version 1: `answers:<slot>` is the xxh3-128 of the question's text (16 bytes), then the answer,
compressed by zstd. There are `SLOTS` slots, and a question's digest says which is its own; the last one that came
keeps it. So the cache is bounded without anybody counting: it shares the Redis of the log, which throws nothing away.
"""

import asyncio

import zstandard
from xxhash import xxh3_128_digest

from storage.redis_client import RedisClient

SLOTS = 256
MAX_ANSWER_BYTES = 512 * 1024
"""Compressed; with `SLOTS` 128 MB in all. Larger answers are not kept. A month of hours by 50 groups has 3 MB, and
0.2 to 0.4 compressed."""
MAX_INFLATED_BYTES = 8 * 1024 * 1024
"""What is larger is not worth the compressing: it would seldom fit."""

_CONNECTIONS = 2
_LEVEL = 1
_DIGEST_BYTES = 16


class RedisAnswers:
    """Close it. Calls raise `Unavailable` after `timeout_s`."""

    def __init__(self, url: str, *, timeout_s: float) -> None:
        self._redis = RedisClient(url, connections=_CONNECTIONS, timeout_s=timeout_s)

    async def get(self, question: str) -> bytes | None:
        digest = xxh3_128_digest(question.encode())
        async with self._redis.deadline("GET"):
            [kept] = await self._redis.send([("GET", _slot(digest))])
        if kept is None or kept[:_DIGEST_BYTES] != digest:
            return None
        try:
            return await asyncio.to_thread(_unpack, kept[_DIGEST_BYTES:])
        except zstandard.ZstdError:
            return None

    async def put(self, question: str, answer: bytes, *, ttl_s: int) -> None:
        digest = xxh3_128_digest(question.encode())
        if len(answer) > MAX_INFLATED_BYTES:
            return
        packed = await asyncio.to_thread(zstandard.ZstdCompressor(level=_LEVEL).compress, answer)
        if len(packed) > MAX_ANSWER_BYTES:
            return
        async with self._redis.deadline("SET"):
            await self._redis.send([("SET", _slot(digest), digest + packed, "EX", ttl_s)])

    async def close(self) -> None:
        await self._redis.close()


def _unpack(packed: bytes) -> bytes:
    return zstandard.ZstdDecompressor().decompress(packed, max_output_size=MAX_INFLATED_BYTES)


def _slot(digest: bytes) -> str:
    return f"answers:{int.from_bytes(digest[:4], 'big') % SLOTS}"
