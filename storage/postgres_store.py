"""The event store in PostgreSQL. The law is `storage.event_store`'s.

A write is one transaction: lock and compare the checkpoints, COPY, dead letters, records of what is only aggregated,
late days, ledger, move the checkpoints.
The locked checkpoint row is the fence (FN-1): a newer owner's `claim` changes it before or waits for it, so
that of two owners one at most commits. A claim does not wait for long: it ends the sessions that hold the row.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence

from config.settings import StoreSettings
from storage.aggregated import Fold, Folded, store_all
from storage.copy_format import gather
from storage.dead_letters import MissingDay, Poison, RowsRefused, copy_rows, insert_dead_letters, split_poison
from storage.errors import Fenced
from storage.event_store import Checkpoint, PartitionWrite, StoredId, WriteResult
from storage.late_marks import LateDays, late_days
from storage.ledger_counts import COUNTED, count, total
from storage.postgres import Connection, Postgres
from storage.postgres_aggregated import merge_records
from storage.set_aside import IS_SET_ASIDE
from storage.statements import statement

SINK = "event_store"

_CHECKPOINTS = "SELECT partition_id, epoch, next_offset FROM checkpoints WHERE sink = $1 AND partition_id = ANY($2)"
_LOCK_CHECKPOINTS = statement("lock_checkpoints")
_MOVE_CHECKPOINTS = statement("move_checkpoints")
_CLAIM_CHECKPOINT = statement("claim_checkpoint")
_END_BLOCKERS = statement("end_blockers")
_ADD_TO_LEDGER = statement("add_to_ledger")
_MARK_LATE_DAYS = statement("mark_late_days")
_ADD_DAYS = statement("add_days")
_SUMMARISE_LOOKUP = statement("summarise_lookup")
_DAYS_SINCE = statement("days_since")
_STEP_OVER = statement("step_over")

# Beside the writes: a claim, the watcher that ends who blocks it, a reading of recent ids, maintenance.
_OTHER_CONNECTIONS = 4
_BLOCKED_AFTER_S = 0.1
# 8 MB of rows, some 20,000 events, at a time.
_PAGES_AT_A_TIME = 1024

_log = logging.getLogger(__name__)


class PostgresStore:
    """`storage.event_store.EventStore` over PostgreSQL; connects when first used. `owner` names its sessions.

    With `lateness_s` (`storage.window_key.lateness_s`), the days of stored events that are too late for any window are
    marked to be recomputed, see `storage.rollups`. `fold` takes out the events that are only aggregated.
    """

    def __init__(
        self, settings: StoreSettings, *, owner: str, lateness_s: float | None = None, fold: Fold = store_all
    ) -> None:
        self._lateness_s = lateness_s
        self._fold = fold
        self._postgres = Postgres(
            settings.postgres_url,
            owner=owner,
            pool_size=settings.max_concurrent_writes + _OTHER_CONNECTIONS,
            deadline_s=settings.write_timeout_seconds,
            connect_timeout_s=settings.connect_timeout_s,
        )
        self._days_ahead = settings.partition_days_ahead
        # One claim at a time: each may need two connections, and none may starve another of the second.
        self._claiming = asyncio.Lock()

    async def checkpoints(self, partitions: Sequence[int]) -> list[Checkpoint]:
        async with self._postgres.session() as connection:
            rows = await connection.fetch(_CHECKPOINTS, SINK, partitions)
        found = {row["partition_id"]: Checkpoint(*row) for row in rows}
        return [found.get(partition, Checkpoint(partition, 0, 0)) for partition in partitions]

    async def claim(self, partition: int, *, epoch: int) -> Checkpoint:
        async with self._claiming, self._postgres.session() as connection:
            ending = asyncio.create_task(self._end_blockers(connection.get_server_pid(), partition, epoch))
            try:
                row = await connection.fetchrow(_CLAIM_CHECKPOINT, SINK, partition, epoch)
            finally:
                ending.cancel()
                await asyncio.gather(ending, return_exceptions=True)
        if row is None:
            raise Fenced(f"partition {partition} was claimed under an epoch later than {epoch}")
        return Checkpoint(*row)

    async def _end_blockers(self, claiming_pid: int, partition: int, epoch: int) -> None:
        """End the sessions that a claim waits for: a stopped owner within COPY heeds no cancelling."""
        while True:
            await asyncio.sleep(_BLOCKED_AFTER_S)
            async with self._postgres.session() as connection:
                blockers = await connection.fetch(_END_BLOCKERS, claiming_pid, SINK, partition, epoch)
            for blocker in blockers:
                fields = {"action": "end_blocker", "partition": partition, "epoch": epoch, "pid": blocker["pid"]}
                _log.warning("ended a session of an older owner that held a checkpoint", extra=fields)

    async def write(self, writes: Sequence[PartitionWrite]) -> WriteResult:
        # Beside the event loop: for the time of a large write it would answer no append.
        folded, marks = await asyncio.to_thread(self._prepare, writes)
        try:
            return await self._write(writes, folded, marks)
        except MissingDay:
            await self._add_days()
            return await self._write(writes, folded, marks)

    def _prepare(self, writes: Sequence[PartitionWrite]) -> tuple[Folded, LateDays | None]:
        rows = gather(writes)
        return self._fold(rows), None if self._lateness_s is None else late_days(rows, self._lateness_s)

    async def _write(self, writes: Sequence[PartitionWrite], folded: Folded, marks: LateDays | None) -> WriteResult:
        """Each turn but the last finds at least one poison row."""
        poison: list[Poison] = []
        while True:
            try:
                return await self._commit(writes, folded, marks, poison)
            except RowsRefused as refused:
                rows, found = await split_poison(self._postgres, folded.rows, refused.refusal)
                folded = folded._replace(rows=rows)
                poison += found
                _log.warning("rows became dead letters", extra={"action": "dead_letters", "rows": len(found)})

    async def _commit(
        self, writes: Sequence[PartitionWrite], folded: Folded, marks: LateDays | None, poison: Sequence[Poison]
    ) -> WriteResult:
        async with self._postgres.transaction() as connection:
            await _lock_checkpoints(connection, writes)
            await copy_rows(connection, folded.rows)
            await insert_dead_letters(connection, poison)
            overflow = await merge_records(connection, folded.records, max_groups=folded.max_groups)
            if marks is not None:
                await connection.execute(_MARK_LATE_DAYS, *marks)
            result = await _add_to_ledger(connection, writes, poison, folded)
            gaps = [(write.partition, write.first_offset, write.next_offset) for write in writes if not write.records]
            if gaps:
                await connection.execute(_STEP_OVER, *zip(*gaps, strict=True))
            partitions = [write.partition for write in writes]
            await connection.execute(_MOVE_CHECKPOINTS, SINK, partitions, [write.next_offset for write in writes])
        return result._replace(overflow=overflow)

    async def is_set_aside(self, partition: int, offset: int) -> bool:
        async with self._postgres.session() as connection:
            return bool(await connection.fetchval(IS_SET_ASIDE, partition, offset))

    async def recent_ids(self, partitions: Sequence[int], *, since_ms: int) -> AsyncIterator[Sequence[StoredId]]:
        """Page range by page range of the daily partitions, so that each query is short and none holds a snapshot."""
        async with self._postgres.session() as connection:
            days = await connection.fetch(_DAYS_SINCE, since_ms)
        for name, pages in days:
            for first in range(0, pages, _PAGES_AT_A_TIME):
                async with self._postgres.session() as connection:
                    rows = await connection.fetch(
                        _ids_statement(name), (first, 0), (first + _PAGES_AT_A_TIME, 0), since_ms, partitions
                    )
                if rows:
                    yield [StoredId(*row) for row in rows]

    async def prepare_days(self) -> None:
        await self._add_days()
        async with self._postgres.session() as connection:
            await connection.execute(_SUMMARISE_LOOKUP)

    async def _add_days(self) -> None:
        async with self._postgres.session() as connection:
            await connection.execute(_ADD_DAYS, self._days_ahead)

    async def close(self) -> None:
        await self._postgres.close()


async def _lock_checkpoints(connection: Connection, writes: Sequence[PartitionWrite]) -> None:
    """Raises `Fenced` unless every checkpoint stands where its write begins, under its epoch."""
    rows = await connection.fetch(_LOCK_CHECKPOINTS, SINK, [write.partition for write in writes])
    found = {row["partition_id"]: (row["epoch"], row["next_offset"]) for row in rows}
    for write in writes:
        if found.get(write.partition) != (write.epoch, write.first_offset):
            raise Fenced(
                f"partition {write.partition} has (epoch, next offset) {found.get(write.partition)}, "
                f"not {(write.epoch, write.first_offset)}"
            )


async def _add_to_ledger(
    connection: Connection, writes: Sequence[PartitionWrite], poison: Sequence[Poison], folded: Folded
) -> WriteResult:
    counts = count(writes, [refused.key for refused in poison], folded.folded)
    if counts:
        columns = [[getattr(counted, name) for counted in counts.values()] for name in COUNTED]
        await connection.execute(
            _ADD_TO_LEDGER, [key.project_id for key in counts], [key.hour for key in counts], *columns
        )
    return total(counts.values())


def _ids_statement(day: str) -> str:
    """`day` is a table's name out of the catalogue."""
    return f"""
        SELECT project_id, event_id, (extract(epoch FROM created_at) * 1000)::bigint
        FROM {day}
        WHERE ctid >= $1 AND ctid < $2 AND created_at >= to_timestamp($3 / 1000.0) AND partition_id = ANY($4)
    """
