"""Records that the event store has stepped over: windows may have counted them while they could be read.

Nobody knows whether they did. So the projects whose events the record has, all of the partition's where it does not
tell, have their windows counted again from what is stored, as for changed definitions (`windows.builder`); what is
older is counted again by its days.
"""

from collections.abc import Mapping
from datetime import date

from analytics_actors.windows.definition_book import outdated
from analytics_actors.windows.in_place import publish_in_place
from analytics_actors.windows.partition import WindowPartition, WindowState
from analytics_actors.windows.shared import WindowShard
from analytics_actors.windows.stepping import step_forever
from storage.rollups import RollupStore, day_of
from storage.set_aside import SetAside, SetAsideRecord
from storage.window_key import lateness_s
from storage.window_store import WindowStore

STEP_S = 5.0
_HOUR_S = 3600


class Forgetting:
    """Runs until cancelled."""

    def __init__(self, shard: WindowShard, store: WindowStore, rollups: RollupStore, set_aside: SetAside) -> None:
        self._shard = shard
        self._store = store
        self._rollups = rollups
        self._set_aside = set_aside
        self._lateness_s = lateness_s(shard.settings)

    async def run(self) -> None:
        await step_forever(self.step, self._shard.counters, "set-aside records", pause_s=STEP_S)

    async def step(self) -> None:
        for record in await self._set_aside.to_recount(list(self._shard.partitions)):
            owner = self._shard.partitions[record.partition]
            # Where the windows stand before the record, they will be rebuilt: then it is looked at again.
            if owner.state is WindowState.LIVE and owner.next_offset > record.offset:
                await self._forget(owner, record)

    async def _forget(self, owner: WindowPartition, record: SetAsideRecord) -> None:
        for project_id, days in self._days(owner, record).items():
            await self._rollups.mark_days(project_id, sorted(days))
        async with self._shard.turn:
            # A building under way would end with its own word for what is built.
            if owner.state is not WindowState.LIVE:
                return
            built = {project_id: outdated(owner.built[project_id]) for project_id in self._projects(owner, record)}
            if not await publish_in_place(self._shard, self._store, owner, [], built):
                return
        # What is to be built is in the checkpoint now: another life would do it too.
        await self._set_aside.recounted(record.partition, record.offset)

    def _projects(self, owner: WindowPartition, record: SetAsideRecord) -> set[str]:
        known = owner.built.keys()
        return set(known) if record.counts is None else {lost.project_id for lost in record.counts} & known

    def _days(self, owner: WindowPartition, record: SetAsideRecord) -> Mapping[str, set[date]]:
        """The days that its events in time may be of."""
        if record.counts is None:
            received = int(record.set_aside_at.timestamp())
            hours = [(project_id, received) for project_id in owner.built]
        else:
            hours = [(lost.project_id, lost.hour * _HOUR_S) for lost in record.counts if lost.lost]
        days: dict[str, set[date]] = {}
        for project_id, hour in hours:
            first, last = hour - int(self._lateness_s), hour + _HOUR_S + int(self._shard.max_ahead_s)
            days.setdefault(project_id, set()).update(day_of(second) for second in range(first, last, _HOUR_S))
        return days
