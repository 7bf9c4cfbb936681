"""Delivering: events of the lake into a destination's own bucket or folder.

What a destination gets are Parquet files as the lake's own (`storage.lake_file`: columns, layout, note), which hold its
events alone: `events/year=…/month=…/day=…/hour=…/part-<delivery, 12 digits>-00000.parquet`.

The law:
- Each event that a destination is to have is in one of its files, once, and nothing else is (ND-1). It follows from
  offsets: a delivery is stretches of the log, fixed before anything is put; deliveries of a destination follow one
  another without a gap; and of an hour of a delivery there is one file, by name.
- Which files of the lake are read does not matter: at any moment the live ones hold each event once, in whatever files
  they are. So the keeper merges, moves and removes as if there were no destination, and one that was away for months
  is served like one that waited an hour, with larger files.
- The same hour again, after a crash anywhere, has the same events. The object that is there is taken when its note says
  that it holds them; `record` then counts it, once. When somebody else's object has the name, the destination fails
  until a person has looked (`NameTaken`).
- What was removed from the lake before it was delivered (a person's deletion, the end of its time) is not delivered;
  what was delivered before is the destination's owner's to remove.
- Memory is bounded as for a merge (`storage.lake_merge`), with one file being made at a time for all destinations. On
  disk there are copies of an hour's files, for one hour of each destination.
- A destination that is away delays itself alone: it is tried again for ever, with pauses up to `MAX_PAUSE_S`.
"""

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory

from analytics_actors.counters import Counters
from analytics_actors.lake.carrying import CrashPoint, NameTaken, no_crash
from analytics_actors.lake.compaction import MAX_FILES, MAX_OPEN_BYTES, open_bytes
from analytics_actors.lake.objects import check_bytes, local_copy
from analytics_actors.windows.sources import Compute
from storage.destinations import Delivered, Delivery, Destination, Destinations, OpenPlace
from storage.errors import StorageError, Unavailable
from storage.lake_file import Compression, FileSummary, key_of, read_summary
from storage.lake_manifest import byte_shares
from storage.lake_merge import select_rows
from storage.lake_selection import Selection
from storage.object_store import ObjectStore, PutResult

MAX_PAUSE_S = 300.0


class Delivering:
    """Of one destination, a step at a time. `slot` is held while a file is made; `folder` is on this machine."""

    def __init__(
        self,
        destination: Destination,
        destinations: Destinations,
        lake: ObjectStore,
        open_place: OpenPlace,
        counters: Counters,
        *,
        compression: Compression,
        folder: Path,
        slot: asyncio.Semaphore,
        compute: Compute,
        reached: CrashPoint = no_crash,
    ) -> None:
        self._destination = destination
        self._destinations = destinations
        self._lake = lake
        self._open_place = open_place
        self._counters = counters
        self._compression = compression
        self._folder = folder
        self._slot = slot
        self._compute = compute
        self._reached = reached

    async def step(self) -> None:
        """Deliver what the lake has and the destination has not. Raises `StorageError`; the next step goes on then."""
        delivery = await self._destinations.begin(self._destination.destination_id)
        if delivery is None:
            return
        self._reached("delivery begun")
        try:
            await self._carry_out(delivery)
        except OSError as error:
            await self._failed(error)
            raise Unavailable(f"a file for a destination cannot be made: {error}") from error
        except StorageError as error:
            await self._failed(error)
            raise
        self._reached("delivery finished")
        self._counters.count("deliveries")

    async def _failed(self, error: Exception) -> None:
        self._counters.count("delivery_failures")
        await self._destinations.failed(self._destination.destination_id, str(error))

    async def _carry_out(self, delivery: Delivery) -> None:
        hours = await self._destinations.hours(delivery.delivery_id)
        if hours:
            place = await self._open_place(self._destination)
            try:
                for hour in hours:
                    await self._deliver(delivery, hour, place)
            finally:
                await place.close()
        await self._destinations.finish(delivery.delivery_id)

    async def _deliver(self, delivery: Delivery, hour: datetime, place: ObjectStore) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=self._folder, prefix=f"{delivery.delivery_id}-") as folder:
            async with self._slot:
                summary = await self._made(delivery, hour, Path(folder))
            delivered = Delivered(hour, 0, {}, {})
            if summary is not None:
                delivered = await self._put(delivery, hour, Path(folder), summary, place)
        self._reached("delivery put")
        await self._destinations.record(delivery.delivery_id, delivered)
        self._reached("delivery recorded")
        self._counters.count("files_delivered", bool(delivered.rows))
        self._counters.count("rows_delivered", sum(delivered.rows.values()))
        self._counters.count("bytes_delivered", delivered.bytes)

    async def _made(self, delivery: Delivery, hour: datetime, folder: Path) -> FileSummary | None:
        """The hour's file, at `_target` of the folder; None when there is nothing of the destination's."""
        sources = await self._destinations.sources(delivery.delivery_id, hour)
        async with AsyncExitStack() as copies:
            paths = [await copies.enter_async_context(local_copy(self._lake, each.key, folder)) for each in sources]
            for path, source in zip(paths, sources, strict=True):
                await self._compute(check_bytes, path, source.key, source.checksum)
            made: FileSummary | None = await self._compute(
                make_file, paths, folder, delivery, int(hour.timestamp()), self._compression
            )
        return made

    async def _put(
        self, delivery: Delivery, hour: datetime, folder: Path, summary: FileSummary, place: ObjectStore
    ) -> Delivered:
        key = key_of(int(hour.timestamp()), delivery.delivery_id, 0)
        put = await place.put_if_absent(key, _target(folder), checksum=summary.checksum)
        if put is PutResult.OTHER:
            summary = await self._adopted(key, summary, folder, place)
        file = summary.at(key)
        return Delivered(hour, file.bytes, file.projects, byte_shares(file))

    async def _adopted(self, key: str, ours: FileSummary, folder: Path, place: ObjectStore) -> FileSummary:
        """What lies there, put by an earlier try: of another release, or before something was removed from the lake."""
        async with local_copy(place, key, folder) as path:
            theirs: FileSummary = await self._compute(read_summary, path)
        told = [(s.note.destination, s.note.plan, s.note.hour, s.note.ranges) for s in (theirs, ours)]
        holds_ours = theirs.note.id_digest == ours.note.id_digest or theirs.note.rows > ours.note.rows
        if told[0] != told[1] or not holds_ours:
            raise NameTaken(f"{key} is taken by another system's object: give the destination a prefix of its own")
        return theirs


def make_file(
    sources: Sequence[Path], folder: Path, delivery: Delivery, hour: int, compression: Compression
) -> FileSummary | None:
    """A file of what the delivery is to have of the sources; None when that is nothing. Many are read in turn."""
    selection = Selection(delivery.stretches)
    left, turn = list(sources), 0
    while True:
        now, left = left[: (count := _at_once(left))], left[count:]
        target = folder / f"turn-{turn}" if left else _target(folder)
        with target.open("wb") as sink:
            summary = select_rows(
                now,
                sink,
                selection,
                hour=hour,
                plan=delivery.delivery_id,
                number=0,
                ranges=delivery.ranges,
                compression=compression,
                destination=delivery.destination_id,
            )
        if not left:
            return summary
        left, turn = left + [target] * (summary is not None), turn + 1


def _at_once(sources: Sequence[Path]) -> int:
    """How many may be open, two at least."""
    total = 0
    for count, source in enumerate(sources[:MAX_FILES]):
        total += open_bytes(source.stat().st_size)
        if count >= 2 and total > MAX_OPEN_BYTES:
            return count
    return min(len(sources), MAX_FILES)


def _target(folder: Path) -> Path:
    return folder / "made"
