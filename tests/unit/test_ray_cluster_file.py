"""ray_cluster.yaml is what Ray's own schema wants, and starts what the project installs."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jsonschema
import ray
import yaml

from config.heap import ARROW_IN_HEAP

PROJECT = Path(__file__).parents[2]


def cluster_file() -> Any:
    return yaml.safe_load((PROJECT / "ray_cluster.yaml").read_text())


def test_the_cluster_file_is_valid_against_rays_schema() -> None:
    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
    jsonschema.validate(cluster_file(), schema)


def test_setup_uses_a_target_that_the_makefile_has() -> None:
    [setup] = cluster_file()["setup_commands"]
    target = setup.rsplit(" ", 1)[-1]
    assert f"\n{target}:" in (PROJECT / "Makefile").read_text()


def ray_starts() -> list[str]:
    config = cluster_file()
    return [c for k in ("head_start_ray_commands", "worker_start_ray_commands") for c in config[k] if "ray start" in c]


def test_every_node_asks_for_the_token() -> None:
    starts = ray_starts()
    assert len(starts) == 2
    assert all("RAY_AUTH_MODE=token" in command for command in starts)
    # Without it a driver sends none.
    assert "RAY_AUTH_MODE=token analytics-actors up --ray-address" in (PROJECT / "ray_cluster.yaml").read_text()


def test_every_node_has_what_makes_our_actors_small_and_quiet() -> None:
    # The module is not imported here: it takes SIGALRM from the process.
    assert find_spec("analytics_actors.ray_worker_start") is not None
    wanted = ["RAY_preload_python_modules=analytics_actors.ray_worker_start"]
    wanted += [f"{name}={value}" for name, value in ARROW_IN_HEAP.items()]
    assert all(setting in command.split() for command in ray_starts() for setting in wanted)
