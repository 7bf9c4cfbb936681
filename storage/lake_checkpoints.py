"""How far the lake is, for whoever only asks: claiming and moving is `storage.lake_manifest`'s."""

from collections.abc import Sequence

from storage.postgres import Postgres

_CHECKPOINTS = "SELECT partition_id, next_offset FROM checkpoints WHERE sink = 'lake' AND partition_id = ANY($1)"


class LakeCheckpoints:
    """Reads them from PostgreSQL."""

    def __init__(self, postgres: Postgres) -> None:
        self._postgres = postgres

    async def read(self, partitions: Sequence[int]) -> dict[int, int]:
        """By partition the lake's next offset; those that were never claimed are left out."""
        async with self._postgres.session() as connection:
            return {row["partition_id"]: row["next_offset"] for row in await connection.fetch(_CHECKPOINTS, partitions)}
