"""Single events: what each field becomes, which limits hold, and how a bad one is answered."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from config.settings import GatewaySettings
from gateway.errors import ERRORS, ApiError
from gateway.event_ids import make_event_ids
from tests.unit.decoding import GOOD, NOW, batch, decoder, rejection_of, row_of, single

SAMPLE = Path(__file__).parent.parent / "samples" / "real_events.ndjson"
SMALL = GatewaySettings(max_depth=3, max_keys=5, max_key_chars=6, max_string_chars=10, max_event_bytes=300)

BAD = [
    (b'{"eventType":"a","properties":{"x":"a\\u0000b"}}', "nul_character", "/properties/x"),
    (b'{"eventType":"a","properties":{"\\u0000":1}}', "nul_character", "/properties/\\u0000"),
    (b'{"eventType":"a\\u0000"}', "nul_character", "/eventType"),
    (b'{"eventType":"a","userId":"\\u0000"}', "nul_character", "/userId"),
    (b'{"eventType":"a","properties":{"x":"\\ud800"}}', "invalid_unicode", "/properties/x"),
    (b'{"eventType":"a","properties":{"x":["\\udbffabcdef"]}}', "invalid_unicode", "/properties/x/0"),
    (b'{"eventType":"a","properties":{"x":"\\udc00\\ud800"}}', "invalid_unicode", "/properties/x"),
    (b'{"eventType":"a","properties":{"\\ud800":1}}', "invalid_unicode", "/properties/\\ud800"),
    (b'{"eventType":"a","properties":{"x":"\xff"}}', "invalid_unicode", "/properties/x"),
    (b'{"eventType":"a","properties":{"x":"\xed\xa0\x80"}}', "invalid_unicode", "/properties/x"),
    (b'{"eventType":"a","properties":{"x":"\xc0\x80"}}', "invalid_unicode", "/properties/x"),
    (b'{"eventType":"\xff"}', "invalid_unicode", "/eventType"),
    (b'{"eventType":"a","properties":{"x":NaN}}', "number_out_of_range", "/properties/x"),
    (b'{"eventType":"a","properties":{"x":-Infinity}}', "number_out_of_range", "/properties/x"),
    (b'{"eventType":"a","properties":{"x":1e400}}', "number_out_of_range", "/properties/x"),
    (b'{"eventType":"a","properties":{"x":1e131071}}', "number_out_of_range", "/properties/x"),
    (b'{"eventType":"a","properties":{"x":9223372036854775808}}', "number_out_of_range", "/properties/x"),
    (b'{"eventType":"a","properties":{"x":-9223372036854775809}}', "number_out_of_range", "/properties/x"),
    (b'{"eventType":"a","properties":{"x":' + b"9" * 5000 + b"}}", "number_out_of_range", "/properties/x"),
    (b'{"eventType":"a","context":{"a/b":{"c~d":[0,1e999]}}}', "number_out_of_range", "/context/a~1b/c~0d/1"),
    (
        b'{"eventType":"a","properties":' + b'{"x":' * 32 + b"{}" + b"}" * 32 + b"}",
        "too_deep",
        "/properties" + "/x" * 32,
    ),
    (b'{"eventType":"a","properties":{"x":' + b"[" * 5000 + b"]" * 5000 + b"}}", "too_deep", ""),
    (b'{"eventType":"a","properties":{"' + b"k" * 257 + b'":1}}', "key_too_long", "/properties/" + "k" * 64 + "…"),
    (b'{"eventType":"a","properties":{"x":"' + b"s" * 262_145 + b'"}}', "string_too_long", "/properties/x"),
    (b'{"eventType":"a","properties":{' + b",".join(b'"%d":0' % n for n in range(1001)) + b"}}", "too_many_keys", ""),
    (b'{"eventType":"a","properties":{"x":[' + b"1," * 20_000 + b"1]}}", "too_many_values", ""),
    (b'{"eventType":"a","properties":{"x":[' + b"1," * 20_000 + b'"\\u0000"]}}', "too_many_values", ""),
    (b'{"eventType":"a","context":{"x":[' + b"[[[[[[[[[]]]]]]]]]," * 3000 + b"1]}}", "too_many_values", ""),
    (b'{"eventType":"a","properties":{"x":"' + b"s" * 1_048_576 + b'"}}', "event_too_large", ""),
    (b'{"eventType":"a","properties":[]}', "invalid_field", "/properties"),
    (b'{"eventType":"a","properties":"{}"}', "invalid_field", "/properties"),
    (b'{"eventType":"a","context":[1]}', "invalid_field", "/context"),
    (b'{"eventType":"a","context":{"page":"x"},"url":"y"}', "invalid_field", "/context/page"),
    (b'{"eventType":"a","url":{"x":1}}', "invalid_field", "/url"),
    (b'{"eventType":"a","context":{"ip":"1.2.3"}}', "invalid_ip", "/context/ip"),
    (b'{"eventType":"a","context":{"ip":"1.2.3.4:80"}}', "invalid_ip", "/context/ip"),
    (b'{"eventType":"a","context":{"ip":"fe80::1%eth0"}}', "invalid_ip", "/context/ip"),
    (b'{"eventType":"a","context":{"ip":["1.2.3.4"]}}', "invalid_ip", "/context/ip"),
    (b'{"eventType":"a","context":{"ip":false}}', "invalid_ip", "/context/ip"),
    (b'{"eventType":"a","ip_address":"here"}', "invalid_ip", "/ip_address"),
    (b"{}", "missing_event_type", "/eventType"),
    (b'{"eventType":""}', "missing_event_type", "/eventType"),
    (b'{"eventType":null}', "missing_event_type", "/eventType"),
    (b'{"eventType":"a","eventType":null}', "missing_event_type", "/eventType"),
    (b'{"eventType":7}', "invalid_field", "/eventType"),
    (b'{"eventType":"' + b"a" * 101 + b'"}', "field_too_long", "/eventType"),
    (b'{"event_type":"' + b"a" * 101 + b'"}', "field_too_long", "/event_type"),
    (b'{"eventType":"a","eventId":"' + b"a" * 129 + b'"}', "field_too_long", "/eventId"),
    (b'{"eventType":"a","userId":"' + b"a" * 257 + b'"}', "field_too_long", "/userId"),
    (b'{"eventType":"a","visitor_id":"' + b"a" * 257 + b'"}', "field_too_long", "/visitor_id"),
    (b'{"eventType":"a","sessionId":"' + b"a" * 257 + b'"}', "field_too_long", "/sessionId"),
    (b'{"eventType":"a","siteId":"' + b"a" * 254 + b'"}', "field_too_long", "/siteId"),
    (b'{"eventType":"a","userId":1.5}', "invalid_field", "/userId"),
    (b'{"eventType":"a","userId":true}', "invalid_field", "/userId"),
    (b'{"eventType":"a","eventId":{}}', "invalid_field", "/eventId"),
    (b'{"eventType":"a","userId":9223372036854775808}', "number_out_of_range", "/userId"),
    (b'{"eventType":"a","timestamp":"yesterday"}', "invalid_timestamp", "/timestamp"),
    (b'{"eventType":"a","timestamp":""}', "invalid_timestamp", "/timestamp"),
    (b'{"eventType":"a","timestamp":"infinity"}', "invalid_timestamp", "/timestamp"),
    (b'{"eventType":"a","timestamp":true}', "invalid_timestamp", "/timestamp"),
    (b'{"eventType":"a","timestamp":{}}', "invalid_timestamp", "/timestamp"),
    (b'{"eventType":"a","timestamp":1e300}', "invalid_timestamp", "/timestamp"),
    (b'{"eventType":"a","timestamp":' + b"9" * 1000 + b"}", "invalid_timestamp", "/timestamp"),
    (b'{"eventType":"a","timestamp":"2026-13-01T00:00:00Z"}', "invalid_timestamp", "/timestamp"),
    (b'{"eventType":"a","created_at":"x"}', "invalid_timestamp", "/created_at"),
    (b'{"eventType":"a","timestamp":"2015-01-01T00:00:00Z"}', "timestamp_out_of_range", "/timestamp"),
    (b'{"eventType":"a","timestamp":"2036-01-01T00:00:00Z"}', "timestamp_out_of_range", "/timestamp"),
    (b'{"eventType":"a","timestamp":"0001-01-01T00:00:00+10:00"}', "invalid_timestamp", "/timestamp"),
    (b'{"eventType":"a","timestamp":0}', "timestamp_out_of_range", "/timestamp"),
    (b'{"eventType":"a","projectId":"other"}', "project_mismatch", "/projectId"),
    (b'{"eventType":"a","project_id":"other"}', "project_mismatch", "/project_id"),
    (b"[]", "not_an_object", ""),
    (b"null", "not_an_object", ""),
    (b'"text"', "not_an_object", ""),
    (b"1", "not_an_object", ""),
]
NOT_JSON = [
    (b'{"eventType":"a","properties":{"x":01}}', "invalid_json", ""),
    (b'{"eventType":"a","properties":{"x":tru}}', "invalid_json", ""),
    (b'{"eventType":"a" "userId":"b"}', "invalid_json", ""),
    (b'{"eventType":"a"} {"eventType":"b"}', "invalid_json", ""),
    (b'{"eventType":"a","properties":{"x":[}}}', "invalid_json", ""),
    (b'{"eventType":"\x01"}', "invalid_json", ""),
    (b"{'eventType':'a'}", "invalid_json", ""),
    (b'{"eventType":"a",}', "invalid_json", ""),
]


def names(cases: list[tuple[bytes, str, str]]) -> list[str]:
    return [f"{code} {event[:60].decode('ascii', 'backslashreplace')}" for event, code, _ in cases]


@pytest.mark.parametrize(("event", "code", "pointer"), BAD, ids=names(BAD))
def test_a_bad_event_has_its_code_and_pointer(event: bytes, code: str, pointer: str) -> None:
    rejection = rejection_of(event)
    assert (rejection.code, rejection.pointer) == (code, pointer)
    assert code in ERRORS
    assert rejection.message.endswith(".")
    ApiError.of_event(rejection).body("r").decode()


@pytest.mark.parametrize(("event", "code", "pointer"), BAD + NOT_JSON, ids=names(BAD + NOT_JSON))
@pytest.mark.parametrize("form", ["array", "envelope", "lines"])
def test_a_bad_event_spoils_no_other(event: bytes, code: str, pointer: str, form: str) -> None:
    texts = [GOOD % (n, n) for n in range(80)]
    texts[1], texts[70] = event, event
    body = {"array": b"[%b]", "envelope": b'{"v":1,"events":[%b]}', "lines": b"%b"}[form]
    content_type = "application/x-ndjson" if form == "lines" else "application/json"
    decoded = batch(body % (b"\n" if form == "lines" else b",").join(texts), content_type=content_type)
    assert decoded.total == 80
    assert {index: (found.code, found.pointer) for index, found in decoded.rejections.items()} == {
        1: (code, pointer),
        70: (code, pointer),
    }
    good = [n for n in range(80) if n not in (1, 70)]
    assert [row.event_id for row in decoded.rows] == [f"good-{n}" for n in good]
    assert [row.properties for row in decoded.rows] == [b'{"n":%d}' % n for n in good]
    assert [decoded.event_ids[n] for n in good] == [f"good-{n}" for n in good]


def test_a_refused_event_keeps_a_usable_id() -> None:
    texts = [b'{"eventId":"known"}', b'{"event_id":7,"properties":[]}', b'{"eventId":"\\ud800"}', b"3", b"{"]
    decoded = batch(b"\n".join(texts), content_type="application/x-ndjson")
    assert decoded.event_ids == ["known", "7", None, None, None]


def test_native_names_win() -> None:
    row = row_of(
        {
            "event_id": "old",
            "eventId": "new",
            "event_type": "old",
            "eventType": "new",
            "visitor_id": "old",
            "anonymousId": "new",
            "data": {"old": 1},
            "properties": {"new": 1},
            "created_at": "2026-03-01T00:00:00Z",
            "timestamp": "2026-03-01T11:00:00Z",
        }
    )
    assert (row.event_id, row.event_type, row.anonymous_id, row.properties) == ("new", "new", "new", b'{"new":1}')
    assert row.timestamp == datetime(2026, 3, 1, 11, tzinfo=UTC)


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("eventId", "event_id"),
        ("event_id", "event_id"),
        ("userId", "user_id"),
        ("user_id", "user_id"),
        ("anonymousId", "anonymous_id"),
        ("anonymous_id", "anonymous_id"),
        ("visitorId", "anonymous_id"),
        ("visitor_id", "anonymous_id"),
        ("sessionId", "session_id"),
        ("session_id", "session_id"),
        ("siteId", "site_id"),
        ("site_id", "site_id"),
    ],
)
def test_ids_under_every_name(name: str, field: str) -> None:
    assert getattr(row_of({"eventType": "a", name: "x"}), field) == "x"
    assert getattr(row_of({"eventType": "a", name: -(2**63)}), field) == "-9223372036854775808"
    for nothing in ("", None):
        value = getattr(row_of({"eventType": "a", name: nothing}), field)
        assert value == (make_event_ids(1, now=NOW, random_bytes=bytes)[0] if field == "event_id" else None)


@pytest.mark.parametrize("name", ["properties", "data", "event_data", "eventData"])
def test_properties_under_every_name(name: str) -> None:
    assert row_of({"event_type": "a", name: {"x": 1}}).properties == b'{"x":1}'
    assert row_of({"event_type": "a", name: None}).properties == b"{}"


def test_project_of_the_key() -> None:
    for event in ({"projectId": "shop"}, {"project_id": "shop"}, {"projectId": ""}, {"projectId": None}):
        assert row_of({"eventType": "a"} | event).event_type == "a"


def test_what_stands_beside_the_context_goes_into_it() -> None:
    beside = {"url": "https://a/b", "path": "/b", "user_agent": "UA", "ip_address": "10.0.0.1"}
    context = row_of({"eventType": "a", **beside}).context
    assert context is not None
    assert json.loads(context) == {"ip": "10.0.0.1", "userAgent": "UA", "page": {"url": "https://a/b", "path": "/b"}}
    inner = {"ip": "::1", "userAgent": "inner", "page": {"url": "inner", "referrer": "r"}, "more": 1}
    context = row_of({"eventType": "a", "context": inner, **beside}).context
    assert context is not None
    assert json.loads(context) == inner | {"page": {"url": "inner", "referrer": "r", "path": "/b"}}
    assert row_of({"eventType": "a", "url": "", "ip_address": None}).context is None


def test_an_empty_address_is_no_address() -> None:
    assert row_of({"eventType": "a", "context": {"ip": "", "x": 1}}).context == b'{"ip":null,"x":1}'
    assert row_of({"eventType": "a", "context": {"ip": None}}).context == b'{"ip":null}'
    assert row_of({"eventType": "a", "context": {}}).context == b"{}"


@pytest.mark.parametrize(
    ("sent", "read"),
    [
        ("2026-03-01T11:00:00Z", datetime(2026, 3, 1, 11, tzinfo=UTC)),
        ("2026-03-01T11:00:00.123456Z", datetime(2026, 3, 1, 11, 0, 0, 123456, tzinfo=UTC)),
        ("2026-03-01T11:00:00", datetime(2026, 3, 1, 11, tzinfo=UTC)),
        ("2026-03-01 11:00:00", datetime(2026, 3, 1, 11, tzinfo=UTC)),
        ("2026-03-01T13:30:00+02:30", datetime(2026, 3, 1, 11, tzinfo=UTC)),
        ("2026-03-01T13:30:00+0230", datetime(2026, 3, 1, 11, tzinfo=UTC)),
        ("20260301T110000Z", datetime(2026, 3, 1, 11, tzinfo=UTC)),
        ("2026-03-01", datetime(2026, 3, 1, tzinfo=UTC)),
        (1772362800, datetime(2026, 3, 1, 11, tzinfo=UTC)),
        (1772362800.25, datetime(2026, 3, 1, 11, 0, 0, 250_000, tzinfo=UTC)),
        (1772362800123, datetime(2026, 3, 1, 11, 0, 0, 123_000, tzinfo=UTC)),
        (1772362800123.5, datetime(2026, 3, 1, 11, 0, 0, 123_500, tzinfo=UTC)),
        (None, NOW),
    ],
)
@pytest.mark.parametrize("name", ["timestamp", "createdAt", "created_at"])
def test_times(name: str, sent: object, read: datetime) -> None:
    row = row_of({"eventType": "a", name: sent})
    assert row.timestamp == read
    assert row.timestamp.tzinfo is UTC


def test_the_window_of_times_has_exact_ends_and_an_import_opens_the_lower() -> None:
    limits = GatewaySettings(max_event_age_s=60.0, max_event_ahead_s=30.0)
    for offset_s in (-60.0, 30.0):
        at = NOW + timedelta(seconds=offset_s)
        assert row_of({"eventType": "a", "timestamp": at.isoformat()}, limits=limits).timestamp == at
    for offset_s in (-60.000001, 30.000001):
        at = NOW + timedelta(seconds=offset_s)
        rejection = rejection_of({"eventType": "a", "timestamp": at.isoformat()}, limits=limits)
        assert rejection.code == "timestamp_out_of_range"
        assert ("import" in rejection.message) == (offset_s < 0)
    assert row_of({"eventType": "a", "timestamp": 0}, import_old=True).timestamp.year == 1970
    for sent in (b"-1", b'"1969-12-31T23:59:59Z"', b'"2036-01-01T00:00:00Z"'):
        decoded = single(b'{"eventType":"a","timestamp":%b}' % sent, import_old=True)
        assert decoded.rejections[0].code == "timestamp_out_of_range"


@pytest.mark.parametrize(
    ("event", "code", "pointer"),
    [
        ({"properties": {"a": {"b": {"c": 1}}}}, None, ""),
        ({"properties": {"a": {"b": [[]]}}}, "too_deep", "/properties/a/b/0"),
        ({"context": {"a": [{"b": {}}]}}, "too_deep", "/context/a/0/b"),
        ({"properties": {str(n): 0 for n in range(3)}, "context": {"a": 1, "b": 1}}, None, ""),
        ({"properties": {str(n): 0 for n in range(3)}, "context": {"a": 1, "b": {"c": 1}}}, "too_many_keys", ""),
        ({"properties": {"s": '":":":":'}, "context": {"a": '":":":', "b": '":":'}}, None, ""),
        ({"properties": {"k" * 6: 1}}, None, ""),
        ({"properties": {"x": {"k" * 7: 1}}}, "key_too_long", "/properties/x/kkkkkkk"),
        ({"properties": {"é" * 6: "é" * 10}}, None, ""),
        ({"properties": {"x": "s" * 11}}, "string_too_long", "/properties/x"),
        ({"url": "s" * 11}, "string_too_long", "/url"),
        ({"ignored": {"x": {"y": {"z": {"": "s" * 100}}}}, "other": [1e300]}, None, ""),
    ],
)
@pytest.mark.parametrize("type_name", ["eventType", "event_type"])
def test_limits(type_name: str, event: dict[str, object], code: str | None, pointer: str) -> None:
    event = {type_name: "a"} | event
    if code is None:
        assert row_of(event, limits=SMALL).event_type == "a"
    else:
        rejection = rejection_of(event, limits=SMALL)
        assert (rejection.code, rejection.pointer) == (code, pointer)


@pytest.mark.parametrize("type_name", ["eventType", "event_type"])
@pytest.mark.parametrize(
    ("values", "fits"),
    [
        (["1"] * 18, True),
        (["1"] * 19, False),
        (["[]"] * 8 + ["1"], True),
        (["[]"] * 9 + ["1"], False),
        (['"' + ",[{" * 30 + '\\\\"', '",\\","', *["1"] * 15], True),
        (["[[[[[[[[[1]]]]]]]]]", *["1"] * 5], True),
        (["[[[[[[[[[1]]]]]]]]]", *["1"] * 8], False),
        (["1"] * 14 + ['"\\u0000,,,,,"'], None),
        (["1"] * 18 + ['"\\u0000"'], False),
    ],
)
def test_the_values_of_an_event_are_counted(type_name: str, values: list[str], fits: bool | None) -> None:
    """`x` and `c` are values too, and so are the event's own two or three where it is counted before it is read."""
    limits = GatewaySettings(max_values=20)
    text = f'{{"{type_name}":"a","properties":{{"x":[{",".join(values)}]}},"context":{{"c":1}}}}'
    for decoded in (single(text.encode(), limits=limits), batch(f"[{text}]".encode(), limits=limits)):
        code = decoded.rejections[0].code if decoded.rejections else None
        assert code == {True: None, False: "too_many_values", None: "nul_character"}[fits]


def test_the_size_of_an_event_is_that_of_its_text() -> None:
    start = b'{"eventType":"a","properties":{"x":"'
    for size, fits in ((300, True), (301, False)):
        event = start + b"s" * (size - len(start) - 3) + b'"}}'
        assert len(event) == size
        limits = GatewaySettings(max_event_bytes=300)
        assert bool(single(event, limits=limits).rows) == fits
        for body in (b"[%b,{}]" % event, b'{"events":[{},%b]}' % event):
            codes = {found.code for found in batch(body, limits=limits).rejections.values()}
            assert ("event_too_large" in codes) != fits


@pytest.mark.parametrize("field", ["properties", "context", "event_data"])
def test_the_digits_that_exponents_stand_for_are_bounded_as_the_event_is(field: str) -> None:
    """jsonb writes them all."""
    limits = GatewaySettings(max_event_bytes=30_000)
    for number, most in (("1e308", 97), ("-1.5e-300", 100), ("2.5e20", 1500)):
        for count in (most, most + 1):
            event = f'{{"eventType":"a","eventId":"i","{field}":{{"x":[{",".join([number] * count)}]}}}}'.encode()
            for decoded in (single(event, limits=limits), batch(b"[%b,%b]" % (GOOD % (1, 1), event), limits=limits)):
                refused = [(found.code, found.pointer) for found in decoded.rejections.values()]
                assert refused == ([] if count == most else [("event_too_large", "")])
                assert decoded.event_ids[-1] == "i"


def test_what_only_looks_like_an_exponent_is_none() -> None:
    text = '1e308,"1e308],\\' * 20
    event = {"eventType": "a", "properties": {f"{n}e308": [text, True, False, 1.5, 100000000000] for n in range(20)}}
    assert row_of(event, limits=GatewaySettings(max_event_bytes=15_000))


def test_numbers_and_texts_are_kept_and_normalised() -> None:
    sent = (
        b'{"a": -0, "b":1E5,"c":9223372036854775807,"d":1e-400,"e":"\\u00e9\\ud83d\\ude00\\udbff\\udfff\\/","a":1.50}'
    )
    row = single(b'{"eventType":"a","properties":%b}' % sent).rows[0]
    assert row.properties == '{"a":1.5,"b":100000.0,"c":9223372036854775807,"d":0.0,"e":"é😀\U0010ffff/"}'.encode()


def test_what_is_ignored_may_hold_anything_json_can() -> None:
    row = single(b'{"eventType":"a","eventId":"i","x":{"\\u0000":["\\ud800",1e999,NaN]}}').rows[0]
    assert (row.event_id, row.properties, row.context) == ("i", b"{}", None)


def test_real_events_are_kept_as_they_are() -> None:
    for line in SAMPLE.read_bytes().splitlines():
        event = json.loads(line)
        read = decoder.single(line, project_id=event["projectId"], now=NOW, import_old=True)
        assert read.rejections == {}
        row = read.rows[0]
        sent_ids = (event["eventId"], event.get("userId"), event.get("sessionId"))
        assert (row.event_id, row.user_id, row.session_id) == sent_ids
        assert row.event_type == event["eventType"]
        assert json.loads(row.properties) == event["properties"]
        assert (None if row.context is None else json.loads(row.context)) == event.get("context")
        assert row.timestamp == datetime.fromisoformat(event["timestamp"])


@pytest.mark.parametrize("content_type", ["application/x-ndjson", "application/json", None])
def test_real_events_of_other_projects_are_refused(content_type: str | None) -> None:
    body = SAMPLE.read_bytes()
    decoded = batch(body, content_type=content_type)
    assert decoded.event_ids == [json.loads(line)["eventId"] for line in body.splitlines()]
    assert {rejection.code for rejection in decoded.rejections.values()} == {"project_mismatch"}
    assert len(decoded.rejections) == decoded.total
