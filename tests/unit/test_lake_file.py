"""Files of the lake: what goes in comes out, in any reader; the same rows make the same bytes."""

import hashlib
import io
import random
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import msgspec
import polars
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.errors import FormatError
from storage.fingerprint import fingerprint
from storage.lake_file import (
    EVENTS,
    ROW_GROUP_ROWS,
    SCHEMA,
    Compression,
    FileSummary,
    LakeFileWriter,
    hours_of,
    key_of,
    lake_rows,
    read_note,
    read_summary,
    write_file,
)
from storage.lake_manifest import OffsetRange, check_files
from tests.unit.test_json_members import objects, one_by_one, texts

HOUR = datetime(2026, 3, 1, 12, tzinfo=UTC)
HOUR_S = int(HOUR.timestamp())
RANGES = (OffsetRange(3, 10, 20), OffsetRange(5, 0, 7))


def made_row(number: int, **changes: Any) -> dict[str, Any]:
    row: dict[str, Any] = {
        "project_id": f"p{number % 3}",
        "event_id": f"e{number}",
        "event_type": ("view", "click")[number % 2],
        "user_id": f"u{number % 7}",
        "anonymous_id": None,
        "session_id": f"s{number % 5}",
        "site_id": None,
        "timestamp": HOUR + timedelta(microseconds=number * 7919 % 3_600_000_000),
        "received_at": HOUR + timedelta(hours=1),
        "properties": f'{{"n":{number}}}',
        "context": '{"ip":"10.0.0.1","userAgent":"curl","page":{"url":"/"}}',
        "partition_id": 3,
        "log_offset": 10 + number % 10,
    }
    return row | changes


def made_events(rows: Sequence[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(list(rows), schema=EVENTS)


def written(events: pa.Table, *, compression: Compression = "snappy") -> tuple[bytes, FileSummary]:
    sink = io.BytesIO()
    summary = write_file(events, sink, hour=HOUR_S, plan=42, number=7, ranges=RANGES, compression=compression)
    return sink.getvalue(), summary


def test_the_documented_columns_come_first() -> None:
    assert SCHEMA.names[:7] == [
        "event_id", "user_id", "event_type", "project_id", "timestamp", "properties", "context",
    ]  # fmt: skip


def test_the_summary_is_what_the_file_says_of_itself(tmp_path: Path) -> None:
    rows = [made_row(number) for number in range(1000)]
    raw, summary = written(made_events(rows))
    path = tmp_path / "file.parquet"
    path.write_bytes(raw)
    assert read_summary(raw) == read_summary(path) == summary
    note = read_note(path)
    assert note == summary.note
    assert (note.version, note.hour, note.plan, note.number, note.rows) == (1, HOUR_S, 42, 7, 1000)
    assert note.ranges == list(RANGES)
    assert note.projects == {"p0": 334, "p1": 333, "p2": 333}
    assert note.id_digest == sum(fingerprint(row["project_id"], row["event_id"]) for row in rows) % 2**64
    assert summary.bytes == len(raw)
    assert summary.checksum == hashlib.sha256(raw).hexdigest()
    file = summary.at("events/…")
    assert (file.min_timestamp, file.max_timestamp) == (
        min(row["timestamp"] for row in rows), max(row["timestamp"] for row in rows),
    )  # fmt: skip
    check_files([file], RANGES)


@pytest.mark.parametrize("compression", ["snappy", "zstd"])
def test_the_same_rows_make_the_same_bytes_in_any_order(compression: Compression) -> None:
    rows = [made_row(number) for number in range(500)]
    rows += [made_row(number, log_offset=5, properties='{"again":true}') for number in range(20)]
    raw, summary = written(made_events(rows), compression=compression)
    random.Random(1).shuffle(rows)
    assert written(made_events(rows), compression=compression) == (raw, summary)


def test_rows_are_sorted_and_statistics_prune() -> None:
    raw, _ = written(made_events([made_row(number) for number in range(ROW_GROUP_ROWS + 1000)]))
    file = pq.ParquetFile(pa.BufferReader(raw))
    rows = file.read(["project_id", "event_type", "timestamp", "event_id"]).to_pylist()
    keys = [tuple(row.values()) for row in rows]
    assert keys == sorted(keys)
    groups = [file.metadata.row_group(index) for index in range(file.num_row_groups)]
    assert [group.num_rows for group in groups] == [ROW_GROUP_ROWS, 1000]
    pruning = {"project_id", "event_type", "timestamp", "event_id", "user_id", "log_offset"}
    for group in groups:
        columns = {column.path_in_schema: column for column in map(group.column, range(group.num_columns))}
        for column in (columns[name] for name in pruning):
            assert column.statistics.has_min_max
            assert column.has_column_index
            assert column.has_offset_index
    assert groups[0].column(3).statistics.min == "p0"
    assert groups[1].column(3).statistics.min == "p2"


@given(st.lists(st.tuples(objects, st.none() | objects, texts), min_size=1, max_size=6))
def test_events_come_back_as_they_were(found: list[tuple[dict[str, Any], dict[str, Any] | None, str]]) -> None:
    rows = [
        made_row(
            number,
            project_id="p",
            event_type="t",
            timestamp=HOUR + timedelta(seconds=number),
            user_id=user,
            properties=msgspec.json.encode(properties).decode(),
            context=None if context is None else msgspec.json.encode(context).decode(),
        )
        for number, (properties, context, user) in enumerate(found)
    ]
    raw, _ = written(made_events(rows))
    table = pq.read_table(pa.BufferReader(raw))
    assert table.schema.equals(SCHEMA)
    for read, sent, (properties, context, _) in zip(table.to_pylist(), rows, found, strict=True):
        assert read["properties"] == one_by_one([properties])[0]
        members = dict(one_by_one([context or {}])[0])
        assert read["context"] == {"ip": members.get("ip"), "userAgent": members.get("userAgent")}
        assert read["properties_json"] == sent["properties"]
        assert read["context_json"] == sent["context"]
        assert read["log_partition"] == sent["partition_id"]
        for name in ("event_id", "user_id", "event_type", "project_id", "timestamp", "session_id", "log_offset"):
            assert read[name] == sent[name]


@pytest.mark.parametrize("compression", ["snappy", "zstd"])
def test_other_readers_read_it(tmp_path: Path, compression: Compression) -> None:
    properties = {"text": 'ä\n"', "amount": 12.5, "whole": 7, "none": None, "nested": {"a": [1, "b"]}, "yes": True}
    row = made_row(1, properties=msgspec.json.encode(properties).decode(), user_id=None)
    raw, _ = written(made_events([row]), compression=compression)
    path = tmp_path / "file.parquet"
    path.write_bytes(raw)
    as_map = {
        "text": "ä\n\"", "amount": "12.5", "whole": "7", "none": None, "nested": '{"a":[1,"b"]}', "yes": "true",
    }  # fmt: skip

    with duckdb.connect() as connection:
        [found] = connection.execute(
            "SELECT properties, context.ip, epoch_us(timestamp), user_id, properties['amount'],"
            " properties_json::json->'nested' FROM read_parquet(?)",
            [str(path)],
        ).fetchall()
    assert found[:5] == (as_map, "10.0.0.1", row["timestamp"].timestamp() * 1e6, None, "12.5")
    assert found[5] == '{"a":[1,"b"]}'

    [read] = polars.read_parquet(path).to_dicts()
    assert dict(read["properties"]) == as_map
    assert read["context"] == {"ip": "10.0.0.1", "userAgent": "curl"}
    assert read["timestamp"] == row["timestamp"]


def test_a_file_written_in_pieces(tmp_path: Path) -> None:
    """As a compaction does, which has sorted rows already."""
    events = made_events(
        sorted((made_row(n) for n in range(300)), key=lambda row: (row["project_id"], row["timestamp"]))
    )
    with (tmp_path / "file.parquet").open("wb") as sink:
        with LakeFileWriter(sink, hour=HOUR_S, plan=1, number=0, ranges=RANGES) as writer:
            for first in range(0, 300, 100):
                writer.write(lake_rows(events.slice(first, 100)))
            writer.write(lake_rows(events.slice(300)))
            summary = writer.finish()
    assert read_summary(tmp_path / "file.parquet") == summary
    assert summary.note.rows == 300
    assert summary.note.id_digest == written(events)[1].note.id_digest


def test_keys_name_hour_plan_and_number() -> None:
    assert key_of(HOUR_S, 42, 7) == "events/year=2026/month=03/day=01/hour=12/part-000000000042-00007.parquet"
    ancient = int(datetime(33, 4, 3, 9, tzinfo=UTC).timestamp())
    assert key_of(ancient, 1, 0, kind="compact") == (
        "events/year=0033/month=04/day=03/hour=09/compact-000000000001-00000.parquet"
    )


def test_hours_of_event_time() -> None:
    times = [
        HOUR,
        HOUR + timedelta(minutes=59),
        HOUR - timedelta(microseconds=1),
        datetime(1969, 12, 31, 23, 30, tzinfo=UTC),
    ]
    events = made_events([made_row(number, timestamp=time) for number, time in enumerate(times)])
    assert hours_of(events).tolist() == [HOUR_S, HOUR_S, HOUR_S - 3600, -3600]


def test_what_is_no_file_of_the_lake_is_refused(tmp_path: Path) -> None:
    raw, _ = written(made_events([made_row(1)]))
    plain = tmp_path / "plain.parquet"
    pq.write_table(pa.table({"a": [1]}), plain)
    other = tmp_path / "other.parquet"
    note = msgspec.json.encode(msgspec.to_builtins(read_note(raw)) | {"version": 2})
    pq.write_table(pa.table({"a": [1]}).replace_schema_metadata({"analytics_actors": note}), other)
    for source in (raw[:-20], b"", plain, other, tmp_path / "none"):
        with pytest.raises(FormatError):
            read_note(source)
