"""A crowd of clients on a running system: `locust -f load_tests/locustfile.py --headless -u 50 -r 10 -t 1m`.

Host and keys come from ANALYTICS_URL, ANALYTICS_WRITE_KEY and ANALYTICS_READ_KEY, or from the connection.json of the
data folder ANALYTICS_DATA (./data when it is not set). `--host` wins over both.

For many clients and their mix. What the server can do at most is measured by `make bench`: locust's own
client costs more CPU than the server.
"""

import os
import secrets
from pathlib import Path
from typing import NamedTuple

from locust import FastHttpUser, constant_throughput, task

from analytics_actors.up.connection import Connection
from load_tests.events import EventMaker

BATCH_EVENTS = 100
ACTIONS_PER_S = 2.0
"""Of each user."""


class Access(NamedTuple):
    """Where the system is, and the keys to it."""

    url: str
    write_key: str
    read_key: str


def access() -> Access:
    """Raises `SystemExit` with what to set when the environment and the data folder do not say it all."""
    path = Path(os.environ.get("ANALYTICS_DATA", "data")) / "connection.json"
    connection = Connection.load(path)
    found = Access(
        os.environ.get("ANALYTICS_URL") or (connection.gateway_url if connection else ""),
        os.environ.get("ANALYTICS_WRITE_KEY") or (connection.write_key if connection else ""),
        os.environ.get("ANALYTICS_READ_KEY") or (connection.read_key if connection else ""),
    )
    if not all(found):
        raise SystemExit(
            f"There is no {path}: set ANALYTICS_DATA to the data folder of a running system, or ANALYTICS_URL, "
            "ANALYTICS_WRITE_KEY and ANALYTICS_READ_KEY."
        )
    return found


ACCESS = access()


class Application(FastHttpUser):
    """Sends single events mostly, batches at times, and looks at the newest events now and then."""

    host = ACCESS.url
    wait_time = constant_throughput(ACTIONS_PER_S)

    def on_start(self) -> None:
        self._events = EventMaker(seed=secrets.randbits(64))
        self._write = {"Authorization": f"Bearer {ACCESS.write_key}", "Content-Type": "application/json"}
        self._read = {"Authorization": f"Bearer {ACCESS.read_key}"}

    @task(20)
    def send_one(self) -> None:
        self._post("/v1/events", events=1)

    @task(5)
    def send_batch(self) -> None:
        self._post("/v1/events/batch", events=BATCH_EVENTS)

    def _post(self, path: str, *, events: int) -> None:
        body = self._events.bodies(1, events_per_request=events)[0].decode()
        with self.client.post(path, data=body, headers=self._write, catch_response=True) as answer:
            if answer.status_code != 202:
                answer.failure(f"{answer.status_code}: {answer.text}")
            elif events > 1 and answer.json()["accepted"] != events:
                answer.failure(f"not every event was accepted: {answer.text[:500]}")

    @task(1)
    def read_newest(self) -> None:
        with self.client.get(
            "/v1/events?limit=20", headers=self._read, name="/v1/events", catch_response=True
        ) as answer:
            if answer.status_code != 200:
                answer.failure(f"{answer.status_code}: {answer.text}")
