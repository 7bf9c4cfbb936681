"""The load: requests made beforehand, sent over kept connections by a protocol that does next to nothing.

- `closed_loop`: every connection sends its next request when the last one is answered; with enough
  connections the server is what limits.
- `open_loop`: requests are due at given times, whatever the server does. Latency counts from the time at
  which a request was due, so that a server that stalls is not asked less (no coordinated omission). It counts
  the generator's own lateness too, of a millisecond or two: it sends together what is due within one.

An answer other than 202 is counted, not repeated. A lost connection ends the run (`ConnectionError`).
"""

import asyncio
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, cast

from load_tests.responses import BadResponse, ResponseReader

CONNECT_DEADLINE_S = 10.0

SHORTEST_PAUSE_S = 0.001
"""Between looks at the schedule. libuv's timers have milliseconds: a shorter pause is none, and the generator spun for
a third of a core, which it shares with what it measures."""

Clock = Callable[[], float]


class Target(NamedTuple):
    """Where requests go."""

    host: str
    port: int
    path: str
    key: str

    def request(self, body: bytes) -> bytes:
        """The whole request, ready to be sent."""
        head = (
            f"POST {self.path} HTTP/1.1\r\nHost: {self.host}:{self.port}\r\nAuthorization: Bearer {self.key}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body


@dataclass
class Outcome:
    """What a run came to. Times by the run's clock, in seconds."""

    started_s: float = 0.0
    """When the first request was sent, or due."""
    ended_s: float = 0.0
    """When the last answer was complete."""
    statuses: Counter[int] = field(default_factory=Counter)
    latencies_s: list[float] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        return self.ended_s - self.started_s

    @property
    def requests(self) -> int:
        return self.statuses.total()


class _Connection(asyncio.Protocol):
    """One request at a time; tells `on_answer` or `on_lost`."""

    def __init__(
        self, on_answer: "Callable[[_Connection, int, float], None]", on_lost: Callable[[Exception], None]
    ) -> None:
        self._on_answer = on_answer
        self._on_lost = on_lost
        self._reader = ResponseReader()
        self._transport: asyncio.Transport | None = None
        self._since_s = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def send(self, request: bytes, *, since_s: float) -> None:
        """`since_s` is what the latency counts from."""
        assert self._transport is not None
        self._since_s = since_s
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        try:
            status = self._reader.feed(data)
        except BadResponse as error:
            self._on_lost(error)
            return
        if status:
            self._on_answer(self, status, self._since_s)

    def connection_lost(self, exc: Exception | None) -> None:
        self._on_lost(exc or ConnectionError("the server closed a connection"))

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()


class _Run:
    """Connections, their outcome, and the future that ends when all is answered or something has failed."""

    def __init__(self, on_answer: Callable[[_Connection], None], clock: Clock) -> None:
        self.outcome = Outcome()
        self.clock = clock
        self.connections: list[_Connection] = []
        self._next = on_answer
        self._done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def connect(self, target: Target, count: int) -> None:
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(CONNECT_DEADLINE_S):
            for _ in range(count):
                _, connection = await loop.create_connection(self._connection, target.host, target.port)
                self.connections.append(connection)

    def _connection(self) -> _Connection:
        return _Connection(self._on_answer, self._on_lost)

    def _on_answer(self, connection: _Connection, status: int, since_s: float) -> None:
        outcome = self.outcome
        now_s = self.clock()
        outcome.ended_s = now_s
        outcome.statuses[status] += 1
        outcome.latencies_s.append(now_s - since_s)
        self._next(connection)

    def _on_lost(self, error: Exception) -> None:
        if not self._done.done():
            self._done.set_exception(error if isinstance(error, OSError) else ConnectionError(str(error)))

    def finish(self) -> None:
        if not self._done.done():
            self._done.set_result(None)

    async def ended(self, deadline_s: float) -> Outcome:
        async with asyncio.timeout(deadline_s):
            await self._done
        return self.outcome

    def close(self) -> None:
        self._done.cancel()
        for connection in self.connections:
            connection.close()


async def closed_loop(
    target: Target,
    requests: Iterable[bytes],
    *,
    connections: int,
    deadline_s: float,
    clock: Clock = time.perf_counter,
) -> Outcome:
    """Send all requests, `connections` at a time."""
    supply: Iterator[bytes] = iter(requests)
    busy = 0

    def proceed(connection: _Connection) -> None:
        nonlocal busy
        request = next(supply, None)
        if request is None:
            busy -= 1
            if not busy:
                run.finish()
        else:
            connection.send(request, since_s=clock())

    run = _Run(proceed, clock)
    try:
        await run.connect(target, connections)
        run.outcome.started_s = clock()
        busy = connections
        for connection in run.connections:
            proceed(connection)
        return await run.ended(deadline_s)
    finally:
        run.close()


async def open_loop(
    target: Target,
    requests: Iterable[bytes],
    offsets_s: Sequence[float],
    *,
    connections: int,
    deadline_s: float,
    clock: Clock = time.perf_counter,
) -> Outcome:
    """Send a request at each of the times. While all connections are busy the due ones wait, and their time counts."""
    pacer = _Pacer(iter(requests), offsets_s, clock)
    run = _Run(pacer.answered, clock)
    try:
        await run.connect(target, connections)
        pacer.start(run)
        return await run.ended(deadline_s)
    finally:
        pacer.stop()
        run.close()


class _Pacer:
    """Gives due requests to idle connections. Those that wait are bounded by the schedule, which is finite."""

    def __init__(self, requests: Iterator[bytes], offsets_s: Sequence[float], clock: Clock) -> None:
        self._requests = requests
        self._due = deque(offsets_s)
        self._clock = clock
        # They take turns: a server closes a connection that is idle for long.
        self._idle: deque[_Connection] = deque()
        self._left = len(offsets_s)
        self._start_s = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._run: _Run | None = None

    def start(self, run: _Run) -> None:
        self._run = run
        self._idle.extend(run.connections)
        self._start_s = run.outcome.started_s = self._clock()
        if not self._left:
            run.finish()
        self._send_due()

    def answered(self, connection: _Connection) -> None:
        self._idle.append(connection)
        self._left -= 1
        if not self._left and self._run is not None:
            self._run.finish()
        elif self._timer is None:
            self._send_due()

    def _send_due(self) -> None:
        """Send what is due; come again when the next one is, or when a connection is idle again."""
        self._timer = None
        now_s = self._clock() - self._start_s
        due, idle = self._due, self._idle
        while due and idle and due[0] <= now_s:
            idle.popleft().send(next(self._requests), since_s=self._start_s + due.popleft())
        if due and idle:
            pause_s = max(due[0] - now_s, SHORTEST_PAUSE_S)
            self._timer = asyncio.get_running_loop().call_later(pause_s, self._send_due)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
