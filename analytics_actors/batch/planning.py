"""Which days a batch job counts again, and in which pieces. Pure.

Only days whose hours are all long over: what is nearer is answered from windows or just was, and comes with the next
daily job. A file of the lake holds an hour of all projects, so a piece is of days and of all projects that they are
due of; days that follow one another with the same projects go together.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from datetime import date, timedelta
from typing import NamedTuple

from analytics_actors.windows.definition_book import is_built
from storage.batch_jobs import DueDay, PlannedPiece
from storage.rollups import DAY_S, day_start

DAYS_PER_PIECE = 31
PROJECT_DAYS_PER_PIECE = 1000
"""Their tickets are one statement; what memory has no room for is halved further when it is counted."""
FROZEN_FOR_S = 2 * 3600
"""So long must the last hour of a day have been final, that the event store has all of it for sure."""

_DAY = timedelta(days=1)


class Planned(NamedTuple):
    pieces: Sequence[PlannedPiece]
    days_open: int
    """Of projects, that are left out."""


def plan(due: Iterable[DueDay], *, frozen_below: int) -> Planned:
    """`frozen_below`: hours that begin before it do not change any more, in seconds since the epoch."""
    by_day: defaultdict[date, list[str]] = defaultdict(list)
    days_open = 0
    for project_id, day, _ in due:
        if day_start(day) + DAY_S > frozen_below - FROZEN_FOR_S:
            days_open += 1
        else:
            by_day[day].append(project_id)
    return Planned(list(_pieces(by_day)), days_open)


def _pieces(by_day: dict[date, list[str]]) -> Iterable[PlannedPiece]:
    runs: list[tuple[date, date, list[str]]] = []
    for day in sorted(by_day):
        projects = sorted(by_day[day])
        if runs:
            first, last, same = runs[-1]
            fits = (day - first).days < DAYS_PER_PIECE
            room = ((day - first).days + 1) * len(projects) <= PROJECT_DAYS_PER_PIECE
            if last + _DAY == day and same == projects and fits and room:
                runs[-1] = first, day, same
                continue
        runs.append((day, day, projects))
    for first, last, projects in runs:
        for at in range(0, len(projects), PROJECT_DAYS_PER_PIECE):
            yield PlannedPiece(first, last, tuple(projects[at : at + PROJECT_DAYS_PER_PIECE]))


def without_metric(due: Iterable[DueDay], metric: str, version_of: Callable[[str], int]) -> list[DueDay]:
    """The days that were not counted with the metric as its project has it. `version_of` a project: 0 for a metric
    that is built in, of which every day is taken."""
    versions: dict[str, int] = {}
    kept = []
    for each in due:
        version = versions.setdefault(each.project_id, version_of(each.project_id))
        if not version or not is_built(each.built, metric, version):
            kept.append(each)
    return kept
