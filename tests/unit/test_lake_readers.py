"""The README's snippets for DuckDB, pyarrow and polars, run as they stand there on files of the lake."""

import re
from pathlib import Path

import pytest

from tests.sql_lake import SqlLake, event

README = Path(__file__).parents[2] / "README.md"
WANTED = {"purchase": ("2", "12.75"), "view": ("3", "None")}


def snippets() -> dict[str, str]:
    section = README.read_text().split("\n## The lake\n")[1].split("\n## ")[0]
    return dict(re.findall(r"^(\w+):\n\n```python\n(.*?)```", section, re.MULTILINE | re.DOTALL))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """With `data/lake` of two projects and three hours in it."""
    lake = SqlLake(tmp_path / "data")
    made = [event(f"v{n}", f"2026-11-20T1{n}:30:00+00:00", project="default", userId="u") for n in range(3)]
    amounts = (2.5, 10.25)
    made += [
        event(f"p{n}", "2026-11-20T10:40:00+00:00", project="default", kind="purchase", properties={"amount": amount})
        for n, amount in enumerate(amounts)
    ]
    lake.add_files([*made, event("x", "2026-11-20T10:00:00+00:00", project="other", kind="view")])
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_all_are_there() -> None:
    assert {"DuckDB", "pyarrow", "polars", "Spark"} <= snippets().keys()


@pytest.mark.parametrize("tool", ["DuckDB", "pyarrow", "polars"])
def test_a_snippet_answers(tool: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, object] = {}
    exec(snippets()[tool], names)
    printed = capsys.readouterr().out
    assert "purchase" in printed and "view" in printed
    if tool == "pyarrow":
        table = names["table"]
        assert sorted(table["amount"].drop_null().to_pylist()) == ["10.25", "2.5"]  # type: ignore[index]
        assert table.num_rows == 5  # type: ignore[attr-defined]
    else:
        for line in ("purchase", "view"):
            [row] = [each for each in printed.splitlines() if line in each]
            assert WANTED[line][0] in re.findall(r"\d+", row)
        assert "12.75" in printed
