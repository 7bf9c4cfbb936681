"""Taking partitions over in the window store, and noticing that one is not ours or not whole any more."""

from collections.abc import Sequence

from analytics_actors.windows.definition_book import DefinitionBook
from analytics_actors.windows.partition import WindowPartition, WindowState
from analytics_actors.windows.shared import WindowShard
from analytics_actors.windows.sources import StoredCheckpoints
from analytics_actors.windows.stepping import step_forever
from storage.errors import Fenced
from storage.window_store import WindowsCheckpoint, WindowStore

STEP_S = 0.25
GAP_INTERVAL_S = 0.5
VERIFY_INTERVAL_S = 4.0
"""FLUSHALL is noticed within it, also in partitions that nothing is appended to."""


class Opening:
    """Runs until cancelled: claims partitions, verifies live ones, sends lost ones to their rebuild."""

    def __init__(self, shard: WindowShard, store: WindowStore, stored: StoredCheckpoints, book: DefinitionBook) -> None:
        self._shard = shard
        self._store = store
        self._stored = stored
        self._book = book
        self._verified_s = 0.0
        self._looked_s = 0.0

    async def run(self) -> None:
        await step_forever(self.step, self._shard.counters, "opening", pause_s=STEP_S)

    async def step(self) -> None:
        """What is to be done now. Raises what the services raise; may be called again then."""
        # Before its definitions are known nothing can be counted.
        if not self._book.loaded:
            return
        opening = self._shard.in_state(WindowState.OPENING)
        if opening:
            await self._claim(opening)
        now_s = self._shard.clock_s()
        if now_s - self._looked_s >= GAP_INTERVAL_S:
            self._looked_s = now_s
            await self._look_behind_gaps()
        if now_s - self._verified_s >= VERIFY_INTERVAL_S:
            self._verified_s = now_s
            await self._verify()

    async def _claim(self, owners: Sequence[WindowPartition]) -> None:
        known = await self._store.checkpoints([owner.partition for owner in owners])
        for owner, checkpoint in zip(owners, known, strict=True):
            if owner.state is WindowState.OPENING:
                await self._claim_one(owner, checkpoint)

    async def _claim_one(self, owner: WindowPartition, known: WindowsCheckpoint | None) -> None:
        if known and owner.claimed_epoch and known.epoch > owner.claimed_epoch:
            owner.state = WindowState.FENCED
            return
        take_epoch(owner, known, self._shard.clock_s())
        try:
            checkpoint = await self._store.claim(owner.partition, epoch=owner.claimed_epoch)
        except Fenced:
            owner.state = WindowState.FENCED
            return
        async with self._shard.turn:
            self._shard.forget(owner)
            if checkpoint is None:
                owner.state = WindowState.LOST
                return
            owner.claimed(checkpoint)
            if owner.state is WindowState.LIVE:
                go_on(owner, self._book)

    async def _look_behind_gaps(self) -> None:
        """Where the log does not go on, or cannot be read: the event store has what is missing, or nothing is."""
        owners = [owner for owner in self._shard.in_state(WindowState.LIVE) if owner.at_gap]
        owners += self._shard.in_state(WindowState.UNREADABLE)
        if not owners:
            return
        checkpoints = await self._stored([owner.partition for owner in owners])
        for owner, checkpoint in zip(owners, checkpoints, strict=True):
            is_unreadable = owner.state is WindowState.UNREADABLE
            if not is_unreadable and not (owner.at_gap and owner.state is WindowState.LIVE):
                continue
            if checkpoint.next_offset > owner.next_offset:
                self._shard.counters.clear_trouble(f"partition {owner.partition}")
                await self._shard.leave(owner, WindowState.LOST)
            elif not is_unreadable:
                owner.at_gap = False

    async def _verify(self) -> None:
        owners = self._shard.in_state(WindowState.LIVE, WindowState.BUILDING)
        before = [(owner, owner.state, owner.epoch) for owner in owners]
        checkpoints = await self._store.checkpoints([owner.partition for owner in owners])
        for (owner, state, epoch), checkpoint in zip(before, checkpoints, strict=True):
            if (owner.state, owner.epoch) != (state, epoch):
                continue
            if checkpoint is None or checkpoint.epoch < epoch:
                await self._shard.leave(owner, WindowState.LOST)
            elif checkpoint.epoch > epoch:
                await self._shard.leave(owner, WindowState.FENCED)


def take_epoch(owner: WindowPartition, known: WindowsCheckpoint | None, now_s: float) -> None:
    """Choose the epoch to ask for. After a lost Redis the clock alone says which is newer: in microseconds, so that
    several claims in a moment do not run ahead of it."""
    newest = max(owner.claimed_epoch, owner.epoch, known.epoch if known else 0)
    owner.claimed_epoch = max(int(now_s * 1_000_000), newest + 1)


def go_on(owner: WindowPartition, book: DefinitionBook) -> None:
    """Live, or first to get the windows of definitions that were changed meanwhile."""
    owner.state = WindowState.BUILDING if book.mismatched(owner.built) else WindowState.LIVE
    book.apply_built(owner.built)
