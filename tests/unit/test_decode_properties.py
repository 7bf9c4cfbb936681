"""For any JSON whatever: it is kept as it means or refused with a known code, and all ways to read agree."""

import json
import math
from datetime import datetime
from typing import Any

import msgspec
from hypothesis import example, given
from hypothesis import strategies as st

from config.settings import GatewaySettings
from gateway.errors import ERRORS, ApiError
from gateway.event_fields import FieldReader, TermsOfEvents
from gateway.json_checks import (
    MAX_INTEGER,
    MIN_INTEGER,
    UNREADABLE,
    EventRefused,
    JsonChecker,
    may_hold_nul,
    object_type,
    parse_leniently,
)
from gateway.rows import Row
from tests.unit.decoding import GOOD, NOW, batch, single

LIMITS = GatewaySettings()
TIGHT = GatewaySettings(max_depth=4, max_key_chars=5, max_string_chars=8)
NAMES = [
    "eventId",
    "event_id",
    "eventType",
    "event_type",
    "userId",
    "user_id",
    "anonymousId",
    "visitor_id",
    "sessionId",
    "siteId",
    "projectId",
    "project_id",
    "timestamp",
    "created_at",
    "properties",
    "data",
    "context",
    "url",
    "path",
    "user_agent",
    "ip_address",
    "other",
]

characters = st.characters(exclude_categories=()) | st.sampled_from(
    '\0\ud800\udbff\udc00\udfff"\\/{}[],:\n\x7f\u2028é😀'
)
texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)
nasty_texts = st.text(characters, max_size=12)
tame = (
    st.none() | st.booleans() | st.integers(MIN_INTEGER, MAX_INTEGER) | st.floats(allow_nan=False, allow_infinity=False)
)
nasty = st.integers(-(2**70), 2**70) | st.floats() | nasty_texts | st.just(10**400)


def nested(leaves: st.SearchStrategy[Any], keys: st.SearchStrategy[str]) -> st.SearchStrategy[Any]:
    return st.recursive(leaves, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4))


def objects(leaves: st.SearchStrategy[Any], keys: st.SearchStrategy[str]) -> st.SearchStrategy[Any]:
    return st.dictionaries(keys, nested(leaves, keys), max_size=5)


values = nested(tame | texts, texts) | nested(tame | nasty, texts | nasty_texts)
tame_objects = objects(tame | texts, texts)
good_events = st.fixed_dictionaries(
    {"eventType": st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=100)},
    optional={
        "eventId": texts.filter(bool),
        "userId": texts | st.none(),
        "sessionId": texts,
        "timestamp": st.none() | st.just("2026-03-01T11:00:00Z") | st.just(1772362800),
        "properties": tame_objects | st.none(),
        "context": tame_objects.filter(lambda context: "ip" not in context) | st.none(),
        "projectId": st.just("shop"),
    },
)
any_events = st.dictionaries(st.sampled_from(NAMES) | texts, values, max_size=8)
mixed_events = st.builds(lambda good, more: good | more, good_events, any_events)
events = good_events | mixed_events | any_events | values


def dump(value: object, *, escaped: bool) -> bytes:
    """JSON as a careless client writes it: with NaN, half pairs, or raw surrogates that are not UTF-8."""
    return json.dumps(value, ensure_ascii=escaped).encode("utf-8", "surrogatepass")


def law(text: bytes) -> Row | str:
    """What the slowest way makes of an event, the one that walks over it: its row or its code."""
    terms = TermsOfEvents(LIMITS).at(NOW, project_id="shop", import_old=False)
    try:
        return FieldReader(LIMITS).row(parse_leniently(text), terms, checked=False)
    except EventRefused as refused:
        return refused.code


def faults(value: object) -> set[str]:
    """What no stored value may have, found independently of the checker."""
    if isinstance(value, str):
        found = {"nul"} if "\0" in value else set()
        return found | ({"surrogate"} if any("\ud800" <= char <= "\udfff" for char in value) else set())
    if isinstance(value, bool) or value is None:
        return set()
    if isinstance(value, int):
        return set() if MIN_INTEGER <= value <= MAX_INTEGER else {"number"}
    if isinstance(value, float):
        return set() if math.isfinite(value) else {"number"}
    if isinstance(value, dict):
        return set().union(*(faults(part) for item in value.items() for part in item))
    assert isinstance(value, list)
    return set().union(*map(faults, value))


@given(event=good_events, escaped=st.booleans())
def test_a_good_event_is_kept_as_it_means(event: dict[str, Any], escaped: bool) -> None:
    decoded = single(dump(event, escaped=escaped))
    assert decoded.rejections == {}
    row = decoded.rows[0]
    assert row.event_type == event["eventType"]
    assert row.user_id == (event.get("userId") or None)
    assert row.event_id == event.get("eventId", decoded.event_ids[0])
    assert json.loads(row.properties) == (event.get("properties") or {})
    assert (None if row.context is None else json.loads(row.context)) == event.get("context")
    assert isinstance(row.timestamp, datetime)


@given(event=events, escaped=st.booleans())
@example(event={"eventType": "a", "userId": 10**400}, escaped=True)
@example(event={"eventType": "a", "timestamp": 10**400}, escaped=True)
def test_any_event_is_stored_clean_or_refused_with_a_known_code(event: Any, escaped: bool) -> None:
    decoded = single(dump(event, escaped=escaped))
    assert decoded.total == 1
    if decoded.rejections:
        rejection = decoded.rejections[0]
        assert rejection.code in ERRORS
        assert not faults([rejection.message, rejection.pointer, decoded.event_ids[0]])
        return
    row = decoded.rows[0]
    assert decoded.event_ids == [row.event_id]
    assert 0 < len(row.event_id) <= 128
    stored = [json.loads(row.properties), json.loads(row.context or b"{}")]
    assert all(isinstance(part, dict) for part in stored)
    ids = [row.event_id, row.event_type, row.user_id, row.anonymous_id, row.session_id, row.site_id]
    assert faults([*stored, *ids]) == set()
    assert "" not in ids


@given(event=events, escaped=st.booleans())
def test_the_fast_ways_agree_with_the_law(event: Any, escaped: bool) -> None:
    text = dump(event, escaped=escaped)
    expected = law(text)
    decoded = single(text)
    if isinstance(expected, str):
        assert decoded.rejections[0].code == expected
    else:
        expected.event_id = expected.event_id or decoded.rows[0].event_id
        assert decoded.rows == [expected]


@given(value=objects(tame | nasty | texts, texts | nasty_texts), escaped=st.booleans())
def test_the_type_takes_nothing_that_the_walk_refuses(value: dict[str, Any], escaped: bool) -> None:
    text = dump(value, escaped=escaped)
    strict = msgspec.json.Decoder(object_type(TIGHT, depth=TIGHT.max_depth))
    try:
        JsonChecker(TIGHT).check(parse_leniently(text))
        clean = True
    except EventRefused:
        clean = False
    try:
        taken = strict.decode(text) is not None and not may_hold_nul(text)
    except UNREADABLE:
        taken = False
    assert taken <= clean
    if clean and b"\\u0000" not in text:
        assert taken


@given(
    batches=st.lists(events, max_size=6), escaped=st.booleans(), form=st.sampled_from(["array", "envelope", "lines"])
)
def test_events_do_not_know_of_their_neighbours(batches: list[Any], escaped: bool, form: str) -> None:
    texts = [GOOD % (0, 0), *(dump(event, escaped=escaped) for event in batches), GOOD % (1, 1)]
    if form == "lines":
        decoded = batch(b"\n".join(texts), content_type="application/x-ndjson")
    else:
        array = b"[%b]" % b", ".join(texts)
        decoded = batch(array if form == "array" else b'{"sentAt":null,"events":%b}' % array)
    assert decoded.total == len(texts)
    apart = [single(text) for text in texts]
    expected = {index: one.rejections[0] for index, one in enumerate(apart) if one.rejections}
    assert decoded.rejections == expected
    rows = [row for one in apart for row in one.rows]
    sent_ids = [event.get("eventId") for event in map(json.loads, texts) if isinstance(event, dict)]
    for row, alone in zip(decoded.rows, rows, strict=True):
        if row.event_id not in sent_ids:
            row.event_id = alone.event_id  # made, and so of its place in the request
    assert decoded.rows == rows


@given(pairs=st.lists(st.tuples(st.sampled_from("abc"), tame | tame_objects), max_size=8))
def test_of_repeated_keys_the_last_wins_and_alone_is_stored(pairs: list[tuple[str, Any]]) -> None:
    members = b",".join(dump(key, escaped=True) + b":" + dump(value, escaped=True) for key, value in pairs)
    row = single(b'{"eventType":"a","properties":{%b},"context":{"x":{%b}}}' % (members, members)).rows[0]
    assert json.loads(row.properties) == dict(pairs)
    for stored in (row.properties, row.context or b""):
        json.loads(stored, object_pairs_hook=_refuse_repeated)


@given(body=st.binary(max_size=200) | st.text('[]{}",:\\ \n1aeu0-', max_size=60).map(str.encode))
def test_noise_is_answered(body: bytes) -> None:
    for content_type in (None, "application/x-ndjson"):
        try:
            decoded = batch(body, content_type=content_type)
        except ApiError as error:
            assert error.code in {"invalid_json", "invalid_body"}
        else:
            assert len(decoded.rows) + len(decoded.rejections) == decoded.total == len(decoded.event_ids)


def _refuse_repeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    assert len({key for key, _ in pairs}) == len(pairs)
    return dict(pairs)
