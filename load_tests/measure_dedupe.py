"""What the dedupe window costs: lookup, add, memory, and the rebuild of a window by a new owner.

    python -m load_tests.measure_dedupe [--ids 10000000] [--ids-an-entry 1000] [--json FILE]

The rebuild reads the `ids` stream of an embedded Valkey of its own, through `RedisLog.read_ids`. Figures are of
one run; where a step is repeated the best is printed, since other processes share the machine.
"""

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import redis
from rich.console import Console
from rich.table import Table

from analytics_actors.dedupe import DedupeWindow
from analytics_actors.fingerprint_set import Fingerprints
from config.settings import LogSettings
from storage.embedded.valkey import EmbeddedValkey
from storage.partition_log import Append, IdsEntry, LogState, Trim
from storage.redis_log import RedisLog

WINDOW_S = 86400.0
NOW_MS = 1_800_000_000_000
PARTITION = 7
LOAD_ENTRIES = 1000
"""Entries in one call of `load`: some megabytes, as a new owner would do it between other work."""

Figures = dict[str, float]


def main() -> None:
    options = _options()
    ids = np.random.default_rng(1).integers(0, 2**64, options.ids, dtype=np.uint64)
    window, figures = _measure_add(ids, at_once=1000)
    figures |= _measure_lookup(window, ids)
    figures |= _measure_small_adds(ids[:200_000])
    figures |= asyncio.run(_measure_valkey(ids, options.ids_an_entry))
    _print(figures, ids=options.ids)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")
    else:
        json.dump(figures, sys.stdout, indent=2)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else None)
    parser.add_argument("--ids", type=int, default=10_000_000, help="ids in the window")
    parser.add_argument("--ids-an-entry", type=int, default=1000, help="ids in one append")
    parser.add_argument("--json", type=Path, help="write the figures there instead of to the screen")
    return parser.parse_args()


def _chunks(ids: Fingerprints, size: int) -> Iterator[Fingerprints]:
    return (ids[start : start + size] for start in range(0, ids.size, size))


def _measure_add(ids: Fingerprints, *, at_once: int) -> tuple[DedupeWindow, Figures]:
    """Fill a window as a partition's traffic would; the longest call is the one that merges the largest runs."""
    window = DedupeWindow(WINDOW_S)
    longest_s = 0.0
    started = time.perf_counter()
    for chunk in _chunks(ids, at_once):
        before = time.perf_counter()
        window.add(chunk, NOW_MS)
        longest_s = max(longest_s, time.perf_counter() - before)
    total_s = time.perf_counter() - started
    return window, {
        f"add_us_an_id_in_{at_once}": total_s / ids.size * 1e6,
        "add_longest_call_ms": longest_s * 1e3,
        "resident_bytes_an_id": window.resident_bytes / ids.size,
    }


def _measure_small_adds(ids: Fingerprints) -> Figures:
    def fill() -> None:
        window = DedupeWindow(WINDOW_S)
        for chunk in _chunks(ids, 10):
            window.add(chunk, NOW_MS)

    return {"add_us_an_id_in_10": _best_s(fill) / ids.size * 1e6}


def _measure_lookup(window: DedupeWindow, held: Fingerprints) -> Figures:
    rng = np.random.default_rng(2)
    figures = {}
    for at_once, calls in ((1, 20_000), (10, 5_000), (100, 2_000), (1000, 300)):
        new = rng.integers(0, 2**64, at_once * calls, dtype=np.uint64)
        known = held[rng.integers(0, held.size, at_once * calls)]
        for kind, asked in (("new", new), ("known", known)):
            look_up = partial(_look_up, window, list(_chunks(asked, at_once)))
            figures[f"lookup_us_an_id_{kind}_in_{at_once}"] = _best_s(look_up) / asked.size * 1e6
    return figures


def _look_up(window: DedupeWindow, batches: list[Fingerprints]) -> None:
    for batch in batches:
        window.known(batch)


def _best_s(work: Callable[[], object], *, times: int = 3) -> float:
    durations = []
    for _ in range(times):
        started = time.perf_counter()
        work()
        durations.append(time.perf_counter() - started)
    return min(durations)


async def _measure_valkey(ids: Fingerprints, ids_an_entry: int) -> Figures:
    with tempfile.TemporaryDirectory(prefix="measure-dedupe-") as directory:
        server = EmbeddedValkey(Path(directory), max_memory_bytes=8 << 30)
        server.start()
        log = RedisLog(server.url, LogSettings(command_timeout_s=30.0))
        try:
            figures = await _measure_append(log, server.url, ids, ids_an_entry)
            figures |= await _measure_rebuild(log, ids)
        finally:
            await log.close()
            server.stop()
    return figures


async def _measure_append(log: RedisLog, url: str, ids: Fingerprints, ids_an_entry: int) -> Figures:
    state = await log.acquire(PARTITION, at_least=LogState(0, 0, 0, 0))
    before_bytes = _used_memory(url)
    started = time.perf_counter()
    offset = 0
    for chunk in _chunks(ids, ids_an_entry):
        [outcome] = await log.append([Append(PARTITION, state.epoch, offset, b"", chunk.tobytes())])
        if outcome != "appended":
            raise SystemExit(f"an append was answered {outcome}")
        offset += 1
    total_s = time.perf_counter() - started
    # The records are empty and not what is measured.
    await log.trim([Trim(PARTITION, state.epoch, offset, 0)])
    return {
        f"append_ms_of_{ids_an_entry}_ids_with_fsync": total_s / offset * 1e3,
        "valkey_bytes_an_id": (_used_memory(url) - before_bytes) / ids.size,
    }


def _used_memory(url: str) -> int:
    with redis.Redis.from_url(url) as client:
        return int(client.info("memory")["used_memory"])


async def _measure_rebuild(log: RedisLog, ids: Fingerprints) -> Figures:
    """What a new owner does before it can take appends."""
    window = DedupeWindow(WINDOW_S)
    now_ms = time.time_ns() // 1_000_000
    load_s = 0.0
    started = time.perf_counter()
    entries: list[IdsEntry] = []

    def load() -> None:
        nonlocal load_s
        before = time.perf_counter()
        window.load(entries, now_ms)
        entries.clear()
        load_s += time.perf_counter() - before

    async for entry in log.read_ids(PARTITION):
        entries.append(entry)
        if len(entries) == LOAD_ENTRIES:
            load()
    load()
    total_s = time.perf_counter() - started
    if len(window) != ids.size or not window.known(ids[::1000]).all():
        raise SystemExit("the rebuilt window is not the one that was appended")
    return {"rebuild_s": total_s, "rebuild_load_s": load_s}


def _print(figures: Figures, *, ids: int) -> None:
    table = Table(title=f"dedupe window of {ids:,} ids")
    table.add_column("figure")
    table.add_column("value", justify="right")
    for name, value in figures.items():
        table.add_row(name, f"{value:.3f}")
    Console().print(table)


if __name__ == "__main__":
    main()
