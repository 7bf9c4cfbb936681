"""The controller's view of Ray: batcher actors found, made, probed and killed by name."""

from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError

from analytics_actors.actors import BATCHER_OPTIONS, BatcherActor, decode_view
from analytics_actors.messages import BatcherView, batcher_name
from config.settings import Settings

_NAME_PREFIX = batcher_name(0).removesuffix("0")


class RayBatcher:
    """`BatcherHandle` of a Ray actor."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor
        self._ready: Any = None

    def probe(self, *, deadline_s: float) -> BatcherView | None:
        """None also while Ray restarts the actor."""
        try:
            self._keep_ready(deadline_s)
            return decode_view(ray.get(self._actor.observe.remote(), timeout=deadline_s))
        except GetTimeoutError as error:
            raise TimeoutError(f"{self._actor} did not answer within {deadline_s} s") from error
        except RayActorError:
            return None

    def _keep_ready(self, deadline_s: float) -> None:
        """The actor's loops start with its first call, so make one; never more than one that waits."""
        if self._ready is not None:
            done, _ = ray.wait([self._ready], timeout=0)
            if not done:
                return
        self._ready = self._actor.ready.remote()
        ray.wait([self._ready], timeout=deadline_s)

    def kill(self) -> None:
        ray.kill(self._actor, no_restart=True)


class RayFleet:
    """`Fleet` of detached actors in the current namespace."""

    def __init__(self, settings: Settings) -> None:
        self._settings_json = settings.to_json()
        self._actor_class = ray.remote(**BATCHER_OPTIONS)(BatcherActor)
        self._handles: dict[int, RayBatcher] = {}

    def shards(self) -> list[int]:
        names = ray.util.list_named_actors()
        return [int(name.removeprefix(_NAME_PREFIX)) for name in names if name.startswith(_NAME_PREFIX)]

    def get_or_create(self, shard: int) -> RayBatcher:
        if shard not in self.shards() or shard not in self._handles:
            named = self._actor_class.options(name=batcher_name(shard), get_if_exists=True, lifetime="detached")
            actor = named.remote(shard, self._settings_json)
            self._handles[shard] = RayBatcher(actor)
        return self._handles[shard]
