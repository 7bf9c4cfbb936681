"""Where the windows of an answer come from: the window store, the roll-ups, stored events.

Hours from `live_from` on are answered from windows, earlier ones from roll-ups: no hour from both, none from neither.
While the windows cannot be asked, the live hours are counted from stored events (`degraded`). Days that roll-ups do not
tell (`rollup_reads.py`) are counted from stored events too, in the lake where PostgreSQL has them no more, within
bounds; what is beyond them is said to be missing, and how it can be had.

**Counts never go down.** Windows follow the log and may be ahead of the event store, or behind it when an aggregator
starts anew. So it is remembered, for each partition, up to which offset answers have counted: windows that are not as
far are not asked, and stored events are waited for, for a moment. All workers of a machine remember together.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime

from config.settings import WindowSettings
from gateway import event_counts
from gateway.counted_offsets import CountedOffsets
from gateway.errors import ApiError
from gateway.event_counts import EventCounts, PlacedEvents, StoreProgress, TooManyEvents
from gateway.metric_query import DAY_S, HOUR_S, Plan
from gateway.metric_read import Interval, Read
from gateway.rollup_reads import PastDays, RollupReads
from gateway.window_reads import Unusable, WindowReads
from storage.errors import FileUnavailable, Misconfigured, Unavailable
from storage.rollups import RollupStore
from storage.window_key import lateness_s, live_from
from storage.window_store import WindowStore

PAST_DEADLINE_S = 8.0
"""For counting days that roll-ups do not tell: what is not counted by then is missing."""

REDIS_PAUSE_S = 1.0
"""After a failure Redis is left alone so long: each answer would wait for its deadline."""

_log = logging.getLogger(__name__)


class MetricReader:
    """One per worker."""

    def __init__(
        self,
        settings: WindowSettings,
        windows: WindowStore,
        rollups: RollupStore,
        events: PlacedEvents,
        progress: StoreProgress,
        past_days: PastDays,
        *,
        partitions: int,
        max_ahead_s: float,
        rollup_days: int = 0,
        counted: CountedOffsets | None = None,
        clock_s: Callable[[], float] = time.time,
    ) -> None:
        """No event's time is later than its receipt by more than `max_ahead_s`. Roll-ups are kept for `rollup_days`,
        for ever if it is 0."""
        self._settings = settings
        offsets = counted or CountedOffsets(partitions=partitions)
        self._windows = WindowReads(windows, offsets, partitions=partitions)
        self._rollups = RollupReads(rollups, past_days)
        self._events = EventCounts(events, progress, offsets, partitions=partitions)
        self._max_ahead_s = max_ahead_s
        self._rollup_days = rollup_days
        self._clock_s = clock_s
        self._redis_away_until = 0.0

    @property
    def now_s(self) -> float:
        return self._clock_s()

    def is_closed(self, plan: Plan) -> bool:
        """Whether the plan's range lies wholly in the time of the roll-ups."""
        return self._settings.enabled and plan.end <= live_from(self._clock_s(), self._settings)

    async def read(self, plan: Plan) -> Read:
        """Raises `ApiError` where the answer would take too much, `StorageError` where nobody can answer."""
        now_s = self._clock_s()
        live = live_from(now_s, self._settings) if self._settings.enabled else plan.start
        read = Read(datetime.fromtimestamp(now_s, UTC))
        rolled = Interval(plan.start, min(plan.end, live))
        # Nothing is later, so nothing is asked for it.
        latest = (int(now_s + self._max_ahead_s) // DAY_S + 1) * DAY_S
        current = Interval(max(plan.start, live), min(plan.end, latest))
        if rolled.start < rolled.end:
            await self._read_past(plan, read, rolled)
        if current.start < current.end:
            await self._read_current(plan, read, current)
        return read

    # Roll-ups, and what they do not tell

    async def _read_past(self, plan: Plan, read: Read, interval: Interval) -> None:
        untold = await self._rollups.untold(plan, interval)
        await self._rollups.read(plan, read, interval, apart=[run for run, _ in untold])
        await self._name_expired(plan, read, interval)
        left = event_counts.MAX_COUNTED_EVENTS
        until_s = time.monotonic() + PAST_DEADLINE_S
        # The newest first: who looks at a range that is too much for one answer sees at least its end.
        for run, events in reversed(untold):
            left -= events
            await self._count_past(plan, read, run, fits=left >= 0, until_s=until_s)

    async def _count_past(self, plan: Plan, read: Read, run: Interval, *, fits: bool, until_s: float) -> None:
        because = "the metric was not counted then, and it is too many events to count for one answer"
        if fits:
            try:
                async with asyncio.timeout(max(0.0, until_s - time.monotonic())):
                    await self._events.read(plan, read, run, late_s=None)
                return
            except TooManyEvents:
                pass
            except TimeoutError:
                because = "the metric was not counted then, and counting its events takes too long for one answer"
            except FileUnavailable as error:
                because = f"the metric was not counted then, and a file of its events cannot be had: {error}"
            except Unavailable as error:
                _log.warning("metrics lack days", extra={"action": "past_unavailable", "reason": str(error)})
                because = "the metric was not counted then, and the events cannot be had at the moment"
        read.lacks(run, because, f"Count it once: POST /v1/metrics-definitions/{plan.definition.name}/backfill")

    async def _name_expired(self, plan: Plan, read: Read, interval: Interval) -> None:
        """Of what is older than roll-ups are kept nothing is told, unless there are some all the same."""
        kept_from = int(self._clock_s()) // DAY_S * DAY_S - self._rollup_days * DAY_S
        expired = Interval(interval.start, min(interval.end, kept_from))
        if not self._rollup_days or expired.start >= expired.end:
            return
        if await self._rollups.lost(plan, expired):
            hint = "The setting retention.rollup_days says how long they are kept."
            read.lacks(expired, "roll-ups are not kept for so long", hint)

    # Live hours

    async def _read_current(self, plan: Plan, read: Read, interval: Interval) -> None:
        if not self._settings.enabled:
            await self._count_events(plan, read, interval, late_s=None)
            return
        rolled = True
        try:
            if time.monotonic() < self._redis_away_until:
                raise Unavailable("Redis did not answer a moment ago")
            await self._windows.read(plan, read, interval)
            return
        except (Unavailable, Misconfigured) as error:
            if self._redis_away_until <= time.monotonic():
                fields = {"action": "windows_unavailable", "reason": str(error)}
                _log.warning("metrics are answered without windows", extra=fields)
                self._redis_away_until = time.monotonic() + REDIS_PAUSE_S
            read.degraded_because = "Redis does not answer"
        except Unusable as unusable:
            read.degraded_because, rolled = str(unusable), unusable.rolled
        await self._read_without_windows(plan, read, interval, rolled=rolled)

    async def _read_without_windows(self, plan: Plan, read: Read, interval: Interval, *, rolled: bool) -> None:
        """The live hours from stored events, without those that are too late for windows; where they are too many, the
        closed hours from roll-ups, which lack what came late in the last seconds."""
        if rolled and await self._rollups.events_about(plan, interval) > event_counts.MAX_COUNTED_EVENTS:
            closed_until = int(self._clock_s() - 2 * self._settings.close_after_s) // HOUR_S * HOUR_S
            closed = Interval(interval.start, min(max(closed_until, interval.start), interval.end))
            if closed.start < closed.end:
                await self._rollups.read(plan, read, closed)
            interval = Interval(closed.end, interval.end)
        if interval.start < interval.end:
            await self._count_events(plan, read, interval, late_s=lateness_s(self._settings))

    async def _count_events(self, plan: Plan, read: Read, interval: Interval, *, late_s: float | None) -> None:
        try:
            await self._events.read(plan, read, interval, late_s=late_s)
        except TooManyEvents:
            because = f" ({read.degraded_because})" if read.degraded_because else ""
            most = event_counts.MAX_COUNTED_EVENTS
            message = f"More than {most} stored events would have to be counted for this answer{because}."
            hint = "Ask for a shorter range, or again later."
            raise ApiError("unavailable", message, hint=hint, retry_after_s=10) from None
