"""What decoding costs, in µs an event: `python -m load_tests.measure_decode [FILE.ndjson[.gz] …]`.

Every line is the best of many runs in one thread, garbage collection off. `floor` is a decode that checks
nothing and keeps properties and context as the client wrote them (`msgspec.Raw`): the price of the checks
and of the normal form is what lies above it. It is no choice: raw text keeps repeated keys and 1e131071.
"""

import argparse
import gc
import gzip
import json
import random
import time
import uuid
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from config.settings import GatewaySettings
from gateway.decode import Decoder

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
SAMPLE = Path(__file__).parent.parent / "tests" / "samples" / "real_events.ndjson"
RUNS = 200


class RawEvent(msgspec.Struct, rename="camel", gc=False):
    """The floor: names and nothing else."""

    event_type: str | None = None
    event_id: str | None = None
    user_id: str | None = None
    session_id: str | None = None
    timestamp: datetime | None = None
    properties: msgspec.Raw = msgspec.Raw(b"{}")
    context: msgspec.Raw = msgspec.Raw(b"null")


def made_event(number: int, rng: random.Random) -> dict[str, object]:
    """About 420 bytes as JSON, of the shape that a web page sends."""
    return {
        "eventId": str(uuid.UUID(int=rng.getrandbits(128))),
        "eventType": "page_view",
        "userId": f"user_{number}",
        "sessionId": str(uuid.UUID(int=rng.getrandbits(128))),
        "timestamp": "2026-03-01T11:59:47.123Z",
        "properties": {
            "plan": "pro",
            "price": round(rng.random() * 100, 2),
            "count": number,
            "tags": ["a", "b"],
            "title": f"Product {number}",
        },
        "context": {
            "ip": f"10.0.{number // 256}.{number % 256}",
            "userAgent": "Mozilla/5.0 (X11; Linux x86_64)",
            "page": {"url": f"https://example.com/products/{number}", "path": f"/products/{number}"},
        },
    }


def snake_case(event: dict[str, object]) -> dict[str, object]:
    names = {"eventId": "event_id", "eventType": "event_type", "userId": "user_id", "sessionId": "session_id"}
    return {names.get(name, name): value for name, value in event.items()}


def pack(events: Iterable[object]) -> bytes:
    return json.dumps(list(events), separators=(",", ":")).encode()


def best_us(call: Callable[[], object], events: int) -> float:
    best = float("inf")
    for _ in range(max(RUNS // max(events // 100, 1), 10)):
        started = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - started)
    return best / events * 1e6


def measure(name: str, body: bytes, events: int, decoder: Decoder) -> None:
    def decode() -> object:
        return decoder.batch(body, content_type=None, project_id="p", now=NOW, import_old=True)

    floor = msgspec.json.Decoder(list[RawEvent])
    rejected = len(decoder.batch(body, content_type=None, project_id="p", now=NOW, import_old=True).rejections)
    floor_us = best_us(lambda: floor.decode(body), events) if body.startswith(b"[") else float("nan")
    cost = best_us(decode, events)
    print(f"{name:34} {len(body) / events:7.0f} B/event {cost:7.2f} µs   floor {floor_us:5.2f}   rejected {rejected}")


def measure_single(name: str, event: dict[str, object], decoder: Decoder) -> None:
    body = json.dumps(event, separators=(",", ":")).encode()
    cost = best_us(lambda: decoder.single(body, project_id="p", now=NOW, import_old=False), 1)
    print(f"{name:34} {len(body):7} B/event {cost:7.2f} µs")


def read_events(path: Path) -> list[dict[str, object]]:
    """The events of a file, without the project that they name: one key takes them all here."""
    plain = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    events = [json.loads(line) for line in plain.splitlines()[:2000]]
    return [{name: value for name, value in event.items() if name != "projectId"} for event in events]


def main() -> None:
    parser = argparse.ArgumentParser(description="what decoding costs, in µs an event")
    parser.add_argument("files", nargs="*", type=Path, default=[SAMPLE], help="NDJSON, plain or gzip")
    files: list[Path] = parser.parse_args().files
    decoder = Decoder(GatewaySettings())
    rng = random.Random(1)
    made = [made_event(number, rng) for number in range(10_000)]
    nameless = [{name: value for name, value in event.items() if name != "eventId"} for event in made[:100]]
    one_bad = [*made[:99], {"eventType": "x", "properties": {"a": "\0"}}]
    gc.disable()
    measure_single("single", made[0], decoder)
    measure_single("single, snake_case", snake_case(made[0]), decoder)
    measure("100", pack(made[:100]), 100, decoder)
    measure("100, no ids", pack(nameless), 100, decoder)
    measure("100, snake_case", pack(map(snake_case, made[:100])), 100, decoder)
    measure("100, one of them bad", pack(one_bad), 100, decoder)
    measure("1,000", pack(made[:1000]), 1000, decoder)
    measure("10,000 (cut before decoding)", pack(made), 10_000, decoder)
    measure("1,000 lines of NDJSON", b"\n".join(pack([event])[1:-1] for event in made[:1000]), 1000, decoder)
    for path in files:
        events = read_events(path)
        measure(f"{path.name.split('.')[0]}, by 100", pack(events[:100]), 100, decoder)


if __name__ == "__main__":
    main()
