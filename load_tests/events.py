"""Made-up events of a web shop as JSON, about 420 bytes each, no two alike, every one with a client's id.

Page views, clicks and purchases in the shares of a shop, of users drawn by Zipf's law. They are made before
they are sent, so that a generator on the server's own cores costs little while it measures.
"""

from collections.abc import Iterator
from datetime import UTC, datetime

import numpy as np

_KINDS = ("page_view", "click", "purchase")
_SHARES = (0.70, 0.25, 0.05)
_USERS = 100_000
_PRODUCTS = 5_000
_BLOCK_EVENTS = 10_000
"""Random numbers are drawn for so many events at once."""

_AGENTS = (
    "Mozilla/5.0 (X11; Linux x86_64; rv:130.0) Gecko/20100101",
    "Mozilla/5.0 (Macintosh; Intel Mac OS X 14_6) Safari/605",
    "Mozilla/5.0 (iPhone; CPU iPhone OS 17_6 like Mac OS X)",
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64) Chrome/129.0",
)
_CATEGORIES = ("garden", "kitchen", "books", "lighting", "toys", "outdoor")
_SOURCES = ("newsletter", "search", "direct", "partner")

_HEAD = (
    '{"eventId":"%s","eventType":"%s","userId":"user-%d","sessionId":"%s","timestamp":"%s","properties":%s,'
    '"context":{"ip":"203.0.113.%d","userAgent":"%s","page":{"url":"https://shop.example/p/%d","path":"/p/%d"}}}'
)
_PROPERTIES = {
    "page_view": '{"title":"Product %d","category":"%s","loadMs":%d,"source":"%s"}',
    "click": '{"element":"add-to-cart-%d","category":"%s","x":%d,"source":"%s"}',
    "purchase": '{"orderId":"order-%d","category":"%s","price":%d.95,"currency":"EUR","source":"%s"}',
}


class EventMaker:
    """An endless supply. Two makers of one seed make the same events at the same time `now`."""

    def __init__(self, *, seed: int, now: datetime | None = None) -> None:
        self._random = np.random.default_rng(seed)
        self._now = now

    def events(self, count: int) -> Iterator[bytes]:
        """The next `count` events, each a JSON object."""
        while count > 0:
            block = min(count, _BLOCK_EVENTS)
            yield from self._block(block)
            count -= block

    def bodies(self, requests: int, *, events_per_request: int) -> list[bytes]:
        """Request bodies: the event itself when there is one a request, else an array."""
        events = self.events(requests * events_per_request)
        if events_per_request == 1:
            return list(events)
        return [b"[" + b",".join(next(events) for _ in range(events_per_request)) + b"]" for _ in range(requests)]

    def _block(self, count: int) -> Iterator[bytes]:
        random = self._random
        ids, sessions = self._uuids(count), self._uuids(count)
        second = (self._now or datetime.now(UTC)).strftime("%Y-%m-%dT%H:%M:%S")
        drawn = zip(
            ids,
            random.choice(len(_KINDS), count, p=_SHARES).tolist(),
            (random.zipf(1.3, count) % _USERS).tolist(),
            sessions,
            random.integers(0, 1000, count).tolist(),
            random.integers(0, _PRODUCTS, count).tolist(),
            random.integers(10, 1000, count).tolist(),
            random.integers(1, 1 << 30, count).tolist(),
            strict=True,
        )
        for event_id, kind, user, session, millisecond, product, number, salt in drawn:
            name = _KINDS[kind]
            category, agent = _CATEGORIES[product % len(_CATEGORIES)], _AGENTS[user % len(_AGENTS)]
            subject = salt if name == "purchase" else product
            properties = _PROPERTIES[name] % (subject, category, number, _SOURCES[salt % len(_SOURCES)])
            time = f"{second}.{millisecond:03d}Z"
            octet = user % 254 + 1
            yield (_HEAD % (event_id, name, user, session, time, properties, octet, agent, product, product)).encode()

    def _uuids(self, count: int) -> list[str]:
        hexed = self._random.bytes(16 * count).hex()
        return [
            f"{hexed[at : at + 8]}-{hexed[at + 8 : at + 12]}-4{hexed[at + 13 : at + 16]}-"
            f"a{hexed[at + 17 : at + 20]}-{hexed[at + 20 : at + 32]}"
            for at in range(0, 32 * count, 32)
        ]
