"""What the aggregator knows of one of its partitions. State only; everything acts on it in one event loop."""

from enum import StrEnum

from storage.window_store import WindowsCheckpoint


class WindowState(StrEnum):
    OPENING = "opening"
    """To be claimed in the window store: at the start, and after a publication of unknown outcome."""
    LIVE = "live"
    """Its log is followed."""
    LOST = "lost"
    """The windows or the records that they need are gone: to be rebuilt from the event store."""
    REBUILDING = "rebuilding"
    BUILDING = "building"
    """Paused at its offset while the windows of new definitions are made from stored events."""
    UNREADABLE = "unreadable"
    """A record cannot be read by this release: the partition stands still before it, until the event store is behind it
    and the windows are rebuilt from there."""
    FENCED = "fenced"
    """Another owner has it."""


class WindowPartition:
    """`next_offset`, `watermark_ms` and `built` are as published, never ahead of it (CK-1)."""

    def __init__(self, partition: int) -> None:
        self.partition = partition
        self.state = WindowState.OPENING
        self.epoch = 0
        self.next_offset = 0
        self.counting_to = 0
        """Records below it are being counted, and days may have been marked for them."""
        self.watermark_ms = 0
        self.built: dict[str, str] = {}
        """By project: the definitions that its windows were built for; the projects that have windows here."""
        self.claimed_epoch = 0
        """The newest epoch that this owner has asked for: a newer one in the store is somebody else's."""
        self.at_gap = False
        """The log does not go on at `next_offset`. The event store will tell of what is missing, if anything is."""
        self.audited = False
        """Whether the roll-ups were compared with the windows since this owner has them."""
        self.doubtful = False
        """Whether every roll-up has to be written anew, whatever the comparison says."""
        self.rebuilt_to = 0
        """The windows were counted from stored events below it, all of them, by this owner; what the log has said of
        these records is not in them."""

    def claimed(self, checkpoint: WindowsCheckpoint) -> None:
        self.epoch = checkpoint.epoch
        self.next_offset = checkpoint.next_offset
        self.watermark_ms = checkpoint.watermark_ms
        self.built = dict(checkpoint.built)
        self.at_gap = False
        self.counting_to = checkpoint.next_offset
        if checkpoint.state == "live":
            self.state = WindowState.LIVE
            self.audited = False
        else:
            self.state = WindowState.LOST

    def advance(self, next_offset: int, watermark_ms: int, built: dict[str, str]) -> None:
        """A publication has succeeded. The watermark never moves back (WM-1)."""
        self.next_offset = next_offset
        self.watermark_ms = max(self.watermark_ms, watermark_ms)
        self.built |= built

    def rebuild_done(self, next_offset: int, watermark_ms: int, built: dict[str, str]) -> None:
        self.next_offset = self.counting_to = self.rebuilt_to = next_offset
        self.watermark_ms = max(self.watermark_ms, watermark_ms)
        self.built = built
        self.at_gap = self.audited = False
        self.state = WindowState.LIVE
