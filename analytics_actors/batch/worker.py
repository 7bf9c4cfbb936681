"""Counts pieces of a batch job again, one after the other: what a Ray task of the job does.

A piece that cannot be counted as a whole (the lake is away, a file of it is damaged) changes nothing and is given back:
it comes again after a pause that doubles, and what it is waiting for is told with the job. Of two that count the same
day, whoever began later writes (`storage.rollups`); the other reports that it was superseded.
"""

import time
from collections.abc import Awaitable, Callable

from analytics_actors.lake.carrying import CrashPoint, no_crash
from analytics_actors.windows.recount import Recount, Stretch
from storage.batch_jobs import BatchJobs, Outcome, Piece
from storage.errors import Fenced, StorageError
from storage.rollups import DAY_S, day_start

FIRST_PAUSE_S = 10.0
LONGEST_PAUSE_S = 600.0


class BatchWorker:
    """Its collaborators stay open."""

    def __init__(
        self,
        jobs: BatchJobs,
        recount: Recount,
        refresh: Callable[[], Awaitable[None]],
        *,
        clock_s: Callable[[], float] = time.monotonic,
        reached: CrashPoint = no_crash,
    ) -> None:
        """`refresh` reads the metrics' definitions that `recount` goes by."""
        self._jobs = jobs
        self._recount = recount
        self._refresh = refresh
        self._clock_s = clock_s
        self._reached = reached

    async def run(self, job_id: int, worker: str, *, budget_s: float) -> int:
        """Take pieces until none is due or the time is over; how many were counted. Raises what the jobs raise."""
        began_s = self._clock_s()
        counted = 0
        while self._clock_s() - began_s < budget_s:
            piece = await self._jobs.take(job_id, worker)
            if piece is None:
                break
            counted += await self._count(piece)
        return counted

    async def _count(self, piece: Piece) -> bool:
        self._reached("piece taken")
        began_s = self._clock_s()
        try:
            await self._refresh()
            done = await self._recount.run(_stretch_of(piece), audit=True, dry_run=piece.dry_run)
            outcome = Outcome(*done)
        except Fenced:
            outcome = Outcome(superseded=True)
        except StorageError as error:
            pause_s = min(FIRST_PAUSE_S * 2 ** (piece.turn - 1), LONGEST_PAUSE_S)
            await self._jobs.fail(piece, str(error), retry_after_s=pause_s)
            return False
        self._reached("piece counted")
        return await self._jobs.done(piece, outcome._replace(seconds=self._clock_s() - began_s))


def _stretch_of(piece: Piece) -> Stretch:
    plan = piece.plan
    return Stretch(plan.projects, day_start(plan.first_day), day_start(plan.last_day) + DAY_S)
