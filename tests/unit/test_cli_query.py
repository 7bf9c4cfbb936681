"""`analytics-actors query`: what it sends, the table that it prints, and other formats as they came."""

from pathlib import Path
from typing import Any

import httpx
import msgspec

from tests.unit.cli_server import FakeGateway, data, gateway, invoke

__all__ = ["data", "gateway"]

SQL = "select event_type, count(*) as n from events group by all"


def answer(**fields: Any) -> dict[str, Any]:
    columns = [{"name": "event_type", "type": "VARCHAR"}, {"name": "n", "type": "BIGINT"}]
    rows = [["view", 5593], ["c\u001b[31mart", None], ["{}", {"a": 1}]]
    return {"columns": columns, "rows": rows, "truncated": False, "degraded": False, "missing": []} | fields


def test_table(gateway: FakeGateway, data: Path) -> None:
    gateway.answer("POST", "/v1/query", answer())
    result = invoke("query", SQL, "--data", data)
    assert result.exit_code == 0
    assert gateway.bodies() == [{"sql": SQL, "strict": False, "format": "json"}]
    assert gateway.keys == ["the-read-key"]
    for shown in ("event_type", "view", "5593", "c�[31mart", "–", '{"a":1}'):
        assert shown in result.stdout
    assert "\u001b[31m" not in result.stdout


def test_what_is_not_all_is_told(gateway: FakeGateway, data: Path) -> None:
    missing = [{"file": "events/x.parquet", "reason": "damaged"}]
    gateway.answer("POST", "/v1/query", answer(truncated=True, degraded=True, missing=missing))
    result = invoke("query", SQL, "--data", data)
    assert "there are more rows" in result.stderr
    assert "without events/x.parquet: damaged" in result.stderr


def test_sql_from_standard_input_and_options(gateway: FakeGateway, data: Path) -> None:
    gateway.answer("POST", "/v1/query", answer())
    options = ("--limit", "3", "--strict", "--project", "other", "--format", "json")
    result = invoke("query", "--data", data, *options, input=SQL)
    assert gateway.bodies() == [{"sql": SQL, "strict": True, "format": "json", "limit": 3}]
    assert gateway.requests[0].url.params["projectId"] == "other"
    assert gateway.keys == ["the-admin-key"]
    assert msgspec.json.decode(result.stdout) == answer()


def test_other_formats_are_printed_as_they_came(gateway: FakeGateway, data: Path) -> None:
    headers = {"X-Query-Truncated": "true", "X-Query-Missing": "2"}
    content = b"event_type,n\r\nview,1\r\n"
    gateway.routes["POST", "/v1/query"] = lambda _: httpx.Response(200, content=content, headers=headers)
    result = invoke("query", SQL, "--data", data, "--format", "csv")
    assert result.stdout_bytes == content
    assert "there are more rows" in result.stderr
    assert "2 files" in result.stderr


def test_errors_are_told_in_a_sentence(gateway: FakeGateway, data: Path) -> None:
    error = {"code": "sql_invalid", "message": 'syntax error at or near "selec".', "hint": "See the message."}
    gateway.answer("POST", "/v1/query", error, status=400)
    result = invoke("query", "selec 1", "--data", data)
    assert result.exit_code == 1
    assert "syntax error" in result.stderr
    assert "sql_invalid" in result.stderr
