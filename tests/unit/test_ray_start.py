"""A start of Ray that Ray itself gives up is made again; any other failure is told."""

import sys
from pathlib import Path

import pytest

from analytics_actors.ray_node import RayNode
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
