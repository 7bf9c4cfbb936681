"""Settings on the command line: where a value comes from, and what is said about a wrong one."""

import json
from pathlib import Path

import msgspec
import pytest

from analytics_actors.cli.settings_options import as_words
from config import resolve
from config.settings import gateway_workers
from tests.unit.cli_server import invoke


def rows(*words: str | Path) -> dict[str, tuple[object, str]]:
    result = invoke("config", "--json", *words)
    assert result.exit_code == 0
    return {row["name"]: (row["value"], row["origin"]) for row in msgspec.json.decode(result.output)}


def test_each_value_tells_its_origin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "settings.toml"
    file.write_text("[gateway]\nport = 1\nworkers = 2\n[actors]\nshards = 3\n")
    monkeypatch.setenv("ANALYTICS_GATEWAY_WORKERS", "4")
    found = rows("--config", file, "--shards", "5")
    assert found["gateway.port"] == (1, str(file))
    assert found["gateway.workers"] == (4, "$ANALYTICS_GATEWAY_WORKERS")
    assert found["actors.shards"] == (5, "flag")
    assert found["gateway.host"] == ("127.0.0.1", "default")


def test_every_setting_has_a_description() -> None:
    result = invoke("config", "--json")
    assert all(row["description"] for row in msgspec.json.decode(result.output))


def test_help_tells_the_defaults_that_are() -> None:
    told = " ".join(invoke("up", "--help").output.partition("Options:")[2].split())
    for option, setting in {"--workers": "gateway.workers", "--port": "gateway.port", "--data": "data"}.items():
        about = told.partition(f" {option} ")[2].partition(" --")[0]
        assert about.endswith(f"[default: {rows()[setting][0]}]")


def test_a_file_that_is_no_text_is_told(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_bytes(b"\xff\xfe[")
    result = invoke("config", "--config", str(file))
    assert result.exit_code == 2
    assert "is not valid TOML" in result.output


def test_a_file_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_bytes(b"\xef\xbb\xbf[gateway]\nport = 1\n")
    assert rows("--config", file)["gateway.port"] == (1, str(file))


@pytest.mark.parametrize("step", [1, -1])
def test_the_prefixed_variable_wins_over_the_plain_one(step: int) -> None:
    variables = [("BATCH_SIZE", "5"), ("ANALYTICS_STORE_BATCH_SIZE", "7")]
    resolved = resolve(environ=dict(variables[::step]))
    assert resolved.settings.store.batch_size == 7
    assert resolved.origins["store.batch_size"] == "$ANALYTICS_STORE_BATCH_SIZE"


def test_a_list_may_be_json_or_words() -> None:
    metrics = [{"name": "a", "eventTypes": ["b,c"]}]
    found = rows("--set", f"windows.metrics={json.dumps(metrics)}", "--set", "windows.revenue_properties=x, y")
    assert found["windows.metrics"] == (metrics, "flag")
    assert found["windows.revenue_properties"] == (["x", "y"], "flag")


def test_a_password_in_a_url_is_not_shown() -> None:
    found = rows("--postgres-url", "postgresql://me:secret@db/x")
    assert found["store.postgres_url"] == ("postgresql://me:[redacted]@db/x", "flag")
    found = rows("--postgres-url", "postgresql://db/x?user=u&password=s3cret&sslpassword=other")
    assert found["store.postgres_url"] == (
        "postgresql://db/x?user=u&password=[redacted]&sslpassword=[redacted]",
        "flag",
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--set", "gateway.prot=1"], "did you mean gateway.port?"),
        (["--set", "gateway.port=70000"], "<= 65535"),
        (["--set", "gateway.port"], "write it as NAME=VALUE"),
        (["--data", ""], "data (from flag) is empty"),
        (["--shards", "0"], ">= 1"),
        (["--set", "gateway.key_refresh_s=inf"], "Expected a finite number"),
        (["--ray-address", "head"], "actors.ray_address = 'head' (from flag): Expected"),
        (["--set", "gateway.key_refresh_s=nan"], "gateway.key_refresh_s"),
        (["--set", "windows.metrics=[{]"], "windows.metrics"),
        (["--set", "windows.metrics=a"], "windows.metrics"),
        (["--set", 'windows.metrics=[{"name": "a", "aggregation": "p95"}]'], "windows.metrics, 'a': property"),
        (["--set", 'windows.metrics=[{"name": "a", "patterns": {"sigma": 1}}]'], "windows.metrics, 'a': patterns: "),
        (["--config", "/nonexistent"], "does not exist"),
    ],
)
def test_what_is_wrong_is_told_with_exit_code_2(words: list[str], said: str) -> None:
    result = invoke("config", *words)
    assert result.exit_code == 2
    assert said in result.output


def test_an_unknown_variable_is_a_mistake_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANALYTICS_GATEWAY_PROT", "1")
    result = invoke("up")
    assert result.exit_code == 2
    assert "$ANALYTICS_GATEWAY_PROT is no setting (did you mean ANALYTICS_GATEWAY_PORT?)" in result.output


def test_an_empty_data_folder_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANALYTICS_DATA", "")
    result = invoke("up")
    assert result.exit_code == 2
    assert "data (from $ANALYTICS_DATA) is empty" in result.output


def test_flags_survive_the_way_to_a_detached_up() -> None:
    words = as_words({"gateway.port": 0, "gateway.query_origins": "https://a.test,https://b.test"})
    found = rows(*words)
    assert found["gateway.port"] == (0, "flag")
    assert found["gateway.query_origins"] == (["https://a.test", "https://b.test"], "flag")


@pytest.mark.parametrize(("processors", "workers"), [(1, 1), (2, 1), (3, 1), (4, 2), (64, 4)])
def test_gateway_workers_follow_the_processors(processors: int, workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(processors)), raising=False)
    assert gateway_workers() == workers
