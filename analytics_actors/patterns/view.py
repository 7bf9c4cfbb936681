"""A detection in the API's words, for `GET /v1/patterns` and for webhooks."""

from datetime import UTC, datetime
from typing import Any

import msgspec

from storage.patterns import Detection, Direction, JudgedSize, Kind
from storage.window_key import SIZE_S


class PatternView(msgspec.Struct, rename="camel", kw_only=True):
    """What was found in the window [startTime, endTime). `mean` is that of the `windows` before it, outliers left out;
    `factor` is value / mean (null for a mean of 0); `sigmas` says how far off `expected` the value is. Of a trend,
    `expected` and `value` are the ends of the line through the windows."""

    id: str
    project_id: str
    metric: str
    kind: Kind
    direction: Direction
    window: JudgedSize
    start_time: datetime
    end_time: datetime
    dimensions: dict[str, str]
    value: float
    mean: float
    factor: float | None
    expected: float
    sigmas: float
    events: int
    windows: int
    seasonal: bool
    detected_at: datetime


def fields_of(detection: Detection) -> dict[str, Any]:
    """The fields of `PatternView`, for it and for those that add to it."""
    start = detection.start
    return {
        "id": detection.id,
        "project_id": detection.project_id,
        "metric": detection.metric,
        "kind": detection.kind,
        "direction": detection.direction,
        "window": detection.size,
        "start_time": datetime.fromtimestamp(start, UTC),
        "end_time": datetime.fromtimestamp(start + SIZE_S[detection.size], UTC),
        "dimensions": dict(detection.dimensions),
        "value": detection.value,
        "mean": detection.mean,
        "factor": round(detection.value / detection.mean, 4) if detection.mean else None,
        "expected": detection.expected,
        "sigmas": round(detection.sigmas, 2),
        "events": detection.events,
        "windows": detection.windows,
        "seasonal": detection.seasonal,
        "detected_at": datetime.fromtimestamp(detection.detected_at, UTC),
    }
