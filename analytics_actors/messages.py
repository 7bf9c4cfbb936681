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

SWITCH_INTERVAL_S = 0.002
"""For `sys.setswitchinterval`, in the processes at both ends of a call. Ray hands every call and every answer over
between threads, and each of them waits for Python's lock up to this long (default: 5 ms) while the loop is busy."""


def batcher_name(shard: int) -> str:
    """The Ray name of a shard's batcher, as the dashboard and the logs show it."""
    return f"batcher-{shard}"


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
