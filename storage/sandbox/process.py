"""One question answered, within the limits that it comes with."""

import os
from pathlib import Path
from typing import BinaryIO

import duckdb
import msgspec
import pyarrow as pa

from storage.lake_file import EVENTS
from storage.sandbox import confine
from storage.sandbox.checker import NotAllowed
from storage.sandbox.formats import Body, render
from storage.sandbox.session import Answered, Session
from storage.sandbox.wire import Checked, Column, Question, Refused, Result, Sources, read_frame, write_frame

_encode = msgspec.msgpack.encode


def answer(source: BinaryIO, sink: BinaryIO, *, is_offline: bool) -> int:
    """The exit code: 0 when something was answered, or nothing was asked."""
    # Arrow's own threads would count against the limits, and do nothing here that takes long.
    pa.set_cpu_count(1)
    pa.set_io_thread_count(1)
    session = Session()
    reading = _Reading()
    try:
        question = msgspec.msgpack.decode(read_frame(source), type=Question)
    except EOFError:
        return 0
    confine.limit(memory_bytes=question.memory_bytes, cpu_s=question.cpu_s, file_bytes=question.memory_bytes)
    try:
        times = session.check(question.sql)
        write_frame(sink, _encode(Checked(*times)))
        sources = msgspec.msgpack.decode(read_frame(source), type=Sources)
        result, body = _run(session, question, sources, reading, is_offline=is_offline)
    except EOFError:
        return 0
    except (NotAllowed, duckdb.Error, MemoryError) as error:
        write_frame(sink, _encode(session.explained(error)))
        return 0
    except RecursionError:
        write_frame(sink, _encode(Refused(code="sql_not_allowed", message="The query is nested too deeply.")))
        return 0
    write_frame(sink, _encode(result))
    write_frame(sink, body.content)
    return 0


def _run(
    session: Session, question: Question, sources: Sources, reading: "_Reading", *, is_offline: bool
) -> tuple[Result, Body]:
    session.load(_tail(sources))
    # The view reads the first footer already.
    before = reading.bytes
    session.open(
        question.project_id,
        sources.files,
        folder=question.folder,
        memory_bytes=question.memory_bytes,
    )
    is_confined = confine.restrict_files(sources.files, question.folder)
    session.lock(threads=question.threads)
    answered = session.run(max_rows=question.max_rows)
    body = _rendered(answered, question)
    columns = [Column(name, type_) for name, type_ in zip(answered.names, answered.types, strict=True)]
    result = Result(
        columns=columns,
        rows=body.rows,
        truncated=body.truncated,
        bytes_read=reading.bytes - before,
        is_offline=is_offline,
        is_confined=is_confined,
    )
    return result, body


def _rendered(answered: Answered, question: Question) -> Body:
    return render(
        question.format,
        answered.names,
        answered.types,
        answered.reader,
        max_rows=question.max_rows,
        max_bytes=question.max_bytes,
    )


def _tail(sources: Sources) -> pa.Table:
    """`storage.lake_file.EVENTS`."""
    if sources.tail is None:
        return EVENTS.empty_table()
    with pa.ipc.open_stream(Path(sources.tail).read_bytes()) as reader:
        rows = reader.read_all()
    partitions = pa.repeat(pa.scalar(sources.partition, pa.int16()), rows.num_rows)
    return rows.append_column("partition_id", partitions).select(EVENTS.names)


class _Reading:
    """How many bytes the process has read until now, by the kernel's count."""

    def __init__(self) -> None:
        self._file = os.open("/proc/self/io", os.O_RDONLY)

    @property
    def bytes(self) -> int:
        counts = os.pread(self._file, 4096, 0).decode().split()
        return int(counts[counts.index("rchar:") + 1])
