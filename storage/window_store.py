"""The window store: the contract that `RedisWindows` and the in-memory `MemoryWindows` both keep.

It holds the live windows, as absolute values, and for each partition of the log how far they were counted: the
windows-checkpoint. One owner at a time; its right is its epoch, which `claim` (or `begin_rebuild`) takes.

The law:
- `publish` is atomic: what one call carries is there together or not at all, for each partition whole. Each has an
  outcome of its own; one partition's refusal spoils no other.
- A checkpoint moves only from the offset that the caller names, under the caller's epoch (FN-1, CK-1). A
  publication whose `next_offset` is the checkpoint's already is a repetition: it is written again, "published".
- If `publish` raises `Unavailable` the outcome is unknown. The caller repeats the very same publication, or takes a
  new epoch by `claim`; it publishes nothing else of that partition before.
- While a partition is "rebuilding" publications are taken under the epoch alone and move no offset; `reset` ends it.
- Loss is told, never papered over: "lost", None or `LogLost` wherever the checkpoint is not there any more.
- Windows whose time in the store is over are not written. What is published is gone after that time.
- A window that nothing is counted in is not kept with 0: whoever finds that there is none any more publishes it as
  `gone`.
- A call of `publish` should carry some thousands of windows at most: the server does nothing else meanwhile.
- No call blocks longer than the configured deadline.
"""

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple, Protocol

from storage.aggregate import Aggregate
from storage.window_key import Dimensions, Size, WindowKey

PublishOutcome = Literal["published", "fenced", "lost"]


class WindowsCheckpoint(NamedTuple):
    """The records of `partition` below `next_offset` are counted in its windows."""

    partition: int
    epoch: int
    next_offset: int
    built: dict[str, str]
    """By project: which versions of its definitions the windows were built for; the owner's own words."""
    watermark_ms: int
    """The largest received_at that was counted (WM-1); 0 before the first."""
    state: Literal["live", "rebuilding"]
    """Only of a live partition are the windows complete."""


class Publication(NamedTuple):
    """The windows of one partition that the records [from_offset, next_offset) changed, as they are after them."""

    partition: int
    epoch: int
    from_offset: int
    next_offset: int
    watermark_ms: int
    windows: Sequence[tuple[WindowKey, Aggregate]]
    built: Mapping[str, str]
    """Projects whose `built` changes with this publication."""
    gone: Sequence[WindowKey] = ()
    """Windows that are not there any more, none of them among `windows`."""


class WindowStore(Protocol):
    async def checkpoints(self, partitions: Sequence[int]) -> list[WindowsCheckpoint | None]:
        """The checkpoint of each partition, None where there is none."""

    async def claim(self, partition: int, *, epoch: int) -> WindowsCheckpoint | None:
        """Fence older epochs, and return the checkpoint, which is under `epoch` from now on.

        None, and nothing has changed, when there is no checkpoint: the windows were lost, or never built.
        Raises `Fenced` if another owner has this epoch or a newer one. May be repeated after `Unavailable`.
        """

    async def begin_rebuild(self, partition: int, *, epoch: int) -> None:
        """Take the partition under `epoch`, with or without a checkpoint, as "rebuilding": at offset 0. What was built
        stays named until `reset`, because windows of it may still be there.
        Raises `Fenced` as `claim` does."""

    async def reset(self, partition: int, *, epoch: int, next_offset: int, built: Mapping[str, str]) -> None:
        """End a rebuild: the published windows hold everything below `next_offset`, and the partition is live.

        Raises `LogLost` when the rebuild is not there any more (and what it had published neither), `Fenced` when
        another epoch has the partition. May be repeated after `Unavailable`.
        """

    async def publish(self, publications: Sequence[Publication]) -> list[PublishOutcome]:
        """Write windows and checkpoints, at most one publication a partition, with one outcome each."""

    async def load(self, keys: Sequence[WindowKey]) -> list[Aggregate | None]:
        """The window of each key, None where there is none. The caller may change what it gets."""

    async def groups(self, project_id: str, metric: str, size: Size, starts: Sequence[int]) -> list[list[Dimensions]]:
        """For each start the dimensions of all windows there but the total, sorted."""

    async def close(self) -> None: ...
