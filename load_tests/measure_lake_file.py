"""What a file of the lake costs, in µs and bytes an event: `python -m load_tests.measure_lake_file`.

Every line is the best of many runs in one thread, garbage collection off. The events are those of the benchmark
(`load_tests.events`), as they come out of the log, of one hour and some projects.
"""

import argparse
import gc
import io
import resource
from collections.abc import Callable
from datetime import UTC, datetime
from itertools import chain

import msgspec
import numpy as np
import pyarrow as pa

from load_tests.events import EventMaker
from load_tests.measure_windows import best_us
from storage.copy_format import STORED
from storage.json_members import members
from storage.lake_file import EVENTS, Compression, id_digest, lake_rows, write_file

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
HOUR = int(NOW.timestamp())
COMPRESSIONS: tuple[Compression, ...] = ("snappy", "zstd")


class _Sent(msgspec.Struct, rename="camel"):
    event_id: str
    event_type: str
    user_id: str
    session_id: str
    timestamp: datetime
    properties: msgspec.Raw
    context: msgspec.Raw


def made_events(count: int, projects: int) -> pa.Table:
    decoder = msgspec.json.Decoder(_Sent)
    sent = [decoder.decode(raw) for raw in EventMaker(seed=1, now=NOW).events(count)]
    columns = {
        "project_id": [f"project_{number * 7919 % projects}" for number in range(count)],
        "event_id": [event.event_id for event in sent],
        "event_type": [event.event_type for event in sent],
        "user_id": [event.user_id for event in sent],
        "anonymous_id": [None] * count,
        "session_id": [event.session_id for event in sent],
        "site_id": [None] * count,
        "timestamp": [event.timestamp for event in sent],
        "received_at": [NOW] * count,
        "properties": [bytes(event.properties).decode() for event in sent],
        "context": [bytes(event.context).decode() for event in sent],
        "partition_id": np.zeros(count, np.int16),
        "log_offset": np.arange(count) // 100,
    }
    return pa.table(columns, schema=EVENTS)


def by_msgspec(texts: pa.ChunkedArray) -> pa.MapArray:
    """What `storage.json_members` is measured against: the same map by a decoder and a loop over members."""
    rows = msgspec.json.decode(
        b"[" + b",".join(texts.cast(pa.binary()).to_pylist()) + b"]", type=list[dict[str, msgspec.Raw]]
    )
    offsets = np.cumsum([0, *map(len, rows)], dtype=np.int32)
    values = [_text_of(bytes(raw)) for raw in chain.from_iterable(row.values() for row in rows)]
    return pa.MapArray.from_arrays(pa.array(offsets), pa.array(list(chain.from_iterable(rows))), pa.array(values))


def _text_of(raw: bytes) -> str | None:
    if raw.startswith(b'"'):
        text: str = msgspec.json.decode(raw)
        return text
    return None if raw == b"null" else raw.decode()


def written(events: pa.Table, compression: Compression) -> int:
    sink = io.BytesIO()
    return write_file(events, sink, hour=HOUR, plan=1, number=0, ranges=[], compression=compression).bytes


def line(name: str, events: int, call: Callable[[], object], seconds: float) -> None:
    print(f"{name:52} {best_us(call, events, seconds):6.2f} µs an event")


def main() -> None:
    parser = argparse.ArgumentParser(description="what a file of the lake costs, in µs and bytes an event")
    parser.add_argument("--events", type=int, default=150_000)
    parser.add_argument("--projects", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=4.0, help="of measuring a line")
    arguments = parser.parse_args()
    events = made_events(arguments.events, arguments.projects)
    count, seconds = events.num_rows, arguments.seconds
    print(f"{count:,} events, {events.nbytes / count:.0f} bytes each in columns ({len(STORED.names)} columns stored)")
    gc.disable()
    texts = events.column("properties").combine_chunks()
    line("properties to a map, storage.json_members", count, lambda: members(texts).as_maps(), seconds)
    line("properties to a map, msgspec", count, lambda: by_msgspec(events.column("properties")), seconds)
    line("events in the columns of the lake", count, lambda: lake_rows(events), seconds)
    line("digest of the ids", count, lambda: id_digest(events), seconds)
    for compression in COMPRESSIONS:
        size = written(events, compression)
        name = f"a whole file, {compression}: {size / count:.0f} bytes an event"
        line(name, count, lambda: written(events, compression), seconds)  # noqa: B023
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"largest memory of the process {peak_mb:.0f} MB, Arrow's {pa.default_memory_pool().max_memory() >> 20} MB")


if __name__ == "__main__":
    main()
