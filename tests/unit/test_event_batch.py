"""The stored formats: round trips, damaged bytes, versions."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from xxhash import xxh3_64_digest

from storage.errors import FormatError
from storage.event_batch import (
    BATCH_VERSION,
    COLUMNS,
    RECORD_VERSION,
    SMALL_BYTES,
    EventBatch,
    LogRecord,
    PackedRows,
    RecordBatch,
    Segment,
    decode_batch,
    decode_batches,
    decode_record,
    encode_batch,
    encode_batches,
    encode_record,
    pack_duplicates,
    pack_rows,
    read_each,
    read_rows,
    unpack_rows,
)

NOW = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
texts = st.text(st.characters(blacklist_categories=["Cs"]), max_size=20)
segments = st.builds(Segment, texts, st.integers(0, 1 << 31), st.integers(0, 10_000), st.integers(0, 10_000))
batches = st.builds(
    EventBatch,
    st.just(BATCH_VERSION),
    st.binary(min_size=16, max_size=16),
    st.integers(0, 1023),
    st.lists(segments, max_size=4),
    st.binary(max_size=80),
    st.builds(PackedRows, st.integers(0, 1 << 40), st.binary(max_size=50)),
)
records = st.builds(
    LogRecord,
    st.just(RECORD_VERSION),
    st.integers(0, 1 << 50),
    st.lists(
        st.builds(
            RecordBatch,
            st.binary(min_size=16, max_size=16),
            st.lists(segments, max_size=4),
            st.binary(max_size=10),
            st.builds(PackedRows, st.integers(0, 1 << 40), st.binary(max_size=50)),
        ),
        max_size=3,
    ),
)


def rows(*event_ids: str, user_id: str | None = "ü\U0001f600") -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist(
        [
            {"project_id": "p", "event_id": event_id, "event_type": "click", "user_id": user_id, "anonymous_id": None,
             "session_id": None, "site_id": None, "timestamp": NOW, "received_at": NOW, "properties": '{"a":1}',
             "context": None}
            for event_id in event_ids
        ],
        schema=COLUMNS,
    )  # fmt: skip


def batch(*, version: int = BATCH_VERSION) -> EventBatch:
    return EventBatch(version, bytes(16), 3, [Segment("p", 490_000, 2, 1)], bytes(16), pack_rows(rows("a", "b")))


def record(*, version: int = RECORD_VERSION) -> LogRecord:
    return LogRecord(version, 1_767_000_000_000, [RecordBatch(bytes(16), [Segment("p", 1, 2, 0)], b"", PackedRows())])


@given(batches)
def test_a_batch_comes_back(original: EventBatch) -> None:
    assert decode_batch(encode_batch(original)) == original


@given(st.lists(batches, max_size=4))
def test_a_call_of_batches_comes_back(original: list[EventBatch]) -> None:
    assert decode_batches(encode_batches(original)) == original


@given(records)
def test_a_record_comes_back(original: LogRecord) -> None:
    assert decode_record(encode_record(original)) == original


@pytest.mark.parametrize("original", [rows(), rows("a"), rows("a", "b", user_id=None), rows(*map(str, range(5000)))])
def test_rows_come_back(original: pa.RecordBatch) -> None:
    assert unpack_rows(pack_rows(original)).equals(original)


def test_what_is_counted_of_a_batch() -> None:
    one = batch()
    assert one.events == 2
    assert one.resident_bytes >= len(one.rows.block) + len(one.fingerprints)


@given(st.lists(st.booleans(), min_size=1, max_size=100))
def test_marked_duplicates_come_back(marks: list[bool]) -> None:
    mask = np.array(marks)
    packed = RecordBatch(bytes(16), [Segment("p", 1, len(marks), 0)], pack_duplicates(mask), PackedRows())
    found = packed.duplicate_mask()
    assert (found is None and not mask.any()) or (found is not None and found.tolist() == marks)


def test_the_written_form_is_the_documented_one() -> None:
    """A change of these bytes needs a new version, unless both are read: logs and spools on disk have them."""
    assert msgspec.msgpack.decode(encode_record(record())) == [
        1,
        1_767_000_000_000,
        [[bytes(16), [["p", 1, 2, 0]], b"", [0, b"", b""]]],
    ]
    written = msgspec.msgpack.decode(encode_batch(batch()))
    assert written[:5] == [1, bytes(16), 3, [["p", 490_000, 2, 1]], bytes(16)]
    plain_bytes, block, digest = written[5]
    assert plain_bytes == rows("a", "b").serialize().size
    assert digest == xxh3_64_digest(block)


@pytest.mark.parametrize(
    ("decode", "raw"),
    [
        (decode_batch, encode_batch(batch())),
        (decode_batches, encode_batches([batch()])),
        (decode_record, encode_record(record())),
    ],
)
def test_truncated_bytes_are_refused(decode: Callable[[bytes], Any], raw: bytes) -> None:
    decode(raw)
    for length in range(len(raw)):
        with pytest.raises(FormatError):
            decode(raw[:length])


@given(st.binary(max_size=60))
def test_any_bytes_are_read_or_refused(raw: bytes) -> None:
    for decode in (decode_batch, decode_batches, decode_record):
        try:
            decode(raw)
        except FormatError:
            continue
        assert raw == b"\x90"  # the empty list of batches, the only thing that so few bytes can say
        assert decode is decode_batches


@pytest.mark.parametrize(
    "damaged",
    [
        PackedRows(),
        PackedRows(100, b"no lz4 block"),
        PackedRows(10, pack_rows(rows("a")).block),
        PackedRows(pack_rows(rows("a")).plain_bytes, pack_rows(rows("a")).block[:-9]),
    ],
)
def test_damaged_rows_are_refused(damaged: PackedRows) -> None:
    with pytest.raises(FormatError):
        unpack_rows(damaged)


def log_batch(*names: str, rows_of: PackedRows | None = None) -> RecordBatch:
    packed = pack_rows(rows(*names)) if rows_of is None else rows_of
    return RecordBatch(b"b" * 16, [Segment("p", 1, len(names), 0)], b"", packed)


@pytest.mark.parametrize("large", [0, 1, 2])
def test_batches_are_read_together_as_each_is_read_alone(large: int) -> None:
    """Small ones, and larger ones among them."""
    sizes = [1, 3, 2]
    sizes[large] = SMALL_BYTES // 40
    all_batches = [log_batch(*(f"e{n}" for n in range(size))) for size in sizes]
    assert [batch.rows.plain_bytes > SMALL_BYTES for batch in all_batches] == [n == large for n in range(3)]
    for found, batch in zip(read_each(all_batches), all_batches, strict=True):
        assert isinstance(found, pa.RecordBatch)
        assert found.equals(read_rows(batch))
    assert read_each([]) == []


def damaged_blocks() -> list[PackedRows]:
    """All the kinds of damage that can be told: of the block, of its length, of the message in it, of the count."""
    plain = rows("a").serialize().to_pybytes()
    head_bytes = int.from_bytes(plain[4:8], "little")
    longer, shorter, empty = (
        plain[:4] + size.to_bytes(4, "little") + plain[8:] for size in (head_bytes + 8, head_bytes - 8, 0)
    )
    return [
        PackedRows(len(plain), b"no lz4 block"),
        PackedRows(len(plain) - 8, pack_rows(rows("a")).block),
        pack_rows(rows("a", "b")),
        *(PackedRows(len(each), pa.Codec("lz4_raw").compress(each, asbytes=True)) for each in (longer, shorter, empty)),
        PackedRows(len(plain) // 2, pa.Codec("lz4_raw").compress(plain[: len(plain) // 2], asbytes=True)),
    ]


def test_a_changed_value_is_told_by_the_digest() -> None:
    """Arrow would take it."""
    packed = pack_rows(rows("abcdef"))
    plain = pa.Codec("lz4_raw").decompress(packed.block, packed.plain_bytes, asbytes=True)
    changed = pa.Codec("lz4_raw").compress(plain.replace(b"abcdef", b"abcdeg"), asbytes=True)
    assert unpack_rows(PackedRows(packed.plain_bytes, changed)).column("event_id").to_pylist() == ["abcdeg"]
    damaged = log_batch("abcdef", rows_of=PackedRows(packed.plain_bytes, changed, packed.digest))
    assert isinstance(read_each([damaged])[0], FormatError)
    with pytest.raises(FormatError, match="digest"):
        read_rows(damaged)


def test_batches_without_a_digest_are_read_and_looked_at_closely() -> None:
    packed = pack_rows(rows("a"))
    written = [1, 7, [[b"b" * 16, [["p", 1, 1, 0]], b"", [packed.plain_bytes, packed.block]]]]
    [old] = decode_record(msgspec.msgpack.encode(written)).batches
    assert read_rows(old).equals(rows("a"))
    plain = pa.Codec("lz4_raw").decompress(packed.block, packed.plain_bytes, asbytes=True)
    no_text = pa.Codec("lz4_raw").compress(plain.replace("ü".encode(), b"\xff\xff"), asbytes=True)
    with pytest.raises(FormatError, match="UTF8"):
        unpack_rows(PackedRows(packed.plain_bytes, no_text))


@pytest.mark.parametrize("damaged", damaged_blocks())
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_damaged_batch_spoils_no_other(damaged: PackedRows, place: int) -> None:
    batches_read = [log_batch("x"), log_batch("y", "z")]
    batches_read.insert(place, log_batch("a", rows_of=damaged))
    found = read_each(batches_read)
    assert isinstance(found.pop(place), FormatError)
    for each, names in zip(found, (["x"], ["y", "z"]), strict=True):
        assert isinstance(each, pa.RecordBatch)
        assert each.column("event_id").to_pylist() == names


def test_an_unknown_version_is_refused_by_name() -> None:
    for call, what in (
        (lambda: decode_batch(encode_batch(batch(version=2))), "event batch has version 2"),
        (lambda: decode_batches(encode_batches([batch(), batch(version=2)])), "event batch has version 2"),
        (lambda: decode_record(encode_record(record(version=9))), "log record has version 9"),
    ):
        with pytest.raises(FormatError, match=what):
            call()
