"""Malformed requests and events through HTTP into PostgreSQL: each gets its answer, its neighbours are stored,
and nothing reaches COPY that makes it fail."""

import asyncio
import gzip
import json
import uuid
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.plain_http import AsyncWeb
from tests.system import Client, RunningSystem

HOSTILE_EVENTS: dict[str, tuple[str, str | None]] = {
    "NUL": (r'{"eventType":"t","properties":{"a":"x\u0000y"}}', "nul_character"),
    "NUL in a key": (r'{"eventType":"t","properties":{"a\u0000":1}}', "nul_character"),
    "NUL in the id": (r'{"eventId":"a\u0000b","eventType":"t"}', "nul_character"),
    "lone high surrogate": (r'{"eventType":"t","properties":{"a":"\ud800"}}', "invalid_unicode"),
    "lone low surrogate": (r'{"eventType":"t","properties":{"a":"\udc00x"}}', "invalid_unicode"),
    "a valid pair": (r'{"eventType":"t","properties":{"a":"\ud83d\ude00 \u00e9 \udbff\udfff"}}', None),
    "1e400": ('{"eventType":"t","properties":{"a":1e400}}', "number_out_of_range"),
    "1e131071": ('{"eventType":"t","properties":{"a":1e131071}}', "number_out_of_range"),
    "an integer beyond 64 bits": (
        '{"eventType":"t","properties":{"a":123456789012345678901234567890}}',
        "number_out_of_range",
    ),
    "5,000 digits": ('{"eventType":"t","properties":{"a":' + "9" * 5000 + "}}", "number_out_of_range"),
    "NaN": ('{"eventType":"t","properties":{"a":NaN}}', "number_out_of_range"),
    "depth 40": ('{"eventType":"t","properties":{"a":' + "[" * 40 + "]" * 40 + "}}", "too_deep"),
    "depth 100,000": ('{"eventType":"t","properties":{"a":' + "[" * 100_000 + "]" * 100_000 + "}}", "too_deep"),
    "2,000 keys": (
        '{"eventType":"t","properties":' + json.dumps({str(n): n for n in range(2000)}) + "}",
        "too_many_keys",
    ),
    "repeated keys": ('{"eventType":"t","properties":{"a":1,"a":2}}', None),
    "no type": ('{"properties":{}}', "missing_event_type"),
    "not an object": ("[1,2]", "not_an_object"),
    "a long id": (json.dumps({"eventId": "x" * 200, "eventType": "t"}), "field_too_long"),
    "infinity as a time": ('{"eventType":"t","timestamp":"infinity"}', "invalid_timestamp"),
    "the year 294277": ('{"eventType":"t","timestamp":"294277-01-01T00:00:00Z"}', "invalid_timestamp"),
    "another project": ('{"eventType":"t","projectId":"somebody-else"}', "project_mismatch"),
    "no address": ('{"eventType":"t","context":{"ip":"not an address"}}', "invalid_ip"),
}


async def post_lines(system: RunningSystem, client: Client, lines: list[str]) -> Any:
    headers = {"Authorization": f"Bearer {client.write_key}", "Content-Type": "application/x-ndjson"}
    async with AsyncWeb(timeout=20) as http:
        answer = await http.post(
            f"{system.url}/v1/events/batch",
            content="\n".join(lines).encode(),
            headers=headers,
            params={"ack": "stored"},
        )
    assert answer.status_code == 202, answer.text
    return answer.json()


@pytest.mark.parametrize("case", HOSTILE_EVENTS)
async def test_a_hostile_event_and_its_neighbours(case: str, system: RunningSystem, client: Client) -> None:
    line, code = HOSTILE_EVENTS[case]
    ids = [uuid.uuid4().hex for _ in range(2)]
    neighbours = [json.dumps({"eventId": event_id, "eventType": "t"}) for event_id in ids]
    answer = await post_lines(system, client, [neighbours[0], line, neighbours[1]])
    first, hostile, last = answer["results"]
    assert (first["status"], last["status"]) == ("accepted", "accepted")
    assert hostile.get("code") == code
    assert answer["rejected"] == (0 if code is None else 1)
    stored = await client.stored()
    assert {*ids} <= stored.keys()
    assert len(stored) == (3 if code is None else 2)
    ledger = await asyncio.to_thread(client.settle)
    assert ledger["balanced"]
    assert ledger["totals"] == ledger["totals"] | {
        "received": 3,
        "stored": len(stored),
        "rejected": 3 - len(stored),
        "deadLettered": 0,
    }


HOSTILE_REQUESTS: dict[str, tuple[bytes, dict[str, str], int, str]] = {
    "empty": (b"", {}, 400, "invalid_json"),
    "not JSON": (b"hello", {}, 400, "invalid_json"),
    "cut off": (b'[{"eventType":"t"', {}, 400, "invalid_json"),
    "a number": (b"42", {}, 400, "invalid_json"),
    "unknown encoding": (b"[]", {"Content-Encoding": "lzma"}, 415, "unsupported_encoding"),
    "nested encodings": (
        gzip.compress(gzip.compress(b"[]")),
        {"Content-Encoding": "gzip, gzip"},
        415,
        "unsupported_encoding",
    ),
    "damaged gzip": (gzip.compress(b"[]" * 100)[:-9], {"Content-Encoding": "gzip"}, 400, "inflate_failed"),
    "a bomb": (gzip.compress(b"[" + b" " * 200_000_000 + b"]"), {"Content-Encoding": "gzip"}, 413, "body_too_large"),
    "too many events": (b"[" + b",".join([b'{"eventType":"t"}'] * 10_001) + b"]", {}, 413, "too_many_events"),
    "too large": (b"[" + b" " * (21 * 1024 * 1024) + b"]", {}, 413, "body_too_large"),
}


@pytest.mark.parametrize("case", HOSTILE_REQUESTS)
async def test_a_hostile_request(case: str, system: RunningSystem, client: Client) -> None:
    body, headers, status, code = HOSTILE_REQUESTS[case]
    async with AsyncWeb(timeout=30) as http:
        answer = await http.post(
            f"{system.url}/v1/events/batch",
            content=body,
            headers={"Authorization": f"Bearer {client.write_key}", "Content-Type": "application/json", **headers},
        )
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text
    assert {"message", "requestId"} <= answer.json().keys()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(values=st.lists(json_values, min_size=5, max_size=5))
def test_any_json_is_stored_as_it_was_or_refused(values: list[Any], system: RunningSystem, client: Client) -> None:
    """The properties come back from jsonb equal to what was sent; what cannot is refused at the door."""
    lines = {
        (event_id := uuid.uuid4().hex): json.dumps(
            {"eventId": event_id, "eventType": "t", "properties": {"value": value}}
        )
        for value in values
    }

    async def there_and_back() -> tuple[list[str], dict[str, str]]:
        answer = await post_lines(system, client, list(lines.values()))
        rows = await system.sql(
            "SELECT event_id, properties::text FROM events_log WHERE project_id = $1 AND event_id = ANY($2)",
            client.project,
            list(lines),
        )
        statuses = [result["status"] for result in answer["results"]]
        return statuses, {row["event_id"]: row["properties"] for row in rows}

    statuses, found = asyncio.run(there_and_back())
    for (event_id, line), status in zip(lines.items(), statuses, strict=True):
        if status == "accepted":
            # As decimals: jsonb writes 1e16 without its exponent, and a double cannot tell 2**53 + 1.
            assert exactly(found[event_id]) == exactly(line)["properties"]
        else:
            assert (status, event_id in found) == ("rejected", False)


def exactly(text: str) -> Any:
    return json.loads(text, parse_int=Decimal, parse_float=Decimal)


async def test_invalid_utf_8_spoils_its_own_event_only(system: RunningSystem, client: Client) -> None:
    body = b'[{"eventId":"good","eventType":"t"},{"eventType":"\xff\xfe"}]'
    async with AsyncWeb(timeout=10) as http:
        answer = await http.post(
            f"{system.url}/v1/events/batch",
            content=body,
            headers={"Authorization": f"Bearer {client.write_key}"},
            params={"ack": "stored"},
        )
    assert [result["status"] for result in answer.json()["results"]] == ["accepted", "rejected"], answer.text
    assert await client.stored() == {"good": 1}


async def test_without_a_key_and_with_wrong_ones(system: RunningSystem, client: Client) -> None:
    url = f"{system.url}/v1/events"
    event = {"eventType": "t"}
    async with AsyncWeb(timeout=10) as http:
        assert (await http.post(url, json=event)).json()["code"] == "missing_key"
        malformed = await http.post(url, json=event, headers={"Authorization": "Bearer aa_write_nonsense"})
        assert (malformed.status_code, malformed.json()["code"]) == (401, "malformed_key")
        reading = system.connection["read_key"]
        refused = await http.post(url, json=event, headers={"Authorization": f"Bearer {reading}"})
        assert (refused.status_code, refused.json()["code"]) == (403, "key_kind_not_allowed")
