"""Where gateway and actors spend their time: py-spy's flame graphs of them under a load."""

import subprocess
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from load_tests.process_costs import Processes
from load_tests.running_system import SystemFailed

ROLES = ("gateway", "batcher", "aggregator", "exporter")
SAMPLES_PER_S = 200
WRITE_DEADLINE_S = 60.0


def flame_graph(name: str, role: str) -> str:
    """The file's name."""
    return f"{name}_{role}.svg"


@contextmanager
def recorded(processes: Processes, *, name: str, seconds: float, folder: Path) -> Iterator[None]:
    """Record for `seconds` from the block's start; the files are complete after the block.

    The processes are not stopped for a sample, so a few samples are torn, and the speed is the real one.
    """
    folder.mkdir(exist_ok=True)
    watched = [(process.pid, folder / flame_graph(name, role)) for role, process in processes if role in ROLES]
    spies = [_spy(pid, path, seconds) for pid, path in watched]
    try:
        yield
        for spy in spies:
            _finish(spy)
    finally:
        for spy in spies:
            if spy.poll() is None:
                spy.kill()
                spy.wait()


def _spy(pid: int, path: Path, seconds: float) -> "subprocess.Popen[bytes]":
    program = Path(sysconfig.get_path("scripts")) / "py-spy"
    command = [str(program), "record", "--pid", str(pid), "--output", str(path), "--format", "flamegraph"]
    command += ["--duration", str(max(1, round(seconds))), "--rate", str(SAMPLES_PER_S), "--nonblocking", "--threads"]
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def _finish(spy: "subprocess.Popen[bytes]") -> None:
    _, said = spy.communicate(timeout=WRITE_DEADLINE_S)
    if spy.returncode != 0:
        raise SystemFailed(f"py-spy ended with {spy.returncode}: {said.decode(errors='replace')[-1000:]}")
