"""The spool: what was put is there after a crash, in order, within its bound."""

import shutil
import sqlite3
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from storage.errors import FormatError, SpoolFull, Unavailable
from storage.event_batch import BATCH_VERSION, EventBatch, PackedRows, Segment, encode_batch
from storage.fingerprint import fingerprint
from storage.spool import MIN_FREE_BYTES, Spool, SpoolDepth, SpooledHour, read_counts, read_depth, spool_holds


def batch(number: int, *, partition: int = 0, size: int = 100) -> EventBatch:
    ids = fingerprint("p", str(number)).to_bytes(8, "little")
    return EventBatch(
        BATCH_VERSION, number.to_bytes(16, "big"), partition, [Segment("p", 7, 1, 2)], ids, PackedRows(1, b"x" * size)
    )


def open_spool(path: Path, *, max_bytes: int = 1_000_000) -> Spool:
    return Spool(path / "spool.sqlite", max_bytes=max_bytes)


def test_batches_come_back_in_order_after_a_crash(tmp_path: Path) -> None:
    spool = open_spool(tmp_path)
    spool.put([batch(1), batch(2, partition=5)])
    spool.put([batch(3)])
    # No close: what a kill -9 leaves.
    again = open_spool(tmp_path)
    assert [s.batch for s in again.oldest([0], max_bytes=10_000)] == [batch(1), batch(3)]
    assert [s.batch for s in again.oldest([0, 5], max_bytes=10_000)] == [batch(1), batch(2, partition=5), batch(3)]
    assert again.bytes == spool.bytes
    assert again.depth == spool.depth
    assert again.events == {SpooledHour("p", 7): 3}
    assert again.rejected == {SpooledHour("p", 7): 6}
    spool.close()
    again.close()


def test_oldest_keeps_to_the_size_and_gives_one_at_least(tmp_path: Path) -> None:
    spool = open_spool(tmp_path)
    spool.put([batch(n) for n in range(5)])
    one = spool.oldest([0], max_bytes=1)
    assert [s.batch for s in one] == [batch(0)]
    assert len(spool.oldest([0], max_bytes=spool.bytes // 2)) == 2
    spool.close()


def test_removed_batches_are_gone_and_counted_down(tmp_path: Path) -> None:
    spool = open_spool(tmp_path)
    spool.put([batch(1), batch(2)])
    spool.remove(spool.oldest([0], max_bytes=1))
    assert [s.batch for s in spool.oldest([0], max_bytes=10_000)] == [batch(2)]
    spool.remove(spool.oldest([0], max_bytes=1))
    assert (spool.bytes, sum(spool.depth.values()), dict(spool.events)) == (0, 0, {})
    spool.close()
    again = open_spool(tmp_path)
    assert again.bytes == 0
    again.close()


def test_the_bound_refuses_the_whole_put(tmp_path: Path) -> None:
    spool = open_spool(tmp_path, max_bytes=400)
    spool.put([batch(1)])
    with pytest.raises(SpoolFull, match="of 400 bytes"):
        spool.put([batch(2), batch(3)])
    assert [s.batch for s in spool.oldest([0], max_bytes=10_000)] == [batch(1)]
    spool.close()


def test_room_is_below_the_bound_and_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = open_spool(tmp_path, max_bytes=400)
    found = [spool.has_room]
    for free in (MIN_FREE_BYTES - 1, MIN_FREE_BYTES):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: SimpleNamespace(free=free))
        found.append(spool.has_room)
    spool.bytes = 400
    found.append(spool.has_room)
    assert found == [True, False, True, False]
    spool.close()


def test_a_full_disk_refuses_and_recovers(tmp_path: Path) -> None:
    spool = open_spool(tmp_path)
    spool.put([batch(1)])
    pages = spool._db.execute("PRAGMA page_count").fetchone()[0]
    spool._db.execute(f"PRAGMA max_page_count={pages}")
    with pytest.raises(SpoolFull, match="disk"):
        spool.put([batch(2, size=100_000)])
    assert sum(spool.depth.values()) == 1
    spool._db.execute("PRAGMA max_page_count=1000000")
    spool.put([batch(2, size=100_000)])
    assert len(spool.oldest([0], max_bytes=1_000_000)) == 2
    spool.close()


def test_a_disk_too_full_to_shrink_the_file_forgets_what_was_removed(tmp_path: Path) -> None:
    spool = open_spool(tmp_path)
    spool.put([batch(1)])

    def refuse(action: int, name: str | None, *_: str | None) -> int:
        full = action == sqlite3.SQLITE_PRAGMA and name in ("incremental_vacuum", "wal_checkpoint")
        return sqlite3.SQLITE_DENY if full else sqlite3.SQLITE_OK

    spool._db.set_authorizer(refuse)
    spool.remove(spool.oldest([0], max_bytes=10_000))
    assert (spool.bytes, spool.oldest([0], max_bytes=10_000)) == (0, [])
    spool.close()


def test_an_emptied_spool_gives_its_space_back(tmp_path: Path) -> None:
    spool = open_spool(tmp_path)
    empty = spool.path.stat().st_size
    spool.put([batch(1, size=500_000)])
    spool.remove(spool.oldest([0], max_bytes=1))
    assert spool.path.stat().st_size <= empty + 8192
    assert spool.path.with_name("spool.sqlite-wal").stat().st_size == 0
    spool.close()


@pytest.mark.parametrize("waiting", [True, False])
def test_a_file_of_an_earlier_release_shrinks_too_once_it_is_empty(tmp_path: Path, *, waiting: bool) -> None:
    db = sqlite3.connect(tmp_path / "spool.sqlite", isolation_level=None)
    db.execute("PRAGMA journal_mode=WAL")
    db.execute(
        "CREATE TABLE spool (id INTEGER PRIMARY KEY AUTOINCREMENT, partition INTEGER NOT NULL,"
        " bytes INTEGER NOT NULL, batch BLOB NOT NULL)"
    )
    raw = encode_batch(batch(1, size=500_000))
    db.execute("INSERT INTO spool (partition, bytes, batch) VALUES (0, ?, ?)", (len(raw), raw))
    if not waiting:
        db.execute("DELETE FROM spool")
    db.execute("PRAGMA user_version=1")
    db.close()
    spool = open_spool(tmp_path)
    spool.remove(spool.oldest([0], max_bytes=1))
    assert spool.path.stat().st_size < 50_000
    spool.close()


def test_a_reader_does_not_hold_up_a_removal(tmp_path: Path) -> None:
    spool = open_spool(tmp_path)
    spool.put([batch(1)])
    reader = sqlite3.connect(f"file:{spool.path}?mode=ro", uri=True, isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM spool").fetchone()
    started = time.monotonic()
    spool.remove(spool.oldest([0], max_bytes=1))
    assert time.monotonic() - started < 2
    assert reader.execute("SELECT count(*) FROM spool").fetchone() == (1,)
    reader.close()
    spool.put([batch(2)])
    spool.close()


def test_others_may_look_into_a_spool_while_it_is_written(tmp_path: Path) -> None:
    spool = open_spool(tmp_path)
    spool.put([batch(1)])
    assert spool_holds(spool.path, "p", "1")
    assert not spool_holds(spool.path, "p", "2")
    assert not spool_holds(spool.path, "q", "1")
    assert read_depth(spool.path) == SpoolDepth(1, spool.bytes, 0)
    assert read_counts(spool.path) == (spool.events, spool.rejected)
    spool.close()


def test_a_spool_that_cannot_be_looked_into_is_unavailable(tmp_path: Path) -> None:
    with pytest.raises(Unavailable):
        read_depth(tmp_path / "spool.sqlite")


def test_a_damaged_batch_is_set_aside_and_its_neighbours_go_on(tmp_path: Path) -> None:
    spool = open_spool(tmp_path)
    spool.put([batch(1), batch(2), batch(3)])
    spool._db.execute("UPDATE spool SET batch = substr(batch, 1, 20) WHERE id = 2")
    spool.close()
    again = open_spool(tmp_path)
    assert [s.batch for s in again.oldest([0], max_bytes=10_000)] == [batch(1), batch(3)]
    again.remove(again.oldest([0], max_bytes=10_000))
    assert again.bytes == 0
    assert read_depth(again.path) == SpoolDepth(0, 0, 1)
    again.close()


def test_a_spool_with_damaged_batches_is_not_removed_when_it_is_taken_over(tmp_path: Path) -> None:
    left = Spool(tmp_path / "spool-1.sqlite", max_bytes=1_000_000)
    left.put([batch(1), batch(2)])
    left._db.execute("UPDATE spool SET batch = x'00' WHERE id = 1")
    left.close()
    spool = open_spool(tmp_path)
    spool.adopt(left.path)
    assert [s.batch for s in spool.oldest([0], max_bytes=10_000)] == [batch(2)]
    assert read_depth(left.path) == SpoolDepth(0, 0, 1)
    spool.close()


def test_a_spool_of_another_version_is_refused(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "spool.sqlite") as db:
        db.execute("PRAGMA user_version=99")
    db.close()
    with pytest.raises(FormatError, match="version 99"):
        open_spool(tmp_path)


def test_a_spool_that_nobody_has_any_more_is_taken_over(tmp_path: Path) -> None:
    orphan = Spool(tmp_path / "orphan.sqlite", max_bytes=1_000_000)
    orphan.put([batch(1), batch(2, partition=3)])
    orphan.close()
    spool = open_spool(tmp_path)
    spool.put([batch(9)])
    spool.adopt(tmp_path / "orphan.sqlite")
    assert [s.batch for s in spool.oldest([0, 3], max_bytes=10_000)] == [batch(9), batch(1), batch(2, partition=3)]
    assert not (tmp_path / "orphan.sqlite").exists()
    spool.close()
