"""What was read for a plan, and from where."""

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import NamedTuple

from gateway.metric_answers import MissingPart, Source, SourceName
from storage.aggregate import Aggregate
from storage.rollups import RollupSeries
from storage.window_key import WindowKey


class Interval(NamedTuple):
    """[start, end) in seconds since the epoch."""

    start: int
    end: int

    @property
    def times(self) -> tuple[datetime, datetime]:
        return datetime.fromtimestamp(self.start, UTC), datetime.fromtimestamp(self.end, UTC)


@dataclass
class Read:
    """What was read for a plan."""

    fresh_at: datetime
    series: list[RollupSeries] = field(default_factory=list)
    windows: list[tuple[WindowKey, Aggregate]] = field(default_factory=list)
    sources: list[Source] = field(default_factory=list)
    missing: list[MissingPart] = field(default_factory=list)
    degraded_because: str | None = None

    @property
    def size(self) -> int:
        """Windows and rows."""
        return len(self.windows) + sum(len(series.starts) for series in self.series)

    @property
    def tuples(self) -> int:
        """Different tuples of dimensions: at least as many as there are groups."""
        return len({series.dimensions for series in self.series} | {key.dimensions for key, _ in self.windows})

    def name(self, source: SourceName, interval: Interval) -> None:
        self.sources.append(Source(source, *interval.times))

    def lacks(self, interval: Interval, because: str, hint: str) -> None:
        self.missing.append(MissingPart(*interval.times, because, hint))
