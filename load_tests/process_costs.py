"""What each part of the system costs: CPU seconds, bytes written, and memory (PSS), read from /proc.

A part is a role; its processes are found in the tree under `up`. CPU time and written bytes of a process
include those of children that it has waited for, so that the sum over the tree counts what a short-lived
process (a PostgreSQL session) did exactly once, also after it has ended.

Written bytes are those handed to `write` calls. For PostgreSQL that is files alone (WAL, tables, indexes); for
the others sockets and pipes are in it. The kernel's other count, of bytes on their way to the disk, takes a
large folio as a whole each time a small part of it is written, and was 65 times too high for a WAL.

PSS counts memory that several processes share (PostgreSQL's buffers, libraries) once in their sum.
"""

import os
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import psutil

SAMPLE_INTERVAL_S = 5.0
"""A sample of all processes takes some 50 ms of CPU: one percent of one core."""

_ACTORS = {
    "batcher": "batcher",
    "aggregator": "aggregator",
    "exporter": "exporter",
    "keeper": "keeper",
    "lakekeeper": "keeper",
    "controller": "controller",
}
"""Roles, by how an actor's name begins: that of its class at first, then what it calls itself."""

Processes = list[tuple[str, psutil.Process]]
"""Each with its role."""


class Cost(NamedTuple):
    """Since the start of the processes, except `pss_bytes`, which is now."""

    cpu_s: float = 0.0
    written_bytes: int = 0
    pss_bytes: int = 0

    def since(self, before: "Cost") -> "Cost":
        """CPU and writes between two costs; the memory of the later one."""
        return Cost(self.cpu_s - before.cpu_s, self.written_bytes - before.written_bytes, self.pss_bytes)


def role_of(command_line: list[str]) -> str:
    """The part that a process under `up` belongs to. Ray's agents, servers and idle workers are `ray`."""
    line = " ".join(command_line)
    # A server that has set its title has all of it in the first argument.
    program = Path(line.split(" ", 1)[0]).name
    if line.startswith("ray::"):
        return next((role for name, role in _ACTORS.items() if line.lower().startswith(f"ray::{name}")), "ray")
    if "gateway.worker" in command_line:
        return "gateway"
    if "storage.sandbox" in command_line:
        return "query"
    if "gateway" in command_line or "analytics_actors.cli" in command_line:
        return "supervisors"
    if program == "valkey-server":
        return "valkey"
    return "postgres" if line.startswith("postgres:") or program == "postgres" else "ray"


def processes_under(up_pid: int) -> Processes:
    """`up` and everything that descends from it."""
    up = psutil.Process(up_pid)
    found: Processes = []
    for process in (up, *up.children(recursive=True)):
        try:
            found.append((role_of(process.cmdline()), process))
        except psutil.NoSuchProcess:
            continue
    return found


def measure(processes: Iterable[tuple[str, psutil.Process]]) -> dict[str, Cost]:
    """The cost of each role. A process that has ended meanwhile counts through its parent."""
    costs: dict[str, Cost] = defaultdict(Cost)
    for role, process in processes:
        try:
            cpu, written_bytes, pss_bytes = process.cpu_times(), process.io_counters().write_chars, pss_of(process.pid)
        except psutil.NoSuchProcess:
            continue
        cpu_s = cpu.user + cpu.system + cpu.children_user + cpu.children_system
        sum_s, sum_written, sum_pss = costs[role]
        costs[role] = Cost(sum_s + cpu_s, sum_written + written_bytes, sum_pss + pss_bytes)
    return dict(costs)


def pss_of(pid: int) -> int:
    """Bytes; 0 when the process has ended."""
    try:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((int(line.split()[1]) * 1024 for line in rollup.splitlines() if line.startswith("Pss:")), 0)


def differences(before: Mapping[str, Cost], after: Mapping[str, Cost]) -> dict[str, Cost]:
    return {role: cost.since(before.get(role, Cost())) for role, cost in after.items()}


class Meter:
    """Measures what happens within `with`: the costs of each role, with the peak of its memory.

    `find` gives the processes; besides them the caller's own process counts, as `generator`.
    """

    def __init__(self, find: Callable[[], Processes], *, interval_s: float = SAMPLE_INTERVAL_S) -> None:
        self._find = find
        self._interval_s = interval_s
        self._ended = threading.Event()
        self._sampler = threading.Thread(target=self._sample, name="meter", daemon=True)
        self._failure: Exception | None = None
        self._before: dict[str, Cost] = {}
        self._peaks: dict[str, int] = {}
        self.costs: dict[str, Cost] = {}
        """Complete after the block: CPU and writes within it, and the peak of PSS."""

    def __enter__(self) -> "Meter":
        self._before = self._measure()
        self._sampler.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._sampler.join()
        if self._failure is not None:
            raise self._failure
        after = differences(self._before, self._measure())
        self.costs = {role: cost._replace(pss_bytes=self._peaks[role]) for role, cost in after.items()}

    def _measure(self) -> dict[str, Cost]:
        costs = measure([*self._find(), ("generator", psutil.Process(os.getpid()))])
        for role, cost in costs.items():
            self._peaks[role] = max(cost.pss_bytes, self._peaks.get(role, 0))
        return costs

    def _sample(self) -> None:
        try:
            while not self._ended.wait(self._interval_s):
                self._measure()
        except Exception as error:  # told by __exit__, in the thread that can act on it
            self._failure = error
            self._ended.set()
