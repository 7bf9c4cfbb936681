"""The generator's reading of answers, in whatever pieces they come."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from load_tests.responses import MAX_HEAD_BYTES, BadResponse, ResponseReader

ANSWER = (
    b"HTTP/1.1 202 Accepted\r\ncontent-type: application/json\r\nContent-Length: 12\r\nx-request-id: a-1\r\n\r\n"
    b'{"ok": true}'
)


def feed(reader: ResponseReader, pieces: list[bytes]) -> list[int]:
    return [reader.feed(piece) for piece in pieces]


def test_an_answer_in_one_piece() -> None:
    assert feed(ResponseReader(), [ANSWER, ANSWER]) == [202, 202]


@given(st.lists(st.integers(1, len(ANSWER) - 1), unique=True, max_size=8))
def test_an_answer_in_pieces_is_complete_with_the_last_one(cuts: list[int]) -> None:
    bounds = [0, *sorted(cuts), len(ANSWER)]
    pieces = [ANSWER[start:end] for start, end in itertools.pairwise(bounds)]
    reader = ResponseReader()
    expected = [0] * (len(pieces) - 1) + [202]
    assert feed(reader, pieces) == expected
    assert feed(reader, pieces) == expected


def test_an_answer_without_a_body() -> None:
    assert feed(ResponseReader(), [b"HTTP/1.1 503 Unavailable\r\nContent-Length: 0\r\n\r\n", ANSWER]) == [503, 202]


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 abc OK\r\nContent-Length: 3\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"x" * (MAX_HEAD_BYTES + 1),
        ANSWER + b"{",
    ],
)
def test_what_is_no_such_answer_is_refused(answer: bytes) -> None:
    with pytest.raises(BadResponse):
        ResponseReader().feed(answer)
