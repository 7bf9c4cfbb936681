"""Sends batches to a gateway, several at once, and counts the outcomes.

Every row has an event id, so a batch that is sent again is stored once (ND-1).
"""

import asyncio
import gzip
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol

import msgspec

from analytics_actors.cli.api import NO_GATEWAY, ApiFailure, answer_of
from analytics_actors.cli.failure import Failure
from analytics_actors.cli.load_requests import Requests
from analytics_actors.cli.load_rows import BadRow, Batch

MAX_EXAMPLES = 5
"""Kept of each reason for a rejection."""


class Keys(Protocol):
    """The keys for projects' rows."""

    async def key_of(self, project_id: str) -> str: ...

    def drop(self, project_id: str, key: str) -> bool:
        """Whether there may be another one for the project than this, which the gateway refused."""


class _Result(msgspec.Struct, rename="camel"):
    event_id: str | None
    status: str
    code: str = ""
    message: str = ""
    pointer: str = ""


class _Answer(msgspec.Struct):
    accepted: int
    duplicate: int
    rejected: int
    ack: str
    results: list[_Result]


@dataclass
class Outcome:
    """What became of the rows."""

    accepted: int = 0
    duplicate: int = 0
    rejected: int = 0
    acks: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        return self.accepted + self.duplicate + self.rejected

    def refuse(self, code: str, example: str, *, rows: int = 1) -> None:
        self.rejected += rows
        self.reasons[code] += rows
        examples = self.examples.setdefault(code, [])
        if len(examples) < MAX_EXAMPLES:
            examples.append(example)

    def refuse_unread(self, row: BadRow) -> None:
        self.refuse(row.code, row.where)


class Sender:
    """Policy of a load."""

    def __init__(self, requests: Requests, keys: Keys, outcome: Outcome, *, import_old: bool, compress: bool) -> None:
        self._requests = requests
        self._keys = keys
        self._outcome = outcome
        self._parameters = {"import": "true"} if import_old else {}
        self._headers = {"Content-Type": "application/x-ndjson"} | ({"Content-Encoding": "gzip"} if compress else {})
        self._compress = compress

    async def run(self, batches: Iterable[Batch], *, concurrency: int) -> None:
        """Send all batches. Raises `Failure` when the gateway stays away or refuses the key."""
        # As many wait as are under way: reading stays ahead, memory stays bounded.
        queue: asyncio.Queue[Batch | None] = asyncio.Queue(concurrency)
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(concurrency):
                    group.create_task(self._work(queue))
                for batch in batches:
                    await queue.put(batch)
                for _ in range(concurrency):
                    await queue.put(None)
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from failures

    async def _work(self, queue: "asyncio.Queue[Batch | None]") -> None:
        while (batch := await queue.get()) is not None:
            await self.send(batch)

    async def send(self, batch: Batch) -> None:
        try:
            key = await self._keys.key_of(batch.project_id)
        except ApiFailure as error:
            if error.code != "invalid_body":
                raise
            # The gateway takes no project of that name: its rows are refused, the others are not.
            self._outcome.refuse("invalid_project", f"{batch.project_id}: {error}", rows=len(batch.rows))
            return
        body = b"\n".join(batch.rows)
        if self._compress:
            body = gzip.compress(body, 1)
        try:
            answer = await self._post(body, key)
        except ApiFailure as error:
            if error.code != "invalid_key" or not self._keys.drop(batch.project_id, key):
                raise
            # A key made for this load expires, and a load may take longer. The rows' ids make sending again harmless.
            answer = await self._post(body, await self._keys.key_of(batch.project_id))
        self._count(batch, answer)

    async def _post(self, body: bytes, key: str) -> _Answer:
        headers = self._headers | {"Authorization": f"Bearer {key}"}
        reply = await self._requests.post("/v1/events/batch", body, headers, self._parameters)
        answer_of(reply.status, reply.content)
        try:
            return msgspec.json.decode(reply.content, type=_Answer)
        except msgspec.DecodeError as error:
            raise Failure(NO_GATEWAY) from error

    def _count(self, batch: Batch, answer: _Answer) -> None:
        outcome = self._outcome
        outcome.accepted += answer.accepted
        outcome.duplicate += answer.duplicate
        outcome.acks[answer.ack] += answer.accepted
        for result in answer.results if answer.rejected else ():
            if result.status == "rejected":
                where = f"{batch.project_id} {result.event_id} {result.pointer}".strip()
                outcome.refuse(result.code, f"{where}: {result.message}")
