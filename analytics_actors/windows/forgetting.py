"""Records that the event store has stepped over: windows may have counted them while they could be read.

Nobody knows whether they did. So the windows of the record's partition are counted again from what is stored
(`rebuild.py`), which leaves nothing else in them; then the audit makes of roll-ups what the windows are (`roll_up.py`);
at last days with hours that windows do not tell any more are marked, to be counted again like those with late events.
A crash before the note does it all again, with the same result.
"""

from collections.abc import Mapping
from datetime import date

from analytics_actors.windows.partition import WindowPartition, WindowState
from analytics_actors.windows.shared import WindowShard
from analytics_actors.windows.stepping import step_forever
from storage.rollups import RollupStore, day_of
from storage.set_aside import SetAside, SetAsideRecord
from storage.window_key import lateness_s

STEP_S = 5.0
_HOUR_S = 3600


class Forgetting:
    """Runs until cancelled."""

    def __init__(self, shard: WindowShard, rollups: RollupStore, set_aside: SetAside) -> None:
        self._shard = shard
        self._rollups = rollups
        self._set_aside = set_aside
        self._lateness_s = lateness_s(shard.settings)

    async def run(self) -> None:
        await step_forever(self.step, self._shard.counters, "set-aside records", pause_s=STEP_S)

    async def step(self) -> None:
        for record in await self._set_aside.to_recount(list(self._shard.partitions)):
            owner = self._shard.partitions[record.partition]
            # Where the windows stand before the record, they will be rebuilt.
            if owner.state is not WindowState.LIVE or owner.next_offset <= record.offset:
                continue
            if owner.rebuilt_to <= record.offset:
                await self._shard.leave(owner, WindowState.LOST)
            elif owner.audited:
                # At last, so that no hour is left out that ceased to be told by windows meanwhile.
                for project_id, days in self._days(owner, record).items():
                    await self._rollups.mark_days(project_id, sorted(days))
                await self._set_aside.recounted(record.partition, record.offset)

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
