"""Ids made in bulk: UUIDv7, ascending, from the given clock and randomness."""

import uuid
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.event_ids import MAX_IDS, make_event_ids

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
NOW = datetime(2026, 3, 1, 12, 0, 0, 123_456, tzinfo=UTC)


@given(
    count=st.integers(0, 300),
    now=st.integers(0, 250_000_000_000_000).map(lambda milliseconds: EPOCH + timedelta(milliseconds=milliseconds)),
    fill=st.integers(0, 255),
)
def test_they_are_uuids_of_version_7_in_order(count: int, now: datetime, fill: int) -> None:
    ids = make_event_ids(count, now=now, random_bytes=lambda size: bytes([fill]) * size)
    assert len(set(ids)) == count
    assert ids == sorted(ids)
    for text in ids:
        parsed = uuid.UUID(text)
        assert (parsed.version, parsed.variant, str(parsed)) == (7, uuid.RFC_4122, text)
        assert parsed.int >> 80 == (now - EPOCH) // timedelta(milliseconds=1)


def test_the_counter_passes_from_its_low_to_its_high_part_in_order() -> None:
    ids = make_event_ids(40_000, now=NOW, random_bytes=lambda size: b"\xff" * size)
    assert ids == sorted(set(ids))
    assert len({text[15:18] for text in ids}) > 2


def test_the_randomness_is_asked_once_a_batch() -> None:
    asked: list[int] = []

    def count_calls(size: int) -> bytes:
        asked.append(size)
        return bytes(size)

    make_event_ids(100, now=NOW, random_bytes=count_calls)
    assert len(asked) == 1


def test_two_batches_of_the_same_millisecond_differ() -> None:
    assert not set(make_event_ids(1000, now=NOW)) & set(make_event_ids(1000, now=NOW))


def test_the_offset_of_the_clock_does_not_matter() -> None:
    elsewhere = NOW.astimezone(timezone(timedelta(hours=5)))
    assert make_event_ids(2, now=NOW, random_bytes=bytes) == make_event_ids(2, now=elsewhere, random_bytes=bytes)


def test_more_than_the_counter_holds_is_refused() -> None:
    with pytest.raises(ValueError, match="at most"):
        make_event_ids(MAX_IDS + 1, now=NOW)
