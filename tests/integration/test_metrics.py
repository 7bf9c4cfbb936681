"""Metrics through HTTP: what was just sent, what is old, both in one answer; definitions; streams; a detected spike."""

import asyncio
import base64
import hashlib
import hmac
import json
import random
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from tests.metric_client import SPENT, MetricClient, Onlooker, cells_of, read_answer
from tests.plain_http import web
from tests.system import RunningSystem

pytestmark = pytest.mark.timeout(200)

VISIBLE_WITHIN_S = 10.0
"""Far more than it takes (less than a second): the machine may be busy with something else."""
COUNTED_WITHIN_S = 40.0
"""For late days, which wait until they are quiet."""
HOUR_S = 3600


@pytest.fixture
def client(metric_client: MetricClient) -> MetricClient:
    return metric_client


def event(timestamp_s: float | None = None, kind: str = "load", **properties: Any) -> dict[str, Any]:
    made: dict[str, Any] = {"eventId": uuid.uuid4().hex, "eventType": kind, "properties": properties}
    if timestamp_s is not None:
        made["timestamp"] = datetime.fromtimestamp(timestamp_s, UTC).isoformat()
    return made


def wait_until(read: Callable[[], Any], wanted: Any, *, deadline_s: float = VISIBLE_WITHIN_S) -> None:
    until = time.monotonic() + deadline_s
    while (found := read()) != wanted:
        assert time.monotonic() < until, f"{found}, not {wanted}"
        time.sleep(0.05)


def sources(answer: dict[str, Any]) -> tuple[list[str], str | None]:
    """What an answer was made of, and why not of windows."""
    return [source["source"] for source in answer["sources"]], answer.get("degradedBecause")


# A spike, from its events to the receiver of a webhook. Its minute has to end first, so it is sent before all the other
# tests of this module and asked for after them.


@dataclass
class Receiver:
    """A web server that takes whatever is posted to it."""

    taken: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    url: str = ""


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    made = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            made.taken.append(({name.lower(): value for name, value in self.headers.items()}, body))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Nothing is to be printed."""

    server = ThreadingHTTPServer(("localhost", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    made.url = f"http://localhost:{server.server_port}/patterns"
    yield made
    server.shutdown()
    server.server_close()
    thread.join()


@dataclass
class Spike:
    client: MetricClient
    start: int
    events: int


@pytest.fixture(scope="module", autouse=True)
def spike(system: RunningSystem, receiver: Receiver) -> Spike:
    """45 minutes of some thirty orders each, then one minute of 300."""
    system.wait_healthy()
    client = MetricClient(system)
    client.create_project()
    patterns = {"webhookUrl": receiver.url}
    client.define({"name": "orders", "eventTypes": ["order"], "patterns": patterns})
    # At least fifteen seconds are left to it: the minutes before are rolled up meanwhile.
    start = int(time.time() + 15) // 60 * 60
    counts = random.Random(5)
    minutes = {minute: counts.randint(24, 36) for minute in range(start - 45 * 60, start, 60)} | {start: 300}
    # In one request: a minute that has ended is judged once, a second later, whatever comes after that.
    client.send([event(minute + 0.1 * n, "order") for minute, count in minutes.items() for n in range(count)])
    return Spike(client, start, 300)


def test_what_was_sent_is_visible(client: MetricClient) -> None:
    for sent in (1, 2, 3):
        answer = client.send([event(amount=0.1), event(kind="purchase", amount="9.99")])
        assert answer["ack"] == "logged"
        wait_until(lambda: client.total("events"), 2 * sent)
    wait_until(lambda: client.total("purchase"), 3)
    assert str(client.total("revenue")) == "29.97"
    # Windows that the disk keeps from answering for a moment are not asked: the answer says so.
    wait_until(lambda: sources(client.metric("events")), (["windows"], None))
    assert client.ask("nothing-of-this-name").json()["points"][0]["value"] == 0
    refused = client.ask("events", groupBy="country")
    assert (refused.status_code, refused.json()["code"]) == (400, "invalid_parameter")


def test_groups_and_filters(client: MetricClient) -> None:
    client.define(SPENT)
    amounts = {("DE", "phone"): "0.10", ("DE", "desktop"): "0.20", ("FR", "phone"): "12.5", ("Å:%,", "phone"): "1e-3"}
    for (country, device), amount in amounts.items():
        body = event(amount=amount, country=country) | {"context": {"device": {"type": device}}}
        client.send([body, event(country=country), event(kind="other", amount=7, country=country)])
    wait_until(lambda: client.metric("spent", granularity="day")["points"][-1]["count"], 4)

    def read(**parameters: Any) -> dict[tuple[str, ...], str]:
        answer = client.metric("spent", granularity="day", fill="none", **parameters)
        names = tuple(parameters.get("groupBy", "").split(",")) if "groupBy" in parameters else ()
        totals: dict[tuple[str, ...], Any] = {}
        for (_, group), value in cells_of(answer, names).items():
            totals[group] = totals.get(group, 0) + value
        return {group: str(value) for group, value in totals.items()}

    assert read() == {(): "12.801"}
    assert read(groupBy="country,device") == {
        ("DE", "phone"): "0.1",
        ("DE", "desktop"): "0.2",
        ("FR", "phone"): "12.5",
        ("Å:%,", "phone"): "0.001",
    }
    assert read(groupBy="device") == {("phone",): "12.601", ("desktop",): "0.2"}
    assert read(groupBy="device", filter="country:DE") == {("phone",): "0.1", ("desktop",): "0.2"}
    assert read(filter=["country:ne:DE", "device:phone"]) == {(): "12.501"}
    assert read(groupBy="country", filter="country:in:DE,FR") == {("DE",): "0.3", ("FR",): "12.5"}


def test_old_and_new_events_in_one_range(client: MetricClient) -> None:
    """Half an hour apart, from two days ago to now: the old ones from roll-ups, the new ones from windows."""
    now = time.time()
    times = [now - half * 1800 for half in range(100)]
    # For five minutes an hour takes no more events and is still answered from windows: late ones would wait for long.
    over = int(now + 60) // HOUR_S * HOUR_S - 22 * HOUR_S
    if now - 22 * HOUR_S < over + 400:
        times = [at for at in times if not over - HOUR_S <= at < over]
    client.send([event(at) for at in times])
    wanted: dict[Any, int] = {
        (int(at) // HOUR_S * HOUR_S, ()): sum(int(at) // HOUR_S == int(b) // HOUR_S for b in times) for at in times
    }

    def read() -> dict[Any, int]:
        answer = client.metric("events", **span, granularity="hour", fill="none")
        if answer["degraded"]:
            # Windows that do not answer in time are not asked: it says so, and is asked again.
            return {}
        found = cells_of(answer)
        # Meanwhile too: nothing from both sides of the seam.
        assert all(found[key] <= wanted[key] for key in found)
        assert [source["source"] for source in answer["sources"]] == ["rollups", "windows"]
        assert answer["sources"][0]["to"] == answer["sources"][1]["from"]
        return found

    span = {"startTime": int(now - 52 * HOUR_S), "endTime": int(now) + HOUR_S}
    wait_until(read, wanted, deadline_s=COUNTED_WITHIN_S)
    for granularity in ("minute", "5minutes", "day"):
        assert client.total("events", **span, granularity=granularity) == len(times)
    assert client.total("events", **span, granularity="day", timezone="Asia/Kathmandu") == len(times)
    assert client.total("load", **span, granularity="day") == len(times)


def test_an_answer_that_is_kept_is_not_given_after_its_day_was_counted_again(client: MetricClient) -> None:
    hour = int(time.time()) // HOUR_S * HOUR_S - 30 * HOUR_S
    span = {"startTime": hour, "endTime": hour + HOUR_S, "granularity": "hour"}
    client.send([event(hour + 1), event(hour + 2)])
    wait_until(lambda: client.total("events", **span), 2, deadline_s=COUNTED_WITHIN_S)
    wait_until(lambda: client.metric("events", **span).get("cache"), "hit")
    client.send([event(hour + 3)])
    wait_until(lambda: client.total("events", **span), 3, deadline_s=COUNTED_WITHIN_S)


async def test_counts_never_go_down_while_events_come(client: MetricClient) -> None:
    client.define(SPENT)
    onlookers = [Onlooker(client), Onlooker(client, "unique_users")]
    asking = [asyncio.create_task(onlooker.run()) for onlooker in onlookers]
    await client.run(seconds=4)
    for task in asking:
        task.cancel()
    await asyncio.gather(*asking, return_exceptions=True)
    for onlooker in onlookers:
        assert onlooker.answers > 5
        assert not onlooker.falls
        assert not onlooker.failures
        assert onlooker.value > 0
    await client.settle_metrics()


def test_a_definition_counts_the_hours_before_it_and_is_backfilled_beyond(client: MetricClient) -> None:
    """Days before it are counted from stored events with each question, until a backfill makes roll-ups of them."""
    now = time.time()
    span = {"startTime": int(now - 60 * HOUR_S), "endTime": int(now) + HOUR_S, "granularity": "day"}
    client.send([event(now - hours * HOUR_S, amount=hours + 0.25) for hours in (0, 1, 5, 30, 40, 50)])
    wait_until(lambda: client.total("events", **span), 6, deadline_s=COUNTED_WITHIN_S)
    client.define({"name": "paid", "aggregation": "sum", "property": "amount"})

    def total_and_whether_stored_events_were_counted() -> tuple[Any, bool]:
        answer = client.metric("paid", **span)
        total = sum(point["value"] or 0 for point in answer["points"])
        return total, "events" in [source["source"] for source in answer["sources"]]

    wait_until(total_and_whether_stored_events_were_counted, (Decimal("127.5"), True), deadline_s=COUNTED_WITHIN_S)
    client.backfill("paid")
    wait_until(total_and_whether_stored_events_were_counted, (Decimal("127.5"), False), deadline_s=COUNTED_WITHIN_S)
    # Of another definition, at once with its backfill: neither half may be of the old one.
    client.define({"name": "paid", "aggregation": "max", "property": "amount"}, replace=True, wait=False)
    client.backfill("paid")

    def largest() -> list[str]:
        points = client.metric("paid", **span, fill="none")["points"]
        return sorted({str(max(point["value"] for point in points)), str(sum(point["count"] for point in points))})

    wait_until(largest, ["50.25", "6"], deadline_s=COUNTED_WITHIN_S)


def test_a_backfill_at_once_counts_the_new_metric(system: RunningSystem) -> None:
    """Whenever it comes between the moments in which aggregators look for definitions, and for days."""
    system.wait_windows()
    clients = [MetricClient(system) for _ in range(8)]
    old = time.time() - 40 * HOUR_S
    span = {"startTime": int(old) - HOUR_S, "endTime": int(old) + HOUR_S, "granularity": "hour"}
    for client in clients:
        client.create_project()
        client.send([event(old, amount=3)])
    for client in clients:
        wait_until(partial(client.total, "events", **span), 1, deadline_s=COUNTED_WITHIN_S)
    for client in clients:
        client.define({"name": "paid", "aggregation": "sum", "property": "amount"}, wait=False)
        client.backfill("paid")
        time.sleep(0.3)
    for client in clients:
        wait_until(partial(client.total, "paid", **span), 3, deadline_s=COUNTED_WITHIN_S)


def test_a_stream_tells_what_is_new(client: MetricClient) -> None:
    wanted = {"projectId": client.project, "metrics": "events,load", "granularity": "day"}
    values: dict[str, int] = {}
    with web.stream(
        "GET", f"{client.system.url}/v1/metrics/stream", params=wanted, headers=client.admin(), timeout=20
    ) as stream:
        assert stream.status_code == 200
        assert stream.headers["content-type"] == "text/event-stream"
        client.send([event(), event(), event(kind="other")])
        for line in stream.iter_lines():
            if line.startswith("data: "):
                point = json.loads(line.removeprefix("data: "))
                values[point["metric"]] = max(point["value"], values.get(point["metric"], 0))
            if values == {"events": 3, "load": 2}:
                break
    assert values == {"events": 3, "load": 2}


def test_a_spike_is_listed_and_delivered(spike: Spike, receiver: Receiver) -> None:
    client = spike.client
    parameters = {"projectId": client.project, "metric": "orders"}

    def listed() -> list[dict[str, Any]]:
        answer = web.get(f"{client.system.url}/v1/patterns", params=parameters, headers=client.admin(), timeout=10)
        assert answer.status_code == 200, answer.text
        found: list[dict[str, Any]] = answer.json()["patterns"]
        return found

    wait_until(
        lambda: [(one["kind"], one["webhook"]["state"]) for one in listed()],
        [("spike", "delivered")],
        deadline_s=150,
    )
    [pattern] = listed()
    assert pattern["startTime"] == datetime.fromtimestamp(spike.start, UTC).isoformat().replace("+00:00", "Z")
    assert (pattern["value"], pattern["events"], pattern["window"]) == (spike.events, spike.events, "1m")
    assert 24 < pattern["mean"] < 36
    [(headers, body)] = receiver.taken
    posted = json.loads(body)
    assert posted["type"] == "pattern.detected"
    assert posted["data"].items() <= pattern.items()
    assert headers["webhook-id"] == pattern["id"]
    secret = read_answer(
        web.get(
            f"{client.system.url}/v1/patterns/webhook-secret",
            params={"projectId": client.project},
            headers=client.admin(),
            timeout=10,
        )
    )["secret"]
    key = base64.b64decode(secret.removeprefix("whsec_"))
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    signature = base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()
    assert headers["webhook-signature"] == f"v1,{signature}"
    assert abs(int(headers["webhook-timestamp"]) - time.time()) < 200
