"""The benchmark's command line, and how its numbers are written."""

import json
from pathlib import Path

import pytest

from load_tests import report
from load_tests.bench import FULL, QUICK, parse, plan_of, settings_of


def test_a_plain_run_is_a_full_one() -> None:
    assert plan_of(parse([])) == FULL


def test_quick_is_shorter_and_single_values_win() -> None:
    assert plan_of(parse(["--quick"])) == QUICK
    assert plan_of(parse(["--quick", "--seconds", "5", "--rounds", "2"])) == QUICK._replace(seconds=5.0, rounds=2)


def test_the_half_load_may_be_given() -> None:
    assert plan_of(parse(["--rate", "4200"])).requests_per_s == 4200
    assert plan_of(parse([])).requests_per_s is None


def test_what_is_compared_has_no_lake_and_what_is_looked_at_is_as_it_comes() -> None:
    assert settings_of(parse([])) == ["lake.enabled=false"]
    assert settings_of(parse(["--set", "lake.enabled=true"])) == ["lake.enabled=false", "lake.enabled=true"]
    for words in (["--idle", "5"], ["--soak", "1"], ["--profile"]):
        assert settings_of(parse(words)) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["--only", "nothing"],
        ["--soak", "1", "--only", "latency"],
        ["--profile", "--only", "latency"],
        ["--profile", "--only", "windows"],
        ["--soak", "1", "--idle", "5"],
        ["--soak", "0.5"],
    ],
)
def test_what_makes_no_sense_is_refused(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        parse(arguments)
    assert refused.value.code == 2


def test_results_are_json_with_rounded_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "RESULTS", tmp_path / "results")
    path = report.save("tried", {"figures": {"fast_events_per_s": 123456.789, "p50_ms": 1.23456789}, "n": [1, 2.0]})
    assert path == tmp_path / "results" / "tried.json"
    assert json.loads(path.read_text()) == {"figures": {"fast_events_per_s": 123457, "p50_ms": 1.2346}, "n": [1, 2.0]}
