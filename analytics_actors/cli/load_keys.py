"""Import keys for a load, made with the admin key as projects turn up; projects that are missing are created."""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec

from analytics_actors.cli.api import ApiFailure, answer_of
from analytics_actors.cli.load_requests import Requests

EXPIRES_IN_S = 3600
"""A load's keys end by themselves: there are thousands, and nobody keeps them."""
RENEWED_AFTER_S = EXPIRES_IN_S * 5 / 6
"""A key older than this is not used again: a request with it may take its time."""
MAX_KEYS = 50_000
"""Texts of keys held, about 50 MB. A project that was forgotten gets another key when it turns up again."""


class GivenKey:
    """The one key that the user gave: no other can be had."""

    def __init__(self, key: str) -> None:
        self._key = key

    async def key_of(self, _project_id: str) -> str:
        return self._key

    def drop(self, _project_id: str, _key: str) -> bool:
        return False


class _Kept(NamedTuple):
    made_s: float
    task: asyncio.Task[str]


class ProjectKeys:
    """One import key a project; several tasks may ask for the same one at once. `project_id` is that of rows which
    name none; it is taken to be there."""

    def __init__(
        self,
        requests: Requests,
        admin_key: str,
        *,
        project_id: str = "",
        max_keys: int = MAX_KEYS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._requests = requests
        self._headers = {"Authorization": f"Bearer {admin_key}", "Content-Type": "application/json"}
        self._project_id = project_id
        self._max_keys = max_keys
        self._clock = clock
        self._keys: OrderedDict[str, _Kept] = OrderedDict()
        self._found_last = bool(project_id)
        """A load made again finds every project: asked for as if it were there, each costs one request and not two."""
        self.created_projects = 0

    async def key_of(self, project_id: str) -> str:
        """Raises `ApiFailure` when the project cannot be had."""
        kept = self._keys.get(project_id)
        if kept is None or self._clock() - kept.made_s > RENEWED_AFTER_S:
            task = asyncio.create_task(self._make(project_id or self._project_id))
            kept = self._keys[project_id] = _Kept(self._clock(), task)
            while len(self._keys) > self._max_keys:
                self._keys.popitem(last=False)
        return await asyncio.shield(kept.task)

    def drop(self, project_id: str, key: str) -> bool:
        """The gateway refuses the key: the next one asked for is another. One made meanwhile is kept."""
        kept = self._keys.get(project_id)
        if kept is not None and kept.task.done() and kept.task.exception() is None and kept.task.result() == key:
            del self._keys[project_id]
        return True

    async def _make(self, project_id: str) -> str:
        if self._found_last:
            try:
                return await self._make_for_existing(project_id)
            except ApiFailure as error:
                if error.status != 404:
                    raise
        try:
            return await self._make_with_project(project_id)
        except ApiFailure as error:
            if error.status != 409:
                raise
        return await self._make_for_existing(project_id)

    async def _make_with_project(self, project_id: str) -> str:
        wanted = {"projectId": project_id, "keys": ["import"], "expiresInSeconds": EXPIRES_IN_S}
        answer = await self._post("/v1/projects", wanted)
        self.created_projects += 1
        self._found_last = False
        return str(answer["keys"][0]["key"])

    async def _make_for_existing(self, project_id: str) -> str:
        wanted = {"projectId": project_id, "kind": "import", "expiresInSeconds": EXPIRES_IN_S}
        answer = await self._post("/v1/keys", wanted)
        self._found_last = True
        return str(answer["key"])

    async def _post(self, path: str, body: dict[str, Any]) -> Any:
        reply = await self._requests.post(path, msgspec.json.encode(body), self._headers, {})
        return answer_of(reply.status, reply.content)
