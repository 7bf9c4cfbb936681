"""The lake's manifest in PostgreSQL. The law is `storage.lake_manifest`'s.

Every operation of an exporter locks the checkpoints of its partitions first and its plan then, a claim as well: of two
owners one sees what the other did. Swaps lock the files that they retire, in their order.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from storage.errors import Fenced
from storage.event_store import Checkpoint
from storage.lake_manifest import (
    SWAP_TIME_S,
    CommitOutcome,
    LakeFile,
    OffsetRange,
    Plan,
    StoredMark,
    Swap,
    SwapKind,
    SwapOutcome,
    check_files,
    check_swap,
)
from storage.postgres import Connection, Postgres
from storage.postgres_lake_files import add_volumes, insert_files, load_files
from storage.postgres_store import SINK as EVENT_STORE
from storage.statements import statement

SINK = "lake"

CLOCKS_APART_S = 5.0
"""Between the clocks of servers that take over from one another."""

_CLAIM = statement("claim_lake")
_CANCEL_SPLIT = statement("cancel_split_plans")
_MARKS = statement("stored_marks")
_OPEN_PLANS = statement("open_plans")
_BEGIN_PLAN = statement("begin_plan")
_LOCK_PLAN = statement("lock_plan")
_END_PLAN = statement("end_plan")
_LOCK_CHECKPOINTS = statement("lock_checkpoints")
_MOVE_CHECKPOINTS = statement("move_checkpoints")
_INSERT_EXPORTS = statement("insert_exports")
_ADVANCE_TAILS = statement("advance_tails")
_LOCK_LIVE = statement("lock_live_files")
_BUSY = statement("busy_files")
_OPEN_SWAPS = statement("open_swaps")
_RETIRE = statement("retire_files")
_KEEP_EXPORT_TIME = statement("keep_export_time")
_STORED = "SELECT partition_id, next_offset FROM checkpoints WHERE sink = $1 AND partition_id = ANY($2)"


class PostgresManifest:
    """`storage.lake_manifest.LakeManifest`. Every call has the deadline of the `Postgres` it is given.

    `write_timeout_s` is that of the event store (`StoreSettings.write_timeout_seconds`): no row has been written by
    a transaction that began earlier."""

    def __init__(self, postgres: Postgres, *, write_timeout_s: float) -> None:
        self._postgres = postgres
        self._write_timeout_s = write_timeout_s

    async def claim(self, partitions: Sequence[int]) -> dict[int, Checkpoint]:
        async with self._postgres.transaction() as connection:
            rows = await connection.fetch(_CLAIM, partitions)
            await connection.execute(_CANCEL_SPLIT, partitions)
        return {row["partition_id"]: Checkpoint(*row) for row in rows}

    async def stored(self, partitions: Sequence[int]) -> dict[int, StoredMark]:
        async with self._postgres.session() as connection:
            rows = await connection.fetch(_MARKS, partitions, self._write_timeout_s, CLOCKS_APART_S)
        return {row["partition_id"]: StoredMark(*row) for row in rows}

    async def plan(self, ranges: Sequence[OffsetRange], epochs: Mapping[int, int]) -> Plan:
        ordered = tuple(sorted(ranges))
        partitions = [each.partition for each in ordered]
        async with self._postgres.transaction() as connection:
            checkpoints = await _lock_checkpoints(connection, partitions)
            _check_epochs(checkpoints, epochs, partitions)
            for row in await connection.fetch(_OPEN_PLANS, partitions):
                if _plan(row).ranges == ordered:
                    return _plan(row)
                raise Fenced(f"plan {row['plan_id']} is open for one of the partitions")
            _check_begins(checkpoints, ordered)
            await _check_stored(connection, ordered)
            return _plan(await connection.fetchrow(_BEGIN_PLAN, "export", *_columns(ordered), []))

    async def open_plans(self, partitions: Sequence[int]) -> list[Plan]:
        async with self._postgres.session() as connection:
            return [_plan(row) for row in await connection.fetch(_OPEN_PLANS, partitions)]

    async def cancel(self, plan_id: int, epochs: Mapping[int, int]) -> None:
        async with self._postgres.transaction() as connection:
            checkpoints = await _lock_checkpoints(connection, list(epochs))
            plan = await connection.fetchrow(_LOCK_PLAN, plan_id)
            if plan is not None and plan["kind"] == "export" and plan["state"] == "open":
                _check_epochs(checkpoints, epochs, plan["partition_ids"])
                await connection.execute(_END_PLAN, plan_id, "cancelled")

    async def commit(
        self,
        plan_id: int,
        epochs: Mapping[int, int],
        files: Sequence[LakeFile],
        *,
        marks: Sequence[StoredMark] = (),
    ) -> CommitOutcome:
        async with self._postgres.transaction() as connection:
            checkpoints = await _lock_checkpoints(connection, list(epochs))
            plan = await connection.fetchrow(_LOCK_PLAN, plan_id)
            if plan is None or plan["kind"] != "export" or plan["state"] == "cancelled":
                raise Fenced(f"plan {plan_id} is not open any more")
            if plan["state"] == "committed":
                return "repeated"
            ranges = _ranges(plan)
            _check_epochs(checkpoints, epochs, plan["partition_ids"])
            _check_begins(checkpoints, ranges)
            check_files(files, ranges)
            await insert_files(connection, plan_id, files)
            await add_volumes(connection, files)
            await connection.execute(_INSERT_EXPORTS, plan_id, *_columns(ranges))
            await connection.execute(_MOVE_CHECKPOINTS, SINK, plan["partition_ids"], plan["next_offsets"])
            await _advance_tails(connection, marks)
            await connection.execute(_END_PLAN, plan_id, "committed")
        return "committed"

    async def advance_tails(self, marks: Sequence[StoredMark]) -> None:
        async with self._postgres.session() as connection:
            await _advance_tails(connection, marks)

    async def plan_swap(self, kind: SwapKind, file_ids: Sequence[int]) -> int | None:
        async with self._postgres.transaction() as connection:
            live = await connection.fetch(_LOCK_LIVE, file_ids)
            if len(live) < len(set(file_ids)) or await connection.fetch(_BUSY, file_ids, SWAP_TIME_S):
                return None
            if kind != "expire" and len({row["hour"] for row in live}) != 1:
                raise ValueError("the files of a swap are of one hour")
            plan = await connection.fetchrow(_BEGIN_PLAN, kind, [], [], [], file_ids)
            return _plan(plan).plan_id

    async def swap(self, plan_id: int, files: Sequence[LakeFile]) -> SwapOutcome:
        async with self._postgres.transaction() as connection:
            plan = await connection.fetchrow(_LOCK_PLAN, plan_id)
            if plan is not None and plan["state"] == "committed":
                return "repeated"
            if plan is None or plan["kind"] == "export" or plan["state"] != "open":
                return "outdated"
            file_ids = plan["file_ids"]
            if len(await connection.fetch(_LOCK_LIVE, file_ids)) < len(set(file_ids)):
                return "outdated"
            check_swap(plan["kind"], list((await load_files(connection, file_ids)).values()), files)
            await connection.execute(_RETIRE, file_ids)
            await insert_files(connection, plan_id, files)
            await connection.execute(_KEEP_EXPORT_TIME, plan_id, file_ids)
            await connection.execute(_END_PLAN, plan_id, "committed")
        return "committed"

    async def open_swaps(self) -> list[Swap]:
        async with self._postgres.session() as connection:
            rows = await connection.fetch(_OPEN_SWAPS)
        return [Swap(row["plan_id"], row["kind"], tuple(row["file_ids"]), row["created_at"]) for row in rows]

    async def cancel_swap(self, plan_id: int) -> None:
        async with self._postgres.transaction() as connection:
            plan = await connection.fetchrow(_LOCK_PLAN, plan_id)
            if plan is not None and plan["kind"] != "export" and plan["state"] == "open":
                await connection.execute(_END_PLAN, plan_id, "cancelled")


async def _lock_checkpoints(connection: Connection, partitions: Sequence[int]) -> dict[int, Checkpoint]:
    rows = await connection.fetch(_LOCK_CHECKPOINTS, SINK, partitions)
    return {row["partition_id"]: Checkpoint(*row) for row in rows}


def _check_epochs(checkpoints: Mapping[int, Checkpoint], epochs: Mapping[int, int], partitions: Sequence[int]) -> None:
    for partition in partitions:
        found = checkpoints.get(partition)
        if found is None or found.epoch != epochs.get(partition):
            raise Fenced(f"partition {partition} has {found}, not epoch {epochs.get(partition)}")


def _check_begins(checkpoints: Mapping[int, Checkpoint], ranges: Sequence[OffsetRange]) -> None:
    for each in ranges:
        if not checkpoints[each.partition].next_offset == each.first_offset < each.next_offset:
            raise Fenced(f"{each} does not begin at {checkpoints[each.partition]}")


async def _check_stored(connection: Connection, ranges: Sequence[OffsetRange]) -> None:
    """Nobody locks these: they only move on."""
    rows = await connection.fetch(_STORED, EVENT_STORE, [each.partition for each in ranges])
    stored = {row["partition_id"]: row["next_offset"] for row in rows}
    for each in ranges:
        if stored.get(each.partition, 0) < each.next_offset:
            raise Fenced(f"{each} is stored below {stored.get(each.partition, 0)} only")


async def _advance_tails(connection: Connection, marks: Sequence[StoredMark]) -> None:
    if marks:
        await connection.execute(_ADVANCE_TAILS, *map(list, zip(*marks, strict=True)))


def _plan(row: Any) -> Plan:
    return Plan(row["plan_id"], _ranges(row), row["created_at"])


def _ranges(row: Any) -> tuple[OffsetRange, ...]:
    columns = zip(row["partition_ids"], row["first_offsets"], row["next_offsets"], strict=True)
    return tuple(OffsetRange(*each) for each in columns)


def _columns(ranges: Sequence[OffsetRange]) -> tuple[list[int], list[int], list[int]]:
    partitions, firsts, nexts = zip(*ranges, strict=True)
    return list(partitions), list(firsts), list(nexts)
