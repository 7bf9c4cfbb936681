"""`python -m gateway --settings FILE [--port-file FILE]`: listen, and keep the HTTP workers running."""

import argparse
import asyncio
import contextlib
import logging
import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from config import logs
from config.settings import Settings
from gateway.supervisor import Supervisor, WorkerCommand, listen, worker_command, worker_environment, write_port_file

log = logging.getLogger(__name__)


def main(arguments: list[str] | None = None, *, command: WorkerCommand = worker_command) -> int:
    parser = argparse.ArgumentParser(prog="python -m gateway", description=__doc__)
    parser.add_argument("--settings", type=Path, required=True, help="resolved settings as JSON")
    parser.add_argument("--port-file", type=Path, help="file that the port is written to when we listen")
    options = parser.parse_args(arguments)
    logs.configure("gateway")
    settings = Settings.from_json(options.settings.read_bytes())
    try:
        sockets = listen(settings.gateway)
    except OSError as error:
        fields = {"action": "listen_failed", "host": settings.gateway.host, "port": settings.gateway.port}
        log.error("cannot listen: %s; choose another port or stop who has it", error.strerror, extra=fields)
        return 1
    port = sockets[0].getsockname()[1]
    if options.port_file is not None:
        write_port_file(options.port_file, port)
    log.info(
        "listening", extra={"action": "listening", "host": settings.gateway.host, "port": port, "pid": os.getpid()}
    )
    with contextlib.ExitStack() as stack:
        for sock in sockets:
            stack.enter_context(sock)
        asyncio.run(_supervise(options.settings, settings, sockets, command))
    return 0


async def _supervise(
    settings_file: Path, settings: Settings, sockets: Sequence[socket.socket], command: WorkerCommand
) -> None:
    supervisor = Supervisor(
        lambda worker: command(settings_file, sockets[worker].fileno(), worker),
        sockets,
        worker_environment(settings),
        drain_deadline_s=settings.gateway.drain_deadline_s,
    )
    await supervisor.run()


if __name__ == "__main__":
    sys.exit(main())
