"""Patterns in a metric: what is looked for (`PatternSettings`) and what was found (`Detection`).

A window of a metric is compared with the windows before it. What is reported of one window is the most particular of
- spike: at least `spike_factor` times the recent mean;
- drop: at most `drop_factor` times the recent mean;
- anomaly: further from what was expected than `sigma` standard deviations, and neither spike nor drop.
All three are beyond `sigma`, so that the noise of small numbers is none of them. Beside them there is
- trend: a rise or fall that goes on through the last `trend_windows` windows.
"""

from typing import Annotated, Literal
from urllib.parse import urlsplit
from uuid import UUID, uuid5

import msgspec
from msgspec import Meta

Kind = Literal["spike", "drop", "anomaly", "trend"]
Direction = Literal["up", "down"]
JudgedSize = Literal["1m", "5m", "1h"]
Delivery = Literal["none", "pending", "delivered", "failed"]
"""Of a detection's webhook: not wanted, still to be delivered, taken by the receiver, given up."""

MAX_URL_CHARS = 2048
_IDS = UUID("5b6f3c1e-4b53-4f0e-9a70-0d6cbe6a4c53")


class PatternSettings(msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """What is looked for in one metric. `historyWindows` and the like count windows of the size `window`."""

    enabled: bool = True
    window: Annotated[JudgedSize, Meta(description="size of the windows that are judged")] = "1m"
    spike_factor: Annotated[float, Meta(gt=1, le=1000, description="spike: this many times the recent mean")] = 2.0
    drop_factor: Annotated[float, Meta(ge=0, lt=1, description="drop: this part of the recent mean")] = 0.5
    sigma: Annotated[
        float,
        Meta(ge=2, le=20, description="standard deviations; twice in a row, or half as much again once, is beyond it"),
    ] = 3.0
    trend_windows: Annotated[int, Meta(ge=20, le=240, description="a trend goes through so many windows")] = 60
    trend_change: Annotated[float, Meta(gt=0, le=100, description="and changes by this part of the mean")] = 0.5
    history_windows: Annotated[int, Meta(ge=20, le=240, description="windows that a window is compared with")] = 60
    minimum_windows: Annotated[
        int, Meta(ge=10, le=240, description="of which so many hold events, or nothing is judged")
    ] = 20
    minimum_sample: Annotated[int, Meta(ge=1, description="events in a window, or it is not judged")] = 10
    recover_windows: Annotated[int, Meta(ge=1, le=60, description="normal windows that end what was reported")] = 3
    cooldown_s: Annotated[float, Meta(ge=0, le=7 * 86400, description="least time between two of one kind")] = 1800.0
    webhook_url: Annotated[
        str, Meta(max_length=MAX_URL_CHARS, description="detections are posted here; its host must be allowed")
    ] = ""


def check_pattern_settings(settings: PatternSettings) -> None:
    """What the types do not say. Raises `ValueError` that names the field and what to do."""
    if settings.minimum_windows > settings.history_windows:
        raise ValueError("minimumWindows is more than historyWindows: lower it, or no window is ever judged")
    if not settings.webhook_url:
        return
    try:
        url = urlsplit(settings.webhook_url)
        port_is_valid = url.port is None or url.port > 0
    except ValueError:
        raise ValueError("webhookUrl cannot be read: send a URL such as https://hooks.example.com/path") from None
    if url.scheme not in ("https", "http") or not url.hostname or not port_is_valid:
        raise ValueError("webhookUrl is no URL of a web server: send one such as https://hooks.example.com/path")
    if url.username is not None or url.password is not None:
        raise ValueError("webhookUrl carries a user or password: leave them out; deliveries are signed instead")
    if not settings.webhook_url.isascii() or not settings.webhook_url.isprintable() or " " in settings.webhook_url:
        raise ValueError("webhookUrl has characters that no URL has: percent-encode them")


class Detection(msgspec.Struct, frozen=True, kw_only=True):
    """One pattern, found in the window that begins at `start` (Unix time, seconds), with the numbers it was judged by.

    For a trend `value` and `expected` are the ends of the line through the windows, now and `trend_windows` ago.
    """

    project_id: str
    metric: str
    kind: Kind
    direction: Direction
    size: JudgedSize
    start: int
    dimensions: tuple[tuple[str, str], ...] = ()
    value: float
    mean: float
    """Robust mean of the windows before, each brought to this hour of the week when that is known."""
    expected: float
    sigmas: float
    """How far off the expectation, in standard deviations; a trend's score is that of Mann and Kendall."""
    events: int
    """In the window."""
    windows: int
    """Of history that it was compared with."""
    seasonal: bool
    """Whether the usual curve of the week was known and taken into account."""
    detected_at: float

    @property
    def id(self) -> str:
        """The same for the same pattern, whoever finds it: a receiver drops repeats by it."""
        names = [self.project_id, self.metric, self.kind, self.start, self.dimensions]
        return str(uuid5(_IDS, msgspec.json.encode(names).decode()))
