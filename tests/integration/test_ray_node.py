"""A real Ray head: on loopback, behind a token, ended whole, started again after its parts die."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from analytics_actors import ray_dashboard
from analytics_actors.process_identity import session_members
from analytics_actors.ray_node import RayNode
from analytics_actors.ray_start_hook import DASHBOARD_MODULES
from config import Settings

pytestmark = pytest.mark.timeout(180)

DRIVER = """
import os, sys, tempfile, ray
ray.init(address=sys.argv[1], namespace="test", log_to_driver=False)

@ray.remote(num_cpus=0)
class Actor:
    def niceness(self):
        return os.nice(0)

    def temporary_files(self):
        return tempfile.gettempdir()

actor = Actor.options(name="kept", lifetime="detached", get_if_exists=True).remote()
print(ray.get(actor.niceness.remote(), timeout=60), ray.get(actor.temporary_files.remote(), timeout=60))
"""

RESTING_DRIVER = """
import asyncio, os, sys, time, ray
ray.init(address=sys.argv[1], namespace="test", log_to_driver=False)

@ray.remote(num_cpus=0)
class Actor:
    async def wakes(self):
        # Of the main thread, in two seconds.
        before = self._woken()
        await asyncio.sleep(2)
        return self._woken() - before

    def _woken(self):
        with open(f"/proc/self/task/{os.getpid()}/status") as status:
            [line] = [line for line in status if line.startswith("voluntary_ctxt_switches")]
        return int(line.split()[1])

    async def rest(self):
        from analytics_actors.resting import rest_between_calls
        rest_between_calls()

actor = Actor.remote()
awake = ray.get(actor.wakes.remote(), timeout=60)
ray.get(actor.rest.remote(), timeout=60)
began_s = time.monotonic()
resting = ray.get([actor.wakes.remote() for _ in range(3)], timeout=60)
print(awake, *resting, time.monotonic() - began_s)
"""


@pytest.fixture(scope="module")
def one_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayNode]:
    node = RayNode(tmp_path_factory.mktemp("ray"), Settings())
    yield node
    node.stop()


@pytest.fixture
def node(one_node: RayNode) -> RayNode:
    """It runs, whatever the test before has done to it."""
    if one_node.process is None or one_node.process.poll() is not None:
        one_node.start()
    return one_node


def drive(node: RayNode, environment: dict[str, str], driver: str = DRIVER) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-c", driver, node.address]
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return subprocess.run(command, check=False, env=inherited | environment, capture_output=True, text=True, timeout=90)


def processes(node: RayNode) -> dict[int, str]:
    """Command lines of the node's session by pid."""
    assert node.identity is not None
    found = {}
    for member in session_members(node.identity):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            found[member.pid] = Path(f"/proc/{member.pid}/cmdline").read_text().replace("\0", " ")
    return found


def pid_of(node: RayNode, program: str) -> int:
    return next(pid for pid, line in processes(node).items() if line.split(" ", 1)[0].endswith(program))


def listening_addresses(node: RayNode) -> set[str]:
    """Addresses, in the kernel's hexadecimal, that the node's processes listen on."""
    inodes = set()
    for pid in processes(node):
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            try:
                target = str(descriptor.readlink())
            except FileNotFoundError:
                continue
            if target.startswith("socket:["):
                inodes.add(target[8:-1])
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/self/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes:
                found.add(fields[1].rsplit(":", 1)[0])
    return found


def status_of(url: str, token: str = "") -> int:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=30) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_a_driver_joins_and_actors_are_no_nicer_than_we_and_leave_nothing_outside_the_folder(node: RayNode) -> None:
    done = drive(node, node.env())
    assert (done.returncode, done.stdout.split()) == (0, [str(os.nice(0)), str(node.temp_dir)]), done.stderr


def test_an_actors_main_thread_rests_and_takes_calls(node: RayNode) -> None:
    done = drive(node, node.env(), RESTING_DRIVER)
    assert done.returncode == 0, done.stderr
    awake, *resting, seconds = map(float, done.stdout.split())
    assert max(resting) < awake / 2
    # The three at once.
    assert seconds < 5


def test_a_driver_without_the_token_does_not(node: RayNode, tmp_path: Path) -> None:
    wrong = tmp_path / "token"
    wrong.write_text("0" * 48)
    impatient = {"RAY_gcs_rpc_server_connect_timeout_s": "1", "RAY_NUM_REDIS_GET_RETRIES": "2"}
    assert drive(node, node.env() | impatient).returncode == 0
    assert drive(node, node.env() | impatient | {"RAY_AUTH_TOKEN_PATH": str(wrong)}).returncode != 0


def test_everything_listens_on_loopback(node: RayNode) -> None:
    loopback = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}
    addresses = listening_addresses(node)
    assert addresses
    assert addresses <= loopback


def test_the_dashboard_answers_with_the_token_only(node: RayNode) -> None:
    token = Path(node.env()["RAY_AUTH_TOKEN_PATH"]).read_text()
    assert status_of(node.dashboard_url) == 200
    for path in ("/nodes?view=summary", "/api/v0/actors", "/api/jobs/", "/logical/actors"):
        assert status_of(node.dashboard_url + path) == 401
        assert status_of(node.dashboard_url + path, token) == 200


def test_the_list_of_actors_shows_ours(node: RayNode) -> None:
    assert drive(node, node.env()).returncode == 0
    command = [sys.executable, "-m", "ray.scripts.scripts", "list", "actors", "--format=json", "--address"]
    done = subprocess.run(
        [*command, node.dashboard_url],
        check=True,
        env=os.environ | node.env(),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert [actor["name"] for actor in json.loads(done.stdout) if actor["state"] == "ALIVE"] == ["kept"]


def test_only_what_we_use_runs(node: RayNode) -> None:
    lines = list(processes(node).values())
    pages = {line.split("ray-dashboard-")[1].split("-")[0] for line in lines if line.startswith("ray-dashboard-")}
    assert pages == set(DASHBOARD_MODULES)
    assert len([line for line in lines if ray_dashboard.__file__ in line]) == 1
    for unwanted in ("util.client.server", "monitor.py", "log_monitor"):
        assert not any(unwanted in line for line in lines)


def test_a_process_of_the_dashboard_that_ends_comes_back(node: RayNode) -> None:
    token = Path(node.env()["RAY_AUTH_TOKEN_PATH"]).read_text()
    page = node.dashboard_url + "/api/jobs/"
    assert status_of(page, token) == 200
    [before] = [pid for pid, line in processes(node).items() if line.startswith("ray-dashboard-JobHead")]
    os.kill(before, signal.SIGKILL)
    until = time.monotonic() + 60
    while not (after := [pid for pid, line in processes(node).items() if line.startswith("ray-dashboard-JobHead")]):
        assert time.monotonic() < until
        time.sleep(0.1)
    assert after != [before]
    while status_of(page, token) != 200:
        assert time.monotonic() < until
        time.sleep(0.1)


def test_no_other_user_can_enter_its_folder(node: RayNode) -> None:
    assert node.temp_dir is not None
    assert node.temp_dir.stat().st_mode & 0o777 == 0o700
    assert Path(node.env()["RAY_AUTH_TOKEN_PATH"]).stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("program", ["gcs_server", pytest.param("raylet", marks=pytest.mark.long)])
def test_when_a_part_dies_the_head_ends_and_a_fresh_one_starts_in_its_place(node: RayNode, program: str) -> None:
    process, identity, temp_dir, address = node.process, node.identity, node.temp_dir, node.address
    assert process is not None
    assert identity is not None
    assert temp_dir is not None
    os.kill(pid_of(node, program), signal.SIGKILL)
    assert process.wait(timeout=30) != 0
    node.start()
    assert not session_members(identity)
    assert not temp_dir.exists()
    assert node.address == address
    done = drive(node, node.env())
    assert done.returncode == 0, done.stderr


def test_a_stop_ends_everything_and_keeps_the_logs(node: RayNode) -> None:
    assert drive(node, node.env()).returncode == 0
    identity, temp_dir = node.identity, node.temp_dir
    assert identity is not None
    assert temp_dir is not None
    began_s = time.monotonic()
    node.stop()
    assert time.monotonic() - began_s < 10
    assert not session_members(identity)
    assert not temp_dir.exists()
    assert (node.log_path.parent / "last_session" / "raylet.out").exists()
    node.stop()
