"""The servers that the gateway is compared with, each one uvicorn process: `python -m load_tests.floor_server`.

- `bare`: a Starlette route that reads the body and answers 202. Nothing that answers HTTP here is faster.
- `durable`: the same, answered when the body is on the disk: appended to a file, with one fdatasync for all that wait.
  Nothing that keeps what it acknowledges has shorter waits here.
- `executemany`: what one writes by hand: Starlette, the body decoded into structs, one `executemany` INSERT a
  request on a pool of 10 connections, committed before the answer. No keys, no dedupe, no log. It is made as
  fast as such a handler gets: properties and context go to jsonb as the client wrote them, unchecked.

The listening socket is inherited (`--fd`); the database's URL comes in FLOOR_POSTGRES_URL, as it holds a password.
"""

import argparse
import asyncio
import os
import socket
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import BinaryIO

import asyncpg
import msgspec
import uvicorn
import uvloop
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

POSTGRES_URL = "FLOOR_POSTGRES_URL"
POOL_SIZE = 10
PATH = "/v1/events"

_INSERT = """
    INSERT INTO events_log (project_id, event_id, event_type, user_id, session_id, "timestamp", received_at,
        properties, context, partition_id, log_offset)
    VALUES ('floor', $1, $2, $3, $4, $5, $6, $7, $8, 0, 0)
"""


class Event(msgspec.Struct, rename="camel"):
    """What the generator sends."""

    event_id: str
    event_type: str
    user_id: str
    session_id: str
    timestamp: datetime
    properties: msgspec.Raw
    context: msgspec.Raw


_events = msgspec.json.Decoder(list[Event])
_event = msgspec.json.Decoder(Event)


def decode(body: bytes) -> list[Event]:
    return _events.decode(body) if body.startswith(b"[") else [_event.decode(body)]


async def accept(request: Request) -> Response:
    """The bare route."""
    await request.body()
    return Response(b'{"status":"accepted"}', 202, media_type="application/json")


async def store(request: Request) -> Response:
    """The plain handler."""
    events = decode(await request.body())
    now = datetime.now(UTC)
    rows = [
        (
            event.event_id,
            event.event_type,
            event.user_id,
            event.session_id,
            event.timestamp,
            now,
            bytes(event.properties).decode(),
            bytes(event.context).decode(),
        )
        for event in events
    ]
    pool: asyncpg.Pool[asyncpg.Record] = request.app.state.pool
    async with pool.acquire() as connection:
        await connection.executemany(_INSERT, rows)
    return Response(b'{"accepted":%d}' % len(rows), 202, media_type="application/json")


class Journal:
    """Group commit: while one write is on its way to the disk, what arrives waits for the next."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._waiting: list[tuple[bytes, asyncio.Future[None]]] = []
        self._writer: asyncio.Task[None] | None = None

    async def append(self, body: bytes) -> None:
        """Returns when the body is on the disk."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()
        self._waiting.append((body, done))
        if self._writer is None:
            self._writer = loop.create_task(self._write())
        await done

    async def _write(self) -> None:
        while self._waiting:
            some, self._waiting = self._waiting, []
            await asyncio.to_thread(self._sync, b"".join(body for body, _ in some))
            for _, done in some:
                if not done.done():  # its client may have gone
                    done.set_result(None)
        self._writer = None

    def _sync(self, data: bytes) -> None:
        self._file.write(data)
        os.fdatasync(self._file.fileno())


async def keep(request: Request) -> Response:
    """The durable route."""
    journal: Journal = request.app.state.journal
    await journal.append(await request.body())
    return Response(b'{"status":"accepted"}', 202, media_type="application/json")


@asynccontextmanager
async def _with_journal(app: Starlette) -> AsyncIterator[None]:
    with tempfile.TemporaryFile(buffering=0) as file:
        app.state.journal = Journal(file)
        yield


@asynccontextmanager
async def _with_pool(app: Starlette) -> AsyncIterator[None]:
    async with asyncpg.create_pool(os.environ[POSTGRES_URL], min_size=POOL_SIZE, max_size=POOL_SIZE) as pool:
        app.state.pool = pool
        yield


def make_app(kind: str) -> Starlette:
    if kind == "bare":
        return Starlette(routes=[Route(PATH, accept, methods=["POST"])])
    if kind == "durable":
        return Starlette(routes=[Route(PATH, keep, methods=["POST"])], lifespan=_with_journal)
    return Starlette(routes=[Route(PATH, store, methods=["POST"])], lifespan=_with_pool)


async def serve(kind: str, sock: socket.socket) -> None:
    """With the gateway's settings of uvicorn."""
    config = uvicorn.Config(
        make_app(kind),
        http="httptools",
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=75,
    )
    await uvicorn.Server(config).serve(sockets=[sock])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m load_tests.floor_server", description=__doc__)
    parser.add_argument("kind", choices=("bare", "durable", "executemany"))
    parser.add_argument("--fd", type=int, required=True, help="the listening socket")
    arguments = parser.parse_args()
    uvloop.run(serve(arguments.kind, socket.socket(fileno=arguments.fd)))


if __name__ == "__main__":
    main()
