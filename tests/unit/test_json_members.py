"""JSON objects to members in bulk: the same as one by one."""

import json
from typing import Any

import msgspec
import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from storage.errors import FormatError
from storage.json_members import members

texts = st.text(st.characters(blacklist_categories=["Cs"]), max_size=8)
floats = st.floats(allow_nan=False, allow_infinity=False)
scalars = st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | floats | texts
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3))
objects = st.dictionaries(texts, values, max_size=5)


def one_by_one(objects: list[dict[str, Any]]) -> list[list[tuple[str, str | None]]]:
    return [
        [(key, value if isinstance(value, str | None) else _json(value)) for key, value in each.items()]
        for each in objects
    ]


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()


@given(st.lists(objects, max_size=6))
@example([{}])
@example([{}, {"a": {}}, {"": ""}, {"a": [{"b": [1, {"c": '"'}]}], "d": "\\"}])
@example([{'\\"': '\\\\"', "{": "}", ":": ",", "[": "\0"}])
def test_members_as_a_decoder_finds_them(found: list[dict[str, Any]]) -> None:
    assert members(pa.array(map(_json, found), pa.string())).as_maps().to_pylist() == one_by_one(found)


@given(st.lists(objects, max_size=4))
def test_texts_of_another_writer(found: list[dict[str, Any]]) -> None:
    """PostgreSQL writes spaces, others escape what is not ASCII."""
    rows = members(pa.array([json.dumps(each, indent=1) for each in found], pa.string())).as_maps().to_pylist()
    assert [[key for key, _ in row] for row in rows] == [list(each) for each in found]
    for row, each in zip(rows, found, strict=True):
        for key, value in row:
            expected = each[key]
            assert (value if isinstance(expected, str | None) else json.loads(value)) == expected


@given(st.lists(st.none() | objects, max_size=5), st.integers(0, 5))
def test_nulls_and_slices(found: list[dict[str, Any] | None], first: int) -> None:
    column = pa.array([None if each is None else _json(each) for each in found], pa.string())
    rows = members(column.slice(first)).as_maps().to_pylist()
    assert rows == one_by_one([each or {} for each in found[first:]])


def test_values_of_one_key() -> None:
    column = pa.array(['{"ip":"::1","other":{"ip":"no"}}', None, '{"a":1}', '{"a":"b","ip":7}', '{"ip":null}'])
    assert members(column).values_of("ip").to_pylist() == ["::1", None, None, "7", None]


@pytest.mark.parametrize("text", ['{"a":1', '{"a":1}}', '{"a}', "}{"])
def test_what_is_seen_to_be_no_json_is_refused(text: str) -> None:
    with pytest.raises(FormatError):
        members(pa.array(["{}", text]))
