"""The parts of `up` that need no server: folder and lock, run.json, restarts, logs, the detached child's words."""

import errno
import math
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from analytics_actors.process_identity import identify, is_alive
from analytics_actors.up import daemon, logs
from analytics_actors.up import run_file as run_files
from analytics_actors.up.children import ChildFailed, run_module
from analytics_actors.up.connection import Connection, summary
from analytics_actors.up.folder import DataFolder, FolderInUse, Holder
from analytics_actors.up.keeper import Keeper, backoff_s
from analytics_actors.up.run import down
from analytics_actors.up.run_file import RunFile
from analytics_actors.up.services import GatewayService, ServerService
from analytics_actors.up.system import System
from config.settings import ActorSettings, Settings
from storage.embedded.process import OnSpawn, wait_ready
from storage.errors import Misconfigured, Unavailable

SLEEP = [sys.executable, "-c", "import time; time.sleep(60)"]


@pytest.fixture
def folder(tmp_path: Path) -> DataFolder:
    folder = DataFolder(tmp_path / "data")
    folder.create()
    return folder


@pytest.fixture
def sleeper() -> Iterator["subprocess.Popen[bytes]"]:
    with subprocess.Popen(SLEEP, start_new_session=True) as process:
        yield process
        process.kill()


def test_a_folder_belongs_to_one_up(folder: DataFolder) -> None:
    assert folder.holder() is None
    with folder.locked():
        assert folder.holder() == Holder(os.getpid(), "up")
        with pytest.raises(FolderInUse, match=f"pid {os.getpid()}.*analytics-actors down"), folder.locked():
            pass
    assert folder.holder() is None
    with folder.locked():
        pass


def test_others_may_pass_through_the_folder_and_read_nothing(folder: DataFolder) -> None:
    assert folder.path.stat().st_mode & 0o777 == 0o711
    assert folder.logs.stat().st_mode & 0o777 == 0o700


def test_a_folder_that_was_there_loses_no_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o1777)
    DataFolder(tmp_path).create()
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o1777


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Misconfigured, match="choose another folder"):
        DataFolder(tmp_path / "file" / "data").create()


def test_a_folder_that_cannot_be_written_is_told(folder: DataFolder) -> None:
    (folder.path / "lock").unlink()
    (folder.path / "lock").mkdir()
    with pytest.raises(Misconfigured, match="cannot write to"):
        folder.create()
    with pytest.raises(Misconfigured, match="cannot write to"), folder.locked():
        pass


def test_leftovers_of_a_killed_up_are_stopped(folder: DataFolder, sleeper: "subprocess.Popen[bytes]") -> None:
    run_file = RunFile(folder.run_file)
    run_file.record("valkey", sleeper.pid)
    assert RunFile(folder.run_file).stop_leftovers() == ["valkey"]
    assert sleeper.wait() == -signal.SIGTERM
    assert RunFile(folder.run_file).stop_leftovers() == []


def test_a_stranger_with_a_reused_number_is_left_alone(folder: DataFolder, sleeper: "subprocess.Popen[bytes]") -> None:
    run_file = RunFile(folder.run_file)
    run_file.record("valkey", sleeper.pid)
    identity = identify(sleeper.pid)
    assert identity is not None
    text = folder.run_file.read_text()
    folder.run_file.write_text(text.replace(str(identity.start_ticks), str(identity.start_ticks - 1)))
    assert run_file.stop_leftovers() == []
    assert sleeper.poll() is None


def test_a_copy_of_the_folder_leaves_the_originals_processes_alone(
    folder: DataFolder, sleeper: "subprocess.Popen[bytes]", tmp_path: Path
) -> None:
    RunFile(folder.run_file).record("valkey", sleeper.pid)
    copy = DataFolder(tmp_path / "copy")
    shutil.copytree(folder.path, copy.path)
    assert down(copy) == []
    assert sleeper.poll() is None
    assert not copy.run_file.exists()
    # One that was moved is the same folder.
    moved = DataFolder(folder.path.rename(tmp_path / "moved"))
    assert down(moved) == ["valkey"]


def test_the_processes_of_an_earlier_release_are_stopped(
    folder: DataFolder, sleeper: "subprocess.Popen[bytes]"
) -> None:
    folder.run_file.write_bytes(msgspec.json.encode({"children": {"valkey": identify(sleeper.pid)}}))
    assert down(folder) == ["valkey"]


def test_what_was_stopped_is_forgotten(folder: DataFolder, sleeper: "subprocess.Popen[bytes]") -> None:
    run_file = RunFile(folder.run_file)
    run_file.record("ray", sleeper.pid)
    run_file.record("gateway", sleeper.pid)
    run_file.forget("ray")
    run_file.forget("never there")
    assert list(run_file.children()) == ["gateway"]


def test_a_damaged_list_of_leftovers_is_told_and_keeps_nobody_from_stopping(
    folder: DataFolder, sleeper: "subprocess.Popen[bytes]"
) -> None:
    run_file = RunFile(folder.run_file)
    run_file.record("ray", sleeper.pid)
    for damage in (b"", b"{", b'{"children":{"ray":7}}'):
        folder.run_file.write_bytes(damage)
        with pytest.raises(Misconfigured, match=r"run\.json.*delete the file"):
            down(folder)
    run_file.forget("ray")
    assert down(folder) == []


def test_a_full_disk_keeps_nobody_from_stopping(
    folder: DataFolder, sleeper: "subprocess.Popen[bytes]", monkeypatch: pytest.MonkeyPatch
) -> None:
    run_file = RunFile(folder.run_file)
    run_file.record("gateway", sleeper.pid)

    def disk_full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(run_files, "write_private", disk_full)
    monkeypatch.setattr(os, "write", disk_full)
    run_file.forget("gateway")
    assert down(folder) == ["gateway"]


class FakePart:
    def __init__(self, name: str, stopped: list[str], error: Exception | None = None) -> None:
        self._name = name
        self._stopped = stopped
        self._error = error

    def stop(self) -> None:
        self._stopped.append(self._name)
        if self._error is not None:
            raise self._error


def test_a_part_that_does_not_stop_keeps_none_of_the_others_from_it(folder: DataFolder) -> None:
    system = System(folder, Settings(), threading.Event(), report=lambda _: None)
    stopped: list[str] = []
    vars(system).update(
        _gateway=FakePart("gateway", stopped, OSError("first")),
        _actors=FakePart("actors", stopped, OSError("second")),
        _stores=[FakePart("valkey", stopped), FakePart("postgres", stopped)],
    )
    with pytest.raises(OSError, match="first"):
        system.stop()
    assert stopped == ["gateway", "actors", "valkey", "postgres"]


def test_on_a_cluster_the_lake_has_a_place_that_all_nodes_reach(folder: DataFolder) -> None:
    settings = Settings(actors=ActorSettings(ray_address="10.0.0.1:6379"))
    system = System(folder, settings, threading.Event(), report=lambda _: None)
    with pytest.raises(Misconfigured, match=r"set lake\.url"):
        system.start()
    assert not folder.settings_file.exists()


def test_down_ends_leftovers_when_no_up_runs(folder: DataFolder, sleeper: "subprocess.Popen[bytes]") -> None:
    RunFile(folder.run_file).record("gateway", sleeper.pid)
    assert down(folder) == ["gateway"]
    assert down(folder) == []
    assert down(DataFolder(folder.path / "nothing")) == []


@contextmanager
def holding(folder: DataFolder, says: str, *, seconds: float = 60.0) -> Iterator["subprocess.Popen[bytes]"]:
    """A process that holds the folder for so long and is waited for, `PID` in what it says is its own."""
    holds = "import fcntl,os,sys,time; f=open(sys.argv[1],'w'); fcntl.flock(f,fcntl.LOCK_EX)"
    holds += "; print(sys.argv[2].replace('PID',str(os.getpid())),file=f,flush=True); print('held',flush=True)"
    holds += "; time.sleep(float(sys.argv[3]))"
    command = [sys.executable, "-c", holds, str(folder.path / "lock"), says, str(seconds)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        waiter = threading.Thread(target=process.wait)
        waiter.start()
        yield process
        process.kill()
        waiter.join()


@pytest.mark.parametrize("says", ["PID", "PID up"])
def test_down_ends_the_up_that_holds_the_folder(folder: DataFolder, says: str) -> None:
    with holding(folder, says) as up:
        assert down(folder, deadline_s=10) == ["up"]
    assert up.returncode == -signal.SIGTERM


def test_down_ends_what_the_up_has_left(folder: DataFolder, sleeper: "subprocess.Popen[bytes]") -> None:
    RunFile(folder.run_file).record("postgres", sleeper.pid)
    with holding(folder, "PID up"):
        assert down(folder, deadline_s=10) == ["up", "postgres"]
    assert sleeper.wait() == -signal.SIGINT


def test_down_waits_for_another_down_and_leaves_it_alone(
    folder: DataFolder, sleeper: "subprocess.Popen[bytes]"
) -> None:
    RunFile(folder.run_file).record("valkey", sleeper.pid)
    with holding(folder, "PID down", seconds=0.5) as other:
        with pytest.raises(FolderInUse, match=f"being stopped by .*{other.pid}"), folder.locked():
            pass
        # As when the other one has left something.
        assert down(folder, deadline_s=10) == ["valkey"]
    assert other.returncode == 0


@pytest.mark.parametrize("says", ["PID down", ""])
def test_down_tells_that_the_holder_does_not_end(folder: DataFolder, says: str) -> None:
    with holding(folder, says) as other, pytest.raises(Unavailable, match="has not ended after"):
        down(folder, deadline_s=0.2)
    assert other.returncode == -signal.SIGKILL


class FakeService:
    """Dies as often as it is told to, fails to start as often as it is told to."""

    name = "fake"

    def __init__(self, stopping: threading.Event, *, deaths: int, failures: int = 0) -> None:
        self._stopping = stopping
        self._deaths = deaths
        self._failures = failures
        self.starts = 0

    def start(self) -> None:
        self.starts += 1
        if self._failures:
            self._failures -= 1
            raise Misconfigured("not yet")

    def wait(self) -> int:
        if not self._deaths:
            self._stopping.set()
        self._deaths -= 1
        return 1

    def stop(self) -> None:
        raise AssertionError("a keeper stops nothing")


def test_a_service_is_started_again_each_time_it_ends() -> None:
    stopping = threading.Event()
    service = FakeService(stopping, deaths=2)
    keeper = Keeper(service, stopping, clock_s=lambda: 0.0)
    keeper.run()
    assert (service.starts, keeper.restarts) == (2, 2)


def test_a_start_that_fails_is_tried_again() -> None:
    stopping = threading.Event()
    service = FakeService(stopping, deaths=1, failures=2)
    keeper = Keeper(service, stopping)
    keeper.run()
    assert (service.starts, keeper.restarts) == (3, 1)


def test_nothing_is_started_again_while_stopping() -> None:
    stopping = threading.Event()
    stopping.set()
    service = FakeService(stopping, deaths=5)
    Keeper(service, stopping).run()
    assert service.starts == 0


def test_a_dead_child_is_not_ready_because_another_answers(tmp_path: Path, sleeper: "subprocess.Popen[bytes]") -> None:
    sleeper.kill()
    sleeper.wait()
    with pytest.raises(Misconfigured, match="ended with -9"):
        wait_ready(sleeper, lambda: True, log_path=tmp_path / "log", deadline_s=10)


def test_a_server_that_recovers_is_waited_for_beyond_the_deadline(
    tmp_path: Path, sleeper: "subprocess.Popen[bytes]", monkeypatch: pytest.MonkeyPatch
) -> None:
    ready_at = time.monotonic() + 0.3

    def wait(recovering: bool) -> None:
        wait_ready(
            sleeper,
            lambda: time.monotonic() > ready_at,
            log_path=tmp_path / "log",
            deadline_s=0.01,
            recovering=lambda: recovering,
        )

    with pytest.raises(Misconfigured, match="did not get ready in time"):
        wait(recovering=False)
    wait(recovering=True)
    ready_at = math.inf
    monkeypatch.setattr("storage.embedded.process.RECOVERY_PATIENCE_S", 0.05)
    with pytest.raises(Misconfigured, match="did not get ready in time"):
        wait(recovering=True)


def test_a_stop_need_not_wait_for_a_server_that_recovers(folder: DataFolder) -> None:
    stopping, spawned, stopped = threading.Event(), threading.Event(), threading.Event()

    class Recovering:
        process: "subprocess.Popen[bytes] | None" = None

        def start(self, *, on_spawn: OnSpawn, given_up: Callable[[], bool]) -> None:
            with subprocess.Popen(SLEEP, start_new_session=True) as process:
                on_spawn(process.pid)
                spawned.set()
                try:
                    wait_ready(
                        process,
                        lambda: False,
                        log_path=folder.logs / "postgres.log",
                        deadline_s=0.01,
                        recovering=lambda: True,
                        given_up=given_up,
                    )
                finally:
                    process.kill()

        def stop(self) -> None:
            stopped.set()

    service = ServerService("postgres", Recovering(), RunFile(folder.run_file), stopping)

    def start() -> None:
        with pytest.raises(Misconfigured, match="postgres was given up before it was ready"):
            service.start()

    starting = threading.Thread(target=start)
    starting.start()
    assert spawned.wait(10)
    stopping.set()
    service.stop()
    starting.join(10)
    assert stopped.is_set()
    assert not starting.is_alive()


def test_a_gateway_that_does_not_get_ready_is_ended(folder: DataFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    # Run in the gateway's place: the module of that name in the current directory.
    (folder.path / "gateway.py").write_text("import time; time.sleep(60)")
    monkeypatch.chdir(folder.path)
    run_file = RunFile(folder.run_file)
    gateway = GatewayService(folder, Settings(), run_file, {}, threading.Event())
    with pytest.raises(Misconfigured, match="gateway did not start"):
        gateway.start(deadline_s=0.2)
    assert not is_alive(run_file.children()["gateway"])
    gateway.stop()
    assert run_file.children() == {}


def test_the_pause_before_a_start_grows_and_is_bounded() -> None:
    pauses = [backoff_s(failures) for failures in range(100)]
    assert pauses[:3] == [0.1, 0.2, 0.4]
    assert max(pauses) == pauses[-1] == 5.0


def test_a_log_that_has_grown_is_cut_and_goes_on(tmp_path: Path) -> None:
    large, small = tmp_path / "large.log", tmp_path / "small.log"
    small.write_text("y")
    with large.open("ab", buffering=0) as child:
        child.write(b"x" * 100)
        assert logs.bound(tmp_path, max_bytes=50) == ["large.log"]
        child.write(b"on")
    assert large.read_text() == "on"
    assert (tmp_path / "large.log.1").read_text() == "x" * 100
    assert small.read_text() == "y"


def test_a_child_that_fails_is_quoted(tmp_path: Path) -> None:
    with pytest.raises(ChildFailed, match=r"No module named.*nothing_of_that_name"):
        run_module("nothing_of_that_name", [], environment=os.environ, log_path=tmp_path / "log", deadline_s=30)
    assert "nothing_of_that_name" in (tmp_path / "log").read_text()


def test_a_childs_output_is_returned(tmp_path: Path) -> None:
    output = run_module("json.tool", ["--help"], environment=os.environ, log_path=tmp_path / "log", deadline_s=30)
    assert b"usage" in output


@pytest.mark.parametrize(("deadline_s", "cancelled", "said"), [(0.1, False, "in time"), (30.0, True, "cancelled")])
def test_a_child_is_killed_when_late_or_not_wanted(
    tmp_path: Path, deadline_s: float, cancelled: bool, said: str
) -> None:
    (tmp_path / "sleeps.py").write_text("import time; time.sleep(60)")
    with pytest.raises(ChildFailed, match=said):
        run_module(
            "sleeps",
            [],
            environment=os.environ | {"PYTHONPATH": str(tmp_path)},
            log_path=tmp_path / "log",
            deadline_s=deadline_s,
            cancelled=lambda: cancelled,
        )


@pytest.mark.parametrize(("exit_code", "last"), [(None, "progress.ready()"), (1, "sys.exit(1)"), (0, "sys.exit(0)")])
def test_a_detached_child_says_how_it_goes(tmp_path: Path, exit_code: int | None, last: str) -> None:
    code = "import sys; from analytics_actors.up.daemon import Progress; progress = Progress(int(sys.argv[-1]))"
    code += f"; progress.report('one\\ntwo'); print('words'); {last}"
    said: list[str] = []
    log_path = tmp_path / "log"
    log_path.write_text("what an earlier one said")
    child = daemon.start_detached(["-c", code], log_path=log_path, report=said.append, option="--ready-fd")
    assert (child.returncode, said) == (exit_code, ["one two"])
    child.wait()
    assert log_path.read_text() == "words\n"


def test_connection_is_kept_for_its_owner_only(tmp_path: Path) -> None:
    connection = Connection("http://g", "", "default", "a", "w", "r", "p", "r", "l", "1:1", "/token", 1)
    path = tmp_path / "connection.json"
    connection.save(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert Connection.load(path) == connection
    assert Connection.load(tmp_path / "nothing") is None
    assert "curl -sS http://g/v1/events -H 'Authorization: Bearer w'" in summary(connection)
