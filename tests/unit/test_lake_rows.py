"""Rows of a lake file: those that are wanted, and no more of the file than that takes."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from storage.errors import FormatError
from storage.event_batch import COLUMNS
from storage.lake_file import LakeFileWriter, lake_rows
from storage.lake_rows import WantedRows, read_rows
from tests.unit.test_lake_file import HOUR_S, RANGES, made_events, made_row

ALWAYS = 1 << 60


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Four projects of fifty events, a row group each."""
    path = tmp_path / "part.parquet"
    with path.open("wb") as sink, LakeFileWriter(sink, hour=HOUR_S, plan=1, number=0, ranges=RANGES) as writer:
        for project in range(4):
            rows = [made_row(n, project_id=f"p{project}", event_type="view") for n in range(50)]
            rows.sort(key=lambda row: (row["timestamp"], row["event_id"]))
            writer.write(lake_rows(made_events(rows)))
        writer.finish()
    return path


def _found(path: Path, wanted: WantedRows) -> list[tuple[str, str]]:
    found = []
    for batch in read_rows(path, wanted):
        assert batch.schema.equals(COLUMNS)
        found += [(row["project_id"], row["event_id"]) for row in batch.to_pylist()]
    return found


def test_rows_are_chosen_by_project_and_time(path: Path) -> None:
    assert len(_found(path, WantedRows(["p0", "p1", "p2", "p3"], 0, ALWAYS))) == 200
    assert {project for project, _ in _found(path, WantedRows(["p1", "p3", "x"], 0, ALWAYS))} == {"p1", "p3"}
    [first, second, *_] = sorted(made_row(n)["timestamp"] for n in range(50))
    from_us, to_us = (int(at.timestamp() * 1e6) for at in (first, second))
    assert len(_found(path, WantedRows(["p2"], from_us, to_us))) == 1
    assert len(_found(path, WantedRows(["p2"], from_us, to_us + 1))) == 2
    assert _found(path, WantedRows(["p2"], 0, from_us)) == []


def test_what_cannot_hold_a_wanted_row_is_not_read(path: Path) -> None:
    """Bytes of other row groups, and of other columns, may be anything."""
    metadata = pq.read_metadata(path)
    raw = bytearray(path.read_bytes())
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        for column in map(group.column, range(group.num_columns)):
            if number == 2 and column.path_in_schema in ("project_id", "timestamp", "event_type"):
                continue
            start = column.dictionary_page_offset or column.data_page_offset
            raw[start : start + column.total_compressed_size] = b"\xff" * column.total_compressed_size
    path.write_bytes(raw)
    [batch] = read_rows(path, WantedRows(["p2"], 0, ALWAYS, ("event_type",)))
    assert batch.num_rows == 50
    assert batch.column("event_type").to_pylist() == ["view"] * 50
    assert batch.column("properties").null_count == batch.column("event_id").null_count == 50
    with pytest.raises((FormatError, OSError)):
        _found(path, WantedRows(["p2"], 0, ALWAYS))
    with pytest.raises((FormatError, OSError)):
        list(read_rows(path, WantedRows(["p1"], 0, ALWAYS, ("event_type",))))
    assert _found(path, WantedRows(["a", "p25", "z"], 0, ALWAYS)) == []


def test_a_batch_is_of_so_many_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "part.parquet"
    with path.open("wb") as sink, LakeFileWriter(sink, hour=HOUR_S, plan=1, number=0, ranges=RANGES) as writer:
        for project, length in (("p0", 10), ("p1", 200_000)):
            texts = [f'{{"n":"{n}{"x" * length}"}}' for n in range(30)]
            rows = [made_row(n, project_id=project, event_type="view", properties=texts[n]) for n in range(30)]
            rows.sort(key=lambda row: (row["timestamp"], row["event_id"]))
            writer.write(lake_rows(made_events(rows)))
        writer.finish()
    monkeypatch.setattr("storage.lake_rows.BATCH_BYTES", 1_000_000)
    everything = WantedRows(["p0", "p1"], 0, ALWAYS)
    small, *large = read_rows(path, everything)
    assert small.num_rows == 30 and sum(batch.num_rows for batch in large) == 30
    assert all(batch.nbytes < 1_100_000 for batch in large)
    assert len(list(read_rows(path, everything._replace(columns=("event_type",))))) == 2
    monkeypatch.setattr("storage.lake_rows.BATCH_BYTES", 1)
    assert [batch.num_rows for batch in read_rows(path, everything)] == [1] * 60


def test_what_is_no_file_of_the_lake_is_refused(path: Path) -> None:
    pq.write_table(pq.read_table(path).drop_columns(["session_id"]), path)
    with pytest.raises(FormatError, match="other columns"):
        _found(path, WantedRows(["p1"], 0, ALWAYS))
    path.write_bytes(b"PAR1")
    with pytest.raises((FormatError, OSError)):
        _found(path, WantedRows(["p1"], 0, ALWAYS))
