"""What the reader of metrics asks PostgreSQL beside roll-ups and events: how far the event store is, what was counted
again, and whether the roll-ups of a range have changed."""

from datetime import UTC, datetime

from storage.postgres import Postgres
from storage.postgres_store import SINK
from storage.rollups import day_of, day_start
from storage.statements import statement

_STORED_BELOW = "SELECT next_offset FROM checkpoints WHERE sink = $1 AND partition_id = $2"
_COUNTED_DAYS = "SELECT day, built FROM counted_days WHERE project_id = $1 AND day >= $2 AND day <= $3"
_HAS_EXPIRED = "SELECT EXISTS (SELECT FROM expired_events WHERE project_id = $1)"
_RANGE_VERSION = statement("range_version")


class MetricReads:
    """Every call has the deadline of the `Postgres` it is given, and raises `Unavailable` after it."""

    def __init__(self, postgres: Postgres) -> None:
        self._postgres = postgres

    async def stored_below(self, partition: int) -> int:
        """The event store has the records of the partition below this offset; 0 before the first."""
        async with self._postgres.session() as connection:
            return await connection.fetchval(_STORED_BELOW, SINK, partition) or 0

    async def counted_days(self, project_id: str, start: int, end: int) -> dict[int, str]:
        """With which metrics the days that [start, end) touches were counted again, by the day's start; see
        `analytics_actors.windows.definition_book`."""
        async with self._postgres.session() as connection:
            rows = await connection.fetch(_COUNTED_DAYS, project_id, day_of(start), day_of(end - 1))
        return {day_start(row["day"]): row["built"] for row in rows}

    async def has_expired(self, project_id: str) -> bool:
        """Whether the retention has removed events of the project: roll-ups go later than these."""
        async with self._postgres.session() as connection:
            return bool(await connection.fetchval(_HAS_EXPIRED, project_id))

    async def range_version(self, project_id: str, metric: str, start: int, end: int) -> str | None:
        """A text that changes whenever a roll-up of the metric in [start, end) (seconds since the epoch) does; None
        while a day of the range waits for its recomputation."""
        times = (datetime.fromtimestamp(second, UTC) for second in (start, end))
        async with self._postgres.session() as connection:
            version: str | None = await connection.fetchval(_RANGE_VERSION, project_id, metric, *times)
        return version
