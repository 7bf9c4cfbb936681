"""`analytics-actors log`: what it finds, what it refuses, and what it prints."""

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest

from analytics_actors.cli import log as log_command
from analytics_actors.log_repair import LogRepair
from config.settings import LogSettings, Settings, StoreSettings
from storage.errors import Unavailable
from storage.event_batch import LogRecord, PackedRows, RecordBatch, encode_record
from storage.event_store import PartitionWrite
from storage.memory_log import MemoryLog
from storage.memory_store import MemoryStore
from storage.partition_log import Append, LogState
from tests.unit.batches import HOUR, make_batch
from tests.unit.cli_server import invoke

PARTITIONS = 8
WORDS = ("--postgres-url", "postgresql://nowhere", "--redis-url", "redis://nowhere")


def record(*, damaged: bool) -> bytes:
    batch = make_batch("a", "b", project="shop")
    rows = PackedRows(1000, b"not LZ4") if damaged else batch.rows
    return encode_record(LogRecord(1, 0, [RecordBatch(batch.batch_id, batch.segments, b"\x01", rows)]))


class Broken:
    """A log of partition 5 with a good record, one with damaged rows, one with nothing that can be read, a good one."""

    def __init__(self) -> None:
        self.log = MemoryLog()
        self.store = MemoryStore()
        self.repair = LogRepair(self.log, self.store.checkpoints, self.store.set_aside, partitions=PARTITIONS)
        self.bytes = 0
        asyncio.run(self._fill())

    async def _fill(self) -> None:
        state = await self.log.acquire(5, at_least=LogState(0, 0, 0, 0))
        records = [record(damaged=False), record(damaged=True), b"\xc1", record(damaged=False)]
        for offset, raw in enumerate(records):
            assert await self.log.append([Append(5, state.epoch, offset, raw, b"")]) == ["appended"]
        await self.store.claim(5, epoch=1)
        self.bytes = sum(map(len, records))

    def store_passes(self, next_offset: int) -> None:
        asyncio.run(self.store.write([PartitionWrite(5, 1, 0, next_offset, ())]))


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Broken:
    made = Broken()

    async def on_log(settings: Settings, work: Any) -> Any:
        assert settings.log.redis_url == "redis://nowhere"
        return await work(made.repair)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(log_command, "_on_log", on_log)
    return made


def run(*words: str, code: int = 0) -> str:
    result = invoke("log", *words, *WORDS)
    assert result.exit_code == code, result.output
    return result.output


def run_json(*words: str, code: int = 0) -> dict[str, Any]:
    result = invoke("log", *words, *WORDS, "--json")
    assert result.exit_code == code, result.output
    found: dict[str, Any] = msgspec.json.decode(result.stdout)
    return found


COUNTS = [
    {"projectId": "shop", "hour": "2026-05-01T12:00:00Z", "received": 2, "duplicate": 1, "rejected": 0, "lost": 1}
]


def test_what_cannot_be_read_is_found(broken: Broken) -> None:
    assert HOUR * 3600 == 1777636800
    shown = run("check", code=1)
    for text in ("stops", "not a log record", "4 records", "2 cannot be read", "PostgreSQL: 2"):
        assert text in shown
    found = run_json("check", code=1)
    assert (found["records"], found["bytes"], found["setAside"]) == (4, broken.bytes, [])
    first, second = found["unreadable"]
    assert (first["partition"], first["offset"], first["state"], first["counts"]) == (5, 1, "stops", COUNTS)
    assert "rows of a batch cannot be read" in first["reason"]
    assert (second["offset"], second["bytes"], second["counts"]) == (2, 1, None)


def test_a_record_is_set_aside_and_again(broken: Broken) -> None:
    shown = run("set-aside", "5", "1")
    assert "1 events of shop will be counted as lost" in shown
    assert run_json("set-aside", "5", "1")["counts"] == COUNTS
    assert "does not tell" in run("set-aside", "5", "2")
    assert list(broken.store.set_aside.raw.values()) == [record_of(broken, 1), b"\xc1"]
    found = run_json("check")
    assert [each["state"] for each in found["unreadable"]] == ["set aside"] * 2
    assert [each["steppedOverAt"] for each in found["setAside"]] == [None, None]
    broken.store_passes(3)
    found = run_json("check")
    assert [each["state"] for each in found["unreadable"]] == ["stored"] * 2
    assert all(each["steppedOverAt"] for each in found["setAside"])
    assert "stepped over at" in run("check")
    # Long after it was asked for the first time, too, when the log has let it go.
    del broken.log._partitions[5].records[1]
    assert run("set-aside", "5", "1").startswith("record 1 of partition 5 is set aside")


def record_of(broken: Broken, offset: int) -> bytes:
    return broken.log._partitions[5].records[offset]


def test_what_is_no_such_record_is_refused(broken: Broken) -> None:
    assert "there is no partition 8: there are 8, from 0 on" in run("set-aside", "8", "0", code=1)
    assert "has no record 4: it has 0 to 3" in run("set-aside", "5", "4", code=1)
    assert "has no record 0: it is empty" in run("set-aside", "3", "0", code=1)
    assert "can be read: nothing was changed" in run("set-aside", "5", "0", code=1)
    run("set-aside", "5", "x", code=2)
    run("set-aside", "5", code=2)
    broken.store_passes(2)
    assert "has passed record 1" in run("set-aside", "5", "1", code=1)
    assert broken.store.set_aside.records == {}


def test_services_that_are_away_are_told(broken: Broken, monkeypatch: pytest.MonkeyPatch) -> None:
    broken.log.available = False
    assert "made to be away" in run("check", code=1)
    broken.log.available = True

    async def away(*_: Any) -> None:
        raise Unavailable("PostgreSQL did not answer")

    monkeypatch.setattr(broken.store.set_aside, "add", away)
    assert "PostgreSQL did not answer" in run("set-aside", "5", "1", code=1)


def test_where_the_log_is_must_be_known(tmp_path: Path) -> None:
    assert "there is no" in invoke("log", "check", "--data", tmp_path).output
    kept = Settings(data=str(tmp_path), store=StoreSettings(postgres_url="postgresql://kept"), log=LogSettings())
    (tmp_path / "settings.json").write_bytes(kept.to_json())
    told = invoke("log", "check", "--data", tmp_path)
    assert (told.exit_code, "--redis-url" in told.output) == (1, True)
