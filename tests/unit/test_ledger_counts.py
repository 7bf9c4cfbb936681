"""Every event of a write is counted once, under its project and hour (LG-1)."""

from dataclasses import astuple

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.event_batch import LogRecord, PackedRows, RecordBatch, Segment, pack_duplicates
from storage.event_store import LostEvents, PartitionWrite
from storage.ledger_counts import Counts, LedgerKey, RowKey, count, total

SEGMENTS = st.builds(
    Segment, st.sampled_from(["shop", "blog", "ü"]), st.integers(0, 3), st.integers(0, 5), st.integers(0, 3)
)
LOST = st.builds(
    lambda project, hour, duplicate, rejected, lost: LostEvents(
        project, hour, duplicate + rejected + lost, duplicate, rejected, lost
    ),
    st.sampled_from(["shop", "blog"]),
    *[st.integers(0, 3)] * 4,
)


@st.composite
def batches(draw: st.DrawFn) -> RecordBatch:
    segments = draw(st.lists(SEGMENTS, min_size=1, max_size=4))
    events = sum(segment.events for segment in segments)
    mask = np.array(draw(st.lists(st.booleans(), min_size=events, max_size=events)), bool)
    return RecordBatch(b"", segments, pack_duplicates(mask), PackedRows())


@st.composite
def partition_writes(draw: st.DrawFn) -> list[PartitionWrite]:
    return [
        PartitionWrite(
            partition,
            1,
            0,
            10,
            [(offset, LogRecord(1, 0, found)) for offset, found in enumerate(draw(st.lists(st.lists(batches()))))],
            draw(st.lists(LOST, max_size=2)),
        )
        for partition in range(draw(st.integers(0, 3)))
    ]


def _rows(writes: list[PartitionWrite]) -> list[tuple[RowKey, LedgerKey, bool]]:
    """Each row's name, where it is counted and whether it is a duplicate: slowly, one by one."""
    rows = []
    for write in writes:
        for offset, record in write.records:
            number = 0
            for batch in record.batches:
                owners = [segment for segment in batch.segments for _ in range(segment.events)]
                mask = batch.duplicate_mask()
                for at, segment in enumerate(owners):
                    key = LedgerKey(segment.project_id, segment.hour)
                    rows.append((RowKey(write.partition, offset, number), key, mask is not None and bool(mask[at])))
                    number += 1
    return rows


@settings(max_examples=50)
@given(partition_writes(), st.data())
def test_the_counts_are_those_of_counting_one_by_one(writes: list[PartitionWrite], data: st.DataObject) -> None:
    rows = _rows(writes)
    alive = [name for name, _, duplicate in rows if not duplicate]
    dead = data.draw(st.lists(st.sampled_from(alive), unique=True)) if alive else []
    expected: dict[LedgerKey, Counts] = {}
    for name, key, duplicate in rows:
        outcome = Counts(received=1)
        if duplicate:
            outcome.duplicate = 1
        elif name in dead:
            outcome.dead_lettered = 1
        else:
            outcome.stored = 1
        expected.setdefault(key, Counts()).add(outcome)
    for write in writes:
        for lost in write.lost:
            added = Counts(lost.received, 0, lost.duplicate, 0, lost.rejected, lost.lost)
            expected.setdefault(LedgerKey(lost.project_id, lost.hour), Counts()).add(added)
        for _, record in write.records:
            for segment in (segment for batch in record.batches for segment in batch.segments):
                refused = Counts(received=segment.rejected, rejected=segment.rejected)
                expected.setdefault(LedgerKey(segment.project_id, segment.hour), Counts()).add(refused)
    counts = count(writes, dead)
    assert {key: astuple(counted) for key, counted in counts.items()} == {
        key: astuple(counted) for key, counted in expected.items()
    }
    for received, *parts in (astuple(counted) for counted in counts.values()):
        assert received == sum(parts)
    assert total(counts.values()).stored == len(alive) - len(dead)
