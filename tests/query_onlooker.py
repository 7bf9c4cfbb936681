"""Somebody who counts a project's events by SQL, again and again, while they arrive and move from place to place."""

import asyncio
from dataclasses import dataclass

import httpx

from tests.plain_http import AsyncWeb
from tests.system import Client

_COUNT = {"sql": "SELECT count(*), count(DISTINCT event_id) FROM events", "strict": True}


@dataclass
class QueryOnlooker:
    """Each answer has each event once, no fewer than the one before, and none that was not sent."""

    client: Client
    answers: int = 0
    count: int = 0
    files: int = 0
    """How many the last answer was read from."""
    steps: int = 0
    """How many answers had more than the one before."""

    async def run_until(self, over: asyncio.Event) -> None:
        async with AsyncWeb(base_url=self.client.system.url, timeout=60) as http:
            while not over.is_set():
                await self.ask(http)
                # Each query is a process of its own: without a pause it would be a core's work.
                await asyncio.sleep(0.5)

    async def ask(self, http: httpx.AsyncClient) -> None:
        url = f"/v1/query?projectId={self.client.project}"
        answer = await http.post(url, json=_COUNT, headers=self.client.admin())
        assert answer.status_code == 200, answer.text
        found = answer.json()
        [[count, distinct]] = found["rows"]
        assert count == distinct, "an event is there twice"
        assert count >= self.count, "an event has gone"
        assert count <= len(self.client.sent), "an event is there that was never sent"
        self.steps += count > self.count
        self.answers += 1
        self.count, self.files = count, found["files"]

    async def check_complete(self) -> None:
        """Now, when nothing is on its way, it finds exactly what is stored."""
        async with AsyncWeb(base_url=self.client.system.url, timeout=60) as http:
            await self.ask(http)
        assert self.count == sum((await self.client.stored()).values()) >= len(self.client.acknowledged)
