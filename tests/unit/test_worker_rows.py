"""What the workers of a machine tell of themselves, in one file."""

from pathlib import Path

from gateway.worker_rows import WorkerRows


def test_each_worker_answers_for_all(tmp_path: Path) -> None:
    now = [1000.0]
    workers = [
        WorkerRows(tmp_path / "new" / "rows", worker=number, workers=3, clock=lambda: now[0]) for number in range(3)
    ]
    assert workers[0].rows() == []
    workers[2].tell({"pid": 7, "lanes": ["handing_over"] * 64})
    now[0] += 8.9
    workers[0].tell({"pid": 5})
    workers[0].tell({"pid": 6})
    expected = [
        {"pid": 6, "silentSeconds": 0},
        {"pid": 7, "lanes": ["handing_over"] * 64, "silentSeconds": 8},
    ]
    assert [worker.rows() for worker in workers] == [expected] * 3
    assert (tmp_path / "new" / "rows").stat().st_mode & 0o777 == 0o600


def test_a_row_that_is_half_written_is_left_out(tmp_path: Path) -> None:
    rows = WorkerRows(tmp_path / "rows", worker=0, workers=2)
    rows.tell({"pid": 5})
    with (tmp_path / "rows").open("r+b") as file:
        file.write(b"]")
    assert rows.rows() == []
