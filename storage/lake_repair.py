"""The manifest taken at its word, and made anew. For commands of an operator: nothing else calls this.

The law:
- `replace` is one transaction. It takes all partitions over, so that exporters that are under way commit nothing any
  more (FN-1) and begin again from the new checkpoints; open plans and swaps are cancelled.
- New plans get ids above all that objects are named after, so that no name is used for two contents.
- No offset below a new checkpoint is ever given to another event: the event store's checkpoints are raised to the
  lake's, should this database not know what the files hold.
- What was stored when is forgotten (`StoredMark`), so that a snapshot looks through more than it must, and leaves
  nothing out.
- Volumes stay as they are when there are any.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import NamedTuple

from storage.copied_rows import READ_DEADLINE_S
from storage.errors import Conflict
from storage.lake_listing import Volume
from storage.lake_manifest import LakeFile, OffsetRange
from storage.postgres import Connection, Postgres
from storage.postgres_lake_files import insert_files, insert_names
from storage.statements import statement

_UNCOVERED = statement("uncovered_events")
_CLEAR = statement("clear_lake")
_SET_CHECKPOINTS = statement("set_checkpoints")
_RAISE_STORED = statement("raise_stored")
_LOCK = "LOCK TABLE checkpoints, lake_plans, lake_files, lake_exports, lake_tails IN SHARE ROW EXCLUSIVE MODE"
_HOLDS = "SELECT EXISTS (SELECT FROM lake_files) OR EXISTS (SELECT FROM lake_exports)"
_CHECKPOINTS = "SELECT partition_id, next_offset FROM checkpoints WHERE sink = 'lake'"
_LIVE = "SELECT key FROM lake_files WHERE key = ANY($1) AND retired_at IS NULL"
_BEGINNINGS = "SELECT partition_id, min(first_offset) FROM lake_exports GROUP BY partition_id"
_COUNT_STORED = """
    SELECT count(*) FROM events_log
    JOIN unnest($1::smallint[], $2::bigint[], $3::bigint[]) AS wanted (partition_id, first_offset, next_offset)
        USING (partition_id)
    WHERE log_offset >= first_offset AND log_offset < next_offset
"""
_SET_PLANS = """
    UPDATE lake_files SET plan_id = made.plan_id, retired_at = CASE WHEN made.is_live THEN NULL ELSE now() END
    FROM unnest($1::text[], $2::bigint[], $3::boolean[]) AS made (key, plan_id, is_live)
    WHERE lake_files.key = made.key
"""
_EXPORTED = """
    INSERT INTO lake_exports (plan_id, partition_id, first_offset, next_offset)
    SELECT 0, partition_id, 0, next_offset
    FROM unnest($1::smallint[], $2::bigint[]) AS covered (partition_id, next_offset)
"""
_LAST_PLAN = """
    SELECT setval(sequence, greatest($1, nextval(sequence)))
    FROM pg_get_serial_sequence('lake_plans', 'plan_id') AS sequence
"""
_VOLUMES = """
    INSERT INTO lake_volumes (project_id, day, files, rows, bytes)
    SELECT * FROM unnest($1::text[], $2::date[], $3::bigint[], $4::bigint[], $5::bigint[])
    WHERE NOT EXISTS (SELECT FROM lake_volumes)
"""
_INSERTED_AT_ONCE = 500


class Uncovered(NamedTuple):
    """Stored events of an hour, below the lake's checkpoint of their partition, that are in no file."""

    partition: int
    hour: datetime
    first_offset: int
    next_offset: int
    events: int


class PlannedFile(NamedTuple):
    """A file, and the plan that it is named after."""

    plan_id: int
    file: LakeFile


class NewManifest(NamedTuple):
    live: Sequence[PlannedFile]
    """No two of an hour cover the same offset."""
    retired: Sequence[PlannedFile]
    """Objects whose place others have: they are removed after the grace period."""
    checkpoints: Mapping[int, int]
    """By partition."""
    last_plan: int
    """The highest id that an object is named after."""
    volumes: Sequence[Volume]
    """For a database that has none."""


class LakeRepair:
    """Over PostgreSQL. What looks through the stored events may take up to `READ_DEADLINE_S`."""

    def __init__(self, postgres: Postgres) -> None:
        self._postgres = postgres

    async def checkpoints(self) -> dict[int, int]:
        """The lake's, by partition."""
        async with self._postgres.session() as connection:
            return {row[0]: row[1] for row in await connection.fetch(_CHECKPOINTS)}

    async def live(self, keys: Sequence[str]) -> set[str]:
        """Which of the keys are of live files."""
        async with self._postgres.session() as connection:
            return {row["key"] for row in await connection.fetch(_LIVE, keys)}

    async def beginnings(self) -> dict[int, int]:
        """By partition the first offset that is known to have been exported."""
        async with self._postgres.session() as connection:
            return {row[0]: row[1] for row in await connection.fetch(_BEGINNINGS)}

    async def uncovered(self, files: Sequence[LakeFile], checkpoints: Mapping[int, int]) -> list[Uncovered]:
        """What is stored below these checkpoints and in none of the files."""
        ranges = [(file.hour, *each) for file in files for each in file.ranges]
        columns = [list(column) for column in zip(*ranges, strict=True)] or [[], [], [], []]
        async with self._postgres.transaction(snapshot=True, deadline_s=READ_DEADLINE_S) as connection:
            rows = await connection.fetch(_UNCOVERED, *columns, list(checkpoints), list(checkpoints.values()))
        return [Uncovered(*row) for row in rows]

    async def count_stored(self, ranges: Sequence[OffsetRange]) -> int:
        """How many events of the ranges the event store has."""
        columns = [list(column) for column in zip(*ranges, strict=True)]
        async with self._postgres.transaction(snapshot=True, deadline_s=READ_DEADLINE_S) as connection:
            return int(await connection.fetchval(_COUNT_STORED, *columns))

    async def holds_anything(self) -> bool:
        """Whether the manifest has files, or knows of exports."""
        async with self._postgres.session() as connection:
            return bool(await connection.fetchval(_HOLDS))

    async def replace(self, made: NewManifest, *, force: bool) -> None:
        """Raises `Conflict` when the manifest holds anything and `force` is not given; then nothing has changed."""
        covered = [*map(list, zip(*made.checkpoints.items(), strict=True))] or [[], []]
        async with self._postgres.transaction(deadline_s=READ_DEADLINE_S) as connection:
            await connection.execute(_LOCK)
            if not force and await connection.fetchval(_HOLDS):
                raise Conflict("the manifest is not empty")
            await connection.execute(_CLEAR)
            await connection.execute("DELETE FROM lake_files")
            await _insert(connection, made)
            await connection.execute(_SET_CHECKPOINTS, *covered)
            await connection.execute(_RAISE_STORED, *covered)
            await connection.execute(_EXPORTED, *covered)
            await connection.fetchval(_LAST_PLAN, made.last_plan)
            if made.volumes:
                await connection.execute(_VOLUMES, *map(list, zip(*made.volumes, strict=True)))


async def _insert(connection: Connection, made: NewManifest) -> None:
    for is_live, files in ((True, made.live), (False, made.retired)):
        insert = insert_files if is_live else insert_names
        for first in range(0, len(files), _INSERTED_AT_ONCE):
            some = files[first : first + _INSERTED_AT_ONCE]
            await insert(connection, 0, [each.file for each in some])
            keys, plan_ids = [each.file.key for each in some], [each.plan_id for each in some]
            await connection.execute(_SET_PLANS, keys, plan_ids, [is_live] * len(some))
