"""The main job on real input: five data sets, thousands of projects, rows out of order, repeated, years old.

The sets lie beside the project (`../shared/data`, with the exact answers); without them the sample that the
project ships is loaded, and the answers are counted here.
"""

import asyncio
import gzip
import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest

from tests.system import Client, RunningSystem

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
SAMPLE = Path(__file__).parents[1] / "samples" / "real_events.ndjson"

pytestmark = pytest.mark.timeout(400)


def data_files() -> list[Path]:
    return sorted(SHARED.glob("*.ndjson.gz")) or [SAMPLE]


def read_rows(path: Path) -> list[str]:
    text = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return text.decode().splitlines()


def expected_counts(files: list[Path]) -> tuple[Counter[str], Counter[str]]:
    """Distinct events by project and by type: from the sets' own answers, or counted."""
    projects: Counter[str] = Counter()
    types: Counter[str] = Counter()
    for path in files:
        answers = path.with_name(path.name.replace(".ndjson.gz", ".expected.json"))
        if path.suffix == ".gz":
            known = json.loads(answers.read_text())
            projects.update(known["eventsPerProject"])
            types.update(known["eventsPerType"])
        else:
            events = {(row["projectId"], row["eventId"]): row for row in map(json.loads, read_rows(path))}
            projects.update(row["projectId"] for row in events.values())
            types.update(row["eventType"] for row in events.values())
    return projects, types


async def stored_counts(system: RunningSystem, projects: list[str]) -> tuple[Counter[str], Counter[str]]:
    connection = await asyncpg.connect(system.connection["postgres_url"])
    try:
        rows = await connection.fetch(
            "SELECT project_id, event_type, count(*) AS events FROM events_log"
            " WHERE project_id = ANY($1) GROUP BY project_id, event_type",
            projects,
        )
    finally:
        await connection.close()
    by_project: Counter[str] = Counter()
    by_type: Counter[str] = Counter()
    for row in rows:
        by_project[row["project_id"]] += row["events"]
        by_type[row["event_type"]] += row["events"]
    return by_project, by_type


async def load(system: RunningSystem, files: list[Path]) -> dict[str, Any]:
    arguments = ["load", *map(str, files), "--by-project", "--json"]
    done = await asyncio.to_thread(lambda: system.cli(*arguments, timeout_s=300))
    summary: dict[str, Any] = json.loads(done.stdout)
    return summary


async def test_real_data_twice_at_once_and_shuffled(system: RunningSystem, tmp_path: Path) -> None:
    """One load in the files' order and one of the same rows shuffled, at the same time."""
    system.wait_healthy()
    files = data_files()
    lines = [line for path in files for line in read_rows(path)]
    random.Random(7).shuffle(lines)
    shuffled = tmp_path / "shuffled.ndjson"
    shuffled.write_text("\n".join(lines) + "\n")
    summaries = await asyncio.gather(load(system, files), load(system, [shuffled]))
    for summary in summaries:
        assert summary["rejected"] == 0, summary
    await asyncio.to_thread(lambda: system.cli("drain", timeout_s=120))
    projects, types = expected_counts(files)
    stored_projects, stored_types = await stored_counts(system, list(projects))
    assert stored_projects == projects
    assert stored_types == types
    check = await asyncio.to_thread(
        lambda: httpx.get(f"{system.url}/v1/ledger/check", headers=Client(system).admin(), timeout=60)
    )
    assert check.json() == {"ok": True, "differences": []}


async def test_old_events_are_taken_by_explicit_choice_only(system: RunningSystem, client: Client) -> None:
    old = {"eventId": "old", "eventType": "t", "timestamp": "2015-01-01T00:00:00Z"}
    url, write = f"{system.url}/v1/events", {"Authorization": f"Bearer {client.write_key}"}
    async with httpx.AsyncClient(timeout=10) as http:
        refused = await http.post(url, json=old, headers=write)
        assert (refused.status_code, refused.json()["code"]) == (422, "timestamp_out_of_range")
        not_allowed = await http.post(url, json=old, headers=write, params={"import": "true"})
        assert (not_allowed.status_code, not_allowed.json()["code"]) == (403, "key_kind_not_allowed")
        made = await http.post(
            f"{system.url}/v1/keys", json={"projectId": client.project, "kind": "import"}, headers=client.admin()
        )
        importing = {"Authorization": f"Bearer {made.json()['key']}"}
        taken = await http.post(url, json=old, headers=importing, params={"import": "true"})
        assert taken.status_code == 202, taken.text
