"""What the parts of the aggregator need beside the stores."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from storage.event_store import Checkpoint
from storage.partition_log import LogState

StoredCheckpoints = Callable[[Sequence[int]], Awaitable[Sequence[Checkpoint]]]
"""`storage.event_store.EventStore.checkpoints`."""

LogStates = Callable[[Sequence[int]], Awaitable[Sequence[LogState | None]]]
"""`storage.partition_log.PartitionLog.state`."""

Compute = Callable[..., Awaitable[Any]]
"""Runs a function with its arguments beside the event loop: `asyncio.to_thread`."""

in_thread: Compute = asyncio.to_thread
