"""The commands that ask a gateway, through click's runner: output, exit codes, which key is used."""

import subprocess
import sys
from pathlib import Path
from urllib.parse import quote

import httpx
import msgspec
import pytest

from analytics_actors.cli.drain import waiting_in
from analytics_actors.cli.main import cli
from analytics_actors.cli.status import ranges
from tests.unit.cli_server import FakeGateway, data, gateway, invoke

__all__ = ["data", "gateway"]

VIEW = {
    "pid": 77,
    "partitions": [
        {"partition": p, "state": "open", "epoch": 3, "next_offset": 9, "checkpoint": 8, "lag_events": 1}
        for p in (0, 1, 2, 5)
    ],
    "waiting_events": 4,
    "lag_events": 1200,
    "lag_s": 0.25,
    "log_bytes": 3 << 20,
    "trouble": "PostgreSQL does not answer",
}
GATEWAY = {
    "worker": 0,
    "pid": 55,
    "uptimeSeconds": 60,
    "inflightBytes": 0,
    "lanes": ["spooling"],
    "silentSeconds": 8765,
}
SPOOL = {"spool": "spool-0", "batches": 1, "bytes": 2048, "damaged": 0}
AGGREGATOR = {
    "actor": "aggregator-0",
    "state": "open",
    "replaced": 0,
    "view": {
        "pid": 68,
        "live_partitions": 64,
        "watermark_ms": 1_777_640_000_500,
        "lag_s": 0.75,
        "open_windows": 4321,
        "groups": 17,
        "resident_bytes": 9 * 1024 * 1024,
        "late_events": 23,
        "late_days_left": 2,
        "trouble": "windows: Redis does not answer",
    },
}
EXPORTER = {
    "actor": "exporter-0",
    "state": "open",
    "replaced": 0,
    "view": {
        "pid": 66,
        "lag_records": 7,
        "resident_bytes": 5 * 1024 * 1024,
        "open_plan": 12,
        "counters": {"files_written": 3.0, "events_exported": 4000.0},
        "trouble": "object store: away",
    },
}
STATUS = {
    "gateways": [GATEWAY],
    "spools": [SPOOL],
    "shards": [
        {"shard": 0, "state": "open", "replaced": 2, "view": VIEW, "aggregator": AGGREGATOR, "exporter": EXPORTER},
        {
            "shard": 1,
            "state": "silent",
            "view": None,
            "aggregator": AGGREGATOR | {"actor": "aggregator-1", "view": None},
            "exporter": EXPORTER | {"actor": "exporter-1", "view": None},
        },
    ],
    "lakeKeeper": {
        "actor": "lake-keeper",
        "state": "open",
        "replaced": 0,
        "view": {
            "pid": 67,
            "hours_to_compact": 321,
            "open_plan": 77,
            "destinations": 13,
            "destinations_failing": 5,
            "counters": {"files_merged": 1234.0, "bytes_merged": 7.0 * 1024 * 1024},
            "trouble": "compaction: a file is missing",
        },
    },
    "services": {"postgres": "ok", "log": "no answer within 2.0 s"},
}
QUIET = {
    "gateways": [GATEWAY],
    "spools": [SPOOL | {"batches": 0}],
    "shards": [{"shard": 0, "state": "open", "view": VIEW | {"lag_events": 0, "waiting_events": 0}}],
    "services": {},
}


@pytest.mark.parametrize("name", cli.list_commands(None))  # type: ignore[arg-type]
def test_every_command_has_help_with_an_example(name: str) -> None:
    words = {"projects": ["projects", "list"], "keys": ["keys", "create"]}.get(name, [name])
    result = invoke(*words, "--help")
    assert result.exit_code == 0
    assert "Example" in result.output
    assert f"analytics-actors {' '.join(words)}" in result.output


def test_status_shows_shards_services_and_trouble(gateway: FakeGateway, data: Path) -> None:
    gateway.answer("GET", "/v1/status", STATUS)
    result = invoke("status", "--data", data, "--partitions")
    assert result.exit_code == 0
    for text in ("0-2 5", "1,200", "3.0 MiB", "no answer within 2.0 s", "silent", "PostgreSQL does not answer"):
        assert text in result.output
    for text in ("8,765", "321", "1,234", "7.0 MiB", "lake-keeper waits: compaction: a file is missing"):
        assert text in result.output
    for text in (
        "aggregator-1",
        "2026-05-01",
        "4,321",
        "9.0 MiB",
        "aggregator-0 waits: windows: Redis does not answer",
    ):
        assert text in result.output
    for text in ("exporter-1", "5.0 MiB", "4,000", "exporter-0 waits: object store: away"):
        assert text in result.output
    assert gateway.keys == ["the-admin-key"]


def test_status_as_json_is_the_gateways_answer(gateway: FakeGateway, data: Path) -> None:
    gateway.answer("GET", "/v1/status", STATUS)
    assert msgspec.json.decode(invoke("status", "--data", data, "--json").output) == STATUS


def test_without_a_system_a_command_says_what_to_do(gateway: FakeGateway, tmp_path: Path) -> None:
    result = invoke("status", "--data", tmp_path / "nothing")
    assert result.exit_code == 1
    assert "start a system with `up`" in result.output


def test_a_gateway_that_is_away_is_told_in_a_sentence(gateway: FakeGateway, data: Path) -> None:
    def away(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("connection refused", request=request)

    gateway.routes["GET", "/v1/status"] = away
    result = invoke("status", "--data", data)
    assert result.exit_code == 1
    assert "cannot reach http://gateway.test: connection refused" in result.output
    assert "Traceback" not in result.output


def test_the_gateways_error_and_hint_are_shown(gateway: FakeGateway, data: Path) -> None:
    error = {"code": "conflict", "message": "There is a project shop already.", "hint": "Choose another name."}
    gateway.answer("POST", "/v1/projects", error, status=409)
    result = invoke("projects", "create", "shop", "--data", data)
    assert result.exit_code == 1
    assert "There is a project shop already. Choose another name. (409 conflict)" in result.output


def test_url_and_key_need_no_data_folder(gateway: FakeGateway, tmp_path: Path) -> None:
    gateway.answer("GET", "/v1/status", QUIET)
    result = invoke("status", "--data", tmp_path / "nothing", "--url", "http://other.test/", "--key", "given")
    assert result.exit_code == 0
    assert (gateway.keys, gateway.requests[0].url.host) == (["given"], "other.test")


@pytest.mark.parametrize(
    "url",
    [
        "localhost:1",
        "foo",
        "http://",
        "http://h:port",
        "ftp://h",
        "http://h:70000",
        f"http://{'h' * 64}",
        "http://h..h",
    ],
)
def test_what_is_no_url_is_told(gateway: FakeGateway, data: Path, url: str) -> None:
    result = invoke("status", "--data", data, "--url", url)
    assert result.exit_code == 1
    assert "is no URL of a gateway" in result.output


@pytest.mark.parametrize("key", ["schlüssel", "abc\ndef", "a b"])
def test_what_is_no_key_is_told_and_not_shown(gateway: FakeGateway, data: Path, key: str) -> None:
    result = invoke("status", "--data", data, "--key", key)
    assert result.exit_code == 1
    assert "no key has" in result.output
    assert key not in result.output


@pytest.mark.parametrize(
    ("words", "method", "path"),
    [
        (["status"], "GET", "/v1/status"),
        (["tail"], "GET", "/v1/events"),
        (["query", "select 1"], "POST", "/v1/query"),
    ],
)
@pytest.mark.parametrize("content", ["<html>Welcome</html>", '{"ok":true}', '[{"name":"a"}]', '"up"'])
def test_another_server_is_told(
    gateway: FakeGateway, data: Path, words: list[str], method: str, path: str, content: str
) -> None:
    gateway.routes[method, path] = lambda _: httpx.Response(200, text=content)
    result = invoke(*words, "--data", data)
    assert result.exit_code == 1
    assert "not that of a gateway" in result.output


@pytest.mark.parametrize(
    ("words", "method", "path"),
    [
        (["query", "select 1", "--format", "csv"], "POST", "/v1/query"),
        (["query", "select 1", "--format", "arrow"], "POST", "/v1/query"),
        (["metrics", "define", "m"], "POST", "/v1/metrics-definitions"),
        (["metrics", "delete", "m"], "DELETE", "/v1/metrics-definitions/m"),
        (["projects", "set-client", "p", "c"], "PATCH", "/v1/projects/p"),
        (["lake", "destinations", "remove", "d"], "DELETE", "/v1/exports/destinations/d"),
        (["keys", "list", "--json"], "GET", "/v1/keys"),
    ],
)
@pytest.mark.parametrize("content", ["", '{"ok":true}'])
def test_another_servers_good_answer_is_no_success(
    gateway: FakeGateway, data: Path, words: list[str], method: str, path: str, content: str
) -> None:
    gateway.is_one = False
    gateway.routes[method, path] = lambda _: httpx.Response(200, text=content)
    result = invoke(*words, "--data", data)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "not that of a gateway" in result.output or "not that of a gateway" in result.stderr


@pytest.mark.parametrize("words", [["config"], ["config", "--json"], ["config", "--help"]])
def test_a_full_disk_is_told(words: list[str]) -> None:
    command = [sys.executable, "-m", "analytics_actors.cli", *words]
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, check=False, text=True)
    assert (done.returncode, done.stderr) == (1, "Error: [Errno 28] No space left on device\n")


def test_a_key_that_never_expires_is_not_asked_for_so(data: Path) -> None:
    assert invoke("keys", "create", "--kind", "read", "--expires-in", "inf", "--data", data).exit_code == 2


def test_projects_are_listed_over_all_pages(gateway: FakeGateway, data: Path) -> None:
    def page(request: httpx.Request) -> httpx.Response:
        after = request.url.params.get("after")
        name = "b" if after else "a"
        body = {"projects": [{"projectId": name, "createdAt": "2026-01-01T00:00:00Z"}]}
        return httpx.Response(200, json=body if after else body | {"next": "a"})

    gateway.routes["GET", "/v1/projects"] = page
    listed = msgspec.json.decode(invoke("projects", "list", "--data", data, "--json").output)
    assert [project["projectId"] for project in listed] == ["a", "b"]


def test_a_project_is_created_with_keys(gateway: FakeGateway, data: Path) -> None:
    made = {"projectId": "shop", "keys": [{"kind": "write", "key": "aa_write_x", "keyId": "1"}]}
    gateway.answer("POST", "/v1/projects", made, status=201)
    result = invoke("projects", "create", "shop", "--client", "acme", "--with-key", "write", "--data", data)
    assert "aa_write_x" in result.output
    wanted = {"projectId": "shop", "clientId": "acme", "keys": ["write"], "expiresInSeconds": None}
    assert gateway.bodies() == [wanted]


def test_a_key_is_made_and_revoked(gateway: FakeGateway, data: Path) -> None:
    gateway.answer("POST", "/v1/keys", {"kind": "read", "key": "aa_read_x", "keyId": "7"}, status=201)
    gateway.answer("DELETE", "/v1/keys/7", {"keyId": "7", "effectiveWithinSeconds": 5.0})
    made = invoke("keys", "create", "--project", "shop", "--kind", "read", "--expires-in", "60", "--data", data)
    revoked = invoke("keys", "revoke", "7", "--data", data)
    assert "aa_read_x" in made.output
    assert "within 5 s" in revoked.output
    assert gateway.bodies() == [{"projectId": "shop", "kind": "read", "expiresInSeconds": 60.0}]


def test_a_kind_that_is_none_is_a_usage_error(data: Path) -> None:
    assert invoke("keys", "create", "--kind", "super", "--data", data).exit_code == 2


def test_drain_returns_when_nothing_waits_twice_in_a_row(
    gateway: FakeGateway, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("analytics_actors.cli.drain.time.sleep", lambda _: None)
    answers = iter([STATUS, QUIET, STATUS, QUIET, QUIET])
    gateway.routes["GET", "/v1/status"] = lambda _: httpx.Response(200, json=next(answers))
    result = invoke("drain", "--data", data)
    assert (result.exit_code, len(gateway.requests)) == (0, 5)


def test_drain_gives_up_and_says_what_waits(gateway: FakeGateway, data: Path) -> None:
    gateway.answer("GET", "/v1/status", STATUS)
    result = invoke("drain", "--timeout", "0", "--data", data)
    assert result.exit_code == 1
    assert "shard 0: 1204 events" in result.output
    assert "shard 1 is silent" in result.output


def test_a_spool_that_waits_or_cannot_be_read_is_not_taken_for_empty() -> None:
    status = {"gateways": [], "spools": [SPOOL, SPOOL | {"batches": 0, "trouble": "no"}], "shards": QUIET["shards"]}
    assert waiting_in(status) == "spool-0: 1 batches; no"


def test_shards_that_cannot_be_asked_are_not_taken_for_empty() -> None:
    assert waiting_in({"gateways": [], "spools": [], "shards": []}) == "the shards cannot be asked"


def test_the_ledger_check_fails_on_a_difference(gateway: FakeGateway, data: Path) -> None:
    difference = {"projectId": "shop", "what": "stored", "ledger": 3, "found": 2}
    gateway.answer("GET", "/v1/ledger/check", {"differences": [difference]})
    result = invoke("ledger", "--check", "--data", data)
    assert result.exit_code == 1
    assert "ledger=3  found=2" in result.output
    gateway.answer("GET", "/v1/ledger/check", {"differences": []})
    assert invoke("ledger", "--check", "--data", data).exit_code == 0
    assert gateway.keys == ["the-admin-key"] * 2
    of = ("--project", "shop", "--start", "2026-11-20T00:00:00Z", "--end", "2026-11-21T00:00:00Z")
    assert invoke("ledger", "--check", *of, "--data", data).exit_code == 0
    asked = {"projectId": "shop", "startTime": "2026-11-20T00:00:00Z", "endTime": "2026-11-21T00:00:00Z"}
    assert dict(gateway.requests[-1].url.params) == asked


@pytest.mark.parametrize("words", [["keys", "revoke"], ["retention", "show"], ["retention", "set", "--default"]])
def test_a_name_is_all_of_the_paths_part(gateway: FakeGateway, data: Path, words: list[str]) -> None:
    """`shop#1` is not `shop`, and `../keys` is no other route."""
    for name in ("shop#1", "shop?x=1", "a/../../keys"):
        assert invoke(*words, name, "--data", data).exit_code == 1
        assert f"/{quote(name, safe='')}" in gateway.requests[-1].url.raw_path.decode()


@pytest.mark.parametrize("words", [["query", "select '\udcff'"], ["tail", "--type", "\udcff"]])
def test_what_is_no_utf_8_is_told(data: Path, words: list[str]) -> None:
    result = invoke(*words, "--data", data)
    assert result.exit_code == 1
    assert "Error: a text cannot be written: 'utf-8' codec" in result.output


def test_the_ledger_of_the_own_project_needs_only_the_read_key(gateway: FakeGateway, data: Path) -> None:
    hour = {"hour": "2026-01-01T00:00:00Z", "received": 5, "stored": 5}
    gateway.answer("GET", "/v1/ledger", {"hours": [hour], "totals": {"received": 5}, "balanced": True})
    result = invoke("ledger", "--data", data)
    assert "it balances" in result.output
    assert gateway.keys == ["the-read-key"]


def test_tail_shows_the_newest_last_and_no_control_characters(gateway: FakeGateway, data: Path) -> None:
    events = [
        {"eventId": "2", "eventType": "b\x1b[31m", "userId": "u", "timestamp": "2026-01-02T00:00:00Z"},
        {"eventId": "1", "eventType": "a", "userId": None, "timestamp": "2026-01-01T00:00:00Z"},
    ]
    gateway.answer("GET", "/v1/events", {"events": events})
    result = invoke("tail", "--data", data, "--type", "x")
    first, second = result.output.splitlines()
    assert (first.split()[-1], second.split()[-1]) == ("1", "2")
    assert "\x1b" not in result.output
    assert gateway.requests[0].url.params["type"] == "x"
    lines = invoke("tail", "--data", data, "--json").output.splitlines()
    assert [msgspec.json.decode(line)["eventId"] for line in lines] == ["1", "2"]


def test_tail_goes_on_where_large_events_made_a_page_short(gateway: FakeGateway, data: Path) -> None:
    events = [{"eventId": str(n), "eventType": "a", "timestamp": "2026-01-01T00:00:00Z"} for n in (3, 2, 1)]
    pages = iter([{"events": events[:2], "nextCursor": "c"}, {"events": events[2:], "nextCursor": "d"}])
    gateway.routes["GET", "/v1/events"] = lambda _: httpx.Response(200, json=next(pages))
    lines = invoke("tail", "-n", "3", "--data", data, "--json").output.splitlines()
    assert [msgspec.json.decode(line)["eventId"] for line in lines] == ["1", "2", "3"]
    assert [request.url.params["limit"] for request in gateway.requests] == ["3", "1"]
    assert gateway.requests[1].url.params["cursor"] == "c"


@pytest.mark.parametrize(
    ("numbers", "text"), [([], ""), ([3], "3"), ([2, 0, 1, 5], "0-2 5"), ([1, 3, 5], "1 3 5"), ([8, 9], "8-9")]
)
def test_numbers_are_written_as_ranges(numbers: list[int], text: str) -> None:
    assert ranges(numbers) == text
