"""One round of load on one server: sent, stored, and what it cost.

A round sends a fixed number of events, as many as take about the wanted time at the speed that short
attempts have found. It ends when the last of them can be read in PostgreSQL, and of a server that is to be measured
with its windows or its lake when it is in these too.
"""

import gc
import itertools
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

from load_tests.floors import FloorServer
from load_tests.generator import Outcome, Target, closed_loop, open_loop
from load_tests.lake import wait_compacted, wait_exported
from load_tests.process_costs import Cost, Meter, Processes
from load_tests.running_system import RunningSystem, SystemFailed
from load_tests.schedule import percentile
from load_tests.windows import wait_counted

OPEN_LOOP_CONNECTIONS = 256
"""More than are busy at once unless the server stalls for 100 ms."""
Until = Literal["stored", "counted", "exported"]
"""What of an event a round waits for: each is after those before it."""
SLOWEST = 20.0
"""A round that takes so many times longer than planned has failed."""


class Workload(NamedTuple):
    """A shape of requests.

    What a server reaches depends on how many connections it may answer at once: few starve a server that waits
    for a log or coalesces, many only queue up at one that works on ten database connections. So the numbers
    in `connections` are tried on every server, and each is measured at the one that is best for it.
    """

    name: str
    events_per_request: int
    connections: tuple[int, ...]
    expected_events_per_s: int
    """Above what can be reached here: a try has so many events ready."""


SINGLE = Workload("single", 1, (32, 64, 128, 256, 512), 20_000)
BATCH_100 = Workload("batch100", 100, (8, 16, 32, 64, 128), 150_000)
BATCH_1000 = Workload("batch1000", 1000, (4, 8, 16, 32), 250_000)


class Speed(NamedTuple):
    """What a server reached with a number of connections."""

    connections: int
    requests_per_s: float


class Stored(NamedTuple):
    """Where a server stands: events, and bytes of the database's WAL, since some beginning."""

    events: int
    wal_bytes: int


class Server(Protocol):
    """Something that takes events over HTTP."""

    name: str

    def targets(self, workload: Workload) -> list[Target]: ...

    def processes(self) -> Processes: ...

    async def stored(self) -> Stored:
        """What is stored so far."""

    async def stored_at_s(self, outcome: Outcome, events: int) -> float:
        """When that many events in all were stored; `outcome` is the run that sent the last of them."""


class SystemServer:
    """The system itself.

    Its rounds end when everything is stored, or as `until` says counted in the windows, or in files of the lake as
    well. The windows are waited for in any case: what they cost is that round's, and the next server's turn is not
    disturbed. The lake is only with `exported`, since its parts may wait for a minute: who measures anything else turns
    it off. Its compaction is waited for then, too: its CPU is the round's, its time is not.
    """

    def __init__(self, system: RunningSystem, *, name: str = "system", until: Until = "stored") -> None:
        self.name = name
        self._system = system
        self._until = until

    def targets(self, workload: Workload) -> list[Target]:
        return self._system.targets(batch=workload.events_per_request > 1)

    def processes(self) -> Processes:
        return self._system.processes()

    async def stored(self) -> Stored:
        return Stored(await self._system.stored_events(), await self._system.wal_bytes())

    async def stored_at_s(self, outcome: Outcome, events: int) -> float:
        clock = time.perf_counter
        stored_s = at_s = await self._system.wait_stored(events, clock=clock)
        if self._system.settings.windows.enabled:
            at_s = await wait_counted(self._system, clock=clock)
        if self._until == "exported":
            at_s = await wait_exported(self._system, clock=clock)
            await wait_compacted(self._system, clock=clock)
        return stored_s if self._until == "stored" else at_s


class PlainServer:
    """A floor: what it has answered is stored (`executemany`), or never will be (`bare`, `durable`)."""

    def __init__(self, name: str, server: FloorServer, system: RunningSystem) -> None:
        """`system` is the one whose PostgreSQL it uses."""
        self.name = name
        self._server = server
        self._system = system

    def targets(self, workload: Workload) -> list[Target]:
        return self._server.targets()

    def processes(self) -> Processes:
        """The handler, and the idle system beside it, whose PostgreSQL it uses."""
        return [*self._server.processes(), *self._system.processes()]

    async def stored(self) -> Stored:
        return Stored(0, await self._system.wal_bytes())

    async def stored_at_s(self, outcome: Outcome, events: int) -> float:
        return outcome.ended_s


@dataclass(frozen=True)
class Round:
    """The result of a saturating round."""

    events: int
    requests_per_s: float
    accepted_events_per_s: float
    stored_events_per_s: float
    wal_bytes: int
    costs: dict[str, Cost]


async def attempt(
    server: Server, workload: Workload, bodies: Iterable[bytes], *, connections: int, seconds: float
) -> Speed:
    """Send for so long, return the speed of answers; what was sent is stored then."""
    until_s = time.perf_counter() + seconds
    requests = itertools.takewhile(lambda _: time.perf_counter() < until_s, _requests(server, workload, bodies))
    before = await server.stored()
    outcome = await closed_loop(
        server.targets(workload)[0], requests, connections=connections, deadline_s=SLOWEST * seconds
    )
    check(outcome)
    await server.stored_at_s(outcome, before.events + outcome.requests * workload.events_per_request)
    return Speed(connections, outcome.requests / outcome.seconds)


async def saturate(
    server: Server,
    checkpoint: Callable[[], Awaitable[None]],
    workload: Workload,
    bodies: Sequence[bytes],
    *,
    connections: int,
    seconds: float,
) -> Round:
    """Send all bodies as fast as the server takes them. `seconds` is what that is expected to take; `checkpoint`
    makes a round begin with the same amount of dirty pages and WAL as every other: none."""
    requests = list(_requests(server, workload, bodies))
    await checkpoint()
    before = await server.stored()
    events = len(bodies) * workload.events_per_request
    with _undisturbed(), Meter(server.processes) as meter:
        outcome = await closed_loop(
            server.targets(workload)[0], requests, connections=connections, deadline_s=SLOWEST * seconds
        )
        check(outcome)
        stored_s = await server.stored_at_s(outcome, before.events + events)
    after = await server.stored()
    return Round(
        events=events,
        requests_per_s=outcome.requests / outcome.seconds,
        accepted_events_per_s=events / outcome.seconds,
        stored_events_per_s=events / (stored_s - outcome.started_s),
        wal_bytes=after.wal_bytes - before.wal_bytes,
        costs=meter.costs,
    )


@dataclass(frozen=True)
class Latency:
    """The result of an open-loop round, from the time that a request was due to its complete answer."""

    requests_per_s: float
    p50_ms: float
    p99_ms: float
    worst_ms: float


async def keep_rate(server: Server, workload: Workload, bodies: Iterable[bytes], offsets_s: Sequence[float]) -> Latency:
    """Send a body at each of the times, which are seconds from the start, and wait until everything is stored."""
    before = await server.stored()
    with _undisturbed():
        outcome = await open_loop(
            server.targets(workload)[0],
            _requests(server, workload, bodies),
            offsets_s,
            connections=OPEN_LOOP_CONNECTIONS,
            deadline_s=SLOWEST * max(1.0, offsets_s[-1]),
        )
    check(outcome)
    await server.stored_at_s(outcome, before.events + outcome.requests * workload.events_per_request)
    return Latency(
        requests_per_s=outcome.requests / outcome.seconds,
        p50_ms=percentile(outcome.latencies_s, 0.5) * 1000,
        p99_ms=percentile(outcome.latencies_s, 0.99) * 1000,
        worst_ms=max(outcome.latencies_s) * 1000,
    )


def check(outcome: Outcome) -> None:
    """Raises `SystemFailed` unless every answer was 202."""
    if set(outcome.statuses) != {202}:
        raise SystemFailed(f"not every answer was 202: {dict(outcome.statuses)}")


def _requests(server: Server, workload: Workload, bodies: Iterable[bytes]) -> Iterator[bytes]:
    """The projects of the server take turns."""
    for target, body in zip(itertools.cycle(server.targets(workload)), bodies, strict=False):
        yield target.request(body)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Without garbage collection in the generator: it would look at every body that waits."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
