"""The forms of a request's body, and what is refused as a whole."""

import tracemalloc

import pytest

from config.settings import GatewaySettings
from gateway.errors import ApiError
from gateway.event_ids import make_event_ids
from gateway.rows import Decoded
from tests.unit.decoding import GOOD, NOW, batch, refusal_of, single

TWO = [b'{"eventId":"a","eventType":"view"}', b'{"eventId":"b","eventType":"click","properties":{"x":[1,2]}}']


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b"[%b,%b]" % (*TWO,), "application/json"),
        (b" \n[\n %b ,\r\n\t%b\n]\n" % (*TWO,), None),
        (b"\xef\xbb\xbf[%b,%b]" % (*TWO,), None),
        (b'{"events":[%b,%b]}' % (*TWO,), "application/json; charset=utf-8"),
        (b'{"sentAt":"now","x":{"events":[1]},"events":[%b,%b],"y":[{}]}' % (*TWO,), None),
        (b'{"events":[],"events":[%b,%b]}' % (*TWO,), None),
        (b'{\n  "events": [\n    %b,\n    %b\n  ]\n}\n' % (*TWO,), None),
        (b'{"events":[%b\n,%b]}' % (*TWO,), None),
        (b"%b\n%b\n" % (*TWO,), "application/x-ndjson"),
        (b"%b\n%b" % (*TWO,), "Application/NDJSON; charset=utf-8"),
        (b"\n\n%b\r\n  \r\n%b\r\n" % (*TWO,), "application/jsonl"),
        (b"%b\n%b\n" % (*TWO,), "application/json"),
        (b"%b\n\n%b\n" % (*TWO,), None),
    ],
)
def test_the_forms_of_a_batch(body: bytes, content_type: str | None) -> None:
    decoded = batch(body, content_type=content_type)
    assert (decoded.total, decoded.rejections, decoded.event_ids) == (2, {}, ["a", "b"])
    assert [(row.event_type, row.properties) for row in decoded.rows] == [("view", b"{}"), ("click", b'{"x":[1,2]}')]


@pytest.mark.parametrize(
    ("body", "content_type"),
    [(b"[]", None), (b" [ \n] ", None), (b'{"events":[]}', None), (b'{"events": [ ] }', None)],
)
def test_no_events(body: bytes, content_type: str | None) -> None:
    assert batch(body, content_type=content_type) == Decoded(0, [], {}, [])


@pytest.mark.parametrize(
    ("body", "code", "fragment"),
    [
        (b"", "invalid_json", "empty"),
        (b" \n ", "invalid_json", "empty"),
        (b"hello", "invalid_json", "byte 0"),
        (b"\x00\x01", "invalid_json", "byte 0"),
        (b"\xff\xfe[\x00]\x00", "invalid_json", "byte 0"),
        (b"7", "invalid_json", "array or object"),
        (b'"[]"', "invalid_json", "array or object"),
        (b'[{"eventType":"a"}', "invalid_json", "truncated"),
        (b'[{"eventType":"a"},{"eventType":"b', "invalid_json", "truncated"),
        (b'[{"eventType":"a"}}', "invalid_json", "byte 18"),
        (b'[{"eventType":"a"}] x', "invalid_json", "trailing characters (byte"),
        (b'[{"eventType":"a"}][]', "invalid_json", "trailing characters (byte"),
        (b'{"events":[{"eventType":"a"}]}}', "invalid_json", "trailing characters (byte"),
        (b'{"eventType":"a"}', "invalid_body", "events"),
        (b'{"events":{"eventType":"a"}}', "invalid_body", "events"),
        (b'{"events":null}', "invalid_body", "events"),
        (b'{"data":[]}', "invalid_body", "events"),
    ],
)
def test_what_is_no_batch_is_refused_as_a_whole(body: bytes, code: str, fragment: str) -> None:
    error = refusal_of(body)
    assert (error.code, error.status) == (code, 400)
    assert fragment in error.message


def test_deep_brackets_are_refused_and_not_followed() -> None:
    assert refusal_of(b"[" * 2_000_000).code == "invalid_json"
    nested = batch(b"[" * 1_000_000 + b"]" * 1_000_000).rejections[0]
    assert nested.code == "event_too_large"
    assert batch(b"[" * 100_000 + b"]" * 100_000).rejections[0].code == "too_deep"


@pytest.mark.parametrize("body", [b"", b" ", b"{", b'{"eventType":"a"} x', b'{"eventType" "a"}', b"nope"])
def test_a_single_body_that_is_not_json(body: bytes) -> None:
    with pytest.raises(ApiError) as raised:
        single(body)
    assert raised.value.code == "invalid_json"


@pytest.mark.parametrize("form", ["array", "envelope", "lines"])
def test_too_many_events(form: str) -> None:
    limits = GatewaySettings(max_events_per_request=3)
    for count, fits in ((3, True), (4, False)):
        for event in (GOOD % (1, 1), b"{}", b'{"eventType":"\\u0000"}'):
            separator = b"\n" if form == "lines" else b","
            body = separator.join([event] * count)
            body = {"array": b"[%b]", "envelope": b'{"events":[%b]}', "lines": b"%b"}[form] % body
            if fits:
                assert batch(body, limits=limits).total == 3
            else:
                error = refusal_of(body, limits=limits)
                assert (error.code, error.status) == ("too_many_events", 413)


@pytest.mark.parametrize(
    ("body", "content_type"),
    [(b"[" + b"{}," * 3_000_000 + b"{}]", None), (b"1\n" * 3_000_000, "application/jsonl")],
    ids=["array", "lines"],
)
def test_a_flood_of_tiny_events_is_counted_before_it_is_decoded(body: bytes, content_type: str | None) -> None:
    tracemalloc.start()
    try:
        assert refusal_of(body, content_type=content_type).code == "too_many_events"
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 3 * len(body)


def test_missing_ids_are_made_in_one_batch() -> None:
    body = b'[{"eventType":"a"},{"eventType":"b","eventId":"mine"},{"eventType":"c","eventId":""},{}]'
    decoded = batch(body)
    first, second = make_event_ids(2, now=NOW, random_bytes=bytes)
    assert decoded.event_ids == [first, "mine", second, None]
    assert [row.event_id for row in decoded.rows] == [first, "mine", second]


def test_a_large_body_is_read_like_a_small_one() -> None:
    event = b'{"eventId":"%d","eventType":"view","properties":{"text":"%b\\"],[{"}}'
    events = [event % (n, b"x" * 1000) for n in range(3000)]
    whole = b"[%b]" % b" ,\n".join(events)
    assert len(whole) > 3 * 1024 * 1024
    decoded = batch(whole)
    apart = [row for text in events for row in single(text).rows]
    assert decoded.rows == apart
    assert batch(b'{"a":"\\\\","events":%b}' % whole).rows == apart
