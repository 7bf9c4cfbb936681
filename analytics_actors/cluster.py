"""Start or drain the actors of a system on a Ray cluster: a short-lived driver.

    python -m analytics_actors.cluster --settings FILE [--drain] [--deadline SECONDS]

Exits 0 when every shard is open (or everything acknowledged is stored), 1 with the reason on stderr.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError

from analytics_actors.messages import CONTROLLER_NAME
from analytics_actors.ray_driver import join
from config.settings import Settings


def start(settings: Settings, *, deadline_s: float) -> None:
    """Return when every shard is open. Raises `TimeoutError` with the shards' states."""
    # Not above: with it come all the actors, a second of CPU that a drain does not need.
    from analytics_actors.controller_actor import CONTROLLER_OPTIONS, ControllerActor

    controller: Any = ray.remote(ControllerActor).options(**CONTROLLER_OPTIONS).remote(settings.to_json())
    until = time.monotonic() + deadline_s
    while not ray.get(controller.ready.remote(), timeout=deadline_s):
        if time.monotonic() > until:
            raise TimeoutError(f"shards are not open: {ray.get(controller.status.remote(), timeout=5)}")
        time.sleep(0.05)


def drain(settings: Settings, *, deadline_s: float) -> None:
    """Return when everything acknowledged is stored and the actors have ended. Raises `TimeoutError`."""
    try:
        controller: Any = ray.get_actor(CONTROLLER_NAME)
    except ValueError:
        return
    finished: Any = ray.get(controller.drain.remote(deadline_s), timeout=deadline_s + 10)
    ray.kill(controller, no_restart=True)
    if not finished:
        raise TimeoutError("not everything was stored in time; it stays in the log and is stored after the next start")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m analytics_actors.cluster", description=__doc__)
    parser.add_argument("--settings", type=Path, required=True)
    parser.add_argument("--drain", action="store_true")
    parser.add_argument("--deadline", type=float, default=60.0)
    arguments = parser.parse_args()
    settings = Settings.from_json(arguments.settings.read_bytes())
    try:
        join(settings)
        (drain if arguments.drain else start)(settings, deadline_s=arguments.deadline)
    except (RayError, TimeoutError, ConnectionError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
