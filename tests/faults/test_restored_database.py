"""PostgreSQL is set back to a backup, and nothing else is: what it has forgotten may be sent again, and counts once."""

import asyncio
import shutil
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lake_reading import wait_exported
from tests.plain_http import AsyncWeb, web
from tests.system import Client, RunningSystem

# Four starts, of behaviour that unit tests of the batcher know as well.
pytestmark = [pytest.mark.long, pytest.mark.timeout(400)]


@pytest.fixture
def system(tmp_path: Path) -> Iterator[RunningSystem]:
    running = RunningSystem(tmp_path / "data", arguments=("--port", "0"), environment={})
    try:
        running.start()
        yield running
    finally:
        running.close()


def stop(system: RunningSystem) -> None:
    system.signal_up(signal.SIGTERM)
    assert system.wait_ended() == 0


def counted(client: Client) -> int:
    """Events of the client by the windows."""
    answer = web.get(
        f"{client.system.url}/v1/metrics/events",
        params={"projectId": client.project, "granularity": "hour"},
        headers=client.admin(),
        timeout=10,
    )
    assert answer.status_code == 200, answer.text
    return int(sum(point["value"] for point in answer.json()["points"]))


def wait_counted(client: Client, events: int) -> None:
    until = time.monotonic() + 60
    while (found := counted(client)) != events:
        assert time.monotonic() < until, (found, events)
        time.sleep(0.2)


async def send_again(client: Client, event_ids: list[str]) -> Counter[str]:
    """The outcomes."""
    outcomes: Counter[str] = Counter()
    async with AsyncWeb(timeout=15) as http:
        for start in range(0, len(event_ids), 100):
            answer = await http.post(
                f"{client.system.url}/v1/events/batch",
                json=[client.event(event_id, 0) for event_id in event_ids[start : start + 100]],
                headers={"Authorization": f"Bearer {client.write_key}"},
            )
            assert answer.status_code == 202, answer.text
            outcomes.update(result["status"] for result in answer.json()["results"])
    return outcomes


async def test_a_restored_database_takes_again_what_it_has_forgotten(
    system: RunningSystem, client: Client, tmp_path: Path
) -> None:
    await client.run(seconds=2)
    await client.check()
    kept = sorted(client.acknowledged)
    await asyncio.to_thread(stop, system)
    database, backup = tmp_path / "data" / "postgres", tmp_path / "backup"
    shutil.copytree(database, backup, symlinks=True)
    await asyncio.to_thread(system.start)
    await client.run(seconds=2)
    await client.check()
    await wait_exported(system)
    forgotten = sorted(client.acknowledged - set(kept))
    assert kept and forgotten
    await asyncio.to_thread(stop, system)

    shutil.rmtree(database)
    backup.rename(database)
    await asyncio.to_thread(system.start)
    assert sorted(await client.stored()) == kept
    # Nobody has sent anything yet.
    await asyncio.to_thread(wait_counted, client, len(kept))
    assert await send_again(client, kept) == {"duplicate": len(kept)}
    assert await send_again(client, forgotten) == {"accepted": len(forgotten)}
    assert await send_again(client, forgotten) == {"duplicate": len(forgotten)}
    await client.check()
    await asyncio.to_thread(wait_counted, client, len(client.acknowledged))
    # Files of the time that was forgotten are in the folder, and are no part of the lake.
    assert "not of this manifest" in system.cli("lake", "verify").stdout
    await asyncio.to_thread(stop, system)
    # Another life finds nothing to settle, and knows all ids.
    await asyncio.to_thread(system.start)
    assert await send_again(client, kept + forgotten) == {"duplicate": len(client.acknowledged)}
    await client.check()
