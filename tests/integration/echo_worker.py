"""A worker with the real server and protocol around a tiny app: `python -m tests.integration.echo_worker`.

The app answers the length of the body; `/slow` says in the log that it has begun, and does so after a second;
`/pid` answers the process id; `/early` answers without reading the body;
`/late` reads it after half a second; `/names` answers the names of the headers; `/torn` has a line break in one of
its own.
"""

import argparse
import asyncio
import os
import socket
from pathlib import Path

import uvloop
from starlette.types import Receive, Scope, Send

from config.settings import Settings
from gateway.answers import ANSWER_HEADERS, Answer
from gateway.server import serve


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    length = 0
    more = scope["path"] != "/early"
    if scope["path"] == "/late":
        await asyncio.sleep(0.5)
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        length += len(message.get("body", b""))
        more = message.get("more_body", False)
    if scope["path"] == "/slow":
        print("slow", flush=True)
        await asyncio.sleep(1)
    body = str(os.getpid() if scope["path"] == "/pid" else length).encode()
    if scope["path"] == "/names":
        body = b",".join(name for name, _ in scope["headers"])
    scope[ANSWER_HEADERS] = []
    headers = [(b"x-torn", b"a\r\nb: c")] if scope["path"] == "/torn" else []
    await Answer(200, body, headers=headers)(scope, receive, send)


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--settings", type=Path, required=True)
    parser.add_argument("--fd", type=int, required=True)
    parser.add_argument("--worker", type=int, default=0)
    options = parser.parse_args()
    settings = Settings.from_json(options.settings.read_bytes())
    sock = socket.socket(fileno=options.fd)
    await serve(app, sock, settings.gateway, on_shutdown=lambda: print("draining", flush=True))


if __name__ == "__main__":
    uvloop.run(main())
