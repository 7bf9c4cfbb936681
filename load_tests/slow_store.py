"""An S3 server that is as slow as a real one, or slower: moto behind `load_tests.slow_proxy`, as child processes."""

import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import IO, cast
from urllib.parse import urlsplit

from tests.object_servers import ObjectServer, start_moto

STOP_DEADLINE_S = 10.0


class SlowStore:
    """A context manager: runs within the block. What was put is in moto's memory, and gone with it."""

    def __init__(self) -> None:
        self._folder: tempfile.TemporaryDirectory[str]
        self._moto: ObjectServer
        self._proxy: subprocess.Popen[bytes]
        self._port = 0
        self.bucket = ""

    def __enter__(self) -> "SlowStore":
        self._folder = tempfile.TemporaryDirectory(prefix="analytics-bench-s3-")
        try:
            self._moto = start_moto(Path(self._folder.name))
            try:
                self.bucket = self._moto.make_bucket()
                self._start_proxy()
            except BaseException:
                self._moto.stop()
                raise
        except BaseException:
            self._folder.cleanup()
            raise
        return self

    def _start_proxy(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self._port = int(listener.getsockname()[1])
            server = urlsplit(self._moto.endpoint_url).netloc
            self._proxy = subprocess.Popen(
                [sys.executable, "-m", "load_tests.slow_proxy", server, "--fd", str(listener.fileno())],
                stdin=subprocess.PIPE,
                pass_fds=(listener.fileno(),),
                start_new_session=True,
            )

    def __exit__(self, *_: object) -> None:
        try:
            self._input.close()
            try:
                self._proxy.wait(STOP_DEADLINE_S)
            except subprocess.TimeoutExpired:
                self._proxy.kill()
                self._proxy.wait()
        finally:
            self._moto.stop()
            self._folder.cleanup()

    @property
    def _input(self) -> IO[bytes]:
        return cast(IO[bytes], self._proxy.stdin)

    def slow_down(self, factor: float) -> None:
        """From now on it is so many times as slow as `load_tests.slow_proxy` is by itself."""
        self._input.write(b"%g\n" % factor)
        self._input.flush()

    @property
    def settings(self) -> list[str]:
        """NAME=VALUE, of a lake that is here."""
        return [
            f"lake.url=s3://{self.bucket}/bench",
            f"lake.endpoint_url=http://127.0.0.1:{self._port}",
            "lake.path_style=true",
        ]

    @property
    def environment(self) -> dict[str, str]:
        """With the credentials."""
        return self._moto.environment()
