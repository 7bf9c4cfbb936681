"""A start of Ray that Ray itself gives up is made again; any other failure is told."""

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from analytics_actors import ray_node
from analytics_actors.ray_node import RayNode, remove_last_session
from config import Settings
from storage.errors import Misconfigured

GIVES_UP = "import sys; sys.exit('Exception: The current node timed out during startup. This could happen because …')"
FAILS = "import sys; sys.exit('no such option')"
STARTS = """
import pathlib, sys, time
folder = pathlib.Path(sys.argv[1])
folder.mkdir()
(folder / "ray_current_cluster").touch()
time.sleep(60)
"""


class ScriptedNode(RayNode):
    """Runs these programs in the place of Ray, one a try."""

    def __init__(self, directory: Path, *programs: str) -> None:
        super().__init__(directory, Settings())
        self.left = list(programs)

    def _command(self) -> list[str]:
        return [sys.executable, "-c", self.left.pop(0), str(self._session_root())]


def test_what_ray_gives_up_is_tried_again(tmp_path: Path) -> None:
    node = ScriptedNode(tmp_path, GIVES_UP, GIVES_UP, STARTS)
    node.start()
    assert node.left == []
    assert node.process is not None and node.process.poll() is None
    node.stop()


@pytest.mark.parametrize("programs", [(FAILS, STARTS), (GIVES_UP, FAILS, STARTS)])
def test_another_failure_is_told(tmp_path: Path, programs: tuple[str, ...]) -> None:
    node = ScriptedNode(tmp_path, *programs)
    with pytest.raises(Misconfigured, match="no such option"):
        node.start()
    assert node.left == [STARTS]
    node.stop()


def test_it_is_not_tried_for_longer_than_was_said(tmp_path: Path) -> None:
    node = ScriptedNode(tmp_path, *[GIVES_UP] * 200)
    with pytest.raises(Misconfigured):
        node.start(deadline_s=0.3)
    node.stop()


@pytest.fixture
def made() -> Iterator[Path]:
    """A folder with a file, named as those of a node are."""
    with tempfile.TemporaryDirectory(prefix="aa-", ignore_cleanup_errors=True) as name:
        (Path(name) / "kept").touch()
        yield Path(name)


def record(directory: Path, text: str) -> Path:
    path = directory / "temp_dir"
    path.write_text(text)
    return path


def test_what_the_last_node_left_is_removed(tmp_path: Path, made: Path) -> None:
    path = record(tmp_path, str(made))
    remove_last_session(tmp_path)
    assert not made.exists()
    assert not path.exists()
    remove_last_session(tmp_path)


def test_a_copy_of_the_record_leaves_the_originals_folder_alone(tmp_path: Path) -> None:
    node = ScriptedNode(tmp_path / "ray", STARTS)
    node.start()
    assert node.temp_dir is not None
    shutil.copytree(tmp_path / "ray", tmp_path / "copy")
    remove_last_session(tmp_path / "copy")
    assert node.temp_dir.exists()
    assert not (tmp_path / "copy" / "temp_dir").exists()
    node.stop()
    assert not node.temp_dir.exists()


@pytest.mark.parametrize("text", ["", ".", "aa-relative", "\0", "/tmp/aa-\0", "/"])
def test_a_damaged_record_removes_nothing_but_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    directory, current = tmp_path / "ray", tmp_path / "current"
    kept = current / "aa-relative" / "kept"
    kept.parent.mkdir(parents=True)
    kept.touch()
    directory.mkdir()
    monkeypatch.chdir(current)
    monkeypatch.setattr("shutil.rmtree", refuse)
    path = record(directory, text)
    remove_last_session(directory)
    assert kept.exists()
    assert not path.exists()


def refuse(*_: object, **__: object) -> None:
    raise AssertionError("removes")


@pytest.mark.parametrize("whose", ["another name", "a link", "a file", "another user"])
def test_what_a_node_has_not_made_stays(
    tmp_path: Path, made: Path, monkeypatch: pytest.MonkeyPatch, whose: str
) -> None:
    named = made
    if whose == "another name":
        named = tmp_path / "theirs"
        named.mkdir()
    elif whose == "a link":
        named = tmp_path / "aa-link"
        named.symlink_to(made)
    elif whose == "a file":
        named = tmp_path / "aa-file"
        named.touch()
    else:
        other = os.geteuid() + 1
        monkeypatch.setattr(os, "geteuid", lambda: other)
    path = record(tmp_path, str(named))
    remove_last_session(tmp_path)
    assert named.exists()
    assert (made / "kept").exists()
    assert not path.exists()


def test_a_start_that_cannot_be_recorded_leaves_no_folder(
    tmp_path: Path, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def disk_full(path: Path, content: bytes) -> None:
        raise OSError(28, "No space left on device")

    own = made / "own"
    own.mkdir()
    monkeypatch.setattr(ray_node, "write_private", disk_full)
    monkeypatch.setattr(ray_node, "_short_temp_dir", lambda: own)
    node = ScriptedNode(tmp_path, STARTS)
    with pytest.raises(OSError, match="No space left"):
        node.start()
    node.stop()
    assert not own.exists()
