"""A worker with the real server and protocol around a tiny app: `python -m tests.integration.echo_worker`.

The app answers the length of the body; `/slow` says in the log that it has begun, and does so after a second;
`/pid` answers the process id; `/early` answers without reading the body;
`/late` reads it after half a second; `/names` answers the names of the headers; `/torn` has a line break in one of
its own. With `--begin` a complete request is answered without the app, where that is possible: soon, or for
`/slow` after a second.
"""

import argparse
import asyncio
import os
import socket
from collections.abc import Callable
from pathlib import Path

import uvloop
from starlette.types import ASGIApp, Receive, Scope, Send

from config.settings import Settings
from gateway.answers import ANSWER_HEADERS, Answer
from gateway.server import serve


def begin(scope: Scope, body: bytes, run: Callable[[ASGIApp], None]) -> bool:
    if scope["path"] in ("/early", "/late"):
        return False
    if scope["path"] == "/slow":
        print("slow", flush=True)

    def answer() -> None:
        done = answer_to(scope, len(body))
        if not done.send_at_once(scope):
            run(done)

    asyncio.get_running_loop().call_later(1 if scope["path"] == "/slow" else 0.001, answer)
    return True


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
    await answer_to(scope, length)(scope, receive, send)


def answer_to(scope: Scope, length: int) -> Answer:
    body = str(os.getpid() if scope["path"] == "/pid" else length).encode()
    if scope["path"] == "/names":
        body = b",".join(name for name, _ in scope["headers"])
    scope[ANSWER_HEADERS] = []
    headers = [(b"x-torn", b"a\r\nb: c")] if scope["path"] == "/torn" else []
    return Answer(200, body, headers=headers)


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--settings", type=Path, required=True)
    parser.add_argument("--fd", type=int, required=True)
    parser.add_argument("--worker", type=int, default=0)
    parser.add_argument("--begin", action="store_true")
    options = parser.parse_args()
    settings = Settings.from_json(options.settings.read_bytes())
    sock = socket.socket(fileno=options.fd)
    begins = begin if options.begin else None
    await serve(app, sock, settings.gateway, begin=begins, on_shutdown=lambda: print("draining", flush=True))


if __name__ == "__main__":
    uvloop.run(main())
