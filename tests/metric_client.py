"""A client that sends events of all ages and asks for their metrics, and the answers that PostgreSQL's rows give."""

import asyncio
import json
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import httpx

from tests.plain_http import AsyncWeb, web
from tests.system import Client

STEPS = {"minute": 60, "5minutes": 300, "hour": 3600, "day": 86400}
COUNTRIES = ("DE", "FR", "ÅL:%")
DEVICES = ("phone", "desktop")

SPENT = {
    "name": "spent",
    "aggregation": "sum",
    "eventTypes": ["load"],
    "property": "properties.amount",
    "dimensions": ["country", "device=context.device.type"],
}

Cells = dict[tuple[int, tuple[str, ...]], Any]
"""Values by bucket (seconds since the epoch) and group."""


class MetricClient(Client):
    """Half of what it sends is of this moment, the rest minutes, hours, and too many hours old for windows."""

    def event(self, event_id: str, n: int) -> dict[str, Any]:
        number = int(event_id[:8], 16)
        event: dict[str, Any] = {
            "eventId": event_id,
            "eventType": ("load", "view", "cart")[number % 3],
            "userId": f"user-{number % 301}",
            "sessionId": f"session-{number % 1999}",
            "properties": {"amount": (number % 10_007) / 100, "country": COUNTRIES[number % 5 % 3]},
            "context": {"device": {"type": DEVICES[number % 7 % 2]}},
        }
        age = age_of(number)
        if age is not None:
            event["timestamp"] = (datetime.now(UTC) - age).isoformat()
        return event

    def create_key(self, kind: str) -> dict[str, str]:
        made = web.post(
            f"{self.system.url}/v1/keys",
            headers=self.admin(),
            json={"projectId": self.project, "kind": kind},
            timeout=10,
        )
        assert made.status_code == 201, made.text
        return {"Authorization": f"Bearer {made.json()['key']}"}

    def send(self, events: list[dict[str, Any]]) -> dict[str, Any]:
        """One request, which must be taken."""
        answer = web.post(
            f"{self.system.url}/v1/events/batch",
            headers={"Authorization": f"Bearer {self.write_key}"},
            json=events,
            timeout=15,
        )
        assert answer.status_code == 202, answer.text
        taken: dict[str, Any] = answer.json()
        assert taken["rejected"] == 0, taken
        return taken

    def define(self, definition: dict[str, Any], *, replace: bool = False, wait: bool = True) -> dict[str, Any]:
        """With `wait` every worker knows it afterwards: they ask once a second."""
        url = f"{self.system.url}/v1/metrics-definitions"
        parameters = {"projectId": self.project}
        if replace:
            name = definition["name"]
            made = web.put(f"{url}/{name}", params=parameters, headers=self.admin(), json=definition, timeout=10)
        else:
            made = web.post(url, params=parameters, headers=self.admin(), json=definition, timeout=10)
        assert made.status_code in (200, 201), made.text
        if wait:
            time.sleep(1.1)
        answer: dict[str, Any] = made.json()
        return answer

    def backfill(self, name: str) -> None:
        url = f"{self.system.url}/v1/metrics-definitions/{name}/backfill"
        started = web.post(url, params={"projectId": self.project}, headers=self.admin(), timeout=30)
        assert started.status_code == 202, started.text

    def ask(self, metric: str, **parameters: Any) -> httpx.Response:
        """Whatever the answer is."""
        wanted = {"projectId": self.project, **parameters}
        return web.get(f"{self.system.url}/v1/metrics/{metric}", params=wanted, headers=self.admin(), timeout=30)

    def metric(self, metric: str, **parameters: Any) -> dict[str, Any]:
        """The answer, its numbers exact."""
        answer = self.ask(metric, **parameters)
        assert answer.status_code == 200, answer.text
        return read_answer(answer)

    def total(self, metric: str = "events", **parameters: Any) -> Any:
        """All buckets of the last hour, or of the range that is given, together. Of counts and sums only."""
        return sum(point["value"] or 0 for point in self.metric(metric, **parameters)["points"])

    async def differences(self, *, hours: int = 72) -> str:
        """Where the metrics of the last hours differ from what PostgreSQL's rows say; empty when nowhere."""
        end = time.time() + 3600
        start = end - hours * 3600
        rows = await self.rows()
        for granularity, step in STEPS.items():
            for metric, group_by, aggregate in QUESTIONS:
                parameters = {"startTime": int(start), "endTime": int(end), "granularity": granularity}
                if group_by:
                    parameters["groupBy"] = ",".join(group_by)
                answer = await asyncio.to_thread(self.metric, metric, **parameters, fill="none")
                found = cells_of(answer, group_by)
                wanted = aggregate(rows, step, group_by)
                if answer["degraded"]:
                    return f"{metric} by {granularity} is degraded: {answer['degradedBecause']}"
                if found != wanted:
                    return f"{metric} by {granularity}, {group_by}: {difference(found, wanted)}"
        return await self.rollup_differences(rows)

    async def rollup_differences(self, rows: list["StoredRow"]) -> str:
        """The same for roll-ups of minutes and hours that have closed: the ones of events by type."""
        closed = time.time() - 60
        for granularity, step in (("minute", 60), ("hour", 3600)):
            stored = await self.system.sql(
                "SELECT extract(epoch FROM \"timestamp\")::bigint AS start, dimensions->>'eventType' AS type, count"
                " FROM metric_aggregates WHERE project_id = $1 AND metric_name = 'events'"
                " AND time_granularity = $2 AND dimensions_hash <> 0",
                self.project,
                granularity,
            )
            found: Cells = {
                (row["start"], (row["type"],)): row["count"] for row in stored if row["start"] + step <= closed
            }
            wanted = {
                key: count for key, count in counts(rows, step, ("eventType",)).items() if key[0] + step <= closed
            }
            if found != wanted:
                return f"roll-ups by {granularity}: {difference(found, wanted)}"
        return ""

    async def settle_metrics(self, *, deadline_s: float = 40.0) -> float:
        """Wait until there are no differences any more; how long that took."""
        began = time.monotonic()
        while True:
            differs = await self.differences()
            waited_s = time.monotonic() - began
            if not differs:
                return waited_s
            assert waited_s < deadline_s, f"{differs}\n{self.system.aggregators()}"
            await asyncio.sleep(0.5)

    async def rows(self) -> list["StoredRow"]:
        stored = await self.system.sql(
            'SELECT floor(extract(epoch FROM "timestamp"))::bigint AS second, event_type, user_id, session_id,'
            " properties->>'amount' AS amount, properties->>'country' AS country,"
            " context->'device'->>'type' AS device FROM events_log WHERE project_id = $1",
            self.project,
        )
        return [StoredRow(*row) for row in stored]


def age_of(number: int) -> timedelta | None:
    """None: the server takes the time of receipt. At 23 hours lies the seam: for five minutes an event that is too late
    for windows is counted only when its hour is answered from roll-ups."""
    part = number // 3 % 8
    if part == 4:
        return timedelta(seconds=number % 900)
    if part == 5:
        return timedelta(minutes=number % (20 * 60))
    if part == 6:
        return timedelta(hours=25, minutes=number % (20 * 60))
    return None


@dataclass(frozen=True)
class StoredRow:
    second: int
    event_type: str
    user_id: str
    session_id: str
    amount: str
    country: str
    device: str

    def group(self, names: tuple[str, ...]) -> tuple[str, ...]:
        values = {"eventType": self.event_type, "country": self.country, "device": self.device}
        return tuple(values[name] for name in names)


def counts(rows: list[StoredRow], step: int, group_by: tuple[str, ...]) -> Cells:
    return dict(Counter((row.second // step * step, row.group(group_by)) for row in rows))


def uniques(rows: list[StoredRow], step: int, group_by: tuple[str, ...]) -> Cells:
    users = defaultdict(set)
    for row in rows:
        users[row.second // step * step, row.group(group_by)].add(row.user_id)
    return {key: len(found) for key, found in users.items()}


def sums(rows: list[StoredRow], step: int, group_by: tuple[str, ...]) -> Cells:
    totals: Cells = defaultdict(Decimal)
    for row in rows:
        if row.event_type == "load":
            totals[row.second // step * step, row.group(group_by)] += Decimal(row.amount)
    return dict(totals)


QUESTIONS: list[tuple[str, tuple[str, ...], Any]] = [
    ("events", (), counts),
    ("events", ("eventType",), counts),
    ("unique_users", (), uniques),
    ("spent", (), sums),
    ("spent", ("country", "device"), sums),
    ("spent", ("device",), sums),
]
"""Metrics, how they are grouped, and how the same is counted from rows."""


def read_answer(answer: httpx.Response) -> dict[str, Any]:
    decoded: dict[str, Any] = json.loads(answer.content, parse_float=Decimal)
    return {"degraded": False, "degradedBecause": None} | decoded


def cells_of(answer: dict[str, Any], group_by: tuple[str, ...] = ()) -> Cells:
    return {
        (seconds(point["timestamp"]), tuple(point["dimensions"][name] for name in group_by)): point["value"]
        for point in answer["points"]
    }


def seconds(text: str) -> int:
    return int(datetime.fromisoformat(text).timestamp())


def difference(found: Cells, wanted: Cells) -> str:
    keys = [key for key in sorted(found.keys() | wanted.keys()) if found.get(key) != wanted.get(key)]
    told = [f"{datetime.fromtimestamp(k[0], UTC)} {k[1]}: {found.get(k)}, not {wanted.get(k)}" for k in keys[:5]]
    totals = f"{sum(found.values())} in all, not {sum(wanted.values())}"
    return f"{len(keys)} of {len(wanted)} cells differ ({totals}): " + "; ".join(told)


@dataclass
class Onlooker:
    """Asks for the same count again and again, and remembers when it went down. One that does not keep its connection
    is answered now by one worker, now by another."""

    client: MetricClient
    metric: str = "events"
    parameters: dict[str, Any] = field(default_factory=dict)
    keeps_connection: bool = True
    answers: int = 0
    degraded: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    value: int = 0
    falls: list[str] = field(default_factory=list)

    async def run(self) -> None:
        """Until cancelled."""
        now = time.time()
        wanted = {
            "projectId": self.client.project,
            "startTime": int(now - 60 * 3600),
            "endTime": int(now + 3600),
            "granularity": "hour",
            **self.parameters,
        }
        limits = httpx.Limits(max_keepalive_connections=1 if self.keeps_connection else 0)
        async with AsyncWeb(timeout=15, headers=self.client.admin(), limits=limits) as http:
            while True:
                try:
                    answer = await http.get(f"{self.client.system.url}/v1/metrics/{self.metric}", params=wanted)
                    answer.raise_for_status()
                except httpx.HTTPError as error:
                    status = error.response.status_code if isinstance(error, httpx.HTTPStatusError) else ""
                    self.failures[f"{type(error).__name__} {status}"] += 1
                else:
                    self._take(read_answer(answer))
                await asyncio.sleep(0.2)

    def _take(self, answer: dict[str, Any]) -> None:
        self.answers += 1
        if answer["degraded"]:
            self.degraded[answer["degradedBecause"]] += 1
        value = sum(point["value"] for point in answer["points"])
        if value < self.value:
            because = answer["degradedBecause"] or "from " + ", ".join(s["source"] for s in answer["sources"])
            self.falls.append(f"{self.value} → {value} ({because})")
        self.value = value
