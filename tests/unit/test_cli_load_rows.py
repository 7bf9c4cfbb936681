"""Rows out of files and into batches: formats, ids, bounds, what is no row."""

import gzip
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analytics_actors.cli import load_rows
from analytics_actors.cli.failure import Failure
from analytics_actors.cli.load_rows import (
    STANDARD_INPUT,
    BadRow,
    Batch,
    Batcher,
    Row,
    read_rows,
    total_bytes,
    with_event_id,
)


def read(path: Path, *, by_project: bool = True) -> list[Row | BadRow]:
    return list(read_rows([path], by_project=by_project, advance=lambda _: None))


def write(path: Path, *lines: bytes) -> Path:
    path.write_bytes(b"\n".join(lines))
    return path


def test_plain_and_gzip_give_the_same_rows_whatever_they_are_called(tmp_path: Path) -> None:
    lines = [b'{"eventId":"1","projectId":"a"}', b"", b'  {"event_id":"2","project_id":"b"} \r', b""]
    plain = write(tmp_path / "a.gz", *lines)
    packed = tmp_path / "b.ndjson"
    # Two members: files are often put together with cat.
    packed.write_bytes(gzip.compress(lines[0] + b"\n") + gzip.compress(b"\n".join(lines[1:])))
    expected = [Row("a", lines[0]), Row("b", b'{"event_id":"2","project_id":"b"}')]
    assert read(plain) == read(packed) == expected


def test_byte_order_mark_is_no_part_of_the_first_row(tmp_path: Path) -> None:
    line = b'{"eventId":"1","projectId":"a"}'
    path = write(tmp_path / "a", b"\xef\xbb\xbf" + line + b"\r", b"\xef\xbb\xbf" + line)
    assert read(path) == [Row("a", line), BadRow("invalid_json", "a:2")]


def test_what_cannot_be_read_at_all_is_named() -> None:
    """Its first page lies in no memory; the same is said of a disk."""
    with pytest.raises(Failure, match=r"cannot read /proc/self/mem: .*Input/output error"):
        read(Path("/proc/self/mem"))


@pytest.mark.parametrize("damage", [lambda packed: packed[:-9], lambda packed: packed[:20], lambda packed: packed[:2]])
def test_damaged_gzip_is_named(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "a.ndjson.gz"
    path.write_bytes(damage(gzip.compress(b'{"eventId":"1","projectId":"a"}')))
    with pytest.raises(Failure, match=re.escape(f"cannot read {path} to its end")):
        read(path)


def test_progress_adds_up_to_the_file(tmp_path: Path) -> None:
    path = write(tmp_path / "a", *[b'{"eventId":"%d","projectId":"p"}' % n for n in range(5000)])
    steps: list[int] = []
    list(read_rows([path], by_project=True, advance=steps.append))
    assert sum(steps) == path.stat().st_size
    assert len(steps) > 2


@pytest.fixture
def pipe() -> Iterator[tuple[Path, int]]:
    """A path to read from, and what to write to."""
    reading, writing = os.pipe()
    yield Path(f"/dev/fd/{reading}"), writing
    os.close(reading)


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_a_pipe_is_read_as_a_file_is(pipe: tuple[Path, int], pack: Callable[[bytes], bytes]) -> None:
    path, writing = pipe
    lines = [b'{"eventId":"%d","projectId":"p"}' % n for n in range(1000)]
    packed = pack(b"\n".join(lines))
    os.write(writing, packed)
    os.close(writing)
    steps: list[int] = []
    assert total_bytes([path]) is None
    assert list(read_rows([path], by_project=True, advance=steps.append)) == [Row("p", line) for line in lines]
    assert sum(steps) == len(packed)


def test_a_dash_is_standard_input(tmp_path: Path) -> None:
    path = write(tmp_path / "a", b'{"eventId":"1","projectId":"p"}')
    kept = os.dup(0)
    with path.open("rb") as file:
        os.dup2(file.fileno(), 0)
    try:
        assert total_bytes([STANDARD_INPUT, path]) == 2 * path.stat().st_size
        assert read(STANDARD_INPUT) == read(path)
        os.fstat(0)
    finally:
        os.dup2(kept, 0)
        os.close(kept)


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (b'{"eventId":"1"', "invalid_json"),
        (b'{"a":' + b"[" * 5000, "invalid_json"),
        (b'{"projectId":"\xff"}', "invalid_unicode"),
        (b"[1]", "not_an_object"),
        (b'{"eventId":"1"}', "missing_project"),
        (b'{"eventId":"1","projectId":7}', "invalid_field"),
    ],
)
def test_a_line_that_cannot_be_sent_is_named(tmp_path: Path, line: bytes, code: str) -> None:
    path = write(tmp_path / "x.ndjson", b'{"eventId":"0","projectId":"a"}', line)
    assert read(path)[1:] == [BadRow(code, "x.ndjson:2")]


def test_the_gateway_judges_what_needs_no_project(tmp_path: Path) -> None:
    path = write(tmp_path / "x", b'{"eventId":"1","whatever":[]}')
    assert read(path, by_project=False) == [Row("", b'{"eventId":"1","whatever":[]}')]


def test_a_line_without_end_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load_rows, "MAX_LINE_BYTES", 100)
    good = b'{"eventId":"1","projectId":"a"}'
    path = write(tmp_path / "x", b"{" * 1050, good, b"{" * 99)
    assert read(path) == [BadRow("event_too_large", "x:1"), Row("a", good), BadRow("invalid_json", "x:3")]


def test_a_row_without_an_id_gets_one_that_lasts(tmp_path: Path) -> None:
    lines = [b'{"eventType":"a"}', b'{"eventType":"a"}', b'{"eventId":null}', b'{"eventId":""}', b"{ }"]
    path = write(tmp_path / "x", *lines)
    rows = [row for row in read(path, by_project=False) if isinstance(row, Row)]
    ids = [msgspec.json.decode(row.json)["eventId"] for row in rows]
    assert len(set(ids)) == len(lines)
    assert all(event_id.startswith("load-") for event_id in ids)
    assert read(path, by_project=False) == rows


@given(st.dictionaries(st.text(), st.none() | st.integers(-(2**53), 2**53) | st.text(), max_size=5))
def test_an_added_id_changes_nothing_else(members: dict[str, object]) -> None:
    members.pop("eventId", None)
    found = msgspec.json.decode(with_event_id(msgspec.json.encode(members), "file:1"))
    assert len(found.pop("eventId")) == len("load-") + 32
    assert found == members


def test_a_batch_is_sent_when_it_is_full() -> None:
    batcher = Batcher(batch_rows=2)
    given_out = [batch for n in range(5) for batch in batcher.add(Row("a", b"%d" % n))]
    assert given_out == [Batch("a", [b"0", b"1"]), Batch("a", [b"2", b"3"])]
    assert list(batcher.flush()) == [Batch("a", [b"4"])]
    assert not list(batcher.flush())


def test_a_batch_is_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load_rows, "MAX_BATCH_BYTES", 10)
    batcher = Batcher(batch_rows=100)
    given_out = [batch for _ in range(3) for batch in batcher.add(Row("a", b"123456"))]
    assert given_out == [Batch("a", [b"123456"])] * 2


@given(
    st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(1, 40))),
    st.integers(1, 5),
    st.integers(1, 200),
)
def test_every_row_comes_out_once_in_its_projects_order(
    sizes: list[tuple[str, int]], batch_rows: int, max_waiting_bytes: int
) -> None:
    batcher = Batcher(batch_rows=batch_rows, max_waiting_bytes=max_waiting_bytes)
    rows = [Row(project, b"%05d" % n + b"x" * size) for n, (project, size) in enumerate(sizes)]
    batches = []
    for row in rows:
        batches += list(batcher.add(row))
        taken = sum(len(text) for batch in batches for text in batch.rows)
        assert sum(len(r.json) for r in rows[: rows.index(row) + 1]) - taken <= max_waiting_bytes
    batches += list(batcher.flush())
    for project in "abcdef":
        sent = [text for batch in batches if batch.project_id == project for text in batch.rows]
        assert sent == [row.json for row in rows if row.project_id == project]
    assert all(len(batch.rows) <= batch_rows for batch in batches)
