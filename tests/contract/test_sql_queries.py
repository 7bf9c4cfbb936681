"""The query service over a manifest: S3 through the cache, what is away, and values as they come out."""

import asyncio
import csv
import io
import json
import os
import shutil
import threading
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import duckdb
import msgspec
import pytest

from config.settings import QuerySettings
from gateway import sql_queries
from gateway.errors import ApiError
from storage import lake_checks
from storage.errors import Unavailable
from storage.lake_cache import LakeCache
from storage.lake_checks import Wanted
from storage.memory_objects import MemoryObjects
from storage.object_store import open_object_store, sha256_of
from tests.contract.test_object_store import settings_of
from tests.object_servers import ObjectServer
from tests.sql_lake import SqlLake, asking, event

DAY = [event(f"e{hour}", f"2026-03-01T{hour:02d}:30:00Z", userId=f"u{hour % 3}") for hour in range(6)]
COUNT = "SELECT count(*) FROM events"


@pytest.fixture
def lake(tmp_path: Path) -> SqlLake:
    made = SqlLake(tmp_path)
    made.add_files(DAY)
    made.add_tail([event("late", "2026-03-01T02:45:00Z")])
    return made


class FarObjects(MemoryObjects):
    """As S3: nothing has a path here. Downloads are counted."""

    def __init__(self, lake: SqlLake) -> None:
        super().__init__()
        self.downloads: list[str] = []
        root = lake.folder / "lake"
        self.objects |= {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*.parquet")}

    async def download(self, key: str, target: Path) -> None:
        self.downloads.append(key)
        await super().download(key, target)


async def test_files_from_afar_are_fetched_once(lake: SqlLake) -> None:
    far = FarObjects(lake)
    async with asking(lake, objects=far) as ask:
        assert await ask.value("shop", COUNT) == 7
        assert len(far.downloads) == 6
        assert await ask.value("shop", COUNT) == 7
        assert len(far.downloads) == 6


async def test_over_s3(lake: SqlLake, moto_server: ObjectServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bucket's files are read, kept, and named when they are gone or not what the manifest has."""
    for name, value in moto_server.environment().items():
        monkeypatch.setenv(name, value)
    bucket = open_object_store(settings_of(moto_server), data=lake.folder)
    root = lake.folder / "lake"
    gone, other, *rest = sorted(str(path.relative_to(root)) for path in root.rglob("*.parquet"))
    for key in (gone, other, *rest):
        await bucket.put_if_absent(key, root / key)
    async with asking(lake, objects=bucket) as ask:
        assert await ask.value("shop", COUNT) == 7
        await bucket.delete([gone, other])
        await bucket.put_if_absent(other, flipped((root / other).read_bytes()))
        assert await ask.value("shop", COUNT) == 7, "this machine has them"
        shutil.rmtree(lake.folder / "cache")
        answer = await ask.answer("shop", COUNT)
    assert msgspec.json.decode(answer.body) == [[5]]
    assert {(file.key, file.reason) for file in answer.missing} == {
        (gone, "not in the object store"),
        (other, "damaged"),
    }


async def test_only_the_hours_that_matter_are_fetched(lake: SqlLake) -> None:
    far = FarObjects(lake)
    async with asking(lake, objects=far) as ask:
        found = await ask.value(
            "shop", f"{COUNT} WHERE timestamp >= '2026-03-01T02:00:00Z' AND timestamp < '2026-03-01 04:00'"
        )
    assert found == 3
    assert len(far.downloads) == 2


async def test_store_away_is_degraded_and_named(lake: SqlLake) -> None:
    far = FarObjects(lake)
    gone = sorted(far.objects)[0]
    async with asking(lake, objects=far) as ask:
        assert await ask.value("shop", f"{COUNT} WHERE timestamp < '2026-03-01 03:00'") == 4
        far.is_away = True
        answer = await ask.answer("shop", COUNT)
        assert msgspec.json.decode(answer.body) == [[4]]
        assert [reason for _, reason in answer.missing] == ["the object store cannot be reached"] * 3
        with pytest.raises(ApiError) as caught:
            await ask.answer("shop", COUNT, strict=True)
        assert (caught.value.code, caught.value.status) == ("unavailable", 503)
        # What is on disk is all that this one needs.
        assert await ask.answer("shop", f"{COUNT} WHERE timestamp < '2026-03-01 03:00'", strict=True)
    assert gone


async def test_missing_and_damaged_objects_are_named(lake: SqlLake) -> None:
    far = FarObjects(lake)
    first, second, *_ = sorted(far.objects)
    del far.objects[first]
    far.objects[second] = b"short"
    async with asking(lake, objects=far) as ask:
        answer = await ask.answer("shop", COUNT)
    assert msgspec.json.decode(answer.body) == [[5]]
    assert {(file.key, file.reason) for file in answer.missing} == {
        (first, "not in the object store"),
        (second, "damaged"),
    }


async def test_files_that_are_missing_from_the_folder_or_cut_off_are_named(lake: SqlLake) -> None:
    gone, cut, *_ = sorted((lake.folder / "lake").rglob("*.parquet"))
    gone.unlink()
    cut.write_bytes(cut.read_bytes()[:-1])
    async with asking(lake) as ask:
        answer = await ask.answer("shop", COUNT)
    assert msgspec.json.decode(answer.body) == [[5]]
    assert [file.reason for file in answer.missing] == ["not in the folder", "damaged"]


async def test_more_than_the_cache_holds_is_refused(lake: SqlLake) -> None:
    async with asking(lake, QuerySettings(cache_bytes=1000), objects=FarObjects(lake)) as ask:
        with pytest.raises(ApiError) as caught:
            await ask.answer("shop", COUNT)
    assert caught.value.code == "query_too_large"


async def test_a_tail_that_is_too_large_is_refused(lake: SqlLake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.sql_queries.TAIL_SHARE", 1e-9)
    async with asking(lake) as ask:
        with pytest.raises(ApiError) as caught:
            await ask.answer("shop", COUNT)
    assert caught.value.code == "query_too_large"


async def test_manifest_away(lake: SqlLake) -> None:
    lake.manifest.available = False
    async with asking(lake) as ask:
        with pytest.raises(Unavailable):
            await ask.answer("shop", COUNT)
        # Nothing is asked of it for SQL that cannot be run.
        with pytest.raises(ApiError, match="sql_invalid"):
            await ask.answer("shop", "selec 1")


def flipped(content: bytes) -> bytes:
    """With a bit of another value somewhere in its pages: as long, and as readable, as it was."""
    at = content.index(b"u1")
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


def zeroed(content: bytes) -> bytes:
    return b"PAR1" + b"\0" * (len(content) - 8) + b"PAR1"


@pytest.mark.parametrize("place", ["folder", "afar", "cache"])
async def test_a_file_that_is_damaged_within_is_named(lake: SqlLake, place: str) -> None:
    """As one that is not there: the answer is without all of it, and says so. What only the cache has damaged is
    fetched again."""
    far = FarObjects(lake)
    users = "SELECT user_id, count(*) FROM events GROUP BY ALL ORDER BY ALL"
    async with asking(lake, objects=None if place == "folder" else far) as ask:
        whole = await ask.answer("shop", users)
        assert not whole.missing
        path = sorted((lake.folder / "lake").rglob("*.parquet"))[1]
        key = str(path.relative_to(lake.folder / "lake"))
        if place == "folder":
            path.write_bytes(flipped(path.read_bytes()))
        else:
            for cached in (lake.folder / "cache").iterdir():
                if place == "cache":
                    cached.write_bytes(flipped(cached.read_bytes()) if b"u1" in cached.read_bytes() else b"")
                else:
                    cached.unlink()
            if place == "afar":
                far.objects[key] = flipped(far.objects[key])
        answer = await ask.answer("shop", users)
        if place == "cache":
            assert (answer.body, answer.missing) == (whole.body, [])
            return
        assert msgspec.json.decode(answer.body) == [["u0", 2], ["u1", 1], ["u2", 2], [None, 1]]
        assert [(file.key, file.reason) for file in answer.missing] == [(key, "damaged")]
        with pytest.raises(ApiError, match=r"damaged") as caught:
            await ask.answer("shop", users, strict=True)
        assert caught.value.code == "unavailable"


async def test_a_file_is_read_for_its_check_once(lake: SqlLake, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []

    def counting(path: Path) -> str:
        read.append(path)
        return digest(path)

    digest = lake_checks._digest
    monkeypatch.setattr(lake_checks, "_digest", counting)
    async with asking(lake) as ask:
        await asyncio.gather(*(ask.answer("shop", COUNT) for _ in range(2)))
        await ask.answer("shop", COUNT)
        assert len(read) == 6
        os.utime(read[0])
        await ask.answer("shop", COUNT)
        assert len(read) == 7, "it is not surely the file that was read"


async def test_only_strict_queries_wait_long_for_checksums(lake: SqlLake, monkeypatch: pytest.MonkeyPatch) -> None:
    proceed = threading.Event()
    digest = lake_checks._digest

    def slowly(path: Path) -> str:
        proceed.wait(30)
        return digest(path)

    monkeypatch.setattr(lake_checks, "_digest", slowly)
    damaged = sorted((lake.folder / "lake").rglob("*.parquet"))[1]
    damaged.write_bytes(flipped(damaged.read_bytes()))
    # A second and a half of the deadline: the query has all the rest, however busy the machine is.
    monkeypatch.setattr(sql_queries, "FETCH_SHARE", 0.05)
    async with asking(lake) as ask:
        try:
            assert not (await ask.answer("shop", "SELECT 1")).missing
            with pytest.raises(ApiError, match="not checked in time"):
                await ask.answer("shop", "SELECT 1", strict=True)
        finally:
            proceed.set()
        # What began to be read for others is known by now, or soon.
        while not (missing := (await ask.answer("shop", "SELECT 1")).missing):
            await asyncio.sleep(0.01)
    assert [file.reason for file in missing] == ["damaged"]


@pytest.mark.parametrize("checked_before", [True, False])
async def test_a_file_that_cannot_be_read_ends_one_query(
    lake: SqlLake, monkeypatch: pytest.MonkeyPatch, checked_before: bool
) -> None:
    """On a disk so slow that no query waits for a checksum, unless a file is doubted."""
    digest = lake_checks._digest

    def slowly(path: Path) -> str:
        time.sleep(0.1)
        return digest(path)

    file = sorted((lake.folder / "lake").rglob("*.parquet"))[-1]
    async with asking(lake) as ask:
        if checked_before:
            await ask.answer("shop", "SELECT 1", strict=True)
        monkeypatch.setattr(lake_checks, "_digest", slowly)
        monkeypatch.setattr(sql_queries, "UNCHECKED_AFTER_S", 0.01)
        was = file.stat()
        file.write_bytes(zeroed(file.read_bytes()))
        # As a disk does it, which tells nobody.
        os.utime(file, ns=(was.st_atime_ns, was.st_mtime_ns))
        with pytest.raises(ApiError) as caught:
            await ask.answer("shop", "SELECT * FROM events")
        assert caught.value.code == "unavailable"
        assert str(lake.folder) not in str(caught.value)
        answer = await ask.answer("shop", "SELECT * FROM events")
        assert [found.reason for found in answer.missing] == ["damaged"]


async def test_cache_keeps_within_its_bound_and_readers_keep_what_they_have(tmp_path: Path) -> None:
    objects = MemoryObjects()
    for number in range(4):
        objects.objects[f"events/{number}.parquet"] = bytes([number]) * 1000
    cache = LakeCache(objects, tmp_path / "cache", max_bytes=2000)

    async def fetch(numbers: Sequence[int], folder: str) -> list[bytes]:
        into = tmp_path / folder
        into.mkdir()
        wanted = [
            Wanted(key, 1000, sha256_of(objects.objects[key])) for key in map("events/{}.parquet".format, numbers)
        ]
        fetched = await cache.fetch(wanted, into, deadline_s=5)
        assert not fetched.missing
        return [Path(path).read_bytes()[:1] for path in fetched.paths]

    assert await fetch([0, 1], "a") == [b"\0", b"\1"]
    assert await fetch([0], "b") == [b"\0"]
    assert await fetch([2], "c") == [b"\2"]
    kept = {path.read_bytes()[:1] for path in (tmp_path / "cache").iterdir()}
    assert kept == {b"\0", b"\2"}
    assert [path.read_bytes()[:1] for path in sorted((tmp_path / "a").iterdir())] == [b"\0", b"\1"]
    both = await asyncio.gather(fetch([1, 3], "d"), fetch([3, 1], "e"))
    assert list(both) == [[b"\1", b"\3"], [b"\3", b"\1"]]
    assert sum(path.stat().st_size for path in (tmp_path / "cache").iterdir()) <= 2000


VALUES = [
    ("9007199254740993::BIGINT", "9007199254740993"),
    ("170141183460469231731687303715884105727::HUGEINT", "170141183460469231731687303715884105727"),
    ("340282366920938463463374607431768211455::UHUGEINT", '"340282366920938463463374607431768211455"'),
    ("1.50::DECIMAL(18, 2)", "1.50"),
    ("0.1::DOUBLE", "0.1"),
    ("'NaN'::DOUBLE", '"NaN"'),
    ("['Infinity'::FLOAT, -1]", '["Infinity",-1.0]'),
    ("TIMESTAMPTZ '2026-03-01 12:00:00.25+02'", '"2026-03-01T10:00:00.250000Z"'),
    ("TIMESTAMP '2026-03-01 12:00:00'", '"2026-03-01T12:00:00"'),
    ("TIMESTAMP_NS '2026-03-01 12:00:00.123456789'", '"2026-03-01 12:00:00.123456789"'),
    ("'infinity'::TIMESTAMPTZ", "9223372036854775807"),
    ("DATE '2026-03-01'", '"2026-03-01"'),
    ("TIME '12:30:00'", '"12:30:00"'),
    ("[TIME '12:30:00.5', NULL, '24:00:00']", '["12:30:00.500000",null,"24:00:00"]'),
    ("'12:30:00.123456789'::TIME_NS", '"12:30:00.123456789"'),
    ("INTERVAL '1 month 2 days'", '"1 month 2 days"'),
    ("'00000000-0000-0000-0000-000000000001'::UUID", '"00000000-0000-0000-0000-000000000001"'),
    ("'ab'::BLOB", '"YWI="'),
    ("'101'::BIT", '"101"'),
    ("true", "true"),
    ("NULL", "null"),
    ("'ü\"\n'", '"ü\\"\\n"'),
    ("[1, NULL, 3]", "[1,null,3]"),
    ("[[1], [], NULL]", "[[1],[],null]"),
    ("array_value(1, 2)", "[1,2]"),
    ("{'a': 1, 'b': {'c': [DATE '2026-03-01']}}", '{"a":1,"b":{"c":["2026-03-01"]}}'),
    ("MAP {'a': 1.5, 'b': NULL}", '{"a":1.5,"b":null}'),
    ("MAP {DATE '2026-03-01': [1]}", '{"2026-03-01":[1]}'),
    ("MAP {1: MAP {2: 'x'}}", '{"1":{"2":"x"}}'),
    ("NULL::MAP(VARCHAR, INT)", "null"),
    ("NULL::STRUCT(a INT)", "null"),
    ('\'{"a": 1.10, "a b": [1e400]}\'::JSON', '"{\\"a\\": 1.10, \\"a b\\": [1e400]}"'),
    ("'{\"n\": 12345678901234567890123}'::JSON", '{"n": 12345678901234567890123}'),
    ("'[1, {\"b\": null}]'::JSON", '[1, {"b": null}]'),
    ("'x'::ENUM('x', 'y')", '"x"'),
    ("union_value(k := 1)", '"1"'),
    ("1::UTINYINT", "1"),
    ("sum(1)", "1"),
]


async def test_values_are_exact(lake: SqlLake) -> None:
    sql = "SELECT " + ", ".join(value for value, _ in VALUES)
    async with asking(lake) as ask:
        answer = await ask.answer("shop", sql)
        shown = [bytes(value).decode() for value in msgspec.json.decode(answer.body, type=list[list[msgspec.Raw]])[0]]
        assert dict(zip((v for v, _ in VALUES), shown, strict=True)) == dict(VALUES)
        table = await ask.queries.run(
            "shop", "SELECT NULL AS a, '' AS \"b,c\", 'x\"y' AS d, [1, 2] AS e, now() AS f", "csv"
        )
        head, line, end = table.body.decode().split("\r\n")
        assert head == 'a,"b,c",d,e,f'
        assert line.startswith(',"","x""y","[1,2]",')
        assert datetime.fromisoformat(line.rsplit(",", 1)[1])
        assert end == ""
        lines = await ask.queries.run("shop", "SELECT 1 AS a, 2 AS a, 'x' AS b UNION ALL SELECT 3, 4, NULL", "ndjson")
        assert list(map(json.loads, lines.body.splitlines())) == [
            {"a": 1, "a_2": 2, "b": "x"},
            {"a": 3, "a_2": 4, "b": None},
        ]


async def test_every_row_is_a_line_to_readers_of_csv(lake: SqlLake, tmp_path: Path) -> None:
    sql = "SELECT a FROM (VALUES (1, 'x'), (2, NULL), (3, ''), (4, ' '), (5, NULL)) AS t(n, a) ORDER BY n"
    async with asking(lake) as ask:
        body = (await ask.queries.run("shop", sql, "csv")).body
        only = (await ask.queries.run("shop", "SELECT NULL::INTEGER AS a", "csv")).body
    assert [row["a"] for row in csv.DictReader(io.StringIO(body.decode(), newline=""))] == ["x", "", "", " ", ""]
    assert only == b'a\r\n""\r\n'
    path = tmp_path / "rows.csv"
    path.write_bytes(body)
    assert len(duckdb.sql(f"FROM read_csv('{path}', header = true)").fetchall()) == 5
    # What leaves a blank line out, as pandas does.
    assert all(line.strip() for line in body.decode().splitlines())


NAMES = [
    ("(SELECT 1 AS a)", ["a"]),
    ("VALUES (1, 2)", ["col0", "col1"]),
    ("FROM events SELECT event_id LIMIT 0;", ["event_id"]),
    ("WITH events AS (SELECT user_id FROM events) TABLE events", ["user_id"]),
    ("SELECT 1 AS a, 2 AS a -- twice", ["a", "a"]),
    ("SELECT COLUMNS('^event_.*') FROM events", ["event_id", "event_type"]),
    ("SELECT * EXCLUDE (properties, context) FROM (FROM events LIMIT 1) LIMIT 0", None),
    ('SELECT 1 AS "a""b ; c" ; ;', ['a"b ; c']),
    ("SELECT event_type FROM events ORDER BY timestamp DESC LIMIT 3", ["event_type"]),
    (
        "SELECT * FROM (SELECT event_type, user_id FROM events) PIVOT (count(*) FOR event_type IN ('view'))",
        ["user_id", "view"],
    ),
]


async def test_forms_of_a_query(lake: SqlLake) -> None:
    async with asking(lake) as ask:
        for sql, names in NAMES:
            answer = await ask.answer("shop", sql)
            assert names in (None, [column.name for column in answer.result.columns]), sql


RANGES = [
    ("timestamp >= '2026-03-01T02:00:00Z'", 4),
    ("timestamp < '2026-03-01T02:00:00Z'", 2),
    ("timestamp <= '2026-03-01T02:00:00Z'", 3),
    ("'2026-03-01T02:00:00Z' <= timestamp AND timestamp < '2026-03-01T03:00:00Z' AND user_id IS NULL", 1),
    ("timestamp BETWEEN '2026-03-01 01:00' AND '2026-03-01 02:59'", 2),
    ("events.timestamp > now() - INTERVAL 1 DAY", None),
    ("timestamp >= date_trunc('day', TIMESTAMPTZ '2026-03-02') AND event_type = 'view'", 0),
    ("timestamp = '2026-03-01T02:45:00Z'", 1),
    # Not to be read with certainty: all files.
    ("timestamp >= '2026-03-01T02:00:00Z' OR user_id = 'u0'", 6),
    ("NOT (timestamp >= '2026-03-01T02:00:00Z' AND user_id = 'u0')", 6),
    ("timestamp + INTERVAL 1 HOUR > '2026-03-01T04:00:00Z'", 6),
    ("received_at > '2026-03-01T02:00:00Z'", 6),
    ("timestamp > received_at", 6),
    ("timestamp > (SELECT min(timestamp) FROM events)", 6),
    ("timestamp > TIMESTAMPTZ '2026-03-01' + random() * INTERVAL 3 HOUR", 6),
]


@pytest.mark.parametrize(("where", "files"), RANGES)
async def test_range_of_a_query(lake: SqlLake, where: str, files: int | None) -> None:
    """What is left out must not matter: the answer is that of a query whose range cannot be read."""
    async with asking(lake) as ask:
        narrow = await ask.answer("shop", f"SELECT event_id FROM events WHERE {where} ORDER BY 1")
        if "random" not in where:
            wide = await ask.answer(
                "shop", f"SELECT event_id FROM (FROM events OFFSET 0) events WHERE {where} ORDER BY 1"
            )
            assert narrow.body == wide.body
            assert wide.files == 6
    assert files in (None, narrow.files)


JOINED = [
    ("SELECT count(*) FROM events a JOIN events b USING (user_id) WHERE a.timestamp >= '2026-03-01 05:00'", 6),
    (
        "SELECT count(*) FROM events a JOIN events b USING (user_id) "
        "WHERE a.timestamp >= '2026-03-01 05:00' AND b.timestamp >= '2026-03-01 03:00'",
        3,
    ),
    ("WITH a AS (FROM events WHERE timestamp < '2026-03-01 01:00') SELECT count(*) FROM a, a b", 1),
    (
        "SELECT (SELECT count(*) FROM events WHERE timestamp < '2026-03-01 01:00') + "
        "(SELECT count(*) FROM events WHERE timestamp BETWEEN '2026-03-01 02:00' AND '2026-03-01 02:30')",
        3,
    ),
    ("SELECT count(*) FROM events e(timestamp) WHERE timestamp >= 'f'", 6),
    (
        "SELECT count(*) FROM events a ASOF JOIN events b ON a.timestamp >= b.timestamp "
        "WHERE b.timestamp < '2026-03-01'",
        6,
    ),
    ("SELECT count(*) FROM events a POSITIONAL JOIN events b WHERE a.timestamp < '2026-03-01'", 6),
    ("SELECT count(*) FROM events UNION ALL SELECT 1 FROM events WHERE timestamp < '2026-03-01'", 6),
    ("SELECT count(*) FROM events TABLESAMPLE reservoir(2 ROWS) WHERE timestamp >= '2026-03-01 05:00'", 6),
    ("SELECT count(*) FROM events WHERE timestamp >= '2026-03-01 05:00' USING SAMPLE 2 ROWS", 6),
    (
        "SELECT count(*) FROM events a JOIN events b TABLESAMPLE reservoir(2 ROWS) USING (user_id) "
        "WHERE a.timestamp >= '2026-03-01 05:00' AND b.timestamp >= '2026-03-01 05:00'",
        6,
    ),
]


@pytest.mark.parametrize(("sql", "files"), JOINED)
async def test_range_of_several_references(lake: SqlLake, sql: str, files: int) -> None:
    async with asking(lake) as ask:
        assert (await ask.answer("shop", sql)).files == files
