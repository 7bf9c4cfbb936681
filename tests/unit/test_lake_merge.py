"""Merging files of the lake: the rows of all of them, in order, in a file that is one of the lake."""

import io
import random
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage import lake_merge
from storage.errors import FormatError
from storage.lake_file import SCHEMA, SORTED_BY, FileSummary, LakeFileWriter, lake_rows, read_summary, write_file
from storage.lake_manifest import OffsetRange, check_files
from storage.lake_merge import merge_files
from tests.unit.test_json_members import texts
from tests.unit.test_lake_file import HOUR, HOUR_S, RANGES, made_events, made_row


def write_part(path: Path, rows: Sequence[dict[str, Any]], *, hour: int = HOUR_S) -> FileSummary:
    with path.open("wb") as sink:
        return write_file(made_events(rows), sink, hour=hour, plan=1, number=0, ranges=RANGES)


def merged(sources: Sequence[Path]) -> tuple[bytes, FileSummary]:
    sink = io.BytesIO()
    summary = merge_files(sources, sink, hour=HOUR_S, plan=9, number=0, ranges=RANGES)
    return sink.getvalue(), summary


def in_order(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(rows, key=lambda row: (*(row[name] for name in SORTED_BY), row["log_partition"], row["log_offset"]))


def check_merge(folder: Path, parts: Sequence[Sequence[dict[str, Any]]]) -> pq.FileMetaData:
    paths = [folder / f"{number}.parquet" for number in range(len(parts))]
    summaries = [write_part(path, rows) for path, rows in zip(paths, parts, strict=True)]
    raw, summary = merged(paths)
    rows = [row for path in paths for row in pq.read_table(path, partitioning=None).to_pylist()]
    found = pq.read_table(pa.BufferReader(raw))
    assert found.schema.equals(SCHEMA)
    assert found.to_pylist() == in_order(rows)
    assert read_summary(raw) == summary
    assert summary.note.rows == sum(each.note.rows for each in summaries)
    assert summary.note.id_digest == sum(each.note.id_digest for each in summaries) % 2**64
    check_files([summary.at("key")], RANGES)
    assert merged(paths)[0] == raw
    return pq.read_metadata(pa.BufferReader(raw))


ROWS = st.builds(
    made_row,
    st.integers(0, 50),
    project_id=texts.filter(bool) | st.sampled_from(["p", "q"]),
    event_type=texts | st.just("view"),
    timestamp=st.integers(0, 3).map(lambda seconds: HOUR + timedelta(seconds=seconds)),
    log_offset=st.integers(10, 19),
)


@settings(max_examples=30)
@given(st.lists(st.lists(ROWS, min_size=1, max_size=12), min_size=1, max_size=6), st.integers(1, 5000))
def test_any_files_in_stretches_of_any_size(parts: list[list[dict[str, Any]]], stretch_bytes: int) -> None:
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patched:
        patched.setattr(lake_merge, "MERGE_BYTES", stretch_bytes)
        patched.setattr(lake_merge, "MIN_STRETCH_BYTES", 1)
        patched.setattr(lake_merge, "ROW_GROUP_ROWS", 7)
        check_merge(Path(folder), parts)


def test_files_of_several_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("storage.lake_file.ROW_GROUP_ROWS", 300)
    monkeypatch.setattr(lake_merge, "ROW_GROUP_ROWS", 1000)
    monkeypatch.setattr(lake_merge, "MERGE_BYTES", 100_000)
    monkeypatch.setattr(lake_merge, "MIN_STRETCH_BYTES", 1000)
    numbers = list(range(5000))
    random.Random(1).shuffle(numbers)
    parts = [[made_row(number) for number in numbers[first::7]] for first in range(7)]
    parts[0] += parts.pop()
    metadata = check_merge(tmp_path, parts)
    assert [metadata.row_group(n).num_rows for n in range(metadata.num_row_groups)] == [1000] * 5


def test_large_rows_make_small_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lake_merge, "GROUP_BYTES", 200_000)
    monkeypatch.setattr(lake_merge, "MERGE_BYTES", 50_000)
    monkeypatch.setattr(lake_merge, "MIN_STRETCH_BYTES", 1000)
    chance = random.Random(2)
    parts = [
        [made_row(n, properties=f'{{"t":"{chance.randbytes(2500).hex()}"}}') for n in range(first, 300, 3)]
        for first in range(3)
    ]
    metadata = check_merge(tmp_path, parts)
    assert metadata.num_row_groups > 5


def test_what_is_no_file_of_the_hour_is_refused(tmp_path: Path) -> None:
    good, other, nothing = (tmp_path / name for name in ("good", "other", "nothing"))
    write_part(good, [made_row(1)])
    write_part(other, [made_row(2, timestamp=HOUR + timedelta(hours=1))], hour=HOUR_S + 3600)
    nothing.write_bytes(b"PAR1 nothing PAR1")
    for path in (other, nothing, tmp_path / "not there"):
        with pytest.raises(FormatError):
            merged([good, path])


def test_a_file_that_is_not_sorted_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lake_merge, "MERGE_BYTES", 1000)
    monkeypatch.setattr(lake_merge, "MIN_STRETCH_BYTES", 1000)
    path = tmp_path / "unsorted"
    rows = lake_rows(made_events([made_row(number, project_id=f"p{number * 7 % 50:02d}") for number in range(50)]))
    with (
        path.open("wb") as sink,
        LakeFileWriter(sink, hour=HOUR_S, plan=1, number=0, ranges=[OffsetRange(3, 10, 20)]) as writer,
    ):
        writer.write(rows)
        writer.finish()
    with pytest.raises(FormatError, match="order"):
        merged([path])


def test_a_damaged_file_makes_no_file(tmp_path: Path) -> None:
    path = tmp_path / "damaged"
    write_part(path, [made_row(number) for number in range(2000)])
    raw = bytearray(path.read_bytes())
    raw[1000:2000] = bytes(1000)
    path.write_bytes(raw)
    with pytest.raises((FormatError, OSError)):
        merged([path])
