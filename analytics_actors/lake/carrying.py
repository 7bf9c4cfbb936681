"""From a plan to live files: one file an event hour, put, then committed together.

The law:
- Names come from the plan, contents from its ranges, so whoever does this again, after a crash anywhere, makes the
  same objects. What is there already is taken as it is when its note says that it holds the same events.
- Files are made one after another and put a few at a time; what was put is not kept.
- A service that is away is waited for, for ever: the plan stays open, and nothing else of the shard is read meanwhile.
"""

import asyncio
import io
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TypeVar

import pyarrow as pa

from analytics_actors.counters import Counters
from analytics_actors.lake.piece import HourOfEvents, by_hour
from analytics_actors.windows.sources import Compute
from storage.errors import FormatError, Misconfigured, Missing, StorageError, Unavailable
from storage.lake_file import Compression, FileSummary, key_of, read_summary, write_file
from storage.lake_manifest import LakeFile, LakeManifest, Plan, StoredMark
from storage.object_store import ObjectStore, PutResult

PUTS = 4
"""At once: a put waits for the network, not for us, and each holds one file in memory."""

RETRY_PAUSES_S = (0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
OBJECT_TRIES = 4
"""Of one object, before the store itself is asked: two seconds, for there may be many such objects."""

CrashPoint = Callable[[str], None]
"""Called with the name of a point that was reached; a test ends the process there."""

_Result = TypeVar("_Result")


class NameTaken(StorageError):
    """Something that is not of this plan lies under a name of the plan."""


class Unreadable(StorageError):
    """The object store answers, and does not hand this object out: it is archived, or encrypted with another key."""


def no_crash(_: str) -> None:
    """Nothing happens at any point."""


class Patience:
    """Tries again until a service answers."""

    def __init__(self, counters: Counters) -> None:
        self._counters = counters

    async def wait_for(self, service: str, call: Callable[[], Awaitable[_Result]]) -> _Result:
        failures = 0
        while True:
            try:
                result = await call()
            except (Unavailable, Misconfigured) as error:
                self._counters.trouble(service, str(error))
                self._counters.count("retries")
            else:
                self._counters.clear_trouble(service)
                return result
            await asyncio.sleep(RETRY_PAUSES_S[min(failures, len(RETRY_PAUSES_S) - 1)])
            failures += 1

    async def wait_for_object(self, objects: ObjectStore, key: str, call: Callable[[], Awaitable[_Result]]) -> _Result:
        """The same for what reads one object. Raises `Unreadable` when it fails while the object store is there."""
        failures = 0

        async def read() -> _Result:
            nonlocal failures
            try:
                return await call()
            except (Unavailable, Misconfigured) as error:
                failures += 1
                if failures % OBJECT_TRIES:
                    raise
                await objects.check()
                self._counters.clear_trouble("object store")
                raise Unreadable(f"{key} cannot be read: {error}") from error

        return await self.wait_for("object store", read)


class Carrying:
    """Carries plans out, one at a time."""

    def __init__(
        self,
        manifest: LakeManifest,
        objects: ObjectStore,
        counters: Counters,
        *,
        compression: Compression,
        compute: Compute,
        reached: CrashPoint = no_crash,
    ) -> None:
        self._manifest = manifest
        self._objects = objects
        self._counters = counters
        self._patience = Patience(counters)
        self._compression = compression
        self._compute = compute
        self._reached = reached

    async def carry_out(
        self, plan: Plan, events: pa.Table, epochs: Mapping[int, int], marks: Sequence[StoredMark]
    ) -> list[LakeFile]:
        """Returns when the plan is committed. Raises `Fenced`, and `NameTaken` when it can never be."""
        self._reached("planned")
        files = await self._files(plan, events)
        self._reached("put")
        await self._patience.wait_for(
            "manifest", lambda: self._manifest.commit(plan.plan_id, epochs, files, marks=marks)
        )
        self._reached("committed")
        self._counters.count("plans_committed")
        self._counters.count("files_written", len(files))
        self._counters.count("bytes_written", sum(file.bytes for file in files))
        self._counters.count("events_exported", sum(file.rows for file in files))
        return files

    async def _files(self, plan: Plan, events: pa.Table) -> list[LakeFile]:
        slots = asyncio.Semaphore(PUTS)
        tasks: list[asyncio.Task[LakeFile]] = []
        failed = asyncio.Event()

        def ended(put: asyncio.Task[LakeFile]) -> None:
            slots.release()
            if not put.cancelled() and put.exception() is not None:
                failed.set()

        try:
            for number, of_hour in enumerate(by_hour(events, plan.ranges)):
                await slots.acquire()
                if failed.is_set():
                    break
                raw, summary = await self._compute(_written, of_hour, plan.plan_id, number, self._compression)
                key = key_of(of_hour.hour, plan.plan_id, number)
                task = asyncio.create_task(self._put(key, raw, summary))
                task.add_done_callback(ended)
                tasks.append(task)
            return list(await asyncio.gather(*tasks))
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _put(self, key: str, raw: bytes, summary: FileSummary) -> LakeFile:
        put = await self._patience.wait_for(
            "object store", lambda: self._objects.put_if_absent(key, raw, checksum=summary.checksum)
        )
        if put is PutResult.OTHER:
            return await self._adopted(key, summary)
        self._reached("one put")
        return summary.at(key)

    async def _adopted(self, key: str, ours: FileSummary) -> LakeFile:
        """The object that is there, when it holds what ours does: made by an earlier owner, from the event store's
        texts instead of the log's, or by another release."""
        try:
            theirs = read_summary(await self._patience.wait_for("object store", lambda: self._objects.get(key)))
        except (FormatError, Missing) as error:
            raise NameTaken(f"{key} is taken: {error}") from error
        told = [(n.plan, n.number, n.hour, n.rows, n.id_digest, n.ranges) for n in (theirs.note, ours.note)]
        if told[0] != told[1]:
            raise NameTaken(f"{key} holds (plan, number, hour, rows, digest, ranges) {told[0]}, not {told[1]}")
        self._counters.count("files_adopted")
        return theirs.at(key)


def _written(of_hour: HourOfEvents, plan_id: int, number: int, compression: Compression) -> tuple[bytes, FileSummary]:
    sink = io.BytesIO()
    summary = write_file(
        of_hour.events,
        sink,
        hour=of_hour.hour,
        plan=plan_id,
        number=number,
        ranges=of_hour.ranges,
        compression=compression,
    )
    return sink.getvalue(), summary
