"""`make bench`: the whole system under load, and the floors beside it. `python -m load_tests.bench --help`.

It starts a system of its own on a temporary data folder and stops it at the end, also after Ctrl-C. A full
run writes load_tests/results/latest.json; every other kind of run writes a file of its own name.
"""

import argparse
import asyncio
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import uvloop
from rich.console import Console

from load_tests.comparison import Comparison, Plan
from load_tests.figures import Results
from load_tests.lake_measurements import LakeMeasurements
from load_tests.profiles import ROLES, flame_graph, recorded
from load_tests.report import RESULTS, machine, save, show
from load_tests.rounds import BATCH_100, BATCH_1000, SINGLE, Workload
from load_tests.running_system import RunningSystem, SystemFailed
from load_tests.watching import idle, soak
from load_tests.window_measurements import WindowMeasurements, define_load_metrics

MEASUREMENTS = (
    "single",
    "latency",
    "batch100",
    "batch1000",
    "windows",
    "freshness",
    "metric_query",
    "all_sinks",
    "lake_query",
    "slow_lake",
)
WORKLOADS = {workload.name: workload for workload in (SINGLE, BATCH_100, BATCH_1000)}
FULL = Plan(seconds=15.0, rounds=3, attempt_s=1.5, skip=0)
QUICK = Plan(seconds=2.0, rounds=1, attempt_s=0.4, skip=1)

console = Console(highlight=False)


class Run(NamedTuple):
    """What one kind of run gave."""

    name: str
    """Of the file in load_tests/results."""
    content: dict[str, Any]


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m load_tests.bench", description="Measure the system, and its floors."
    )
    parser.add_argument("--quick", action="store_true", help="one short round of each: a try, no result")
    parser.add_argument("--only", nargs="+", choices=MEASUREMENTS, metavar="NAME", help=f"of {', '.join(MEASUREMENTS)}")
    parser.add_argument("--seconds", type=float, help=f"length of a round [{FULL.seconds:g}]")
    parser.add_argument("--rounds", type=int, help=f"rounds of each [{FULL.rounds}]")
    parser.add_argument("--rate", type=float, help="of the half load, in requests a second [half of what is measured]")
    parser.add_argument("--projects", type=int, default=4, help="projects that take turns [4]")
    parser.add_argument("--seed", type=int, default=1, help="of the events and arrivals [1]")
    parser.add_argument("--metrics", action="store_true", help="define the ten metrics of `windows` in every project")
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="NAME=VALUE", help="as of `up`")
    kinds = parser.add_mutually_exclusive_group()
    kinds.add_argument("--profile", action="store_true", help="flame graphs of gateway and actors instead")
    kinds.add_argument(
        "--soak", type=float, metavar="MINUTES", help="half load (of --only, or single) for so long instead"
    )
    kinds.add_argument("--idle", type=float, metavar="SECONDS", help="what an idle system costs instead")
    parsed = parser.parse_args(arguments)
    if parsed.soak is not None and parsed.soak < 1:
        parser.error("--soak takes a minute or more: memory is looked at each ten seconds")
    if (parsed.profile or parsed.soak) and not set(parsed.only or ()) <= WORKLOADS.keys():
        parser.error(f"--profile and --soak take --only of {', '.join(WORKLOADS)}")
    return parsed


def plan_of(arguments: argparse.Namespace) -> Plan:
    plan = QUICK if arguments.quick else FULL
    return plan._replace(
        seconds=arguments.seconds or plan.seconds,
        rounds=arguments.rounds or plan.rounds,
        requests_per_s=arguments.rate,
    )


def settings_of(arguments: argparse.Namespace) -> list[str]:
    """NAME=VALUE, the later ones win. What is compared has no lake unless its measurement turns it on: its exports come
    up to a minute later, in the turn of another server."""
    is_looked_at = arguments.profile or arguments.soak or arguments.idle
    return [*([] if is_looked_at else ["lake.enabled=false"]), *arguments.settings]


def report(text: str) -> None:
    console.print(text, soft_wrap=True, markup=False)


def compare(comparison: Comparison, arguments: argparse.Namespace) -> Run:
    names = arguments.only or MEASUREMENTS
    projects, settings = arguments.projects, settings_of(arguments)
    of_windows = WindowMeasurements(comparison, projects=projects, settings=settings)
    of_lake = LakeMeasurements(comparison, projects=projects, settings=settings)
    for name in MEASUREMENTS:
        if name in names:
            measure = next(found for each in (comparison, of_windows, of_lake) if (found := getattr(each, name, None)))
            measure()
    comparison.finish()
    results: Results = comparison.results
    show(results, console)
    is_full = not (arguments.quick or arguments.only or arguments.rate)
    content = {
        "figures": results.figures,
        "ratios": results.ratios,
        "costs": results.costs,
        "attempts": results.attempts,
    }
    return Run("latest" if is_full else "quick", content)


def profile(comparison: Comparison, system: RunningSystem, arguments: argparse.Namespace) -> Run:
    seconds = plan_of(arguments).seconds
    files: list[str] = []
    for name in arguments.only or (SINGLE.name, BATCH_100.name):
        recording = recorded(system.processes(), name=name, seconds=seconds, folder=RESULTS)
        best = comparison.saturation(WORKLOADS[name])
        speed = comparison.attempt(WORKLOADS[name], connections=best.connections, seconds=seconds, within=recording)
        report(f"{name}: {speed.requests_per_s:,.0f} requests/s with py-spy beside it")
        files += [flame_graph(name, role) for role in ROLES]
    return Run("profile", {"files": files})


def endure(comparison: Comparison, runner: asyncio.Runner, system: RunningSystem, arguments: argparse.Namespace) -> Run:
    workload: Workload = WORKLOADS[arguments.only[0]] if arguments.only else SINGLE
    rate = comparison.half_load(workload)
    report(f"{workload.name}: {rate:,.0f} requests/s for {arguments.soak:g} minutes")
    found = soak(
        runner,
        system,
        workload,
        requests_per_s=rate,
        seconds=arguments.soak * 60,
        seed=arguments.seed + 1,
        report=report,
    )
    comparison.finish()
    return Run("soak", found)


def run(runner: asyncio.Runner, system: RunningSystem, arguments: argparse.Namespace) -> Run:
    if arguments.metrics:
        define_load_metrics(system)
    if arguments.idle:
        return Run("idle", {"figures": idle(system, seconds=arguments.idle, report=report)})
    comparison = Comparison(runner, system, plan_of(arguments), seed=arguments.seed, report=report)
    if arguments.profile:
        return profile(comparison, system, arguments)
    if arguments.soak:
        return endure(comparison, runner, system, arguments)
    return compare(comparison, arguments)


def main() -> int:
    arguments = parse(sys.argv[1:])
    # SIGTERM ends a run as Ctrl-C does, also in the background: everything that was started is stopped.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    started_s, load_average = time.monotonic(), os.getloadavg()[0]
    try:
        with (
            RunningSystem(projects=arguments.projects, settings=settings_of(arguments)) as system,
            asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
        ):
            report(f"the system is ready after {time.monotonic() - started_s:.0f} s")
            tested_on = machine(system.data, load_average=load_average)
            found = run(runner, system, arguments)
    except KeyboardInterrupt:
        report("stopped; nothing was saved")
        return 130
    except (SystemFailed, OSError, TimeoutError) as error:
        report(f"failed: {type(error).__name__} {error}")
        return 1
    settings = {name: value for name, value in vars(arguments).items() if value is not None}
    settings |= plan_of(arguments)._asdict()
    path = save(found.name, found.content | {"machine": tested_on, "settings": settings})
    report(
        f"{path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path}, "
        f"after {time.monotonic() - started_s:.0f} s"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
