"""The metrics of one project over HTTP: defined, and asked for."""

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import httpx
import msgspec

from load_tests.running_system import Project, RunningSystem, SystemFailed
from storage.metric_definitions import MetricDefinition

DEADLINE_S = 30.0
FOLLOWED_DEADLINE_S = 60.0
POLL_INTERVAL_S = 0.2
LOOK_BACK_S = 2 * 3600
"""No run takes as long."""


class Found(NamedTuple):
    """What is of interest of an answer."""

    total: float
    """The sum of all points' values."""
    points: int
    degraded: bool
    from_cache: bool


class MetricsApi:
    """For a project of a running system. A status that was not expected is `SystemFailed`."""

    def __init__(self, system: RunningSystem, project: Project) -> None:
        self._url = system.connection.gateway_url
        self._admin_key = system.connection.admin_key
        self._project = project

    def define(self, definitions: Sequence[MetricDefinition]) -> None:
        for definition in definitions:
            content = msgspec.json.encode(definition)
            self._call("POST", "/v1/metrics-definitions", self._admin_key, 201, content=content, project=True)

    def wait_followed(self, definitions: Sequence[MetricDefinition]) -> None:
        """Return when the windows count these. They are asked for after an event, since a project without events has
        no windows that anything could be missing in."""
        event = msgspec.json.encode({"eventType": "bench_begin", "userId": "bench"})
        self._call("POST", "/v1/events", self._project.write_key, 202, content=event)
        until_s = time.monotonic() + FOLLOWED_DEADLINE_S
        while not self._follows(definitions):
            if time.monotonic() > until_s:
                raise SystemFailed(f"metrics of {self._project.project_id} not built in {FOLLOWED_DEADLINE_S} s")
            time.sleep(POLL_INTERVAL_S)

    def _follows(self, definitions: Sequence[MetricDefinition]) -> bool:
        return self.events() > 0 and not any(self.ask(each.name).degraded for each in definitions)

    def events(self) -> int:
        """Of this run, as the metrics API counts them."""
        start_ms = int((time.time() - LOOK_BACK_S) * 1000)
        return int(self.ask("events", startTime=start_ms, granularity="hour").total)

    def ask(self, metric: str, **parameters: Any) -> Found:
        answer = self._call("GET", f"/v1/metrics/{metric}", self._project.read_key, 200, params=parameters)
        found = answer.json()
        values = [point["value"] or 0 for point in found["points"]]
        return Found(sum(values), len(values), found.get("degraded", False), found.get("cache") == "hit")

    def _call(
        self, method: str, path: str, key: str, expected: int, *, project: bool = False, **rest: Any
    ) -> httpx.Response:
        if project:
            rest["params"] = {"projectId": self._project.project_id}
        headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
        answer = httpx.request(method, f"{self._url}{path}", headers=headers, timeout=DEADLINE_S, **rest)
        if answer.status_code != expected:
            raise SystemFailed(f"{method} {path}: {answer.status_code} {answer.text[:500]}")
        return answer
