"""The events that load tests send: distinct, real-looking, and taken by the gateway as they are."""

import json
from datetime import UTC, datetime

import pytest

from config.settings import GatewaySettings
from gateway.decode import Decoder
from load_tests.events import EventMaker
from load_tests.floor_server import decode

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


def make(seed: int = 1) -> EventMaker:
    return EventMaker(seed=seed, now=NOW)


def test_no_two_events_are_alike() -> None:
    events = list(make().events(25_000))
    assert len({json.loads(event)["eventId"] for event in events}) == len(events)


def test_no_two_bodies_are_alike_in_what_follows_the_ids() -> None:
    contents = []
    for body in make().bodies(100, events_per_request=100):
        events = json.loads(body)
        contents.append(
            json.dumps([{k: v for k, v in event.items() if k not in ("eventId", "sessionId")} for event in events])
        )
    assert len(set(contents)) == 100


def test_a_maker_goes_on_where_it_was() -> None:
    maker = make()
    first, second = list(maker.events(100)), list(maker.events(100))
    assert not set(first) & set(second)


def test_a_seed_repeats_its_events_and_another_does_not() -> None:
    assert list(make(1).events(50)) == list(make(1).events(50))
    assert not set(make(1).events(50)) & set(make(2).events(50))


def test_the_gateway_takes_every_event_with_its_id() -> None:
    for body in make().bodies(10, events_per_request=1000):
        decoded = Decoder(GatewaySettings()).batch(
            body, content_type="application/json", project_id="p", now=NOW, import_old=False
        )
        assert decoded.rejections == {}
        assert decoded.event_ids == [event["eventId"] for event in json.loads(body)]


def test_the_gateway_takes_a_single_event() -> None:
    (body,) = make().bodies(1, events_per_request=1)
    decoded = Decoder(GatewaySettings()).single(body, project_id="p", now=NOW, import_old=False)
    assert decoded.event_ids == [json.loads(body)["eventId"]]


@pytest.mark.parametrize("events_per_request", [1, 7])
def test_the_plain_handler_reads_the_same_events(events_per_request: int) -> None:
    bodies = make().bodies(3, events_per_request=events_per_request)
    read = [event.event_id for body in bodies for event in decode(body)]
    assert read == [json.loads(event)["eventId"] for event in make().events(3 * events_per_request)]


def test_sizes_and_kinds_are_those_of_a_shop() -> None:
    events = list(make().events(10_000))
    assert 400 <= sum(map(len, events)) / len(events) <= 450
    kinds = [json.loads(event)["eventType"] for event in events]
    assert set(kinds) == {"page_view", "click", "purchase"}
    assert 0.65 < kinds.count("page_view") / len(kinds) < 0.75
