"""Gathering a write's rows in columns, and their binary form."""

from typing import Any

import pyarrow as pa
import pytest

from storage.copy_format import COPY_COLUMNS, STORED, encode_copy, gather, in_pieces
from storage.event_batch import COLUMNS
from tests.contract.log_records import batch, event, record, write


def _names(rows: pa.RecordBatch) -> list[tuple[Any, ...]]:
    names = ("event_id", "partition_id", "log_offset", "row_number")
    return [tuple(row[name] for name in names) for row in rows.to_pylist()]


def test_rows_carry_their_place_in_the_log_and_duplicates_are_left_out() -> None:
    first = record(batch(event("a"), event("b"), event("c"), duplicates=[1]), batch(rejected=2), batch(event("d")))
    second = record(batch(event("e"), duplicates=[0]), batch(event("f")))
    rows = gather([write(first, second, first=7), write(record(batch(event("g"))), partition=5)])
    assert rows.schema == STORED
    assert _names(rows) == [("a", 0, 7, 0), ("c", 0, 7, 2), ("d", 0, 7, 3), ("f", 0, 8, 1), ("g", 5, 0, 0)]


def test_all_columns_come_through() -> None:
    full = event("a", user_id="ü\U0001f600", anonymous_id="n", session_id="s", site_id="t", context='{"ip":"::1"}')
    [row] = gather([write(record(batch(full)))]).to_pylist()
    assert {name: row[name] for name in COLUMNS.names} == full


@pytest.mark.parametrize(
    "writes",
    [
        [],
        [write()],
        [write(record())],
        [write(record(batch(rejected=1)))],
        [write(record(batch(event("a"), duplicates=[0])))],
    ],
)
def test_a_write_without_rows_is_an_empty_batch(writes: list[Any]) -> None:
    rows = gather(writes)
    assert rows.num_rows == 0 and rows.schema == STORED


def test_the_binary_form_is_postgresqls() -> None:
    [row] = [event("a", properties='{"n":1}')]
    encoded = encode_copy(gather([write(record(batch(row)), first=258)]))
    assert encoded.startswith(b"PGCOPY\n\xff\r\n\0" + bytes(8) + len(COPY_COLUMNS).to_bytes(2, "big"))
    assert b'\x00\x00\x00\x08\x01{"n":1}' in encoded  # jsonb, version 1
    assert encoded.endswith((8).to_bytes(4, "big") + (258).to_bytes(8, "big") + b"\xff\xff")


def test_a_slice_is_encoded_like_rows_of_its_own() -> None:
    rows = gather([write(record(batch(*(event(f"e{number}", user_id="u" * number) for number in range(50)))))])
    part = rows.slice(13, 7)
    assert encode_copy(part) == encode_copy(pa.RecordBatch.from_pylist(part.to_pylist(), schema=STORED))


async def test_pieces_are_the_whole_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("storage.copy_format._PIECE_BYTES", 10)
    pieces = [piece async for piece in in_pieces(bytes(range(35)))]
    assert [len(piece) for piece in pieces] == [10, 10, 10, 5]
    assert b"".join(pieces) == bytes(range(35))
