"""How long an event takes from its 202 until the metrics API shows it.

Events of one type of their own are posted, one every `INTERVAL_S`, and the count of that type is asked for again and
again. A project's events are counted in the order of their acknowledgement (OR-1), so a count of n shows the first n:
no probe waits for another to be seen, and a stall is seen by all that fall into it. What is told is at most
`POLL_PAUSE_S` and one query too long.
"""

import asyncio
import time
from dataclasses import dataclass, field

import httpx
import msgspec

from load_tests.generator import Clock
from load_tests.running_system import Project, RunningSystem, SystemFailed

INTERVAL_S = 0.1
POLL_PAUSE_S = 0.02
SEEN_DEADLINE_S = 30.0
REQUEST_DEADLINE_S = 10.0


@dataclass
class Probes:
    """What a prober found."""

    waits_s: list[float] = field(default_factory=list)
    """From 202 to the first answer that shows it, a probe each."""
    answers: int = 0
    degraded_answers: int = 0
    """Of them: made without windows."""


class Prober:
    """Probes a project once. `client` has the system's URL as its base."""

    def __init__(
        self,
        client: httpx.AsyncClient,
        project: Project,
        event_type: str,
        *,
        clock: Clock = time.perf_counter,
        wall_clock: Clock = time.time,
    ) -> None:
        """`event_type` must be new to the project."""
        self._client = client
        self._project = project
        self._event_type = event_type
        self._clock = clock
        # A minute earlier, for a gateway whose clock is a little behind.
        self._since_ms = int((wall_clock() - 60) * 1000)
        self._acknowledged_s: list[float] = []
        self._seen_s: list[float] = []
        self._found = Probes()

    async def run(self, *, seconds: float) -> Probes:
        """Post for so long, and return when everything was seen. Raises `SystemFailed` when that takes too long."""
        probes = max(1, round(seconds / INTERVAL_S))
        try:
            async with asyncio.timeout(seconds + SEEN_DEADLINE_S):
                await asyncio.gather(self._post(probes), self._watch(probes))
        except TimeoutError as error:
            raise SystemFailed(f"{len(self._seen_s)} of {probes} probes were seen") from error
        # An answer can be faster than the 202 of the very event that it shows.
        pairs = zip(self._acknowledged_s, self._seen_s, strict=True)
        self._found.waits_s = [max(0.0, seen_s - acknowledged_s) for acknowledged_s, seen_s in pairs]
        return self._found

    async def _post(self, probes: int) -> None:
        headers = {"Authorization": f"Bearer {self._project.write_key}", "Content-Type": "application/json"}
        content = msgspec.json.encode({"eventType": self._event_type, "userId": "probe"})
        started_s = self._clock()
        for number in range(probes):
            await asyncio.sleep(max(0.0, started_s + number * INTERVAL_S - self._clock()))
            answer = await self._client.post("/v1/events", headers=headers, content=content)
            self._acknowledged_s.append(self._clock())
            _check(answer, 202)

    async def _watch(self, probes: int) -> None:
        headers = {"Authorization": f"Bearer {self._project.read_key}"}
        parameters = {"startTime": str(self._since_ms), "granularity": "minute"}
        while len(self._seen_s) < probes:
            answer = await self._client.get(f"/v1/metrics/{self._event_type}", headers=headers, params=parameters)
            now_s = self._clock()
            _check(answer, 200)
            content = answer.json()
            shown = int(sum(point["value"] or 0 for point in content["points"]))
            self._seen_s += [now_s] * (shown - len(self._seen_s))
            self._found.answers += 1
            self._found.degraded_answers += content.get("degraded", False)
            await asyncio.sleep(POLL_PAUSE_S)


def _check(answer: httpx.Response, expected: int) -> None:
    if answer.status_code != expected:
        raise SystemFailed(f"{answer.request.url.path}: {answer.status_code} {answer.text[:500]}")


def client_of(system: RunningSystem) -> httpx.AsyncClient:
    """For a prober; close it."""
    return httpx.AsyncClient(base_url=system.connection.gateway_url, timeout=REQUEST_DEADLINE_S)
