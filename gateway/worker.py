"""One gateway process: the real services behind the app.

    python -m gateway.worker --settings FILE --fd N --worker I

Started by `gateway.supervisor`, which owns the listening socket. The port is served before Ray is joined
and while PostgreSQL or Redis are away: known keys come from disk, and events go to the spool.
"""

import argparse
import asyncio
import socket
import sys
from pathlib import Path

import uvloop

from config import logs
from config.settings import Settings
from gateway.app import create_app
from gateway.decode import Decoder
from gateway.ingest import GatewayIngest
from gateway.keys import KeyCache
from gateway.ray_link import RayLink
from gateway.server import serve
from gateway.services import Services
from gateway.spooler import Spooler
from gateway.status import WorkerStatus
from storage.spool import Spool


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m gateway.worker")
    parser.add_argument("--settings", type=Path, required=True)
    parser.add_argument("--fd", type=int, required=True)
    parser.add_argument("--worker", type=int, required=True)
    arguments = parser.parse_args()
    logs.configure(f"gateway-{arguments.worker}")
    settings = Settings.from_json(arguments.settings.read_bytes())
    uvloop.run(run(settings, socket.socket(fileno=arguments.fd), worker=arguments.worker))
    return 0


if __name__ == "__main__":
    sys.exit(main())
