"""From checked rows to safety: coalesced, appended to the log, or spooled while it cannot be reached.

Rows for one shard wait in its `Lane` and travel together: while appends are under way, what arrives
makes the next one larger, so load raises the size of calls, not their number. A lane that fails to append in
time writes the very same batches, ids and all, to the spool, and from then on everything of it goes through
the spool, in order (OR-1), until the drainer has sent all of it on. The batch id makes it harmless that an
append which looked failed may have succeeded.
"""

import asyncio
import math
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from functools import partial
from typing import NamedTuple, Protocol

import numpy as np

from analytics_actors.messages import APPENDED, FULL, AppendReply
from analytics_actors.ring import HashRing
from config.settings import Settings
from gateway.columns import Part, build_batches
from gateway.rows import Overloaded, Receipt, Row
from gateway.shard_stream import LinkError
from gateway.spooler import Spooler
from storage.errors import SpoolFull
from storage.event_batch import EventBatch, encode_batches
from storage.fingerprint import partition_of

MAX_FLIGHTS = 2
"""Appends under way a lane: one is on its way back while the next is decoded and built."""

FLIGHT_SPACING_S = 0.007
FULL_FLIGHT_ROWS = 500
"""A small flight waits until so long after the one before, or until it has so many rows: what a flight costs, about
0.1 ms of CPU and 0.05 ms more for each partition, is then shared by more events. After a quiet moment an event does not
wait."""

MAX_FLIGHT_EVENTS = 20_000
"""Rows in one append call: a few MB, tens of milliseconds of an actor's time."""
MAX_FLIGHT_BYTES = 16 * 1024 * 1024
"""The same in `row_bytes`, far below `append_stream.MAX_FRAME_BYTES`. A single request may have more: its columns are
made in a thread. Those of 20 MB take 80 to 200 ms, in which no other request would be answered; with all flights of
2 MB and more in the thread a busy gateway stored a fifth less, 1,000 events a request."""

ROW_OVERHEAD_BYTES = 300
"""What a row costs beside its JSON: its other columns and the Python objects around them, roughly."""

OVERLOAD_RETRY_S = 1


class Link(Protocol):
    async def append(self, shard: int, raw: bytes, *, deadline_s: float) -> list[AppendReply]: ...

    async def wait_stored(self, shard: int, partition: int, offset: int, *, deadline_s: float) -> bool: ...


class Waiting(NamedTuple):
    """One request's rows on their way, and the request that waits."""

    part: Part
    partition: int
    size: int
    receipt: "asyncio.Future[Receipt]"


def row_bytes(rows: Sequence[Row]) -> int:
    """What rows count against the bounds of bytes in flight."""
    size = ROW_OVERHEAD_BYTES * len(rows)
    for row in rows:
        size += len(row.properties) + len(row.context or b"")
    return size


def new_batch_id() -> bytes:
    """16 bytes, UUIDv7: the time first, so that ids are met in order."""
    return (time.time_ns() // 1_000_000).to_bytes(6, "big") + os.urandom(10)


class Lane:
    """Everything of this gateway that goes to one shard."""

    def __init__(
        self,
        shard: int,
        link: Link,
        spooler: Spooler,
        *,
        thread: ThreadPoolExecutor,
        deadline_s: float,
        max_bytes: int,
    ) -> None:
        self.shard = shard
        self._link = link
        self._spooler = spooler
        self._thread = thread
        self._deadline_s = deadline_s
        self._max_bytes = max_bytes
        self._waiting: list[Waiting] = []
        self._flights: set[asyncio.Task[None]] = set()
        # First come, first served: no flight overtakes one whose columns are being made, or that waits for the end of a
        # hand-over (OR-1).
        self._turn = asyncio.Lock()
        self._waiting_rows = 0
        self._pause: asyncio.TimerHandle | None = None
        self._taking_off = False
        self._took_off_at = float("-inf")
        self.bytes = 0
        self._answered_bytes_per_s = 0.0

    def put(self, waiting: Waiting) -> None:
        """Raises `Overloaded` at the bound (BP-1)."""
        if self.bytes + waiting.size > self._max_bytes and self.bytes:
            raise Overloaded(f"shard {self.shard} has {self.bytes} bytes on their way", self._retry_after_s())
        self.bytes += waiting.size
        self._waiting.append(waiting)
        self._waiting_rows += len(waiting.part.rows)
        self._schedule()

    def _retry_after_s(self) -> int:
        """When what is on its way will have been taken, at the rate of the last flights."""
        if self._answered_bytes_per_s <= 0:
            return OVERLOAD_RETRY_S
        return min(60, max(OVERLOAD_RETRY_S, math.ceil(self.bytes / self._answered_bytes_per_s)))

    def _schedule(self) -> None:
        if not self._waiting or len(self._flights) >= MAX_FLIGHTS or self._taking_off:
            return
        is_full = self._waiting_rows >= FULL_FLIGHT_ROWS
        if self._pause is not None and not is_full:
            return
        loop = asyncio.get_running_loop()
        pause_s = self._took_off_at + FLIGHT_SPACING_S - loop.time()
        if is_full or pause_s <= 0:
            if self._pause is not None:
                self._pause.cancel()
                self._pause = None
            # Not at once: requests that the loop has read together travel together.
            self._taking_off = True
            loop.call_soon(self._take_off)
        else:
            self._pause = loop.call_later(pause_s, self._take_off)

    def _take_off(self) -> None:
        self._pause = None
        self._taking_off = False
        if len(self._flights) >= MAX_FLIGHTS or not self._waiting:
            return
        aboard = self._board()
        self._waiting_rows -= sum(len(waiting.part.rows) for waiting in aboard)
        loop = asyncio.get_running_loop()
        self._took_off_at = loop.time()
        flight = loop.create_task(self._fly(aboard))
        self._flights.add(flight)
        flight.add_done_callback(self._landed)
        self._schedule()

    def _landed(self, flight: "asyncio.Task[None]") -> None:
        self._flights.discard(flight)
        self._schedule()

    def _board(self) -> list[Waiting]:
        events = size = 0
        for count, waiting in enumerate(self._waiting):
            events += len(waiting.part.rows)
            size += waiting.size
            if (events > MAX_FLIGHT_EVENTS or size > MAX_FLIGHT_BYTES) and count:
                aboard, self._waiting = self._waiting[:count], self._waiting[count:]
                return aboard
        aboard, self._waiting = self._waiting, []
        return aboard

    async def _fly(self, aboard: list[Waiting]) -> None:
        started = time.monotonic()
        groups: dict[int, list[Waiting]] = {}
        for waiting in aboard:
            groups.setdefault(waiting.partition, []).append(waiting)
        try:
            await self._deliver(groups)
        except Exception as error:
            for waiting in aboard:
                if not waiting.receipt.done():
                    waiting.receipt.set_exception(error)
        finally:
            size = sum(waiting.size for waiting in aboard)
            self.bytes -= size
            rate = size / max(1e-6, time.monotonic() - started)
            self._answered_bytes_per_s = 0.8 * self._answered_bytes_per_s + 0.2 * rate

    async def _build(self, groups: dict[int, list[Waiting]]) -> list[EventBatch]:
        parts = [(partition, [waiting.part for waiting in group]) for partition, group in groups.items()]
        if sum(waiting.size for group in groups.values() for waiting in group) <= MAX_FLIGHT_BYTES:
            return build_batches(parts, new_id=new_batch_id)
        build = partial(build_batches, parts, new_id=new_batch_id)
        return await asyncio.get_running_loop().run_in_executor(self._thread, build)

    async def _deliver(self, by_partition: dict[int, list[Waiting]]) -> None:
        groups = list(by_partition.values())
        async with self._turn:
            batches = await self._build(by_partition)
            direct = await self._spooler.goes_direct(self.shard)
        if not direct:
            await self._spool(groups, batches)
            return
        try:
            replies = await self._link.append(self.shard, encode_batches(batches), deadline_s=self._deadline_s)
        except LinkError as error:
            self._spooler.trip(self.shard, str(error))
            await self._spool(groups, batches)
            return
        unsafe = []
        for group, batch, reply in zip(groups, batches, replies, strict=True):
            if reply.status == APPENDED:
                _accept(group, batch.partition, reply)
            elif reply.status == FULL:
                _refuse(group, Overloaded("the log is at its bound", self._retry_after_s()))
            else:
                unsafe.append((group, batch))
        if unsafe:
            self._spooler.trip(self.shard, "the log does not take appends")
            await self._spool([group for group, _ in unsafe], [batch for _, batch in unsafe])

    async def _spool(self, groups: list[list[Waiting]], batches: list[EventBatch]) -> None:
        try:
            await self._spooler.put(self.shard, batches)
        except SpoolFull as error:
            for group in groups:
                _refuse(group, error)
            return
        for group, batch in zip(groups, batches, strict=True):
            for waiting in group:
                _answer(waiting, Receipt("spooled", (), batch.partition, None))

    async def drain(self) -> None:
        """Return when nothing is under way."""
        while self._waiting or self._flights:
            await asyncio.gather(*self._flights, return_exceptions=True)
            # One turn of the loop, in which a landed flight lets the next one take off.
            await asyncio.sleep(0)


class GatewayIngest:
    """`gateway.rows.Ingest` over the log. One per worker."""

    def __init__(self, settings: Settings, link: Link, spooler: Spooler) -> None:
        gateway = settings.gateway
        self._link = link
        self._max_bytes = gateway.max_inflight_bytes
        self._partitions = settings.log.partitions
        self._ring = HashRing(range(settings.actors.shards), partitions=self._partitions)
        # One: columns are mostly made under the lock of the interpreter, and what waits for it is bounded as bytes are.
        thread = ThreadPoolExecutor(1, thread_name_prefix="columns")
        self._lanes = [
            Lane(
                shard,
                link,
                spooler,
                thread=thread,
                deadline_s=gateway.append_deadline_s,
                max_bytes=gateway.max_shard_inflight_bytes,
            )
            for shard in range(settings.actors.shards)
        ]

    @property
    def inflight_bytes(self) -> int:
        return sum(lane.bytes for lane in self._lanes)

    def submit(
        self, project_id: str, rows: list[Row], *, rejected: int, received_at: datetime
    ) -> "asyncio.Future[Receipt]":
        size = row_bytes(rows)
        inflight = self.inflight_bytes
        if inflight + size > self._max_bytes and inflight:
            raise Overloaded(f"this gateway has {inflight} bytes on their way", OVERLOAD_RETRY_S)
        partition = partition_of(project_id, self._partitions)
        receipt: asyncio.Future[Receipt] = asyncio.get_running_loop().create_future()
        part = Part(project_id, received_at, rows, rejected)
        self._lanes[self._ring.shard_of[partition]].put(Waiting(part, partition, size, receipt))
        return receipt

    async def wait_stored(self, receipt: Receipt, *, deadline_s: float) -> bool:
        if receipt.offset is None:
            return False
        shard = self._ring.shard_of[receipt.partition]
        try:
            return await self._link.wait_stored(shard, receipt.partition, receipt.offset, deadline_s=deadline_s)
        except LinkError:
            return False

    async def drain(self, *, deadline_s: float) -> bool:
        """Return when every request that was taken has its answer: whether they had within the deadline.

        After it the others are given up: they were not acknowledged."""
        try:
            async with asyncio.timeout(deadline_s):
                for lane in self._lanes:
                    await lane.drain()
        except TimeoutError:
            return False
        return True


def _answer(waiting: Waiting, receipt: Receipt) -> None:
    if not waiting.receipt.done():
        waiting.receipt.set_result(receipt)


def _refuse(group: list[Waiting], error: Overloaded | SpoolFull) -> None:
    for waiting in group:
        if not waiting.receipt.done():
            waiting.receipt.set_exception(error)


def _accept(group: list[Waiting], partition: int, reply: AppendReply) -> None:
    """Tell each request which of its rows were duplicates."""
    duplicates: list[int] = []
    if reply.duplicates:
        bits = np.unpackbits(np.frombuffer(reply.duplicates, np.uint8), bitorder="little")
        duplicates = np.flatnonzero(bits).tolist()
    start = 0
    for waiting in group:
        end = start + len(waiting.part.rows)
        mine = [row - start for row in duplicates if start <= row < end] if duplicates else ()
        _answer(waiting, Receipt("logged", mine, partition, reply.offset))
        start = end
