"""What a window holds of the events that belong to it: mergeable, and exact where numbers can be.

Merging is associative and commutative: any split and any order of the events gives the same aggregate (WM-1); of
quantiles, the same within their rank error. Sums are exact decimals, never floats: each number is rounded to
`SUM_SCALE` digits after the point (half to even) before it is added; one of more than 38 digits does not get here.

**Written form, version 1** (`encode_aggregate`): MessagePack array `[version, xxh3-64 of body (8 bytes), body]`; body
is the MessagePack array `[count, sum (text), minimum, maximum, unique, quantiles]`, the sketches in their own forms.

**JSON form** (`window_json`), readable in redis-cli: `count`; with numbers `sum` (exact number text), `min`, `max`,
`mean`; with sketches `unique`, or `p50`, `p90`, `p95`, `p99`, and then `state`, the written form in base64.
Without sketches the readable fields are the whole truth; with them `state` is, and the others are for the reader.
"""

from base64 import b64encode
from decimal import Context, Decimal, InvalidOperation
from typing import Literal, get_args

import msgspec
from xxhash import xxh3_64_digest

from storage.errors import FormatError
from storage.quantile_sketch import QuantileSketch
from storage.unique_sketch import UniqueSketch

Aggregation = Literal["count", "sum", "mean", "min", "max", "unique", "p50", "p90", "p95", "p99"]
AGGREGATIONS: tuple[Aggregation, ...] = get_args(Aggregation)
QUANTILES: dict[Aggregation, float] = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99}

SUM_SCALE = 9
"""Digits after the point of a summed number."""
SUM_DIGITS = 38
"""Digits of a summed number in all, as in numeric(38, 9)."""
ZERO = Decimal(0)

# Wide enough that no sum of numbers of 38 digits is ever rounded.
EXACT = Context(prec=100)

_VERSION = 1
_FIXED_BYTES = 250


def is_sketched(aggregation: Aggregation) -> bool:
    """Whether its values come from sketches."""
    return aggregation == "unique" or aggregation in QUANTILES


class Aggregate:
    """Count, sum, extremes and sketches. `count` is of events; of those with a usable value where one is aggregated.

    `minimum` and `maximum` are None when there are no numbers; a sketch is None when nothing asks for it."""

    __slots__ = ("count", "maximum", "minimum", "quantiles", "total", "unique")

    def __init__(
        self,
        count: int = 0,
        total: Decimal = ZERO,
        minimum: float | None = None,
        maximum: float | None = None,
        unique: UniqueSketch | None = None,
        quantiles: QuantileSketch | None = None,
    ) -> None:
        self.count = count
        self.total = total
        self.minimum = minimum
        self.maximum = maximum
        self.unique = unique
        self.quantiles = quantiles

    def __repr__(self) -> str:
        return f"Aggregate({window_json(self).decode()})"

    @property
    def resident_bytes(self) -> int:
        """About what the aggregate takes in memory."""
        unique = 0 if self.unique is None else self.unique.resident_bytes
        quantiles = 0 if self.quantiles is None else self.quantiles.resident_bytes
        return _FIXED_BYTES + unique + quantiles

    def copy(self) -> "Aggregate":
        """An aggregate of its own: merging into one never changes the other."""
        return Aggregate(
            self.count,
            self.total,
            self.minimum,
            self.maximum,
            None if self.unique is None else self.unique.copy(),
            None if self.quantiles is None else self.quantiles.copy(),
        )

    def merge(self, other: "Aggregate") -> None:
        """Take in the other's events, which must be others than one's own. The other stays as it is."""
        self.count += other.count
        if other.total:
            self.total = EXACT.add(self.total, other.total)
        if other.minimum is not None:
            self.minimum = other.minimum if self.minimum is None else min(self.minimum, other.minimum)
        if other.maximum is not None:
            self.maximum = other.maximum if self.maximum is None else max(self.maximum, other.maximum)
        if other.unique is not None:
            if self.unique is None:
                self.unique = other.unique.copy()
            else:
                self.unique.merge(other.unique)
        if other.quantiles is not None:
            if self.quantiles is None:
                self.quantiles = other.quantiles.copy()
            else:
                self.quantiles.merge(other.quantiles)

    def value(self, aggregation: Aggregation) -> int | Decimal | float | None:
        """The answer to one question; None when there is nothing to answer from. A unique count is whole."""
        if aggregation == "count":
            return self.count
        if aggregation == "unique":
            return None if self.unique is None else round(self.unique.estimate())
        if aggregation in QUANTILES:
            return None if self.quantiles is None else self.quantiles.quantile(QUANTILES[aggregation])
        if self.minimum is None or not self.count:
            return None
        if aggregation == "sum":
            return self.total
        if aggregation == "mean":
            return float(EXACT.divide(self.total, self.count))
        return self.minimum if aggregation == "min" else self.maximum


class _Body(msgspec.Struct, array_like=True, frozen=True):
    count: int
    total: str
    minimum: float | None
    maximum: float | None
    unique: bytes | None
    quantiles: bytes | None


class _Sealed(msgspec.Struct, array_like=True, frozen=True):
    version: int
    digest: bytes
    body: bytes


class _Window(msgspec.Struct, frozen=True):
    count: int
    sum: Decimal = ZERO
    min: float | None = None
    max: float | None = None
    state: str | None = None


_msgpack = msgspec.msgpack.Encoder()
_sealed_decoder = msgspec.msgpack.Decoder(_Sealed)
_body_decoder = msgspec.msgpack.Decoder(_Body)
_window_decoder = msgspec.json.Decoder(_Window)
_state_decoder = msgspec.json.Decoder(bytes)  # msgspec reads base64 in JSON strings


def decimal_text(number: Decimal) -> str:
    """The number without an exponent and without zeros at its end: the same text for the same number."""
    return format(number.normalize(EXACT), "f") if number else "0"


def encode_aggregate(aggregate: Aggregate) -> bytes:
    """The written form, for a column of bytes; see the module's head."""
    unique, quantiles = aggregate.unique, aggregate.quantiles
    body = _msgpack.encode(
        _Body(
            aggregate.count,
            decimal_text(aggregate.total),
            aggregate.minimum,
            aggregate.maximum,
            None if unique is None else unique.to_bytes(),
            None if quantiles is None else quantiles.to_bytes(),
        )
    )
    return _msgpack.encode(_Sealed(_VERSION, xxh3_64_digest(body), body))


def decode_aggregate(raw: bytes) -> Aggregate:
    """The inverse of `encode_aggregate`. Raises `FormatError`."""
    try:
        sealed = _sealed_decoder.decode(raw)
    except msgspec.MsgspecError as error:
        raise FormatError(f"not an aggregate: {error}") from error
    if sealed.version != _VERSION:
        raise FormatError(f"aggregate has version {sealed.version}; this release reads version {_VERSION}")
    if xxh3_64_digest(sealed.body) != sealed.digest:
        raise FormatError("an aggregate is damaged: its check digits do not match")
    try:
        body = _body_decoder.decode(sealed.body)
        total = Decimal(body.total)
    except (msgspec.MsgspecError, InvalidOperation) as error:
        raise FormatError(f"not an aggregate: {error}") from error
    return Aggregate(
        body.count,
        total,
        body.minimum,
        body.maximum,
        None if body.unique is None else UniqueSketch.from_bytes(body.unique),
        None if body.quantiles is None else QuantileSketch.from_bytes(body.quantiles),
    )


def window_json(aggregate: Aggregate) -> bytes:
    """The JSON form, for a window in Redis; see the module's head."""
    text = f'{{"count":{aggregate.count}'
    if aggregate.minimum is not None and aggregate.maximum is not None:
        text += f',"sum":{decimal_text(aggregate.total)},"min":{aggregate.minimum!r},"max":{aggregate.maximum!r}'
        if aggregate.count:
            text += f',"mean":{aggregate.value("mean")!r}'
    if aggregate.unique is not None:
        text += f',"unique":{aggregate.value("unique")}'
    if aggregate.quantiles is not None and aggregate.quantiles.n:
        text += "".join(f',"{name}":{aggregate.quantiles.quantile(rank)!r}' for name, rank in QUANTILES.items())
    if aggregate.unique is not None or aggregate.quantiles is not None:
        text += f',"state":"{b64encode(encode_aggregate(aggregate)).decode()}"'
    return (text + "}").encode()


def read_window_json(raw: bytes) -> Aggregate:
    """The inverse of `window_json`. Raises `FormatError`."""
    try:
        window = _window_decoder.decode(raw)
        if window.state is None:
            return Aggregate(window.count, window.sum, window.min, window.max)
        state = _state_decoder.decode(f'"{window.state}"')
    except (msgspec.MsgspecError, ValueError) as error:
        raise FormatError(f"not a window: {error}") from error
    return decode_aggregate(state)
