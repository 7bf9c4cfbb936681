"""The lake in the benchmark: what a round waits for, and what is wanted of the numbers."""

from typing import Any, cast

import msgspec
import pytest

from config.settings import Settings, WindowSettings
from load_tests import rounds
from load_tests.generator import Outcome
from load_tests.report import wanted
from load_tests.rounds import SystemServer, Until
from load_tests.running_system import RunningSystem

NO_WINDOWS = msgspec.structs.replace(Settings(), windows=WindowSettings(enabled=False))


class _System:
    """Its events are stored at 1 s, counted at 2 s, exported at 3 s."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.waited: list[str] = []

    async def wait_stored(self, events: int, *, clock: object) -> float:
        self.waited.append("stored")
        return 1.0


@pytest.mark.parametrize(
    ("settings", "until", "at_s", "waited"),
    [
        (Settings(), "stored", 1.0, ["stored", "counted"]),
        (Settings(), "counted", 2.0, ["stored", "counted"]),
        (Settings(), "exported", 3.0, ["stored", "counted", "exported", "compacted"]),
        (NO_WINDOWS, "stored", 1.0, ["stored"]),
        (NO_WINDOWS, "exported", 3.0, ["stored", "exported", "compacted"]),
    ],
)
async def test_a_round_ends_when_the_events_are_where_they_are_wanted(
    monkeypatch: pytest.MonkeyPatch, settings: Settings, until: Until, at_s: float, waited: list[str]
) -> None:
    async def counted(system: _System, **_: Any) -> float:
        system.waited.append("counted")
        return 2.0

    async def exported(system: _System, **_: Any) -> float:
        system.waited.append("exported")
        return 3.0

    async def compacted(system: _System, **_: Any) -> None:
        system.waited.append("compacted")

    monkeypatch.setattr(rounds, "wait_counted", counted)
    monkeypatch.setattr(rounds, "wait_compacted", compacted)
    monkeypatch.setattr(rounds, "wait_exported", exported)
    system = _System(settings)
    server = SystemServer(cast(RunningSystem, system), until=until)
    assert await server.stored_at_s(Outcome(), 1) == at_s
    assert system.waited == waited


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("batch100_all_sinks_vs_executemany", 1.0, "≥ 1"),
        ("batch100_all_sinks_vs_executemany", 0.99, "≥ 1, missed"),
        ("lake_query_vs_duckdb", 2.0, "≤ 2"),
        ("lake_query_vs_duckdb", 2.01, "≤ 2, missed"),
    ],
)
def test_what_is_wanted_stands_beside_the_number(name: str, value: float, said: str) -> None:
    assert wanted(name, value) == said
