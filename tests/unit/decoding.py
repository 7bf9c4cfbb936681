"""One request decoded, for tests: by `batch` or `single`, with a clock and a randomness that stand still."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from config.settings import GatewaySettings
from gateway.decode import Decoder
from gateway.errors import ApiError
from gateway.rows import Decoded, Rejection, Row

NOW = datetime(2026, 3, 1, 12, 0, 0, 250_000, tzinfo=UTC)
GOOD = b'{"eventId":"good-%d","eventType":"view","properties":{"n":%d}}'

decoder = Decoder(GatewaySettings(), random_bytes=bytes)


def batch(body: bytes, *, content_type: str | None = None, limits: GatewaySettings | None = None) -> Decoded:
    reader = decoder if limits is None else Decoder(limits, random_bytes=bytes)
    return reader.batch(body, content_type=content_type, project_id="shop", now=NOW, import_old=False)


def single(body: bytes, *, import_old: bool = False, limits: GatewaySettings | None = None) -> Decoded:
    reader = decoder if limits is None else Decoder(limits, random_bytes=bytes)
    return reader.single(body, project_id="shop", now=NOW, import_old=import_old)


def row_of(event: dict[str, Any], *, import_old: bool = False, limits: GatewaySettings | None = None) -> Row:
    decoded = single(json.dumps(event).encode(), import_old=import_old, limits=limits)
    assert decoded.rejections == {}
    return decoded.rows[0]


def rejection_of(event: bytes | object, *, limits: GatewaySettings | None = None) -> Rejection:
    decoded = single(event if isinstance(event, bytes) else json.dumps(event).encode(), limits=limits)
    assert decoded.total == 1
    assert decoded.rows == []
    return decoded.rejections[0]


def refusal_of(body: bytes, *, content_type: str | None = None, limits: GatewaySettings | None = None) -> ApiError:
    with pytest.raises(ApiError) as raised:
        batch(body, content_type=content_type, limits=limits)
    return raised.value
