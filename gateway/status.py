"""The system seen from one gateway worker: shards through the controller, spool and services by asking them.

Nothing here raises for a part that is down, or waits longer than `PROBE_DEADLINE_S` for it.
"""

import asyncio
import os
import time
from collections import Counter
from collections.abc import Awaitable
from typing import Any, Protocol

import msgspec

from analytics_actors.messages import CONTROLLER_NAME, batcher_name
from analytics_actors.ring import HashRing
from config.settings import Settings
from gateway.batching import batching_of
from gateway.ingest import GatewayIngest
from gateway.ray_link import RayLink
from gateway.services import Pending, PendingHour, Place, Readiness
from gateway.shard_stream import LinkError
from gateway.spooler import Spooler
from gateway.worker_rows import WorkerRows
from storage.errors import StorageError
from storage.fingerprint import partition_of

PROBE_DEADLINE_S = 2.0


class Service(Protocol):
    """Something that can say whether it is well."""

    async def check(self) -> None:
        """Raises `StorageError` when it is not."""


class WorkerStatus:
    """`gateway.services.Status` of one worker."""

    def __init__(
        self,
        settings: Settings,
        link: RayLink,
        ingest: GatewayIngest,
        spooler: Spooler,
        *,
        postgres: Service,
        log: Service,
        worker: int,
        workers: WorkerRows,
    ) -> None:
        self._link = link
        self._ingest = ingest
        self._spooler = spooler
        self._services = {"postgres": postgres, "log": log}
        self._worker = worker
        self._workers = workers
        self._started_s = time.time()
        self._partitions = settings.log.partitions
        self._ring = HashRing(range(settings.actors.shards), partitions=self._partitions)

    async def snapshot(self) -> dict[str, Any]:
        """`gateways` (the workers of this machine) and its `spools`, `shards`, `lakeKeeper` and `batch` (the driver of
        batch jobs) as the controller sees them, `services`, and `batching` (`gateway.batching`)."""
        shards, keeper, batch, parts, spools = await asyncio.gather(
            self._shards(), self._one("keeper"), self._one("batch"), self._parts(), self._spools()
        )
        return {
            "gateways": self._gateways(),
            "spools": spools,
            "shards": shards,
            "lakeKeeper": keeper,
            "batch": batch,
            "services": parts,
            "batching": msgspec.to_builtins(batching_of(shards)),
        }

    def _gateways(self) -> list[dict[str, Any]]:
        self.tell()
        return self._workers.rows()

    def tell(self) -> None:
        """What the other workers answer of this one."""
        self._workers.tell(
            {
                "worker": self._worker,
                "pid": os.getpid(),
                "uptimeSeconds": round(time.time() - self._started_s),
                "inflightBytes": self._ingest.inflight_bytes,
                "lanes": self._spooler.modes,
            }
        )

    async def _spools(self) -> list[dict[str, Any]]:
        try:
            depths = await self._spooler.depths()
        except StorageError as error:
            return [{"spool": "unreadable", "batches": 0, "bytes": 0, "damaged": 0, "trouble": str(error)}]
        return [{"spool": name} | depth._asdict() for name, depth in depths.items()]

    async def _shards(self) -> list[dict[str, Any]]:
        try:
            shards: list[dict[str, Any]] = await self._link.ask(CONTROLLER_NAME, "status", deadline_s=PROBE_DEADLINE_S)
        except LinkError:
            return []
        return shards

    async def _one(self, question: str) -> dict[str, Any] | None:
        """Of what there is one of."""
        try:
            answer: dict[str, Any] | None = await self._link.ask(CONTROLLER_NAME, question, deadline_s=PROBE_DEADLINE_S)
        except LinkError:
            return None
        return answer

    async def _parts(self) -> dict[str, str]:
        names = [*self._services, "ray"]
        states = await asyncio.gather(*(_state(service.check()) for service in self._services.values()), self._ray())
        return dict(zip(names, states, strict=True))

    async def _ray(self) -> str:
        try:
            ready = await self._link.ask(CONTROLLER_NAME, "ready", deadline_s=PROBE_DEADLINE_S)
        except LinkError as error:
            return str(error)
        return "ok" if ready else "shards are opening"

    async def readiness(self) -> Readiness:
        """Events are taken as long as the log or the spool takes them."""
        # Anybody may ask: what exactly is wrong, and where, stands in the snapshot and the log.
        parts = {name: state if state == "ok" else "unavailable" for name, state in (await self._parts()).items()}
        room = self._spooler.has_room
        parts["spool"] = "ok" if room else "full"
        return Readiness(accepting=room or (parts["log"] == "ok" and parts["ray"] == "ok"), parts=parts)

    async def trace(self, project_id: str, event_id: str) -> Place:
        try:
            known = await self._link.ask(
                self._owner_of(project_id), "knows", project_id, event_id, deadline_s=PROBE_DEADLINE_S
            )
        except LinkError:
            known = False
        if known:
            return "log"
        try:
            return "spool" if await self._spooler.holds(project_id, event_id) else "unknown"
        except StorageError:
            return "unknown"

    async def pending(self, project_id: str) -> Pending:
        complete = True
        try:
            events, rejected = await self._spooler.counts_of(project_id)
        except StorageError:
            events, rejected, complete = Counter(), Counter(), False
        try:
            rows = await self._link.ask(
                self._owner_of(project_id), "pending_of", project_id, deadline_s=PROBE_DEADLINE_S
            )
        except LinkError:
            rows, complete = [], False
        for hour, logged, refused in rows:
            events[hour] += logged
            rejected[hour] += refused
        hours = {hour: PendingHour(events[hour], rejected[hour]) for hour in events.keys() | rejected.keys()}
        return Pending(hours, complete)

    def _owner_of(self, project_id: str) -> str:
        return batcher_name(self._ring.shard_of[partition_of(project_id, self._partitions)])


async def _state(check: Awaitable[None]) -> str:
    try:
        await asyncio.wait_for(check, PROBE_DEADLINE_S)
    except StorageError as error:
        return str(error)
    except TimeoutError:
        return f"no answer within {PROBE_DEADLINE_S} s"
    return "ok"
