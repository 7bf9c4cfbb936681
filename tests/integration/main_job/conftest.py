"""The five real data sets in the session's system, loaded once in the files' order and, most of them, shuffled at the
same time; all tests of this folder ask what came of it.
"""

import json
import random
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.data_sets import MANY, DataSet, data_sets, read_rows
from tests.metric_client import MetricClient, seconds
from tests.plain_http import web
from tests.system import RunningSystem

SETS = data_sets()
DEFINED_BEFORE = ("github-events", "wikipedia-edits")
"""Sets whose sums are defined before they are loaded; those of the others afterwards, with a backfill."""


class Project(MetricClient):
    """One of the sets' projects, asked with the system's admin key."""

    def __init__(self, system: RunningSystem, project: str) -> None:
        super().__init__(system, project)

    def per_hour_and_type(self, metric: str, hours: Iterable[str]) -> dict[str, Any]:
        begins = sorted(map(seconds, hours))
        return self.metric(
            metric,
            startTime=begins[0],
            endTime=begins[-1] + 3600,
            granularity="hour",
            groupBy="eventType",
            fill="none",
        )


@pytest.fixture(scope="session")
def loaded(system: RunningSystem, tmp_path_factory: pytest.TempPathFactory) -> RunningSystem:
    """The system with all sets in it, nothing on its way."""
    system.wait_healthy()
    shuffled = write_shuffled(tmp_path_factory.mktemp("rows"), every=8)
    for project, definitions in projects_of(system, lambda data: data.name in DEFINED_BEFORE):
        create(project)
        define(project, definitions)
    with ThreadPoolExecutor(2) as threads:
        for done in threads.map(lambda files: load(system, files), ([data.path for data in SETS], [shuffled])):
            assert '"rejected": 0' in done, done
    system.cli("drain", timeout_s=120)
    return system


def write_shuffled(folder: Path, *, every: int) -> Path:
    """All rows, but of a set with thousands of projects those of every so many: each project costs a loader two
    requests or three."""
    rows = []
    for data in SETS:
        chosen = set(data.projects if len(data.projects) <= MANY else data.projects[::every])
        rows += [row for row in read_rows(data.path) if json.loads(row)["projectId"] in chosen]
    random.Random(7).shuffle(rows)
    path = folder / "shuffled.ndjson"
    path.write_text("\n".join(rows) + "\n")
    return path


def projects_of(
    system: RunningSystem, wanted: Callable[[DataSet], bool]
) -> Iterator[tuple[Project, list[dict[str, Any]]]]:
    for data in filter(wanted, SETS):
        for name in data.defined:
            yield Project(system, name), data.definitions


def create(project: Project) -> None:
    made = web.post(
        f"{project.system.url}/v1/projects", headers=project.admin(), json={"projectId": project.project}, timeout=10
    )
    assert made.status_code == 201, made.text


def define(project: Project, definitions: list[dict[str, Any]]) -> None:
    for definition in definitions:
        project.define(definition, wait=False)


def load(system: RunningSystem, files: list[Path]) -> str:
    options = ("--by-project", "--concurrency", "16", "--json")
    return system.cli("load", *map(str, files), *options, timeout_s=300).stdout
