"""Who is told of windows that have closed."""

from typing import Any, Protocol

from storage.aggregate import Aggregate
from storage.metric_definitions import MetricDefinition
from storage.window_key import WindowKey


class PatternWatch(Protocol):
    """`analytics_actors.patterns.watch` says what it may expect."""

    async def closed(self, project_id: str, definition: MetricDefinition, key: WindowKey, aggregate: Aggregate) -> None:
        """The window has closed. Called in the order of the windows' ends; one may come again after a restart."""

    async def tick(self, now_s: float) -> None:
        """All windows that have closed until then were handed over and rolled up."""

    def observe(self) -> dict[str, Any]: ...


class NoPatterns:
    """`PatternWatch` that watches nothing."""

    async def closed(self, project_id: str, definition: MetricDefinition, key: WindowKey, aggregate: Aggregate) -> None:
        """There is nothing to judge."""

    async def tick(self, now_s: float) -> None:
        """There is nothing to judge."""

    def observe(self) -> dict[str, Any]:
        return {}
