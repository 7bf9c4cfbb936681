"""The read routes: filters, pages, one event, traces, isolation of projects, bounds on queries."""

import asyncio
from datetime import UTC, datetime

import pytest

from config.settings import GatewaySettings
from gateway.services import Place
from storage.errors import Unavailable
from storage.event_queries import DeadLetter
from tests.unit.fake_services import NOW, System, bearer


async def test_pages_of_events() -> None:
    system = System()
    for number in range(5):
        system.queries.add(f"e{number}", event_type="a" if number < 3 else "b")
    async with system.client("read") as client:
        first = (await client.get("/v1/events?type=a&limit=2")).json()
        second = (await client.get(f"/v1/events?type=a&limit=2&cursor={first['nextCursor']}")).json()
    assert [event["eventId"] for event in first["events"]] == ["e0", "e1"]
    assert [event["eventId"] for event in second["events"]] == ["e2"]
    assert "nextCursor" not in second


async def test_filters_are_handed_on() -> None:
    system = System()
    query = "user=u&session=s&startTime=2026-01-01T00:00:00Z&endTime=1767312000&order=received"
    async with system.client("read") as client:
        assert (await client.get(f"/v1/events?{query}")).status_code == 200
    start, end = datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 2, tzinfo=UTC)
    assert system.queries.asked == [
        {"user_id": "u", "session_id": "s", "start": start, "end": end, "order": "received"}
    ]


@pytest.mark.parametrize(
    ("query", "pointer"),
    [
        ("cursor=nonsense", "/cursor"),
        ("startTime=yesterday", "/startTime"),
        ("startTime=2026-01-01T00:00:00", "/startTime"),
        ("startTime=253402300800", None),
        ("endTime=253402300799.9999999", None),
        ("limit=1001", "/limit"),
        ("order=oldest", "/order"),
        ("startime=2026-01-01T00:00:00Z", None),
    ],
)
async def test_bad_parameters_are_named(query: str, pointer: str | None) -> None:
    async with System().client("read") as client:
        answer = await client.get(f"/v1/events?{query}")
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_parameter")
    assert answer.json().get("pointer") == pointer


SLASHES = ["abc/", "a/trace", "trace", "x//y", "/lead", "/", "%2F", "100%", "a/trace/"]


@pytest.mark.parametrize("event_id", ["e1", "a/b", "https://shop.example/x?y", "ü", "a b", "a\nb", "\n", *SLASHES])
async def test_one_event(event_id: str) -> None:
    system = System()
    system.queries.add(event_id)
    async with system.client("read") as client:
        path = "/v1/events/" + "".join(f"%{byte:02x}" for byte in event_id.encode())
        found = await client.get(path)
        trace = await client.get(f"{path}/trace")
        missing = await client.get("/v1/events/nothing")
    assert found.json()["eventId"] == event_id
    assert (trace.json()["state"], trace.json()["eventId"]) == ("stored", event_id)
    assert (trace.json()["partition"], trace.json()["offset"]) == (3, 7)
    assert (missing.status_code, missing.json()["code"]) == (404, "not_found")


async def test_slashes_of_an_id_may_be_sent_as_they_are() -> None:
    system = System()
    system.queries.add("a/b")
    async with system.client("read") as client:
        for path in ("/v1/events/a/b", "/v1/events/a/b/", "/v1/events/a/b/trace", "/v1/events/a/b/trace/"):
            assert (await client.get(path)).json()["eventId"] == "a/b"


async def test_trace_of_a_dead_letter() -> None:
    system = System()
    system.queries.letters["e1"] = DeadLetter(3, 7, 0, NOW, NOW, "22P02", "invalid input")
    async with system.client("read") as client:
        trace = (await client.get("/v1/events/e1/trace")).json()
    assert (trace["state"], trace["code"], trace["message"]) == ("dead_lettered", "22P02", "invalid input")


@pytest.mark.parametrize(("place", "state"), [("log", "logged"), ("spool", "spooled"), ("unknown", "unknown")])
async def test_trace_of_what_is_not_stored(place: Place, state: str) -> None:
    system = System()
    system.status.place = place
    async with system.client("read") as client:
        assert (await client.get("/v1/events/e1/trace")).json() == {"eventId": "e1", "state": state}


async def test_projects_are_apart() -> None:
    system = System()
    system.queries.add("mine")
    system.queries.add("theirs", project_id="other")
    system.registry.add("other")
    async with system.client("read") as client:
        assert [e["eventId"] for e in (await client.get("/v1/events")).json()["events"]] == ["mine"]
        assert (await client.get("/v1/events/theirs")).status_code == 404
        other = await client.get("/v1/events?projectId=other")
    assert (other.status_code, other.json()["code"]) == (403, "project_mismatch")
    async with system.client("system") as client:
        unnamed = await client.get("/v1/events")
        named = await client.get("/v1/events?projectId=other")
    assert (unnamed.status_code, unnamed.json()["pointer"]) == (400, "/projectId")
    assert [event["eventId"] for event in named.json()["events"]] == ["theirs"]


@pytest.mark.parametrize("key", ["write", "import"])
@pytest.mark.parametrize("route", ["/v1/events", "/v1/events/e1", "/v1/events/e1/trace"])
async def test_keys_for_writing_cannot_read(key: str, route: str) -> None:
    async with System().client(key) as client:
        assert (await client.get(route)).status_code == 403


async def test_database_away_is_503() -> None:
    system = System()
    system.queries.error = Unavailable("PostgreSQL did not answer")
    async with system.client("read") as client:
        answer = await client.get("/v1/events")
    assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")


async def test_queries_beyond_the_bound_are_shed_and_the_bound_is_freed() -> None:
    system = System(settings=GatewaySettings(max_concurrent_queries=3))
    system.queries.delay_s = 0.05
    system.registry.add("other")
    async with system.client("read") as client:
        shop = [client.get("/v1/events") for _ in range(5)]
        other = [client.get("/v1/events?projectId=other", headers=bearer("system")) for _ in range(2)]
        answers = await asyncio.gather(*shop, *other)
        assert sorted(answer.status_code for answer in answers[:5]) == [200, 200, 503, 503, 503]
        # The last place is another project's.
        assert sorted(answer.status_code for answer in answers[5:]) == [200, 503]
        assert (await client.get("/v1/events")).status_code == 200
        assert (await client.get("/healthz")).status_code == 200


async def test_slow_queries_end_at_their_deadline() -> None:
    system = System(settings=GatewaySettings(query_deadline_s=0.05))
    system.queries.delay_s = 5
    async with system.client("read") as client:
        answer = await client.get("/v1/events")
    assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
