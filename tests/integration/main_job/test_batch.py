"""The daily job by command, over data that was imported into the far past: Ray tasks count it again out of the lake."""

import asyncio
import json
import time
from typing import Any

import pytest

from tests.integration.main_job.conftest import SETS
from tests.lake_reading import wait_exported
from tests.system import RunningSystem

pytestmark = pytest.mark.timeout(400)

RECOMPUTED_WITHIN_S = 120.0
DATA = min(SETS, key=lambda data: data.answers["all"]["events"])
PROJECT = DATA.projects[0]


@pytest.fixture(scope="module")
def settled(loaded: RunningSystem) -> RunningSystem:
    """All days were counted promptly, and everything is in files."""
    asyncio.run(wait_exported(loaded))
    began = time.monotonic()
    while asyncio.run(loaded.sql("SELECT FROM late_days WHERE project_id = $1", PROJECT)):
        assert time.monotonic() < began + RECOMPUTED_WITHIN_S, loaded.aggregators()
        time.sleep(0.5)
    return loaded


def run(system: RunningSystem, *words: str) -> dict[str, Any]:
    done = system.cli("batch", "run", "--project", PROJECT, "--json", *words, timeout_s=120)
    job: dict[str, Any] = json.loads(done.stdout)
    return job


def roll_ups(system: RunningSystem) -> list[Any]:
    rows = "SELECT * FROM metric_aggregates WHERE project_id = $1 ORDER BY metric_name, time_granularity, timestamp"
    return [tuple(row) for row in asyncio.run(system.sql(f"{rows}, dimensions_hash", PROJECT))]


def test_an_audit_of_imported_days_finds_nothing_and_changes_nothing(settled: RunningSystem) -> None:
    before = roll_ups(settled)
    job = run(settled)
    progress = job["progress"]
    assert (job["state"], progress["errors"], progress["daysOpen"]) == ("done", [], 0)
    assert progress["events"] == DATA.answers["eventsPerProject"][PROJECT]
    assert progress["rows"] == len(before) and progress["rowsChanged"] == 0
    assert roll_ups(settled) == before


def test_what_is_wrong_is_found_and_put_right(settled: RunningSystem) -> None:
    before = roll_ups(settled)
    wrong = (
        "WITH chosen AS (SELECT ctid FROM metric_aggregates WHERE project_id = $1 ORDER BY ctid LIMIT 5)"
        " UPDATE metric_aggregates SET count = count + 1 FROM chosen WHERE metric_aggregates.ctid = chosen.ctid"
    )
    gone = (
        "DELETE FROM metric_aggregates WHERE ctid IN"
        " (SELECT ctid FROM metric_aggregates WHERE project_id = $1 ORDER BY ctid LIMIT 3)"
    )
    asyncio.run(settled.sql(gone, PROJECT))
    asyncio.run(settled.sql(wrong, PROJECT))
    assert run(settled, "--dry-run")["progress"]["rowsChanged"] == 8
    assert run(settled)["progress"]["rowsChanged"] == 8
    assert run(settled, "--dry-run")["progress"]["rowsChanged"] == 0
    assert len(roll_ups(settled)) == len(before)
    assert "command" in settled.cli("batch", "status").stdout
