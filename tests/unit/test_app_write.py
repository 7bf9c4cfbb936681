"""The write routes: an outcome for every event, and every refusal by the error table."""

import asyncio
import base64
import gzip
import json
import random
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.types import ASGIApp, Message, Scope

from config.metrics import ACKS, EVENTS, HTTP_REQUESTS
from config.settings import GatewaySettings
from gateway.answers import SEND_WHOLE
from gateway.errors import ApiError
from gateway.routes.write_events import Taken, batch_body
from gateway.rows import Decoded, Receipt, Rejection, Row
from storage.errors import SpoolFull
from tests.unit.fake_services import FakeIngest, System, bearer

EVENT = {"eventId": "e1", "eventType": "signup", "userId": "u1"}


@pytest.fixture(params=["call", "begin"], autouse=True)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """By ASGI alone, or as the server does it, where an ordinary event is taken without: no answer differs."""
    monkeypatch.setattr(System, "begins", request.param == "begin")
    return str(request.param)


def check_error(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """Every error has the body of the table and the request's id."""
    assert answer.status_code == status, answer.text
    body: dict[str, Any] = answer.json()
    assert body["code"] == code
    assert body["message"]
    assert body["requestId"] == answer.headers["x-request-id"]
    return body


async def test_single_event_is_accepted() -> None:
    system = System()
    async with system.client("write") as client:
        answer = await client.post("/v1/events", json=EVENT)
    assert answer.status_code == 202
    assert answer.json() == {"status": "accepted", "eventId": "e1", "ack": "logged"}
    [(project_id, [row], rejected)] = system.ingest.submitted
    assert (project_id, row.event_id, row.user_id, rejected) == ("shop", "e1", "u1", 0)


async def test_single_event_again_is_a_duplicate() -> None:
    async with System().client("write") as client:
        await client.post("/v1/events", json=EVENT)
        answer = await client.post("/v1/events", json=EVENT)
    assert answer.json() == {"status": "duplicate", "eventId": "e1", "ack": "logged"}


async def test_missing_id_is_made_and_returned() -> None:
    system = System()
    async with system.client("write") as client:
        answer = await client.post("/v1/events/", json={"eventType": "signup"})
    assert answer.json()["eventId"] == system.ingest.submitted[0][1][0].event_id


async def test_refused_single_event_gets_its_own_error_and_is_counted() -> None:
    system = System()
    async with system.client("write") as client:
        answer = await client.post("/v1/events", json={"eventId": "e1"})
    check_error(answer, 422, "missing_event_type")
    assert system.ingest.submitted == [("shop", [], 1)]


async def test_batch_answers_in_input_order() -> None:
    system = System()
    events = [EVENT, {"eventId": "bad"}, {"eventId": "e2", "eventType": "x"}, EVENT]
    async with system.client("write") as client:
        answer = await client.post("/v1/events/batch", json=events)
    body = answer.json()
    assert answer.status_code == 202
    assert (body["accepted"], body["duplicate"], body["rejected"], body["ack"]) == (2, 1, 1, "logged")
    assert [(r["eventId"], r["status"]) for r in body["results"]] == [
        ("e1", "accepted"),
        ("bad", "rejected"),
        ("e2", "accepted"),
        ("e1", "duplicate"),
    ]
    assert body["results"][1]["code"] == "missing_event_type"
    assert system.ingest.submitted[0][2] == 1


@pytest.mark.parametrize(
    ("content", "content_type"),
    [
        (b'[{"eventType":"a"},{"eventType":"b"}]', "application/json"),
        (b'{"events":[{"eventType":"a"},{"eventType":"b"}]}', "application/json"),
        (b'{"eventType":"a"}\n{"eventType":"b"}\n', "application/x-ndjson"),
        (b'[{"eventType":"a"},{"eventType":"b"}]', "text/plain"),
    ],
)
async def test_forms_of_a_batch(content: bytes, content_type: str) -> None:
    async with System().client("write") as client:
        plain = await client.post("/v1/events/batch", content=content, headers={"content-type": content_type})
        headers = {"content-type": content_type, "content-encoding": "gzip"}
        zipped = await client.post("/v1/events/batch", content=gzip.compress(content), headers=headers)
    assert plain.json()["accepted"] == zipped.json()["accepted"] == 2


async def test_large_bodies_are_decoded_off_the_loop_with_the_same_answer() -> None:
    events = [{"eventType": "x", "properties": {"text": "a" * 1000}} for _ in range(2000)]
    async with System().client("write") as client:
        answer = await client.post("/v1/events/batch", json=events)
    assert answer.json()["accepted"] == 2000


ids = st.none() | st.text(max_size=6) | st.sampled_from([",", '","', '",', "\\", '"', "a,b"])


@given(st.lists(ids))
def test_fast_answer_is_the_slow_answer(event_ids: list[str | None]) -> None:
    body = json.loads(batch_body(Taken(Decoded(len(event_ids), [], {}, event_ids), frozenset(), "logged")))
    assert body["accepted"] == len(event_ids)
    assert body["results"] == [{"eventId": event_id, "status": "accepted"} for event_id in event_ids]


def test_results_carry_code_message_and_pointer() -> None:
    rejections = {1: Rejection("invalid_field", "no", "/userId")}
    body = json.loads(batch_body(Taken(Decoded(2, [], rejections, ["a", "b"]), frozenset(), "spooled")))
    assert body["results"][1] == {
        "eventId": "b",
        "status": "rejected",
        "code": "invalid_field",
        "message": "no",
        "pointer": "/userId",
    }


async def test_spooled_is_said() -> None:
    system = System()
    system.ingest.spooling = True
    async with system.client("write") as client:
        answer = await client.post("/v1/events?ack=stored", json=EVENT)
    assert (answer.status_code, answer.json()["ack"]) == (202, "spooled")


@pytest.mark.parametrize(("stored", "ack"), [(True, "stored"), (False, "logged")])
async def test_ack_stored_waits_for_postgresql(stored: bool, ack: str) -> None:
    system = System()
    system.ingest.stored = stored
    async with system.client("write") as client:
        single = await client.post("/v1/events?ack=stored", json=EVENT)
        batch = await client.post("/v1/events/batch?ack=stored", json=[EVENT])
    assert single.json()["ack"] == batch.json()["ack"] == ack


@pytest.mark.parametrize("query", ["ack=never", "import=perhaps", "&".join("a=1" for _ in range(40))])
async def test_parameters_that_mean_nothing_are_refused(query: str) -> None:
    async with System().client("import") as client:
        check_error(await client.post(f"/v1/events?{query}", json=EVENT), 400, "invalid_parameter")


OLD = {"eventType": "x", "timestamp": "2019-01-01T00:00:00Z"}


async def test_old_events_need_import() -> None:
    async with System().client("import") as client:
        check_error(await client.post("/v1/events", json=OLD), 422, "timestamp_out_of_range")
        assert (await client.post("/v1/events?import=true", json=OLD)).status_code == 202
        assert (await client.post("/v1/events", json=OLD, headers={"X-Import": "true"})).status_code == 202


@pytest.mark.parametrize(("key", "allowed"), [("write", False), ("import", True), ("admin", True)])
async def test_who_may_import(key: str, allowed: bool) -> None:
    async with System().client(key) as client:
        answer = await client.post("/v1/events?import=true", json=OLD)
    assert answer.status_code == (202 if allowed else 403)


@pytest.mark.parametrize(
    ("key", "status"), [("write", 202), ("import", 202), ("admin", 202), ("read", 403), ("system", 403)]
)
async def test_who_may_write(key: str, status: int) -> None:
    system = System()
    async with system.client(key) as client:
        answer = await client.post("/v1/events", json=EVENT)
    assert answer.status_code == status
    assert bool(system.ingest.submitted) == (status == 202)


@pytest.mark.parametrize(
    ("query", "headers"),
    [
        ("", {"Authorization": "Bearer write"}),
        ("", {"Authorization": "bearer   write"}),
        ("", {"Authorization": "Basic " + base64.b64encode(b"write:").decode()}),
        ("", {"X-API-Key": "write"}),
        ("?key=write", {}),
        ("?writeKey=write", {}),
        ("", {"Authorization": "Digest x", "X-API-Key": "write"}),
    ],
)
async def test_places_of_the_key(query: str, headers: dict[str, str]) -> None:
    async with System().client() as client:
        answer = await client.post(f"/v1/events{query}", json=EVENT, headers=headers)
    assert answer.status_code == 202


async def test_key_errors() -> None:
    system = System()
    async with system.client() as client:
        missing = await client.post("/v1/events", json=EVENT)
        unknown = await client.post("/v1/events", json=EVENT, headers=bearer("nobody"))
        broken = await client.post("/v1/events", json=EVENT, headers={"Authorization": "Basic %%%"})
        system.keys.error = ApiError("unavailable")
        unsure = await client.post("/v1/events", json=EVENT, headers=bearer("new"))
    check_error(missing, 401, "missing_key")
    check_error(unknown, 401, "invalid_key")
    check_error(broken, 401, "malformed_key")
    check_error(unsure, 503, "unavailable")
    assert missing.headers["www-authenticate"] == "Bearer"


async def test_body_cap_holds_announced_and_streamed() -> None:
    system = System(settings=GatewaySettings(max_body_bytes=1000))

    async def stream() -> Any:
        for _ in range(11):
            yield b" " * 100

    async with system.client("write") as client:
        check_error(await client.post("/v1/events", content=b" " * 1001), 413, "body_too_large")
        check_error(await client.post("/v1/events", content=stream()), 413, "body_too_large")


async def test_too_long_is_said_before_the_key_is_looked_at() -> None:
    async with System(settings=GatewaySettings(max_body_bytes=10)).client() as client:
        check_error(await client.post("/v1/events", content=b" " * 11), 413, "body_too_large")


async def test_budget_is_given_back_after_failures() -> None:
    system = System(settings=GatewaySettings(max_inflight_bytes=100))
    async with system.client("write") as client:
        for _ in range(20):
            check_error(await client.post("/v1/events", content=b"[" * 90), 400, "invalid_json")
        assert (await client.post("/v1/events", json=EVENT)).status_code == 202


class Held(FakeIngest):
    """Nothing is safe before it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.let_go = asyncio.Event()
        self.reached = asyncio.Event()

    def submit(
        self, project_id: str, rows: list[Row], *, rejected: int, received_at: datetime
    ) -> "asyncio.Future[Receipt]":
        async def hold() -> Receipt:
            self.reached.set()
            await self.let_go.wait()
            return self._take(project_id, rows, rejected)

        return asyncio.ensure_future(hold())


GZIP = {"content-encoding": "gzip"}


def blank(size: int) -> bytes:
    """A batch of one event that inflates to this size and a little."""
    mixed = random.Random(1).randbytes(size // 10).translate(b" \t" * 128)  # else it would pass for a bomb
    return gzip.compress(b'[{"eventType":"x"' + mixed + b" " * (size - len(mixed)) + b"}]")


@pytest.mark.parametrize("size", [300_000, 3_000_000])
async def test_what_a_body_inflates_to_is_of_the_budget(size: int) -> None:
    """On the loop and in the thread; alone it may always be held."""
    ingest = Held()
    system = System(settings=GatewaySettings(max_inflight_bytes=2 * size - 1, max_event_bytes=4_000_000), ingest=ingest)
    async with system.client("write") as client:
        first = asyncio.create_task(client.post("/v1/events/batch", content=blank(size), headers=GZIP))
        await ingest.reached.wait()
        check_error(await client.post("/v1/events/batch", content=blank(size), headers=GZIP), 503, "overloaded")
        ingest.let_go.set()
        assert (await first).json()["accepted"] == 1
        for fits in (1, 3):
            answer = await client.post("/v1/events/batch", content=blank(fits * size), headers=GZIP)
            assert answer.status_code == 202


async def test_a_project_may_have_half_of_the_budget() -> None:
    system = System(settings=GatewaySettings(max_inflight_bytes=10_000))
    let_go = asyncio.Event()

    async def unfinished() -> AsyncIterator[bytes]:
        yield b" " * 4000
        await let_go.wait()
        yield b"[]"

    async with system.client() as client:

        async def post(key: str, content: bytes | AsyncIterator[bytes]) -> httpx.Response:
            return await client.post("/v1/events/batch", content=content, headers=bearer(key))

        first = asyncio.create_task(post("write", unfinished()))
        await asyncio.sleep(0.01)
        check_error(await post("write", b" " * 4000 + b"[]"), 503, "overloaded")
        assert (await post("write", b" " * 900 + b"[]")).status_code == 202
        assert (await post("other", b" " * 5900 + b"[]")).status_code == 202
        let_go.set()
        assert (await first).status_code == 202
        assert (await post("write", b" " * 20_000 + b"[]")).status_code == 202


SLOW = b'{"eventType":"slow","properties":{"a":[%b0]}}' % (b"[[[[[[[[[0]]]]]]]]]," * 900)
"""An event that is walked over, which takes some milliseconds."""


async def test_a_slow_request_does_not_keep_the_thread_from_others() -> None:
    slow = b"[" + b",".join([SLOW] * 150) + b"]"
    large = [{"eventType": "x", "properties": {"text": "a" * 1000}} for _ in range(2000)]
    done = []
    async with System().client("write") as client:

        async def post(name: str, content: bytes) -> None:
            assert (await client.post("/v1/events/batch", content=content)).status_code == 202
            done.append(name)

        await asyncio.gather(post("slow", slow), post("large", json.dumps(large).encode()))
    assert done == ["large", "slow"]


@pytest.mark.parametrize("route", ["/v1/events", "/v1/events/batch"])
async def test_what_cannot_be_decoded_in_time_is_shed(route: str) -> None:
    slow = SLOW.replace(b"]}}", b',"%b"]}}' % (b"a" * 70_000))
    if route == "/v1/events/batch":
        slow = b"[" + b",".join([slow] * 20) + b"]"
    async with System(settings=GatewaySettings(decode_deadline_s=0.0001)).client("write") as client:
        check_error(await client.post(route, content=slow), 503, "overloaded")
        assert (await client.post("/v1/events", json=EVENT)).status_code == 202


@pytest.mark.parametrize(
    ("content", "headers", "status", "code"),
    [
        (b"", {}, 400, "invalid_json"),
        (b"{", {}, 400, "invalid_json"),
        (b"x", {"content-encoding": "gzip"}, 400, "inflate_failed"),
        (b"x", {"content-encoding": "lzma"}, 415, "unsupported_encoding"),
    ],
)
async def test_whole_body_failures(content: bytes, headers: dict[str, str], status: int, code: str) -> None:
    system = System()
    async with system.client("write") as client:
        check_error(await client.post("/v1/events/batch", content=content, headers=headers), status, code)
    assert system.ingest.submitted == []


async def test_overload_is_503_with_the_given_wait() -> None:
    system = System()
    system.ingest.overload(7)
    async with system.client("write") as client:
        answer = await client.post("/v1/events", json=EVENT)
    check_error(answer, 503, "overloaded")
    assert answer.headers["retry-after"] == "7"


async def test_full_spool_is_503() -> None:
    system = System()
    system.ingest.error = SpoolFull("the spool is full")
    async with system.client("write") as client:
        answer = await client.post("/v1/events/batch", json=[EVENT])
    check_error(answer, 503, "spool_full")
    assert int(answer.headers["retry-after"]) > 0


async def test_unexpected_failure_is_500_without_details() -> None:
    system = System()
    system.ingest.error = RuntimeError("secret detail")
    async with system.client("write") as client:
        answer = await client.post("/v1/events", json=EVENT)
    check_error(answer, 500, "internal_error")
    assert "secret" not in answer.text


ORDINARY: dict[str, Any] = {"content": json.dumps(EVENT).encode()}


@pytest.mark.parametrize(
    ("path", "request_", "is_begun"),
    [
        ("", ORDINARY, True),
        ("/", ORDINARY, True),
        ("", ORDINARY | {"headers": {"Origin": "https://shop.example", "X-Request-Id": "r1"}}, True),
        ("", ORDINARY | {"headers": {"Authorization": "Bearer nobody"}}, False),
        ("", ORDINARY | {"headers": {"Authorization": "Bearer read"}}, False),
        ("", ORDINARY | {"headers": {"X-Import": "false"}}, False),
        ("?ack=stored", ORDINARY, False),
        ("", {"content": gzip.compress(ORDINARY["content"]), "headers": {"content-encoding": "gzip"}}, False),
        ("", {"content": gzip.compress(ORDINARY["content"])}, False),
        ("", {"content": ORDINARY["content"] + b" " * 20_000}, False),
        ("", {"content": b"{"}, False),
        ("", {"content": b'{"eventId":"e1"}'}, False),
        ("/batch", {"content": b"[%b]" % ORDINARY["content"]}, False),
    ],
)
async def test_ordinary_events_need_no_call(way: str, path: str, request_: dict[str, Any], is_begun: bool) -> None:
    system = System()
    async with system.client("write") as client:
        answer = await client.post(f"/v1/events{path}", **request_)
    assert ("x-begun" in answer.headers) == (is_begun and way == "begin")
    kept = [row.event_id for _, rows, _ in system.ingest.submitted for row in rows]
    assert kept == ["e1"] * (answer.status_code == 202)
    if "headers" in request_ and "Origin" in request_["headers"]:
        assert answer.headers["access-control-allow-origin"] == "*"
        assert answer.headers["x-request-id"] == "r1"


async def test_what_is_counted_of_a_request_does_not_depend_on_its_way() -> None:
    system = System()
    async with system.client("write") as client:
        for event in (EVENT, EVENT, {"eventId": "e2"}):
            await client.post("/v1/events", json=event)
        system.ingest.overload(7)
        await client.post("/v1/events", json=EVENT)
        system.ingest.error = SpoolFull()
        await client.post("/v1/events", json=EVENT)
    system.metrics.flush()
    counted = {
        (sample.name.removesuffix("_total"), *sample.labels.values()): sample.value
        for family in system.metrics.registry.collect()
        for sample in family.samples
    }
    requests = {status: counted[HTTP_REQUESTS.name, "/v1/events", status] for status in ("202", "422", "503")}
    assert requests == {"202": 2, "422": 1, "503": 2}
    assert [counted[EVENTS.name, outcome] for outcome in ("accepted", "duplicate", "rejected")] == [1, 1, 1]
    assert counted[ACKS.name, "logged"] == 3  # what was refused is in the ledger, too


async def test_an_answer_that_cannot_be_sent_at_once_is_run() -> None:
    system = System()
    app = system.app()
    ran: asyncio.Future[ASGIApp] = asyncio.get_running_loop().create_future()
    scope: Scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/events",
        "query_string": b"",
        "headers": [(b"authorization", b"Bearer write")],
        SEND_WHOLE: lambda *_: False,
    }
    assert app.begin(scope, ORDINARY["content"], ran.set_result)
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        raise AssertionError

    await (await ran)(scope, receive, send)
    assert sent[0]["status"] == 202
    assert json.loads(sent[1]["body"])["eventId"] == "e1"
