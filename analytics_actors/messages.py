"""What crosses between gateways, controller and batchers: plain values, MessagePack inside Ray calls."""

from typing import Any

import msgspec

APPENDED = 0
"""In the log, on disk."""
REPEATED = 1
"""This very batch was appended before: nothing was done."""
NOT_OWNER = 2
"""The partition belongs to somebody else now."""
FULL = 3
"""The log or the shard's queue is at its bound."""
UNAVAILABLE = 4
"""The log cannot be reached, or the partition is not open yet: the outcome may be unknown."""


CONTROLLER_NAME = "controller"


def batcher_name(shard: int) -> str:
    """The Ray name of a shard's batcher, as the dashboard and the logs show it."""
    return f"batcher-{shard}"


def aggregator_name(shard: int) -> str:
    """The Ray name of a shard's aggregator."""
    return f"aggregator-{shard}"


def exporter_name(shard: int) -> str:
    """The Ray name of a shard's exporter."""
    return f"exporter-{shard}"


def keeper_name() -> str:
    """The Ray name of the lake's keeper, of which there is one."""
    return "lake-keeper"


class AppendReply(msgspec.Struct, array_like=True, frozen=True):
    """The outcome of one batch of an append call, in the order of the call."""

    status: int
    offset: int = -1
    duplicates: bytes = b""
    """Bitmap of the rows that were known, as in `storage.event_batch`."""


class PartitionView(msgspec.Struct, frozen=True):
    """One owned partition, as `observe()` shows it. Offsets count records."""

    partition: int
    state: str
    epoch: int
    next_offset: int
    checkpoint: int
    lag_events: int
    window_ids: int


class BatcherView(msgspec.Struct, frozen=True):
    """A cheap snapshot of one batcher; read by the controller, the status page, the metrics and tests."""

    shard: int
    pid: int
    started_ms: int
    open_partitions: int
    partitions: list[PartitionView]
    waiting_events: int
    waiting_bytes: int
    lag_events: int
    lag_s: float
    log_bytes: int
    resident_bytes: int
    window_ids: int
    window_bytes: int
    counters: dict[str, float]
    """Running totals since the actor's start, by the names of the metrics catalogue."""
    trouble: str
    """What the batcher waits for at the moment, in words; empty when all is well."""


class WindowPartitionView(msgspec.Struct, frozen=True):
    """One partition of an aggregator. Its records below `next_offset` are counted."""

    partition: int
    state: str
    """`analytics_actors.windows.partition.WindowState`; only of a live one are metrics complete."""
    epoch: int
    next_offset: int
    watermark_ms: int
    projects: int


class AggregatorView(msgspec.Struct, frozen=True):
    """A cheap snapshot of one aggregator; read by the controller, the status page, the metrics and tests."""

    shard: int
    pid: int
    started_ms: int
    live_partitions: int
    partitions: list[WindowPartitionView]
    watermark_ms: int
    """The latest receipt that was counted, over all partitions."""
    lag_s: float
    """How long after its receipt the newest counted event was counted; 0 when nothing is left to count."""
    open_windows: int
    waiting_windows: int
    """Closed ones that are not rolled up yet."""
    resident_windows: int
    groups: int
    resident_bytes: int
    late_events: int
    overflow_groups: int
    recomputing: bool
    late_days_left: int
    patterns: dict[str, Any]
    counters: dict[str, float]
    """Running totals since the actor's start."""
    trouble: str
    """What the aggregator waits for at the moment, in words; empty when all is well."""


class LakePartitionView(msgspec.Struct, frozen=True):
    """One partition of an exporter. Records below `checkpoint` are in the lake, those below `stored` may be."""

    partition: int
    epoch: int
    checkpoint: int
    stored: int


class ExporterView(msgspec.Struct, frozen=True):
    """A cheap snapshot of one exporter; read by the controller, the status page, the metrics and tests."""

    shard: int
    pid: int
    started_ms: int
    claimed: bool
    partitions: list[LakePartitionView]
    lag_records: int
    """Records that are stored and not in the lake."""
    held_s: float
    """How long the oldest event that is held has been held."""
    resident_bytes: int
    open_plan: int
    """The plan under way; 0 for none."""
    last_export_ms: int
    """When a plan was last committed, 0 if never since the start."""
    counters: dict[str, float]
    """Running totals since the actor's start, by the names of the metrics catalogue."""
    trouble: str
    """What the exporter waits for at the moment, in words; empty when all is well."""


class DeliveriesView(msgspec.Struct, frozen=True):
    """How the lake's destinations are served, all together."""

    destinations: int
    """Those that are enabled."""
    failing: int
    """Of these, those whose last try has failed."""
    counters: dict[str, float]
    trouble: str


class KeeperView(msgspec.Struct, frozen=True):
    """A cheap snapshot of the lake keeper; read by the controller, the status page, the metrics and tests."""

    pid: int
    started_ms: int
    hours_to_compact: int
    """As last asked, those that are set aside too."""
    hours_set_aside: int
    """Hours whose files could not be merged; they are tried again from time to time."""
    open_plan: int
    """The merge under way; 0 for none."""
    strangers: int
    """Objects under names of the lake that this manifest knows nothing of."""
    last_run_ms: int
    """When it last looked for work, 0 if never since the start."""
    last_merge_ms: int
    last_retention_ms: int
    """When a run of the retention last came to its end, 0 if never since the start."""
    counters: dict[str, float]
    """Running totals since the actor's start, by the names of the metrics catalogue."""
    trouble: str
    """What the keeper waits for at the moment, in words; empty when all is well."""
    destinations: int = 0
    """Those that are enabled; and of these the ones whose last try has failed."""
    destinations_failing: int = 0


_replies_encoder = msgspec.msgpack.Encoder()
_replies_decoder = msgspec.msgpack.Decoder(list[AppendReply])


def encode_replies(replies: list[AppendReply]) -> bytes:
    return _replies_encoder.encode(replies)


def decode_replies(raw: bytes) -> list[AppendReply]:
    return _replies_decoder.decode(raw)


def to_plain(view: msgspec.Struct) -> dict[str, Any]:
    """A view as JSON-ready dictionaries."""
    plain: dict[str, Any] = msgspec.to_builtins(view)
    return plain
