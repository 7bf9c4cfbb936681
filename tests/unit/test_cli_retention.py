"""What `analytics-actors retention` prints, and what it asks for."""

import json
from datetime import UTC, datetime
from typing import Any, get_args

import pytest
from click.testing import CliRunner

from analytics_actors.cli import retention as module
from analytics_actors.retention.report import Report
from config.settings import Settings
from storage.retention import Kind, RecordKind, Removal

AT = datetime(2026, 11, 21, 3, 30, tzinfo=UTC)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each run was to be a dry one."""
    found: list[bool] = []

    async def run(_: Settings, *, dry_run: bool) -> Report:
        found.append(dry_run)
        removals = [
            Removal("partitions", "2026-10-01", 0, 1200, 5 * 1024 * 1024),
            Removal("moved_files", "2026-10-02", 1, 10, 100),
            Removal("moved_files", "2026-10-02", 1, 10, 100),
        ]
        return Report(AT, dry_run, removals, ["2026-10-05: it is being read; tried again later"])

    monkeypatch.setattr(module, "_run", run)
    monkeypatch.setattr(module, "lake_settings", lambda *_: Settings())
    return found


def run_of(*words: str) -> str:
    done = CliRunner().invoke(module.retention, ["run", *words])
    assert done.exit_code == 0, done.output
    return done.output


def test_a_dry_run_tells_what_would_go(asked: list[bool]) -> None:
    output = run_of("--dry-run")
    assert asked == [True]
    lines = [line.replace("│", " ").split() for line in output.splitlines()]
    assert "would go" in output
    assert ["days", "of", "raw", "events", "1", "–", "1,200", "5.0", "MiB"] in lines
    assert ["files", "become", "cold", "1", "2", "20", "200", "B"] in lines
    assert "stays: 2026-10-05: it is being read" in output


def test_a_run_as_json(asked: list[bool]) -> None:
    found: dict[str, Any] = json.loads(run_of("--json"))
    assert asked == [False] and found["dryRun"] is False and found["startedAt"] == "2026-11-21T03:30:00Z"
    assert found["totals"][1] == {"kind": "moved_files", "names": 1, "files": 2, "rows": 20, "bytes": 200}
    assert found["removals"][0] == {
        "kind": "partitions",
        "name": "2026-10-01",
        "files": 0,
        "rows": 1200,
        "bytes": 5242880,
    }
    assert found["kept"] == ["2026-10-05: it is being read; tried again later"]


def test_every_kind_has_words() -> None:

    kinds = {kind for each in get_args(Kind) for kind in (get_args(each) or (each,))}
    assert kinds == set(module._WORDS) and set(get_args(RecordKind)) < kinds


@pytest.mark.parametrize("words", [["shop"], ["shop", "--default", "--raw-days", "3"]])
def test_set_wants_limits_or_the_default(words: list[str]) -> None:
    done = CliRunner().invoke(module.retention, ["set", *words, "--url", "http://x", "--key", "k"])
    assert done.exit_code == 2 and "give limits, or --default" in done.output
