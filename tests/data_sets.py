"""The five real data sets with their exact answers, and what is defined to ask for their sums.

They lie beside the project (`../shared/data`); without them the sample that the project ships is used, and its answers
are counted here.
"""

import gzip
import json
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property
from pathlib import Path
from typing import Any

SHARED = Path(__file__).parents[1].parent / "shared" / "data"
SAMPLE = Path(__file__).parent / "samples" / "real_events.ndjson"
SUMMED = ("price", "bytes", "nk", "added", "deleted", "delta", "payload.size")
"""Properties of the sample that are summed; the sets' own answers name theirs."""

MANY = 100
"""Of a set with more projects only the largest get definitions."""


@dataclass(frozen=True)
class DataSet:
    path: Path

    @property
    def name(self) -> str:
        return self.path.name.partition(".")[0]

    @cached_property
    def answers(self) -> dict[str, Any]:
        if self.path == SAMPLE:
            return _count(map(json.loads, read_rows(self.path)))
        kept = self.path.with_name(self.path.name.replace(".ndjson.gz", ".expected.json"))
        answers: dict[str, Any] = json.loads(kept.read_text())
        return answers

    @property
    def projects(self) -> list[str]:
        """The largest first."""
        return list(self.answers["eventsPerProject"])

    @property
    def defined(self) -> list[str]:
        """Projects in which sums are defined: all of them, or the five largest."""
        return self.projects if len(self.projects) <= MANY else list(self.answers["largestProjects"])

    @property
    def sums(self) -> dict[str, str]:
        """By metric the property that it sums."""
        return {"sum." + summed: summed for summed in self.answers["all"]["sumPerHourPerType"]}

    @property
    def definitions(self) -> list[dict[str, Any]]:
        return [
            {"name": name, "aggregation": "sum", "property": f"properties.{summed}", "dimensions": ["eventType"]}
            for name, summed in self.sums.items()
        ]


def data_sets() -> list[DataSet]:
    return [DataSet(path) for path in sorted(SHARED.glob("*.ndjson.gz")) or [SAMPLE]]


def read_rows(path: Path) -> list[str]:
    text = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return text.decode().splitlines()


def _count(rows: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """As the sets' own answers are written."""
    events = list({(row["projectId"], row["eventId"]): row for row in rows}.values())
    projects = Counter(event["projectId"] for event in events)
    largest = [project for project, _ in projects.most_common(5)]
    return {
        "eventsPerType": dict(Counter(event["eventType"] for event in events)),
        "eventsPerProject": dict(projects.most_common()),
        "all": _tally(events),
        "largestProjects": {name: _tally([e for e in events if e["projectId"] == name]) for name in largest},
    }


def _tally(events: list[dict[str, Any]]) -> dict[str, Any]:
    hours: defaultdict[str, Counter[str]] = defaultdict(Counter)
    users: dict[int, defaultdict[str, set[str]]] = {10: defaultdict(set), 13: defaultdict(set)}
    sums: dict[str, dict[str, dict[str, Any]]] = {summed: defaultdict(dict) for summed in SUMMED}
    for event in events:
        hour, kind = event["timestamp"][:13] + ":00:00Z", event["eventType"]
        hours[hour][kind] += 1
        for chars, found in users.items():
            if event.get("userId"):
                found[event["timestamp"][:chars]].add(event["userId"])
        for summed in SUMMED:
            number = _dig(event["properties"], summed)
            if number is not None:
                cell = sums[summed][hour].setdefault(kind, {"n": 0, "sum": "0"})
                cell["n"] += 1
                cell["sum"] = str(Decimal(cell["sum"]) + number)
    return {
        "events": len(events),
        "eventsPerTypePerHour": hours,
        "uniqueUsersPerDay": {day: len(found) for day, found in users[10].items()},
        "uniqueUsersPerHour": {hour + ":00:00Z": len(found) for hour, found in users[13].items()},
        "sumPerHourPerType": sums,
    }


def _dig(value: Any, path: str) -> Decimal | None:
    for key in path.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return Decimal(str(value)) if is_number else None
