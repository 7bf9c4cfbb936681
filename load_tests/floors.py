"""What the system is compared with, on the same PostgreSQL: plain handlers, and COPY of the same rows.

The rows go into events_log of a database of its own, made by the same migrations, so with the same indexes.
"""

import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import httpx
import psutil
import pyarrow as pa

from config.settings import GatewaySettings
from gateway.columns import Part, build_batch
from gateway.decode import Decoder
from gateway.rows import Row
from load_tests.floor_server import PATH, POSTGRES_URL
from load_tests.generator import Clock, Target
from load_tests.process_costs import Processes
from storage.copy_format import COPY_COLUMNS, encode_copy, gather, in_pieces
from storage.event_batch import RECORD_VERSION, LogRecord, RecordBatch
from storage.event_store import PartitionWrite
from storage.migrate import migrate

READY_DEADLINE_S = 30.0
STOP_DEADLINE_S = 10.0


class ScratchDatabase:
    """A database beside the system's, on the same server. It goes with the system's data folder."""

    def __init__(self, server_url: str) -> None:
        self._server_url = server_url
        self._name = f"floor_{uuid.uuid4().hex[:8]}"
        self.url = urlunsplit(urlsplit(server_url)._replace(path=f"/{self._name}"))

    async def create(self) -> None:
        connection = await asyncpg.connect(self._server_url)
        try:
            await connection.execute(f"CREATE DATABASE {self._name}")
        finally:
            await connection.close()
        await migrate(self.url)
        # Two days: a run over midnight (UTC) goes on.
        await self._execute(
            "SELECT events_log_add_day((now() AT TIME ZONE 'UTC')::date + day) FROM generate_series(0, 1) AS day"
        )

    async def empty(self) -> None:
        await self._execute("TRUNCATE events_log")

    async def checkpoint(self) -> None:
        """Of the whole server: so that every round begins with the same amount of dirty pages and WAL, none."""
        await self._execute("CHECKPOINT")

    async def _execute(self, statement: str) -> None:
        connection = await asyncpg.connect(self.url)
        try:
            await connection.execute(statement)
        finally:
            await connection.close()

    async def copy_s(self, batches: Sequence[pa.RecordBatch], *, clock: Clock = time.perf_counter) -> float:
        """How long it takes to encode and COPY the batches on one connection, a transaction each."""
        connection = await asyncpg.connect(self.url)
        try:
            started_s = clock()
            for batch in batches:
                encoded = encode_copy(batch)
                await connection.copy_to_table(
                    "events_log", source=in_pieces(encoded), columns=COPY_COLUMNS, format="binary"
                )
            return clock() - started_s
        finally:
            await connection.close()


def columns_of(bodies: Sequence[bytes], *, rows_per_batch: int) -> list[pa.RecordBatch]:
    """The events of request bodies as the system hands them to COPY; the last batch may be smaller."""
    decoder = Decoder(GatewaySettings())
    now = datetime.now(UTC)
    rows: list[Row] = []
    for body in bodies:
        rows += decoder.batch(body, content_type=None, project_id="floor", now=now, import_old=False).rows
    return [_stored(rows[at : at + rows_per_batch], now) for at in range(0, len(rows), rows_per_batch)]


def _stored(rows: Sequence[Row], now: datetime) -> pa.RecordBatch:
    batch = build_batch(0, [Part("floor", now, rows, 0)], batch_id=bytes(16))
    kept = RecordBatch(batch.batch_id, batch.segments, b"", batch.rows)
    record = LogRecord(RECORD_VERSION, int(now.timestamp() * 1000), [kept])
    return gather([PartitionWrite(0, 1, 0, 1, [(0, record)])])


class FloorServer:
    """`load_tests.floor_server` as a child, within `with`."""

    def __init__(self, kind: str, *, postgres: ScratchDatabase | None = None) -> None:
        self._kind = kind
        self._environment = os.environ | ({POSTGRES_URL: postgres.url} if postgres else {})
        self._process: subprocess.Popen[bytes]
        self._port = 0

    def __enter__(self) -> "FloorServer":
        with socket.create_server(("127.0.0.1", 0), backlog=2048) as listener:
            self._port = int(listener.getsockname()[1])
            command = [sys.executable, "-m", "load_tests.floor_server", self._kind, "--fd", str(listener.fileno())]
            self._process = subprocess.Popen(
                command, env=self._environment, pass_fds=(listener.fileno(),), start_new_session=True
            )
        try:
            # The socket listens already: the answer comes when the server has started.
            httpx.get(f"http://127.0.0.1:{self._port}/", timeout=READY_DEADLINE_S)
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def _stop(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(STOP_DEADLINE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def targets(self) -> list[Target]:
        return [Target("127.0.0.1", self._port, PATH, "none")]

    def processes(self) -> Processes:
        return [("handler", psutil.Process(self._process.pid))]
