"""The generator's loops over a server in memory, in virtual time: no sockets, no waits."""

import asyncio
from collections.abc import Callable

import pytest

from load_tests.generator import Outcome, Target, closed_loop, open_loop
from tests.unit import virtual_time

TARGET = Target("127.0.0.1", 1, "/v1/events", "key")
ACCEPTED = b"HTTP/1.1 202 Accepted\r\nContent-Length: 2\r\n\r\n{}"


class _Transport(asyncio.Transport):
    """Hands what is written to the server, and its answer to the protocol."""

    def __init__(self, server: "_Server", protocol: asyncio.Protocol) -> None:
        super().__init__()
        self._server = server
        self._protocol = protocol

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self._server.take(bytes(data), self._protocol)

    def abort(self) -> None:
        self._server.closed += 1


class _Server:
    """Answers after `answer_s`, and counts what is under way at once."""

    def __init__(self, *, answer_s: Callable[[int], float] = lambda _: 0.0, answer: bytes = ACCEPTED) -> None:
        self.taken: list[bytes] = []
        self.taken_at_s: list[float] = []
        self.taken_on: list[asyncio.Protocol] = []
        self.opened = self.closed = self.busy = self.most_busy = 0
        self._answer_s = answer_s
        self._answer = answer

    def listen(self) -> asyncio.AbstractEventLoop:
        """From now on the running loop connects to this server."""
        loop = asyncio.get_running_loop()
        loop.create_connection = self._connect  # type: ignore[method-assign,assignment]
        return loop

    async def _connect(self, factory: Callable[[], asyncio.Protocol], *_: object) -> tuple[None, asyncio.Protocol]:
        self.opened += 1
        protocol = factory()
        protocol.connection_made(_Transport(self, protocol))
        return None, protocol

    def take(self, request: bytes, protocol: asyncio.Protocol) -> None:
        self.busy += 1
        self.most_busy = max(self.most_busy, self.busy)
        wait_s = self._answer_s(len(self.taken))
        self.taken.append(request)
        self.taken_on.append(protocol)
        loop = asyncio.get_running_loop()
        self.taken_at_s.append(loop.time())
        loop.call_later(wait_s, self._give, protocol)

    def _give(self, protocol: asyncio.Protocol) -> None:
        self.busy -= 1
        if self._answer:
            protocol.data_received(self._answer)
        else:
            protocol.connection_lost(None)


def requests(count: int) -> list[bytes]:
    return [b"request %d" % number for number in range(count)]


def run_closed(server: _Server, count: int, connections: int) -> Outcome:
    async def main() -> Outcome:
        loop = server.listen()
        return await closed_loop(TARGET, requests(count), connections=connections, deadline_s=5, clock=loop.time)

    return virtual_time.run(main())


def run_open(server: _Server, offsets_s: list[float], connections: int) -> Outcome:
    async def main() -> Outcome:
        loop = server.listen()
        return await open_loop(
            TARGET, requests(len(offsets_s)), offsets_s, connections=connections, deadline_s=5, clock=loop.time
        )

    return virtual_time.run(main())


def test_a_request_carries_key_length_and_body() -> None:
    request = Target("127.0.0.1", 8080, "/v1/events", "secret").request(b'{"a":1}')
    head, _, body = request.partition(b"\r\n\r\n")
    assert head.startswith(b"POST /v1/events HTTP/1.1\r\n")
    assert b"\r\nAuthorization: Bearer secret\r\n" in head
    assert head.endswith(b"\r\nContent-Length: 7")
    assert body == b'{"a":1}'


def test_closed_loop_sends_each_request_once_and_keeps_all_connections_busy() -> None:
    server = _Server(answer_s=lambda _: 0.1)
    outcome = run_closed(server, 50, connections=4)
    assert sorted(server.taken) == sorted(requests(50))
    assert outcome.statuses == {202: 50}
    assert outcome.latencies_s == pytest.approx([0.1] * 50)
    assert outcome.seconds == pytest.approx(1.3)
    assert server.most_busy == 4
    assert server.opened == server.closed == 4


def test_closed_loop_with_fewer_requests_than_connections_ends() -> None:
    assert run_closed(_Server(), 2, connections=8).requests == 2


def test_closed_loop_of_nothing_ends() -> None:
    assert run_closed(_Server(), 0, connections=2).requests == 0


def test_other_answers_are_counted_and_not_repeated() -> None:
    server = _Server(answer=b"HTTP/1.1 503 Unavailable\r\nContent-Length: 0\r\n\r\n")
    assert run_closed(server, 10, connections=2).statuses == {503: 10}
    assert len(server.taken) == 10


@pytest.mark.parametrize("answer", [b"", b"nonsense\r\n\r\n"])
def test_a_lost_or_broken_connection_ends_the_run(answer: bytes) -> None:
    server = _Server(answer=answer)
    with pytest.raises(ConnectionError):
        run_closed(server, 10, connections=2)
    assert server.closed == 2


def test_a_server_that_never_answers_meets_the_deadline() -> None:
    server = _Server(answer_s=lambda _: 60.0)
    with pytest.raises(TimeoutError):
        run_closed(server, 1, connections=1)
    assert server.closed == 1


def test_open_loop_keeps_to_the_schedule() -> None:
    server = _Server(answer_s=lambda _: 0.001)
    outcome = run_open(server, [0.0, 0.02, 0.05, 0.1], connections=2)
    assert server.taken_at_s == pytest.approx([0.0, 0.02, 0.05, 0.1])
    assert outcome.latencies_s == pytest.approx([0.001] * 4)
    assert outcome.seconds == pytest.approx(0.101)


def test_open_loop_sends_together_what_is_due_within_a_millisecond() -> None:
    """Ten requests a millisecond do not wake it ten times: it shares the cores with what it measures."""
    server = _Server(answer_s=lambda _: 0.0005)
    outcome = run_open(server, [0.0001 * number for number in range(1000)], connections=64)
    assert len(set(server.taken_at_s)) <= 101
    assert max(outcome.latencies_s) <= 0.001 + 0.0005 + 1e-9


def test_open_loop_counts_from_the_time_that_a_request_was_due() -> None:
    """The first answer takes 200 ms on the only connection: all that was due meanwhile has waited, and says so."""
    server = _Server(answer_s=lambda number: 0.2 if number == 0 else 0.0)
    outcome = run_open(server, [0.0, 0.01, 0.05, 0.1], connections=1)
    assert server.most_busy == 1
    assert outcome.latencies_s == pytest.approx([0.2, 0.19, 0.15, 0.1])


def test_open_loop_sends_on_while_the_server_stalls() -> None:
    """A stalled server is not asked less: that would be coordinated omission."""
    server = _Server(answer_s=lambda _: 0.2)
    run_open(server, [0.01 * number for number in range(10)], connections=16)
    assert server.most_busy == 10


def test_open_loop_lets_its_connections_take_turns() -> None:
    """A server closes a connection on which nothing comes for long."""
    server = _Server(answer_s=lambda _: 0.001)
    run_open(server, [0.01 * number for number in range(12)], connections=4)
    assert len(set(server.taken_on[:4])) == 4
    assert server.taken_on == server.taken_on[:4] * 3


def test_open_loop_of_nothing_ends() -> None:
    assert run_open(_Server(), [], connections=2).requests == 0
