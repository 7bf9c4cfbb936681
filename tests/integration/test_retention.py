"""Retention on a whole system: what was stored long ago leaves PostgreSQL, and is found in the lake."""

import asyncio
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.lake_reading import wait_exported
from tests.plain_http import AsyncWeb
from tests.system import Client

pytestmark = pytest.mark.timeout(240)

DAYS_AGO = 45
OTHERS_STAY = ("--set", "retention.rollup_days=0")
"""Thousands of projects of other tests may be here, whose roll-ups are years old."""


async def ask(client: Client, path: str, **parameters: Any) -> Any:
    async with AsyncWeb(base_url=client.system.url, timeout=60) as http:
        found = await http.get(path, params=parameters | {"projectId": client.project}, headers=client.admin())
        assert found.status_code == 200, found.text
        return found.json()


async def run(client: Client, *words: str) -> Any:
    done = await asyncio.to_thread(client.system.cli, "retention", "run", "--json", *OTHERS_STAY, *words)
    return json.loads(done.stdout)


async def test_old_events_are_dropped_counted_and_found_in_the_lake(client: Client) -> None:
    async with AsyncWeb() as http:
        assert await client.post(http, ["a", "b", "c"])
    await asyncio.to_thread(client.settle)
    await wait_exported(client.system)
    day = datetime.now(UTC).date() - timedelta(days=DAYS_AGO)
    await client.system.sql("SELECT events_log_add_day($1)", day)
    await client.system.sql(
        "UPDATE events_log SET created_at = $1 WHERE project_id = $2",
        datetime.combine(day, datetime.min.time(), UTC),
        client.project,
    )

    dry = await run(client, "--dry-run")
    [mine] = [each for each in dry["removals"] if each["name"] == day.isoformat()]
    assert (mine["kind"], mine["rows"]) == ("partitions", 3) and mine["bytes"] > 0
    assert len((await ask(client, "/v1/events"))["events"]) == 3

    assert mine in (await run(client))["removals"]
    assert not await client.system.sql("SELECT FROM events_log WHERE project_id = $1", client.project)
    page = await ask(client, "/v1/events")
    begins = f"{day + timedelta(days=1)}T00:00:00Z"
    assert (page["events"], page["historyBegins"]) == ([], begins)
    check = await ask(client, "/v1/ledger/check")
    assert check == {"ok": True, "differences": []}
    totals = (await ask(client, "/v1/ledger"))["totals"]
    assert (totals["stored"], totals["expired"]) == (3, 3)

    trace = await ask(client, "/v1/events/b/trace", lake="true")
    assert trace["state"] == "archived" and trace["file"].startswith("events/year=")
    assert (await ask(client, "/v1/events/never/trace", lake="true"))["state"] == "unknown"
    counted = await asyncio.to_thread(
        client.system.cli, "query", "--format", "csv", "--project", client.project, "select count(*) from events"
    )
    assert counted.stdout.split()[-1] == "3"
    shown = await asyncio.to_thread(client.system.cli, "retention", "runs")
    assert day.isoformat() in shown.stdout


def test_limits_of_a_project_by_command(client: Client) -> None:
    changed = client.system.cli("retention", "set", client.project, "--raw-days", "3", "--json")
    assert json.loads(changed.stdout)["effective"] == {"rawDays": 3, "lakeDays": 760, "rollupDays": 1826}
    assert "own" in client.system.cli("retention", "show", client.project).stdout
    refused = client.system.cli("retention", "set", client.project, "--lake-days", "2", check=False)
    assert refused.returncode == 1 and "in the lake 2 days" in refused.stderr
    back = client.system.cli("retention", "set", client.project, "--default", "--json")
    assert json.loads(back.stdout)["own"] == {"rawDays": None, "lakeDays": None, "rollupDays": None}
