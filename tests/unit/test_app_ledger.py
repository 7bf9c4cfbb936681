"""`/v1/ledger`: PostgreSQL's counts and what is pending, in one balance."""

from datetime import UTC, datetime

import pytest

from gateway.services import PendingHour
from storage.ledger import Difference, LedgerHour
from tests.unit.fake_services import System

HOUR = datetime(2026, 11, 20, 12, tzinfo=UTC)
HOUR_NUMBER = int(HOUR.timestamp()) // 3600
GOOD = LedgerHour(
    HOUR, received=28, stored=1, duplicate=2, dead_lettered=3, rejected=4, lost=11, aggregated=7, expired=1
)


async def test_pending_is_received_and_in_the_balance() -> None:
    system = System()
    system.ledger.rows = [GOOD]
    system.status.wait({HOUR_NUMBER: PendingHour(5, 6), HOUR_NUMBER + 1: PendingHour(7, 0)})
    async with system.client("read") as client:
        ledger = (await client.get("/v1/ledger")).json()
    assert ledger["hours"][0] == {
        "hour": "2026-11-20T12:00:00Z",
        "received": 39,
        "stored": 1,
        "duplicate": 2,
        "deadLettered": 3,
        "rejected": 10,
        "lost": 11,
        "aggregated": 7,
        "pending": 5,
        "expired": 1,
    }
    assert (ledger["hours"][1]["received"], ledger["hours"][1]["pending"]) == (7, 7)
    assert (ledger["totals"]["received"], ledger["totals"]["pending"]) == (46, 12)
    assert ledger["balanced"] is True
    assert ledger["pendingComplete"] is True


async def test_imbalance_is_said_even_when_the_totals_agree() -> None:
    system = System()
    system.ledger.rows = [GOOD._replace(stored=2), GOOD._replace(hour=HOUR.replace(hour=13), stored=0)]
    async with system.client("read") as client:
        ledger = (await client.get("/v1/ledger")).json()
    assert ledger["balanced"] is False


async def test_unanswered_question_for_pending_is_said() -> None:
    system = System()
    system.status.wait({}, complete=False)
    async with system.client("read") as client:
        ledger = (await client.get("/v1/ledger")).json()
    assert (ledger["hours"], ledger["pendingComplete"]) == ([], False)


async def test_range_holds_for_pending_too() -> None:
    system = System()
    system.status.wait({HOUR_NUMBER + step: PendingHour(1, 0) for step in range(4)})
    async with system.client("read") as client:
        answer = await client.get("/v1/ledger?startTime=2026-11-20T13:00:00Z&endTime=2026-11-20T15:00:00Z")
    assert [hour["hour"] for hour in answer.json()["hours"]] == ["2026-11-20T13:00:00Z", "2026-11-20T14:00:00Z"]


@pytest.mark.parametrize(
    ("key", "query", "asked"), [("admin", "", "shop"), ("system", "", None), ("system", "?projectId=a", "a")]
)
async def test_check(key: str, query: str, asked: str | None) -> None:
    system = System()
    system.registry.add("a")
    async with system.client(key) as client:
        right = await client.get(f"/v1/ledger/check{query}")
        system.ledger.differences = [Difference("shop", HOUR, "stored", 2, 1)]
        wrong = await client.get(f"/v1/ledger/check{query}")
    assert right.json() == {"ok": True, "differences": []}
    difference = {"projectId": "shop", "hour": "2026-11-20T12:00:00Z", "what": "stored", "inLedger": 2, "found": 1}
    assert wrong.json() == {"ok": False, "differences": [difference]}
    assert system.ledger.asked == [asked, asked]


async def test_check_needs_an_admin_key() -> None:
    async with System().client("read") as client:
        assert (await client.get("/v1/ledger/check")).status_code == 403
