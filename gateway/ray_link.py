"""The gateway's way to the actors: joined in the background, found by name, every call with a deadline.

Questions are Ray calls; events travel over a connection of their own to each batcher, whose address Ray tells
(`gateway.shard_stream`). The HTTP port is open before Ray is joined, and stays open when Ray goes away: until a
call gets through the caller keeps its batches in the spool. Errors of Ray do not leave this module: they become
`LinkError`.
"""

import asyncio
import logging
import threading
import time
from typing import Any

import msgspec

from analytics_actors.append_stream import APPEND, WAIT_STORED, Endpoint
from analytics_actors.messages import CONTROLLER_NAME, NOT_OWNER, AppendReply, batcher_name, decode_replies
from config.settings import Settings
from gateway.shard_stream import LinkError, ShardStream

JOIN_RETRY_S = 1.0
ACTORS_RETRY_S = 0.2
FIRST_CALL_DEADLINE_S = 5.0
LOCATE_DEADLINE_S = 2.0

_log = logging.getLogger(__name__)


class RayLink:
    """One per worker process. `start` once; the other methods are called from the event loop."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._joined = threading.Event()
        self._stopped = threading.Event()
        self._actors: dict[str, Any] = {}
        self._streams: dict[int, ShardStream] = {}

    @property
    def joined(self) -> bool:
        return self._joined.is_set()

    def start(self) -> None:
        threading.Thread(target=self._join, name="ray-join", daemon=True).start()

    def stop(self) -> None:
        """Leave the cluster; at most once, at the very end."""
        self._stopped.set()
        for stream in self._streams.values():
            stream.close()
        if self._joined.is_set():
            import ray

            ray.shutdown()

    def _join(self) -> None:
        # Importing Ray takes a second of CPU: the port is already open then.
        from analytics_actors.ray_driver import join

        while not self._stopped.is_set():
            try:
                join(self._settings)
            except Exception as error:
                _log.warning("ray cannot be joined yet", extra={"action": "ray_join_failed", "error": str(error)})
                self._stopped.wait(JOIN_RETRY_S)
            else:
                break
        self._call_once()
        _log.info("ray is joined", extra={"action": "ray_joined"})
        self._joined.set()

    def _call_once(self) -> None:
        """Ray imports for a second at a driver's first call: not in the event loop, then."""
        import ray

        while not self._stopped.is_set():
            try:
                controller: Any = ray.get_actor(CONTROLLER_NAME, self._settings.actors.namespace)
                ray.get(controller.ready.remote(), timeout=FIRST_CALL_DEADLINE_S)
            except (ValueError, ray.exceptions.RayError):
                # The actors are started when Ray is there, and may be on their way.
                self._stopped.wait(ACTORS_RETRY_S)
            else:
                return

    async def append(self, shard: int, raw: bytes, *, deadline_s: float) -> list[AppendReply]:
        """Append encoded batches; a reply each. Raises `LinkError`."""
        stream = self._stream(shard)
        replies = decode_replies(await stream.call(APPEND, raw, deadline_s=deadline_s))
        if any(reply.status == NOT_OWNER for reply in replies):
            # A batcher of the past may live on: Ray knows who is the one of today.
            stream.close()
        return replies

    async def wait_stored(self, shard: int, partition: int, offset: int, *, deadline_s: float) -> bool:
        """Whether the record was in the event store in time."""
        question = msgspec.msgpack.encode((partition, offset, deadline_s))
        answer = await self._stream(shard).call(WAIT_STORED, question, deadline_s=deadline_s + 1.0)
        return msgspec.msgpack.decode(answer, type=bool)

    def _stream(self, shard: int) -> ShardStream:
        if shard not in self._streams:
            self._streams[shard] = ShardStream(lambda: self._locate(shard))
        return self._streams[shard]

    async def _locate(self, shard: int) -> Endpoint:
        return Endpoint(*await self._call(batcher_name(shard), "endpoint", deadline_s=LOCATE_DEADLINE_S))

    async def ask(self, actor: str, method: str, *arguments: Any, deadline_s: float) -> Any:
        """A question to an actor."""
        return await self._call(actor, method, *arguments, deadline_s=deadline_s)

    async def _call(self, name: str, method: str, *arguments: Any, deadline_s: float) -> Any:
        if not self._joined.is_set():
            raise LinkError("ray is not joined yet")
        from ray.exceptions import RayError

        until = time.monotonic() + deadline_s
        try:
            actor = self._actors.get(name) or await self._find(name, deadline_s=deadline_s)
            reference = getattr(actor, method).remote(*arguments)
            # The future of the reference, not the reference: awaiting references leaks (ray#45895).
            answer = asyncio.wrap_future(reference.future())
            try:
                done, _ = await asyncio.wait([answer], timeout=max(0.0, until - time.monotonic()))
                if not done:
                    raise LinkError(f"{name}.{method} did not answer within {deadline_s} s")
                return answer.result()
            finally:
                # Whoever asked may be gone: an error that comes later would be nobody's, and asyncio logs such.
                answer.cancel()
        except RayError as error:
            self._actors.pop(name, None)
            raise LinkError(f"{name}.{method}: {type(error).__name__}: {error}") from error

    async def _find(self, name: str, *, deadline_s: float) -> Any:
        import ray

        loop = asyncio.get_running_loop()
        looking_up = loop.run_in_executor(None, lambda: ray.get_actor(name, self._settings.actors.namespace))
        try:
            actor = await asyncio.wait_for(asyncio.shield(looking_up), deadline_s)
        except (ValueError, TimeoutError) as error:
            raise LinkError(f"no actor {name}: {error}") from error
        self._actors[name] = actor
        return actor
