"""Rows become columns without loss, with the fingerprints and segments that everything later relies on."""

import itertools
from datetime import UTC, datetime, timedelta

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from gateway.columns import Part, build_batch, build_batches
from gateway.rows import Row
from storage.event_batch import EventBatch, PackedRows, Segment, decode_batch, encode_batch, unpack_rows
from storage.fingerprint import fingerprint

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)
times = st.datetimes(datetime(1970, 1, 1), datetime(2106, 1, 1)).map(lambda t: t.replace(tzinfo=UTC))  # noqa: DTZ001
rows = st.builds(
    Row,
    event_id=texts,
    event_type=texts,
    user_id=st.none() | texts,
    anonymous_id=st.none() | texts,
    session_id=st.none() | texts,
    site_id=st.none() | texts,
    timestamp=times,
    properties=st.just(b'{"a":1}'),
    context=st.none() | st.just(b"{}"),
)
parts = st.builds(Part, texts.filter(bool), times, st.lists(rows, max_size=5), st.integers(0, 3))


@given(st.lists(parts, min_size=1, max_size=6))
def test_every_value_comes_back(given_parts: list[Part]) -> None:
    batch = decode_batch(encode_batch(build_batch(3, given_parts, batch_id=bytes(16))))
    expected = [(part, row) for part in given_parts for row in part.rows]
    found = unpack_rows(batch.rows).to_pylist() if batch.rows != PackedRows() else []
    assert batch.events == len(found) == len(expected)
    for (part, row), columns in zip(expected, found, strict=True):
        assert columns == {
            "project_id": part.project_id,
            "event_id": row.event_id,
            "event_type": row.event_type,
            "user_id": row.user_id,
            "anonymous_id": row.anonymous_id,
            "session_id": row.session_id,
            "site_id": row.site_id,
            "timestamp": row.timestamp,
            "received_at": part.received_at,
            "properties": row.properties.decode(),
            "context": None if row.context is None else row.context.decode(),
        }
    ids = [fingerprint(part.project_id, row.event_id) for part, row in expected]
    assert np.frombuffer(batch.fingerprints, "<u8").tolist() == ids


@given(st.lists(st.tuples(st.integers(0, 63), st.lists(parts, max_size=4)), max_size=4))
def test_batches_made_at_once_are_those_made_one_by_one(groups: list[tuple[int, list[Part]]]) -> None:
    at_once = build_batches(groups, new_id=lambda: bytes(16))
    one_by_one = [build_batch(partition, group, batch_id=bytes(16)) for partition, group in groups]
    assert [_contents(batch) for batch in at_once] == [_contents(batch) for batch in one_by_one]


def test_large_properties_come_back_in_their_order() -> None:
    sizes = [10, 700_000, 5, 600_000, 1_200_000, 0, 300_000]
    texts = [b'{"%d":"%b"}' % (number, b"x" * size) for number, size in enumerate(sizes)]
    given_rows = [
        Row(str(n), "t", None, None, None, None, EPOCH, text, None if n % 2 else text) for n, text in enumerate(texts)
    ]
    found = unpack_rows(build_batch(3, [Part("p", EPOCH, given_rows, 0)], batch_id=bytes(16)).rows)
    found.validate(full=True)
    assert found.column("properties").to_pylist() == [text.decode() for text in texts]
    assert found.column("context").to_pylist() == [None if n % 2 else text.decode() for n, text in enumerate(texts)]


def _contents(batch: EventBatch) -> tuple[object, ...]:
    rows = unpack_rows(batch.rows).to_pylist() if batch.rows != PackedRows() else []
    return batch.partition, batch.segments, batch.fingerprints, rows


@given(st.lists(parts, min_size=1, max_size=6))
def test_segments_say_whose_rows_they_are_and_what_was_refused(given_parts: list[Part]) -> None:
    segments = build_batch(3, given_parts, batch_id=bytes(16)).segments
    owners = [segment.project_id for segment in segments for _ in range(segment.events)]
    assert owners == [part.project_id for part in given_parts for _ in part.rows]
    assert sum(segment.rejected for segment in segments) == sum(part.rejected for part in given_parts)
    neighbours = itertools.pairwise(segments)
    assert all((a.project_id, a.hour) != (b.project_id, b.hour) for a, b in neighbours)


def test_a_request_belongs_to_the_hour_of_its_receipt() -> None:
    at = EPOCH + timedelta(hours=1000, minutes=59, seconds=59)
    later = at + timedelta(seconds=1)
    segments = build_batch(0, [Part("p", at, [], 1), Part("p", later, [], 2)], batch_id=bytes(16)).segments
    assert segments == [Segment("p", 1000, 0, 1), Segment("p", 1001, 0, 2)]
