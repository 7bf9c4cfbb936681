"""The server's protocol against clients that are slow, huge, broken or gone: raw sockets, a real worker."""

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from config.settings import GatewaySettings, Settings

DEADLINE_S = 1.0
PATIENCE_S = 10.0
MAX_CONNECTIONS = 20
LIMITS = GatewaySettings(
    header_deadline_s=DEADLINE_S, body_deadline_s=DEADLINE_S, max_connections=MAX_CONNECTIONS, drain_deadline_s=5.0
)


class Worker:
    """A worker process on a socket of its own."""

    def __init__(self, folder: Path, *options: str) -> None:
        settings_file = folder / "settings.json"
        settings_file.write_bytes(Settings(gateway=LIMITS).to_json())
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.address: tuple[str, int] = listener.getsockname()
            fd = listener.fileno()
            command = [sys.executable, "-m", "tests.integration.echo_worker", "--settings", str(settings_file)]
            self._said = folder / "said"
            with self._said.open("wb") as said:
                self.process = subprocess.Popen([*command, "--fd", str(fd), *options], pass_fds=(fd,), stdout=said)

    def connect(self) -> socket.socket:
        return socket.create_connection(self.address, timeout=PATIENCE_S)

    def wait_for_slow_request(self) -> None:
        """Return when a request for `/slow` is being handled."""
        until = time.monotonic() + PATIENCE_S
        while "slow" not in self._said.read_text().split():
            assert time.monotonic() < until, "the request does not arrive"
            time.sleep(0.02)

    def exchange(self, *pieces: bytes) -> bytes:
        """Send the pieces and return everything that comes until the server closes."""
        with self.connect() as client:
            for piece in pieces:
                client.sendall(piece)
            return read_to_end(client)


WAYS = {"call": (), "begin": ("--begin",)}
"""Each request by a call of the app, or complete ones without it."""


@pytest.fixture(scope="module", params=WAYS)
def worker(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    worker = Worker(tmp_path_factory.mktemp("protocol"), *WAYS[request.param])
    try:
        yield worker
    finally:
        worker.process.terminate()
        worker.process.wait(PATIENCE_S)


def read_to_end(client: socket.socket) -> bytes:
    received = b""
    try:
        while chunk := client.recv(65536):
            received += chunk
    except ConnectionResetError:
        # The server closed while we were still sending: what it said before may or may not have come through.
        pass
    return received


def read_answer(client: socket.socket) -> tuple[int, bytes]:
    """One answer with a Content-Length from a connection that stays open."""
    received = b""
    while b"\r\n\r\n" not in received:
        received += client.recv(65536)
    head, _, body = received.partition(b"\r\n\r\n")
    length = next(int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.startswith(b"content-length"))
    while len(body) < length:
        body += client.recv(65536)
    return int(head.split()[1]), body


POST = b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n"
CLOSE = b"connection: close\r\n"


def test_answers_and_keeps_the_connection(worker: Worker) -> None:
    with worker.connect() as client:
        for _ in range(3):
            client.sendall(POST + b"\r\nhello")
            assert read_answer(client) == (200, b"5")


def test_idle_connection_outlives_the_header_deadline_between_requests(worker: Worker) -> None:
    with worker.connect() as client:
        client.sendall(POST + b"\r\nhello")
        assert read_answer(client)[0] == 200
        time.sleep(2 * DEADLINE_S)
        client.sendall(POST + b"\r\nhello")
        assert read_answer(client)[0] == 200


UPGRADE = b"connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABk\r\n"


def test_wish_for_another_protocol_is_passed_over(worker: Worker) -> None:
    """Java's client sends it with each request over plain HTTP."""
    with worker.connect() as client:
        for pieces in [(POST + UPGRADE + b"\r\nhello",), (POST + UPGRADE + b"\r\n", b"he", b"llo")]:
            for piece in pieces:
                client.sendall(piece)
                time.sleep(0.02)
            assert read_answer(client) == (200, b"5")
        client.sendall(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n")
        assert read_answer(client) == (200, b"0")
        client.sendall(POST + b"\r\nhello")
        assert read_answer(client) == (200, b"5")


def test_many_wishes_for_another_protocol_in_one_piece(worker: Worker) -> None:
    """They are passed over one after the other, not one within the other."""
    wish = POST + b"connection: upgrade\r\nupgrade: x\r\n\r\nhello"
    answer = worker.exchange(wish * 2000 + POST + CLOSE + b"\r\nhello")
    assert answer.count(b"HTTP/1.1 200 OK") == 2001


@pytest.mark.parametrize("line", [b"CONNECT a:1", b"CONNECT /", b"GET ?x"])
def test_target_that_is_no_path_is_refused(worker: Worker, line: bytes) -> None:
    request = line + b" HTTP/1.1\r\nhost: a\r\n\r\n"
    assert b'"code":"invalid_http"' in worker.exchange(request)
    with worker.connect() as client:
        client.sendall(POST + b"\r\nhello")
        assert read_answer(client) == (200, b"5")
        client.sendall(request)
        assert b'"code":"invalid_http"' in read_to_end(client)


def test_slow_headers_get_408(worker: Worker) -> None:
    with worker.connect() as client:
        client.sendall(b"POST / HTTP/1.1\r\nhost:")
        answer = read_to_end(client)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b'"code":"timeout"' in answer


def test_dribbled_headers_do_not_move_the_deadline(worker: Worker) -> None:
    with worker.connect() as client:
        client.settimeout(0.1)
        started = time.monotonic()
        client.sendall(b"GET / HTTP/1.1\r\n")
        answer = b""
        while not answer and time.monotonic() - started < PATIENCE_S:
            client.sendall(b"x: y\r\n")
            try:
                answer = client.recv(65536)
            except TimeoutError:
                continue
    assert answer.startswith(b"HTTP/1.1 408 ")


def test_connection_that_sends_nothing_is_closed(worker: Worker) -> None:
    with worker.connect() as client:
        assert read_to_end(client) == b""


def test_slow_body_gets_408(worker: Worker) -> None:
    answer = worker.exchange(POST + b"\r\nhel")
    assert answer.startswith(b"HTTP/1.1 408 ")


def test_handling_longer_than_the_deadlines_is_no_fault_of_the_client(worker: Worker) -> None:
    answer = worker.exchange(b"POST /slow HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n" + CLOSE + b"\r\nhello")
    assert answer.startswith(b"HTTP/1.1 200 ")


def test_early_answer_comes_before_the_body_and_the_connection_goes_on(worker: Worker) -> None:
    with worker.connect() as client:
        client.sendall(b"POST /early HTTP/1.1\r\ncontent-length: 100000\r\n\r\n" + b"x" * 10)
        assert read_answer(client)[0] == 200
        client.sendall(b"x" * 99_990 + POST + b"\r\nhello")
        assert read_answer(client) == (200, b"5")


def test_body_that_never_ends_after_an_early_answer_ends_the_connection(worker: Worker) -> None:
    with worker.connect() as client:
        client.sendall(b"POST /early HTTP/1.1\r\ncontent-length: 100000\r\n\r\n" + b"x" * 10)
        assert read_answer(client)[0] == 200
        assert read_to_end(client) == b""


@pytest.mark.parametrize("method", [b"HEAD", b"GET"])
def test_answers_without_a_body_are_sent(worker: Worker, method: bytes) -> None:
    answer = worker.exchange(method + b" / HTTP/1.1\r\nconnection: close\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert answer.endswith(b"\r\n\r\n" if method == b"HEAD" else b"\r\n\r\n0")


def test_line_break_in_a_header_is_not_sent(worker: Worker) -> None:
    assert worker.exchange(b"GET /torn HTTP/1.1\r\n" + CLOSE + b"\r\n") == b""


def test_head_and_body_of_an_answer_are_sent_together(worker: Worker) -> None:
    with worker.connect() as client:
        for _ in range(20):
            client.sendall(POST + b"\r\nhello")
            assert client.recv(65536).endswith(b"\r\n\r\n5")


def test_expect_100_is_answered(worker: Worker) -> None:
    with worker.connect() as client:
        client.sendall(POST + b"expect: 100-continue\r\n\r\n")
        assert client.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.sendall(b"hello")
        assert read_answer(client) == (200, b"5")


def test_20000_headers_get_431(worker: Worker) -> None:
    answer = worker.exchange(b"GET / HTTP/1.1\r\n" + b"x: y\r\n" * 20_000 + b"\r\n")
    assert answer == b"" or answer.startswith(b"HTTP/1.1 431 ")
    assert b"200 OK" not in answer


def test_headers_at_the_count_limit_pass_and_one_more_does_not(worker: Worker) -> None:
    def request(count: int) -> bytes:
        return b"GET / HTTP/1.1\r\n" + CLOSE + b"x: y\r\n" * (count - 1) + b"\r\n"

    assert worker.exchange(request(LIMITS.max_headers)).startswith(b"HTTP/1.1 200 ")
    refused = worker.exchange(request(LIMITS.max_headers + 1))
    assert refused.startswith(b"HTTP/1.1 431 ")
    assert b'"code":"header_too_large"' in refused


@pytest.mark.parametrize("piece_bytes", [1000, 1 << 20])
def test_header_bytes_are_capped_however_they_arrive(worker: Worker, piece_bytes: int) -> None:
    def pieces(length: int) -> list[bytes]:
        request = b"GET / HTTP/1.1\r\n" + CLOSE + b"x: " + b"y" * length + b"\r\n\r\n"
        return [request[i : i + piece_bytes] for i in range(0, len(request), piece_bytes)]

    assert worker.exchange(*pieces(LIMITS.max_header_bytes - 200)).startswith(b"HTTP/1.1 200 ")
    refused = worker.exchange(*pieces(LIMITS.max_header_bytes + 1))
    assert refused == b"" or refused.startswith(b"HTTP/1.1 431 ")


def test_5_mb_header_is_refused_before_it_has_arrived(worker: Worker) -> None:
    sent = 0
    with worker.connect() as client:
        client.sendall(b"GET / HTTP/1.1\r\nx: ")
        try:
            for _ in range(80):
                client.sendall(b"y" * 65536)
                sent += 65536
                time.sleep(0.001)
            client.sendall(b"\r\n\r\n")
            answer = read_to_end(client)
        except (BrokenPipeError, ConnectionResetError):
            answer = b""
    assert b"200 OK" not in answer
    assert sent < 80 * 65536


def test_long_url_counts_as_header(worker: Worker) -> None:
    answer = worker.exchange(b"GET /" + b"a" * (LIMITS.max_header_bytes + 1) + b" HTTP/1.1\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 431 ")


def test_body_larger_than_the_header_limit_is_no_header(worker: Worker) -> None:
    body = b"x" * 3_000_000
    head = b"POST / HTTP/1.1\r\ncontent-length: %d\r\n" % len(body)
    answer = worker.exchange(head + CLOSE + b"\r\n" + body)
    assert answer.endswith(b"3000000")


CHUNKED = b" HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n"


@pytest.mark.parametrize("trailer", [b"x-name: forged\r\n", b"x-name: forged\r\nx: y\r\n" * 100])
def test_trailers_are_no_headers(worker: Worker, trailer: bytes) -> None:
    """However the request arrives, and the next one on the connection is read as ever."""
    head, body = b"POST /names" + CHUNKED + b"\r\n", b"5\r\nhello\r\n0\r\n" + trailer + b"\r\n"
    with worker.connect() as client:
        for pieces in [(head + body,), (head, body), (head + body[:13], body[13:])]:
            for piece in pieces:
                client.sendall(piece)
                time.sleep(0.02)
            assert read_answer(client) == (200, b"host,transfer-encoding")
        client.sendall(POST + b"\r\nhello")
        assert read_answer(client) == (200, b"5")


@pytest.mark.parametrize("path", [b"/", b"/early"])
@pytest.mark.parametrize(
    ("before", "endless"),
    [
        (b"0\r\n", b"a:b\r\n" * 1000),
        (b"0\r\na: ", b"x" * 5000),
        (b"0\r\n", b"x" * 5000),
        (b"5;", b"x" * 5000),
    ],
    ids=["trailers", "value", "name", "extension"],
)
def test_what_never_ends_within_a_body_is_refused(worker: Worker, path: bytes, before: bytes, endless: bytes) -> None:
    sent = 0
    with worker.connect() as client:
        client.sendall(b"POST " + path + CHUNKED + b"\r\n" + before)
        if path == b"/early":
            assert read_answer(client)[0] == 200
        try:
            for _ in range(1000):
                client.sendall(endless)
                sent += len(endless)
                time.sleep(0.001)
        except (BrokenPipeError, ConnectionResetError):
            pass
        answer = read_to_end(client)
    assert answer == b"" or (path == b"/" and answer.startswith(b"HTTP/1.1 431 "))
    assert sent < 2_500_000, "it was the deadline"


def test_trailers_beyond_the_limit_get_431(worker: Worker) -> None:
    with worker.connect() as client:
        client.sendall(b"POST /" + CHUNKED + b"\r\n0\r\na: ")
        for _ in range(2):
            time.sleep(0.1)  # for a read of its own
            client.sendall(b"x" * (LIMITS.max_header_bytes // 2 + 1))
        answer = read_to_end(client)
    assert answer.startswith(b"HTTP/1.1 431 ")
    assert b'"code":"header_too_large"' in answer


@pytest.mark.parametrize("piece_bytes", [7, 1 << 20])
def test_body_of_many_small_chunks_is_read(worker: Worker, piece_bytes: int) -> None:
    """Its framing is many times the limit on headers, and so is what comes in pieces without a byte of the body."""
    count = 3 * LIMITS.max_header_bytes // 10
    request = b"POST /" + CHUNKED + CLOSE + b"\r\n" + b"1;abc=def\r\na\r\n" * count + b"0\r\nx: y\r\n\r\n"
    with worker.connect() as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for i in range(0, len(request), piece_bytes):
            client.sendall(request[i : i + piece_bytes])
        assert read_to_end(client).endswith(b"\r\n\r\n%d" % count)


def test_pipelined_requests_are_answered_in_order(worker: Worker) -> None:
    first = b"POST /slow HTTP/1.1\r\ncontent-length: 1\r\n\r\na"
    second = b"POST / HTTP/1.1\r\ncontent-length: 2\r\n\r\nab"
    third = b"POST / HTTP/1.1\r\ncontent-length: 3\r\n" + CLOSE + b"\r\nabc"
    answer = worker.exchange(first + second + third)
    assert [part[-1:] for part in answer.split(b"HTTP/1.1 200 OK")[1:]] == [b"1", b"2", b"3"]


def test_bad_request_behind_a_good_one_does_not_take_its_answer(worker: Worker) -> None:
    first = b"POST /slow HTTP/1.1\r\ncontent-length: 1\r\n\r\na"
    answer = worker.exchange(first + b"GET / HTTP/1.1\r\n" + b"x: y\r\n" * 200 + b"\r\n")
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert answer.count(b"HTTP/1.1") == 1


MALFORMED = b"POST /" + CHUNKED + b"\r\nZZ\r\n"
ENDLESS = b"POST /" + CHUNKED + b"\r\n5;" + b"x" * 500_000
UNFINISHED = b"POST /" + CHUNKED + b"\r\n5\r\nhel"


@pytest.mark.parametrize("bad", [MALFORMED, ENDLESS, UNFINISHED], ids=["malformed", "endless", "unfinished"])
@pytest.mark.parametrize("good", [1, 2, 3])
def test_bad_body_behind_good_requests_does_not_take_their_answers(worker: Worker, good: int, bad: bytes) -> None:
    first = b"POST /slow HTTP/1.1\r\ncontent-length: 1\r\n\r\na"
    answer = worker.exchange(first + (POST + b"\r\nhello") * (good - 1) + bad)
    heads = answer.split(b"HTTP/1.1 ")[1:]
    assert [head[:3] for head in heads[:good]] == [b"200"] * good
    assert [head[-1:] for head in heads[:good]] == [b"1", b"5", b"5"][:good]


def test_good_request_gets_nothing_of_the_bad_one_behind_it(worker: Worker) -> None:
    """The first reads its body late, by when the second one's has a fault and more has come."""
    with worker.connect() as client:
        client.sendall(b"POST /late HTTP/1.1\r\ncontent-length: 5\r\n\r\nhello" + MALFORMED)
        time.sleep(0.1)
        client.sendall(b"5\r\nworld\r\n0\r\n\r\n" + POST + b"\r\nhello")
        answer = read_to_end(client)
    assert answer.count(b"HTTP/1.1") == 1
    assert answer.endswith(b"\r\n\r\n5")


def test_content_length_with_transfer_encoding_is_refused(worker: Worker) -> None:
    smuggled = b"transfer-encoding: chunked\r\n\r\n0\r\n\r\nGET /pid HTTP/1.1\r\n\r\n"
    answer = worker.exchange(POST + smuggled)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b'"code":"invalid_http"' in answer
    assert answer.count(b"x-request-id") == 1


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST / HTTP/1.1\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello",
        b"POST / HTTP/1.1\r\ncontent-length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"GET / HTTP/1.1\r\nbad header\r\n\r\n",
    ],
)
def test_what_is_not_http_gets_400(worker: Worker, request_bytes: bytes) -> None:
    answer = worker.exchange(request_bytes)
    assert answer.startswith(b"HTTP/1.1 400 ")


def test_upgrade_offers_are_ignored(worker: Worker) -> None:
    offer = b"connection: upgrade, close\r\nupgrade: h2c\r\n"
    answer = worker.exchange(b"GET / HTTP/1.1\r\n" + offer + b"\r\n")
    assert answer.startswith(b"HTTP/1.1 200 ")


def test_connections_beyond_the_bound_get_503(worker: Worker) -> None:
    held = [worker.connect() for _ in range(MAX_CONNECTIONS)]
    try:
        with worker.connect() as client:
            answer = read_to_end(client)
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"retry-after: 1\r\n" in answer
    finally:
        for client in held:
            client.close()
    until = time.monotonic() + PATIENCE_S
    while not worker.exchange(POST + CLOSE + b"\r\nhello").startswith(b"HTTP/1.1 200 "):
        assert time.monotonic() < until, "closed connections still count"


@pytest.mark.parametrize("way", WAYS)
def test_sigterm_finishes_the_request_in_flight_and_refuses_new_ones(tmp_path: Path, way: str) -> None:
    worker = Worker(tmp_path, *WAYS[way])
    with worker.connect() as client:
        client.sendall(POST + b"\r\nhello")
        assert read_answer(client)[0] == 200
        client.sendall(b"POST /slow HTTP/1.1\r\ncontent-length: 5\r\n\r\nhello")
        worker.wait_for_slow_request()
        worker.process.send_signal(signal.SIGTERM)
        assert read_to_end(client).startswith(b"HTTP/1.1 200 ")
    assert worker.process.wait(PATIENCE_S) == 0
    with pytest.raises(ConnectionRefusedError):
        worker.connect()


def test_client_that_goes_before_its_answer_disturbs_nobody(worker: Worker) -> None:
    for _ in range(5):
        with worker.connect() as client:
            client.sendall(b"POST /slow HTTP/1.1\r\ncontent-length: 5\r\n\r\nhello")
            worker.wait_for_slow_request()
    time.sleep(1.2)
    with worker.connect() as client:
        client.sendall(POST + b"\r\nhello")
        assert read_answer(client) == (200, b"5")
