"""The service's side of the sandbox processes: started, asked once, ended.

Nothing of this process reaches one: it is a Python of its own, with its own environment and no descriptors but the two
pipes. After the first question one is kept waiting, which saves the next the third of a second that a start takes; it
ends when nobody has asked for a while. A process that was asked is never asked again.

How long a question may take is the caller's affair: whoever leaves the `asked` block, by a deadline too, leaves no
process behind. It is killed, not asked to stop.
"""

import asyncio
import os
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from signal import SIGXCPU
from typing import Any

import msgspec

from config.heap import ARROW_IN_HEAP
from storage.sandbox.wire import LENGTH_BYTES, Checked, Question, Refused, Result, Sources

ENVIRONMENT = ARROW_IN_HEAP | {"MALLOC_ARENA_MAX": "2", "OPENBLAS_NUM_THREADS": "1"}
"""All of it. Memory is limited by address space, so none is to be set aside for what may never come."""
_MESSAGE_BYTES = 1 << 20
"""Of a message without a body; the columns of a result are most of it."""
_SLACK_BYTES = 1 << 20
"""What headers and the like may add to a body's rows."""

_encode = msgspec.msgpack.encode
_checked_decoder = msgspec.msgpack.Decoder(Checked | Refused)
_result_decoder = msgspec.msgpack.Decoder(Result | Refused)


class QueryRefused(Exception):
    """The process says why there is no result, or has ended without a word."""

    def __init__(self, refused: Refused) -> None:
        super().__init__(f"{refused.code}: {refused.message}")
        self.refused = refused


class Asked:
    """A question that a process has begun with."""

    def __init__(self, process: asyncio.subprocess.Process, question: Question) -> None:
        self._process = process
        self._question = question

    async def check(self) -> Checked:
        """Hand the question over. Raises `QueryRefused`."""
        await self._send(_encode(self._question))
        checked: Checked = self._unless_refused(_checked_decoder.decode(await self._receive(_MESSAGE_BYTES)))
        return checked

    async def run(self, sources: Sources) -> tuple[Result, bytes]:
        """The result and its body. Raises `QueryRefused`."""
        await self._send(_encode(sources))
        result = self._unless_refused(_result_decoder.decode(await self._receive(_MESSAGE_BYTES)))
        return result, await self._receive(2 * self._question.max_bytes + _SLACK_BYTES)

    @staticmethod
    def _unless_refused(answer: Any) -> Any:
        if isinstance(answer, Refused):
            raise QueryRefused(answer)
        return answer

    async def _send(self, content: bytes) -> None:
        stdin = self._process.stdin
        assert stdin is not None
        stdin.write(len(content).to_bytes(LENGTH_BYTES, "little") + content)
        with suppress(ConnectionError):
            await stdin.drain()

    async def _receive(self, max_bytes: int) -> bytes:
        stdout = self._process.stdout
        assert stdout is not None
        try:
            length = int.from_bytes(await stdout.readexactly(LENGTH_BYTES), "little")
            if length > max_bytes:
                raise QueryRefused(_BROKEN)
            return await stdout.readexactly(length)
        except asyncio.IncompleteReadError as error:
            code = await self._process.wait()
            raise QueryRefused(_TOO_LONG if code == -SIGXCPU else _ENDED) from error


_BROKEN = Refused(code="sql_failed", message="The answer is larger than any may be.")
_TOO_LONG = Refused(code="query_timeout", message="The query has used up its time on the processor.")
_ENDED = Refused(
    code="query_out_of_memory",
    message="The query has ended the process that ran it, as too much memory or too deep a nesting does.",
)


class Sandboxes:
    """Starts processes. Close it."""

    def __init__(self, *, warm: int, warm_idle_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        """`warm` processes wait once there was a question, for `warm_idle_s` after the last one."""
        self._warm = warm
        self._warm_idle_s = warm_idle_s
        self._clock = clock
        self._waiting: deque[asyncio.subprocess.Process] = deque()
        self._asked_at = 0.0
        self._keeper: asyncio.Task[None] | None = None
        self._endings: set[asyncio.Task[None]] = set()
        self._wanted = asyncio.Event()
        self._is_closed = False

    @asynccontextmanager
    async def asked(self, question: Question) -> AsyncIterator[Asked]:
        """At the block's end there is no process any more, whatever it was doing."""
        process = await self._take()
        try:
            yield Asked(process, question)
        finally:
            # Ours to end even while we are cancelled: what is not waited for stays a zombie.
            await asyncio.shield(self._end(process))
            self._keep_warm()

    async def _take(self) -> asyncio.subprocess.Process:
        while self._waiting:
            process = self._waiting.popleft()
            if process.returncode is None:
                return process
        return await _start()

    def _keep_warm(self) -> None:
        """After a question and not beside it: its answer comes first."""
        self._asked_at = self._clock()
        self._wanted.set()
        if self._warm and not self._is_closed and (self._keeper is None or self._keeper.done()):
            self._keeper = asyncio.create_task(self._keep())

    async def _keep(self) -> None:
        """Ends, and with it the processes that wait, when nobody has asked for the idle time."""
        try:
            while not self._is_closed and (left_s := self._asked_at + self._warm_idle_s - self._clock()) > 0:
                self._wanted.clear()
                while len(self._waiting) < self._warm:
                    self._waiting.append(await _start())
                with suppress(TimeoutError):
                    async with asyncio.timeout(left_s):
                        await self._wanted.wait()
        finally:
            while self._waiting:
                self._end(self._waiting.popleft())

    def _end(self, process: asyncio.subprocess.Process) -> "asyncio.Task[None]":
        """A task of its own: whoever wants the process ended may be cancelled meanwhile, and `close` waits for it."""
        ending = asyncio.create_task(_end(process))
        self._endings.add(ending)
        ending.add_done_callback(self._endings.discard)
        return ending

    async def close(self) -> None:
        """Returns when there is no process any more, of those that nobody asks."""
        self._is_closed = True
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        if self._endings:
            await asyncio.wait(self._endings)


async def _start() -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-I",
        "-m",
        "storage.sandbox",
        str(os.getpid()),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env=ENVIRONMENT,
        cwd="/",
        start_new_session=True,
    )


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        with suppress(ProcessLookupError):
            process.kill()
    await process.wait()
    # Its pipe ends a moment after it, and must have when the loop is closed.
    assert process.stdout is not None
    with suppress(ConnectionError):
        await process.stdout.read()
