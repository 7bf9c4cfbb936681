"""The day of events that SQL is measured over, and the question about it."""

import datetime as dt
from pathlib import Path

import duckdb
import pytest

from load_tests.lake_day import HourMaker, write_hour
from load_tests.lake_queries import Turns, count_by_type
from storage.lake_file import HOUR_S, key_of, read_summary
from storage.lake_manifest import LakeFile, OffsetRange, check_files

EVENTS = 300
DAY = dt.datetime(2026, 3, 1, tzinfo=dt.UTC)
START = int(DAY.timestamp())


@pytest.fixture(scope="module")
def maker() -> HourMaker:
    return HourMaker(EVENTS, project_id="shop", partition=7)


@pytest.fixture
def files(maker: HourMaker, tmp_path: Path) -> list[LakeFile]:
    return [write_hour(maker, tmp_path, hour=START + n * HOUR_S, plan=5, number=n) for n in range(3)]


def test_files_are_what_the_manifest_takes(files: list[LakeFile], tmp_path: Path) -> None:
    check_files(files, [OffsetRange(7, 0, 3 * EVENTS)])
    assert [file.rows for file in files] == [EVENTS] * 3
    assert files[1].key == key_of(START + HOUR_S, 5, 1, kind="compact")
    assert read_summary(tmp_path / files[1].key).at(files[1].key) == files[1]


def test_no_event_is_there_twice_and_rows_are_in_the_order_of_a_file(files: list[LakeFile], tmp_path: Path) -> None:
    paths = [str(tmp_path / file.key) for file in files]
    with duckdb.connect() as connection:
        table = "read_parquet($1, hive_partitioning = false)"
        [(ids,)] = connection.execute(f"SELECT count(DISTINCT event_id) FROM {table}", [paths]).fetchall()
        rows = connection.execute(
            f"SELECT project_id, event_type, epoch_us(timestamp), event_id FROM {table}", [paths[:1]]
        ).fetchall()
    assert ids == 3 * EVENTS
    assert rows == sorted(rows)
    assert {row[0] for row in rows} == {"shop"}


def test_the_question_counts_one_project_and_one_day(maker: HourMaker, files: list[LakeFile], tmp_path: Path) -> None:
    paths = [str(tmp_path / file.key) for file in files]

    def ask(start: dt.datetime, project_id: str) -> dict[str, int]:
        sql = count_by_type(start, table="read_parquet($1, hive_partitioning = false)", project_id=project_id)
        with duckdb.connect() as connection:
            return dict(connection.execute(sql, [paths]).fetchall())

    assert ask(DAY, "shop") == {name: 3 * count for name, count in maker.events_by_type.items()}
    assert ask(DAY, "other") == {}
    assert ask(DAY + dt.timedelta(days=1), "shop") == {}


def test_a_ratio_is_the_median_over_neighbours() -> None:
    assert Turns(system_s=[4.0, 2.0, 2.0], duckdb_s=[2.0, 1.0, 0.5]).ratio == 2.0
