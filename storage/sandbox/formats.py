"""A result's rows as bytes, up to a bound.

Values are exact in every format:
- numbers are written with all their digits: 64-bit and larger integers and decimals as JSON numbers too, so that a
  reader that makes doubles of them loses some (cast to VARCHAR where that matters); NaN and infinities are strings;
- times are ISO 8601, those with a zone in UTC with Z; infinite times, and those that no calendar of Python's has, are
  written as DuckDB's number of microseconds or days since the epoch;
- lists are arrays, structs objects, maps objects by the text of their keys, BLOBs are base64;
- a column of JSON is itself; JSON within a list, struct or map is a text, as Arrow does not tell it from one;
- what Arrow has no exact type for (intervals, bit strings, unions and the like) is DuckDB's text.

In CSV (RFC 4180, with a header) NULL is an empty field, an empty text is "", and nested values are JSON. NULL in the
only column is "" too, and a text of spaces has its quotes: readers leave out lines that are empty or blank.
"""

import base64
import io
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from itertools import pairwise
from typing import Any, NamedTuple

import msgspec
import pyarrow as pa

from storage.sandbox.wire import Format

_EPOCH_UTC = datetime(1970, 1, 1, tzinfo=UTC)
_EPOCH = _EPOCH_UTC.replace(tzinfo=None)
_JSON = "JSON"
_DAY_US = 24 * 3600 * 1_000_000
"""A time of day of SQL's that no time of Python's is."""
_US_PER_UNIT = {"s": 1_000_000, "ms": 1000, "us": 1}

_encode = msgspec.json.Encoder(decimal_format="number", enc_hook=str).encode

Values = list[Any]
Convert = Callable[[pa.Array], Values]


class Body(NamedTuple):
    content: bytes
    rows: int
    truncated: bool


class _Bounded:
    """Counts rows against the bounds: `admits` says whether one more of that many bytes is taken."""

    def __init__(self, max_rows: int, max_bytes: int) -> None:
        self.max_rows = max_rows
        self.max_bytes = max_bytes
        self.rows = 0
        self.bytes = 0
        self.truncated = False

    def admits(self, size: int) -> bool:
        if self.rows >= self.max_rows or self.bytes + size > self.max_bytes:
            self.truncated = True
            return False
        self.rows += 1
        self.bytes += size
        return True


def render(
    form: Format,
    names: Sequence[str],
    types: Sequence[str],
    reader: pa.RecordBatchReader,
    *,
    max_rows: int,
    max_bytes: int,
) -> Body:
    """`types` are DuckDB's names. In JSON the body is the array of rows; the rest of the answer goes around it."""
    bounds = _Bounded(max_rows, max_bytes)
    if form == "arrow":
        return _arrow(names, types, reader, bounds)
    rows = _rows(types, reader)
    if form == "csv":
        lines = [_csv_line(names), *_admitted((_csv_line(row) for row in rows), bounds)]
        return Body(b"".join(lines), bounds.rows, bounds.truncated)
    if form == "ndjson":
        keys = _distinct(names)
        encoded = (_encode(dict(zip(keys, row, strict=True))) + b"\n" for row in rows)
        return Body(b"".join(_admitted(encoded, bounds)), bounds.rows, bounds.truncated)
    content = b",".join(_admitted(map(_encode, rows), bounds))
    return Body(b"[" + content + b"]", bounds.rows, bounds.truncated)


def _admitted(encoded: Iterable[bytes], bounds: _Bounded) -> Iterator[bytes]:
    for row in encoded:
        if not bounds.admits(len(row)):
            return
        yield row


def _rows(types: Sequence[str], batches: Iterable[pa.RecordBatch]) -> Iterator[tuple[Any, ...]]:
    converts: list[Convert] = []
    for batch in batches:
        if not converts:
            converts = [
                _json_values if name == _JSON else _converter(field.type)
                for name, field in zip(types, batch.schema, strict=True)
            ]
        columns = [convert(column) for convert, column in zip(converts, batch.columns, strict=True)]
        yield from zip(*columns, strict=True)


def _converter(type_: pa.DataType) -> Convert:
    """How values of the type become something that is encoded as the module's head says."""
    if pa.types.is_timestamp(type_):
        return _timestamps
    if pa.types.is_date(type_):
        return lambda array: [_date(days) for days in array.cast(pa.int32()).to_pylist()]
    if pa.types.is_time(type_):
        return lambda array: [_time(us) for us in array.cast(pa.int64()).to_pylist()]
    if pa.types.is_floating(type_):
        return lambda array: [_float(value) for value in array.to_pylist()]
    if pa.types.is_binary(type_) or pa.types.is_large_binary(type_):
        return lambda array: [None if v is None else base64.b64encode(v).decode() for v in array.to_pylist()]
    if pa.types.is_map(type_):
        return _maps
    if pa.types.is_list(type_) or pa.types.is_large_list(type_) or pa.types.is_fixed_size_list(type_):
        return _lists
    if pa.types.is_struct(type_):
        return _structs
    return _as_they_are


def _as_they_are(array: pa.Array) -> Values:
    values: Values = array.to_pylist()
    return values


def _json_values(array: pa.Array) -> Values:
    return [None if text is None else _json_value(text) for text in array.to_pylist()]


def _json_value(text: str) -> Any:
    """The text itself within the answer, if it is JSON: DuckDB's takes NaN as well."""
    try:
        msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        return text
    return msgspec.Raw(text.encode())


def _timestamps(array: pa.Array) -> Values:
    factor = _US_PER_UNIT[array.type.unit]
    begin = _EPOCH if array.type.tz is None else _EPOCH_UTC
    return [None if v is None else _instant(begin, v * factor) for v in array.cast(pa.int64()).to_pylist()]


def _instant(begin: datetime, us: int) -> datetime | int:
    try:
        return begin + timedelta(microseconds=us)
    except OverflowError:
        return us


def _date(days: int | None) -> date | int | None:
    if days is None:
        return None
    try:
        return _EPOCH.date() + timedelta(days=days)
    except OverflowError:
        return days


def _time(us: int | None) -> time | str | None:
    if us is None:
        return None
    return "24:00:00" if us == _DAY_US else (_EPOCH + timedelta(microseconds=us)).time()


def _float(value: float | None) -> float | str | None:
    if value is None or math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")


def _lists(array: pa.Array) -> Values:
    if pa.types.is_fixed_size_list(array.type):
        size = array.type.list_size
        offsets = range(array.offset * size, (array.offset + len(array) + 1) * size, size) if size else [0] * len(array)
    else:
        offsets = array.offsets.to_pylist()
    values = _between(array.values, offsets)
    return [None if cut is None else values[cut] for cut in _cuts(array, offsets)]


def _maps(array: pa.Array) -> Values:
    offsets = array.offsets.to_pylist()
    keys = [_text(key) for key in _between(array.keys, offsets)]
    items = _between(array.items, offsets)
    return [None if cut is None else dict(zip(keys[cut], items[cut], strict=True)) for cut in _cuts(array, offsets)]


def _between(values: pa.Array, offsets: Sequence[int]) -> Values:
    """What lies between the first offset and the last one. A slice of an array keeps all of its values."""
    first = offsets[0] if offsets else 0
    count = offsets[-1] - first if offsets else 0
    found: Values = _converter(values.type)(values.slice(first, count))
    return found


def _cuts(array: pa.Array, offsets: Sequence[int]) -> Iterator[slice | None]:
    """By row where its values are among those between the offsets."""
    first = offsets[0] if offsets else 0
    for valid, (begin, end) in zip(array.is_valid().to_pylist(), pairwise(offsets), strict=False):
        yield slice(begin - first, end - first) if valid else None


def _structs(array: pa.Array) -> Values:
    names = _distinct([field.name or str(number) for number, field in enumerate(array.type)])
    columns = [_converter(column.type)(column) for column in array.flatten()]
    rows = zip(*columns, strict=True) if columns else iter([()] * len(array))
    return [
        dict(zip(names, row, strict=True)) if valid else None
        for row, valid in zip(rows, array.is_valid().to_pylist(), strict=True)
    ]


def _distinct(names: Sequence[str]) -> list[str]:
    """Keys of one object: a name that was there gets a number."""
    keys: dict[str, None] = {}
    for name in names:
        number = 1
        key = name
        while key in keys:
            number += 1
            key = f"{name}_{number}"
        keys[key] = None
    return list(keys)


def _csv_line(values: Iterable[Any]) -> bytes:
    line = ",".join(map(_csv_field, values))
    return ((line or '""') + "\r\n").encode()


def _csv_field(value: Any) -> str:
    if value is None:
        return ""
    text = _text(value)
    if not text.strip() or any(character in text for character in ',"\r\n'):
        return '"' + text.replace('"', '""') + '"'
    return text


def _text(value: Any) -> str:
    """What JSON would have, without the quotes of a string."""
    if isinstance(value, str):
        return value
    encoded = _encode(value).decode()
    is_quoted = isinstance(value, datetime | date | time | Decimal) and encoded.startswith('"')
    return encoded[1:-1] if is_quoted else encoded


def _arrow(names: Sequence[str], types: Sequence[str], reader: pa.RecordBatchReader, bounds: _Bounded) -> Body:
    """An IPC stream. What would go beyond the bounds is cut off, the last batch at half of it, a quarter and so on."""
    schema = pa.schema(
        [
            pa.field(name, field.type, metadata={"duckdb_type": type_})
            for name, type_, field in zip(names, types, reader.schema, strict=True)
        ]
    )
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, schema) as writer:
        for batch in reader:
            taken = _fitting(batch, bounds)
            if taken:
                writer.write_batch(pa.RecordBatch.from_arrays(batch.slice(0, taken).columns, schema=schema))
            if bounds.truncated:
                break
    return Body(sink.getvalue(), bounds.rows, bounds.truncated)


def _fitting(batch: pa.RecordBatch, bounds: _Bounded) -> int:
    taken: int = min(batch.num_rows, bounds.max_rows - bounds.rows)
    while taken and bounds.bytes + batch.slice(0, taken).nbytes > bounds.max_bytes:
        taken //= 2
    bounds.rows += taken
    bounds.bytes += batch.slice(0, taken).nbytes
    bounds.truncated = taken < batch.num_rows
    return taken
