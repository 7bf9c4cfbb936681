"""A write to a connection that has just broken: uvloop's own error becomes ours, in every driver's translation."""

import asyncio
import socket

import pytest
import uvloop

from storage.errors import Unavailable
from storage.postgres import translated
from storage.redis_client import RedisClient


async def _write_to_broken_transport() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        _, writer = await asyncio.open_connection(*server.getsockname())
        writer.transport.abort()
        while True:
            writer.write(b"lost")
            await asyncio.sleep(0)


def test_redis() -> None:
    async def run() -> None:
        client = RedisClient("redis://127.0.0.1:1", connections=1, timeout_s=5.0)
        async with client.deadline("a question"):
            await _write_to_broken_transport()

    with pytest.raises(Unavailable, match="broke during a question"):
        uvloop.run(run())


def test_postgres() -> None:
    async def run() -> None:
        with translated():
            await _write_to_broken_transport()

    with pytest.raises(Unavailable, match="the connection broke"):
        uvloop.run(run())


def test_other_runtime_errors_stay_what_they_are() -> None:
    with pytest.raises(RuntimeError, match="ours"), translated():
        raise RuntimeError("ours")
