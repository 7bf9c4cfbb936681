"""SQL over one project's events: which files and rows they are in, and a process that runs it over them.

A query sees one moment: the files that the manifest names, and the rows of the event store that are not in files yet,
in one snapshot. This process neither parses SQL nor opens a file of the lake; it hands over names and bytes.

What could not be had of the files is named in the answer; with `strict` it is an error instead.
"""

import asyncio
import shutil
import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from config.settings import QuerySettings
from gateway.errors import ApiError
from gateway.metrics import Metrics
from gateway.project_turns import ProjectTurns
from storage.errors import Misconfigured, Unavailable
from storage.event_columns import OFFSET_COLUMNS
from storage.lake_cache import Fetched, LakeCache, NotFetched
from storage.lake_checks import Wanted
from storage.lake_manifest import LakeSnapshot, LakeSnapshots
from storage.object_store import ObjectStore
from storage.sandbox.sandboxes import QueryRefused, Sandboxes
from storage.sandbox.wire import Format, Question, Refused, Result, Sources

FETCH_SHARE = 0.7
"""Of the deadline, for files from afar: the query itself needs some of it too."""
UNCHECKED_AFTER_S = 0.25
"""A query that is not strict waits so long for checksums of files that lie here. The first one over a day of a gigabyte
would wait two seconds, and one over a large lake never end; what it has read unchecked is known to later ones."""
TAIL_SHARE = 0.25
"""Of a process's memory, for the events that are not in files yet: it holds them twice for a moment."""
CPU_SLACK_S = 5


class SqlAnswer(NamedTuple):
    result: Result
    body: bytes
    files: int
    """That the query was run over."""
    cold_files: int
    """How many of those, and of the missing ones, are in the cold part of the lake: they are slower to read."""
    missing: Sequence[NotFetched]


class SqlQueries:
    """One worker's. As many run at once as the settings say, whichever route asks; others wait for their turn. Close
    it."""

    def __init__(
        self,
        settings: QuerySettings,
        snapshots: LakeSnapshots,
        open_objects: Callable[[], ObjectStore],
        metrics: Metrics,
        *,
        cache: Path,
        folder: Path,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`folder` is this worker's alone, for what queries leave on disk while they run; it is emptied. `cache` is the
        machine's, for files from afar, on the same disk."""
        self.settings = settings
        self._snapshots = snapshots
        self._open_objects = open_objects
        self._metrics = metrics
        self._cache_folder = cache
        self._folder = folder
        self._clock = clock
        self._sandboxes = Sandboxes(warm=settings.warm_processes, warm_idle_s=settings.warm_idle_s)
        self._turns = turns_of(settings)
        self._prepared: tuple[ObjectStore, LakeCache] | None = None
        self._preparing = asyncio.Lock()

    async def run(
        self, project_id: str, sql: str, form: Format, *, max_rows: int | None = None, strict: bool = False
    ) -> SqlAnswer:
        """Raises `ApiError` and `StorageError`."""
        async with self._turns.place(project_id):
            return await self._run(project_id, sql, form, max_rows=max_rows, strict=strict)

    async def _run(self, project_id: str, sql: str, form: Format, *, max_rows: int | None, strict: bool) -> SqlAnswer:
        began = self._clock()
        outcome = "internal_error"
        try:
            async with asyncio.timeout(self.settings.deadline_s):
                answer = await self._answer(project_id, sql, form, max_rows=max_rows, strict=strict)
            outcome = "answered"
            self._metrics.query_read(files=answer.files, read_bytes=answer.result.bytes_read)
            return answer
        except TimeoutError as error:
            outcome = "query_timeout"
            raise ApiError(outcome, f"The query took longer than {self.settings.deadline_s:g} s.") from error
        except QueryRefused as error:
            outcome = error.refused.code
            raise _as_api_error(error.refused) from error
        except ApiError as error:
            outcome = error.code
            raise
        except Unavailable:
            outcome = "unavailable"
            raise
        except Misconfigured as error:
            outcome = "unavailable"
            raise ApiError(outcome, "The lake is not set up as it should be: its owner finds it in the log.") from error
        except asyncio.CancelledError:
            outcome = "client_gone"
            raise
        finally:
            self._metrics.query(outcome, self._clock() - began)

    async def _answer(
        self, project_id: str, sql: str, form: Format, *, max_rows: int | None, strict: bool
    ) -> SqlAnswer:
        settings = self.settings
        _, cache = await self._prepare()
        async with self._own_folder() as folder:
            question = Question(
                project_id=project_id,
                sql=sql,
                format=form,
                max_rows=min(max_rows or settings.max_rows, settings.max_rows),
                max_bytes=settings.max_result_bytes,
                memory_bytes=settings.memory_bytes,
                cpu_s=int(settings.deadline_s * settings.threads) + CPU_SLACK_S,
                threads=settings.threads,
                folder=str(folder / "temporary"),
            )
            async with self._sandboxes.asked(question) as asked:
                checked = await asked.check()
                async with self._snapshots.snapshot([project_id], start=checked.start, end=checked.end) as snapshot:
                    files, [position] = snapshot.files, snapshot.positions
                    partition = position.checkpoint.partition
                    tail = await self._write_tail(snapshot, folder / "tail.arrow")
                wanted = [Wanted.of(file) for file in files]
                fetched = await self._fetch(cache, wanted, folder, strict=strict)
                if strict and fetched.missing:
                    raise ApiError(
                        "unavailable", _missing_words(fetched.missing), hint="Without strict it is left out."
                    )
                try:
                    result, body = await asked.run(Sources(files=fetched.paths, tail=tail, partition=partition))
                except QueryRefused as error:
                    if error.refused.code == "unavailable":
                        # A file has become unreadable since it was looked at: the next query names it.
                        missing = {file.key for file in fetched.missing}
                        cache.doubt([file for file in wanted if file.key not in missing])
                    raise
        cold = sum(file.tier == "cold" for file in files)
        return SqlAnswer(result, body, len(fetched.paths), cold, fetched.missing)

    async def _prepare(self) -> tuple[ObjectStore, LakeCache]:
        """Before the first query: a gateway that is never asked has neither the S3 client nor anything on disk."""
        async with self._preparing:
            if self._prepared is None:
                self._prepared = await asyncio.to_thread(self._open)
            return self._prepared

    def _open(self) -> tuple[ObjectStore, LakeCache]:
        # A worker that was killed has left its queries' folders.
        shutil.rmtree(self._folder, ignore_errors=True)
        objects = self._open_objects()
        return objects, LakeCache(objects, self._cache_folder, max_bytes=self.settings.cache_bytes)

    @asynccontextmanager
    async def _own_folder(self) -> AsyncIterator[Path]:
        folder = self._folder / uuid.uuid4().hex
        await asyncio.to_thread((folder / "temporary").mkdir, parents=True, mode=0o700)
        try:
            yield folder
        finally:
            await asyncio.shield(asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True))

    async def _write_tail(self, snapshot: LakeSnapshot, path: Path) -> str | None:
        """The rows that are in no file, as an Arrow IPC stream; None without any."""
        bound = int(self.settings.memory_bytes * TAIL_SHARE)
        size = 0
        writer: pa.RecordBatchStreamWriter | None = None
        try:
            async for batch in snapshot.tail:
                size += batch.nbytes
                if size > bound:
                    raise ApiError("query_too_large", f"More than {bound:,} bytes of events are not in files yet.")
                if writer is None:
                    writer = pa.ipc.new_stream(str(path), OFFSET_COLUMNS)
                await asyncio.to_thread(writer.write_batch, batch)
        finally:
            if writer is not None:
                writer.close()
        return None if writer is None else str(path)

    async def _fetch(self, cache: LakeCache, wanted: Sequence[Wanted], folder: Path, *, strict: bool) -> Fetched:
        size = cache.far_bytes(wanted)
        if size > cache.max_bytes:
            raise ApiError(
                "query_too_large",
                f"The query reads {size:,} bytes of files; {cache.max_bytes:,} fit on this machine at once.",
            )
        return await cache.fetch(
            wanted,
            folder,
            deadline_s=self.settings.deadline_s * FETCH_SHARE,
            unchecked_after_s=None if strict else UNCHECKED_AFTER_S,
        )

    async def close(self) -> None:
        await self._sandboxes.close()
        if self._prepared is not None:
            await self._prepared[0].close()


def turns_of(settings: QuerySettings) -> ProjectTurns:
    """Of one worker's queries."""
    return ProjectTurns(settings.concurrency, max_waiting=settings.queue, longest_wait_s=settings.queue_wait_s)


def _missing_words(missing: Sequence[NotFetched]) -> str:
    first = missing[0]
    more = f", and {len(missing) - 1} more" if len(missing) > 1 else ""
    return f"Not all files of the lake could be had: {first.key} ({first.reason}){more}."


def _as_api_error(refused: Refused) -> ApiError:
    place = "" if refused.position is None else f" At character {refused.position + 1}."
    is_about_sql = refused.code.startswith("sql_")
    return ApiError(refused.code, refused.message + place, hint=refused.hint, pointer="/sql" if is_about_sql else None)
